"""Measure `onnxcam compare`: false alarms over retrainings, and what it finds of planted shifts. Writes compare.md.

OMP_NUM_THREADS=1 python benchmarks/retrainings.py NETS --count 50
OMP_NUM_THREADS=1 python benchmarks/retrainings.py NETS --count 30 --marked 100 --first 1000
OMP_NUM_THREADS=1 python benchmarks/compare.py alarms NETS         # over ordered pairs of 25 retrainings
OMP_NUM_THREADS=1 python benchmarks/compare.py shortcut NETS       # 30 draws
OMP_NUM_THREADS=1 python benchmarks/compare.py forms NETS FOLDER   # int8 with one bad layer, preprocessing mistakes
OMP_NUM_THREADS=1 python benchmarks/compare.py cost                # in a quiet window
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import retrainings

from onnxcam import Explainer, models
from onnxcam.diagnose.shift import compare
from onnxcam.diagnose.shift.blame import blame
from onnxcam.diagnose.shift.conditions import Condition
from onnxcam.diagnose.shift.distance import distances, shares
from onnxcam.diagnose.shift.null import Seeds
from onnxcam.diagnose.shift.side import Side
from onnxcam.diagnose.shift.verdict import judge_retraining

NETWORKS, PICTURES, DRAWS = 25, 100, 30


def explainers(paths: list[Path]) -> list[Explainer]:
    return [Explainer(path, preprocess="0..1", providers=["CPUExecutionProvider"], probe=False) for path in paths]


def maps(explainer: Explainer, batch: np.ndarray, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The classes explained, and the maps as distributions of energy."""
    side = Side(explainer, explainer.layers[-1], "hirescam", "a training")
    run = side.run(batch, (), [""] * len(batch), None if targets is None else targets.tolist())
    return run.targets, shares(run.maps)


def pair_distances(networks: list[Explainer], batch: np.ndarray) -> np.ndarray:
    """Distances `[OLD, network, network, picture]`, each by maps of the class that OLD predicts."""
    count = len(networks)
    result = np.zeros((count, count, count, len(batch)), np.float32)
    for old, explainer in enumerate(networks):
        targets, _ = maps(explainer, batch)
        planes = [maps(network, batch, targets)[1] for network in networks]
        for a in range(count):
            for b in range(a):
                result[old, a, b] = result[old, b, a] = distances(planes[a], planes[b])
    return result


def false_alarms(table: np.ndarray, seeds: int, repeats: int, rng: np.random.Generator) -> dict[str, Any]:
    """The rate over ordered pairs of all networks, and its interval by leaving out one network at a time.

    Comparisons that share a network are dependent, and the delete-one jackknife over networks says how much.
    """
    count = len(table)
    rows: list[tuple[frozenset[int], bool]] = []
    for old in range(count):
        for new in range(count):
            for _ in range(repeats if old != new else 0):
                rest = [k for k in range(count) if k not in (old, new)]
                group = [old, new, *rng.choice(rest, seeds, replace=False).tolist()]
                pictures = rng.choice(table.shape[-1], PICTURES, replace=False)
                means = table[old][np.ix_(group, group, pictures)].mean(axis=-1).astype(np.float64)
                rows.append((frozenset(group), judge_retraining(means).moved))
    rate = float(np.mean([moved for _, moved in rows]))
    without = [np.mean([moved for group, moved in rows if k not in group]) for k in range(count)] if seeds < 15 else []
    error = (
        float(np.sqrt((count - 1) / count * np.square(np.array(without) - np.mean(without)).sum())) if without else 0
    )
    return {
        "seeds": seeds,
        "comparisons": len(rows),
        "rate": rate,
        "interval": [rate - 1.96 * error, rate + 1.96 * error],
    }


def alarms(folder: Path) -> None:
    """False alarms over the ordered pairs of 25 retrainings, in which nothing but the seed differs."""
    data = retrainings.classroom().load("mnist").test[0]
    rng = np.random.default_rng(1234)
    batch = data[np.sort(rng.permutation(len(data))[:300]), None].astype(np.float32) / 255
    paths = sorted(folder.glob("seed_*.onnx"))
    for group in range(len(paths) // NETWORKS):
        table = pair_distances(explainers(paths[group * NETWORKS : (group + 1) * NETWORKS]), batch)
        for seeds in (5, 10, 23):
            print(json.dumps({"group": group} | false_alarms(table, seeds, 4, rng)), flush=True)


def shortcut(folder: Path) -> None:
    """A mark that gave a class away in 100 training pictures: 30 networks, each with other trainings as the null.

    The pictures are the 100 of the class that no network was trained on, all marked.
    """
    pixels, classes = retrainings.classroom().load("mnist").test
    pictures = list(retrainings.marked(pixels[classes == retrainings.MARKED_CLASS]))
    plain = explainers(sorted(folder.glob("seed_*.onnx")))
    planted = explainers(sorted(folder.glob("shortcut_*.onnx"))[:DRAWS])
    for seeds in (5, 10, 24):
        rng = np.random.default_rng(1234)
        hits = 0
        for new in planted:
            group = [plain[k] for k in rng.choice(len(plain), seeds + 1, replace=False)]
            shift = compare(
                group[0], new, pictures, null=Seeds(group[1:]), truth=[retrainings.MARKED_CLASS] * len(pictures)
            )
            assert shift.verdict is not None
            hits += shift.verdict.moved
        print(json.dumps({"planted": "shortcut", "seeds": seeds, "hits": hits, "draws": len(planted)}), flush=True)


def quantized(path: Path, folder: Path, pictures: np.ndarray, *, bad: bool) -> Path:
    """The network in int8 (QDQ), with `bad` the scale of the first layer's activations six times too small."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(pictures[:, None, None].astype(np.float32) / 255)

        def get_next(self) -> dict[str, Any] | None:
            tensor = next(self.left, None)
            return None if tensor is None else {"picture": tensor}

    target = folder / f"{path.stem}.{'bad' if bad else 'int8'}.onnx"
    quantize_static(
        str(path), str(target), Pictures(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    if bad:
        model = onnx.load(target)
        for value in model.graph.initializer:
            if value.name == "relu1_scale" or value.name == "pool1_scale":
                value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) / np.float32(6), value.name))
        onnx.save(model, target)
    return target


def forms(folder: Path, output: Path) -> None:
    """The same training in another form, against 8 small changes of each picture: sound int8, and planted mistakes."""
    output.mkdir(parents=True, exist_ok=True)
    pixels, _ = retrainings.classroom().load("mnist").test
    calibration = retrainings.classroom().load("mnist").train[0][:100]
    paths = sorted(folder.glob("seed_*.onnx"))[:DRAWS]
    hits: Counter[str] = Counter()
    rng = np.random.default_rng(1234)

    def count(name: str, new: Explainer, old: Explainer, pictures: list[np.ndarray]) -> None:
        shift = compare(old, new, pictures, null="augment:8")
        hits[f"{name}: attention"] += Condition.parse("attention").outcome(shift).failed
        hits[f"{name}: preprocessing"] += Condition.parse("preprocessing").outcome(shift).failed

    for path in paths:
        old = explainers([path])[0]
        pictures = list(pixels[rng.choice(len(pixels), PICTURES, replace=False)])
        mean = {"color": "L", "scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
        scale = {"color": "L", "scale": 1.0, "mean": [0.0], "std": [1.0]}
        candidates: dict[str, Any] = {
            "the file itself": path,
            "int8": quantized(path, output, calibration, bad=False),
            "int8, one bad layer": quantized(path, output, calibration, bad=True),
        }
        for name, source in candidates.items():
            new = Explainer(source, preprocess="0..1", providers=["CPUExecutionProvider"], probe=False)
            count(name, new, old, pictures)
            first = blame(old, new, pictures).first
            pair = first is not None and first.part == "activation pair" and re.search("relu1|pool1", first.node)
            hits[f"{name}: blamed on the first layer's pair"] += bool(pair)
            hits[f"{name}: blamed on something"] += first is not None
        for name, spec in (("wrong mean and deviation", mean), ("wrong scale", scale)):
            new = Explainer(path, preprocess=spec, providers=["CPUExecutionProvider"], probe=False)
            count(name, new, old, pictures)
    for name, number in hits.items():
        print(json.dumps({"planted": name, "hits": number, "draws": len(paths)}), flush=True)


def cost(count: int = 64, augmentations: int = 4, rounds: int = 5) -> None:
    """The time of a comparison against predicting with both files, on pictures that are decoded by both alike."""
    pictures = [models.path(name) for name in ("cat.png", "coffee.png", "cat_and_coffee.png")] * (count // 3)
    old, new = (Explainer(models.path(models.MODEL), providers=["CPUExecutionProvider"]) for _ in range(2))

    def predict() -> None:
        for explainer in (old, new):
            for start in range(0, len(pictures), 8):
                batch = [explainer.prepare(picture)[1] for picture in pictures[start : start + 8]]
                explainer.predict(np.concatenate(batch))

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    ways = {
        "predict with both": predict,
        "compare": lambda: compare(old, new, pictures),
        f"compare, augment:{augmentations}": lambda: compare(old, new, pictures, null=f"augment:{augmentations}"),
    }
    for work in ways.values():
        work()
    times = {name: sorted(seconds(work) for _ in range(rounds))[rounds // 2] for name, work in ways.items()}
    base = times["predict with both"]
    for name, value in times.items():
        print(f"{name:<24} {value / len(pictures) * 1000:7.2f} ms a picture, {value / base:.3f} x")
    print(f"allowed: 1.15 x, and {1.15 * (1 + augmentations):.2f} x")


def main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    actions = {"alarms": alarms, "shortcut": shortcut, "forms": forms}
    if name == "cost":
        cost(*map(int, rest))
    elif name in actions:
        actions[name](*map(Path, rest))
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
