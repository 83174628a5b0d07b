"""Measure `onnxcam compare`: false alarms over retrainings, and what it finds of planted shifts: compare.md.

OMP_NUM_THREADS=1 python benchmarks/retrainings.py NETS --count 150 --first 2075
OMP_NUM_THREADS=1 python benchmarks/retrainings.py NETS --count 80 --marked 100 --first 5000
OMP_NUM_THREADS=1 python benchmarks/compare.py alarms NETS         # over ordered pairs of retrainings
OMP_NUM_THREADS=1 python benchmarks/compare.py shortcut NETS 80    # draws; each has another network as NEW
OMP_NUM_THREADS=1 python benchmarks/compare.py forms NETS FOLDER   # int8 with one bad layer, preprocessing mistakes
OMP_NUM_THREADS=1 python benchmarks/compare.py cost                # in a quiet window

With `--data fashion_mnist` at the end, as of retrainings.py, on Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
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
from onnxcam.diagnose.shift.gathering import TILES, Gathering, tiles
from onnxcam.diagnose.shift.null import Seeds
from onnxcam.diagnose.shift.side import Side
from onnxcam.diagnose.shift.verdict import judge_retraining

PICTURES, DRAWS = 100, 30
COMPARISONS = (9600, 24_000)  # at least and at most about, to measure a rate of false alarms


def explainers(paths: list[Path]) -> list[Explainer]:
    return [Explainer(path, preprocess="0..1", providers=["CPUExecutionProvider"], probe=False) for path in paths]


def maps(explainer: Explainer, batch: np.ndarray, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The classes explained, and the maps as distributions of energy."""
    side = Side(explainer, explainer.layers[-1], "hirescam", "a training")
    run = side.run(batch, (), [""] * len(batch), None if targets is None else targets.tolist())
    return run.targets, shares(run.maps)


@dataclass(frozen=True)
class Maps:
    """What trainings' maps of the same pictures say of each pair, for every class that one of them predicts.

    Attributes:
        distances: `[class, training, training, picture]`, of each picture's first, second, ... such class.
        energy: in tiles, `[class, training, picture, tile]`.
        predicted: which of them a training predicts, `[training, picture]`.
    """

    distances: np.ndarray
    energy: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, networks: list[Explainer], batch: np.ndarray) -> Maps:
        tops = np.stack([maps(network, batch)[0] for network in networks])
        classes = [np.unique(column) for column in tops.T]
        predicted = np.stack([np.searchsorted(some, column) for some, column in zip(classes, tops.T, strict=True)], 1)
        most, count = predicted.max() + 1, len(networks)
        apart = np.zeros((most, count, count, len(batch)), np.float32)
        energy = np.zeros((most, count, len(batch), TILES * TILES), np.float32)
        for k in range(most):
            targets = np.array([some[min(k, len(some) - 1)] for some in classes])
            planes = [maps(network, batch, targets)[1] for network in networks]
            for a in range(count):
                energy[k, a] = tiles(planes[a])
                for b in range(a):
                    apart[k, a, b] = apart[k, b, a] = distances(planes[a], planes[b])
        return cls(apart, energy, predicted)

    def moved(self, group: list[int], pictures: np.ndarray) -> bool:
        """The verdict on the second of a group of trainings: OLD, NEW, and the others."""
        classes = self.predicted[group[0], pictures]
        places = np.array(group)
        means = self.distances[classes, places[:, None, None], places[:, None], pictures].mean(axis=-1, dtype=float)
        gathering = Gathering(len(group))
        gathering.add(self.energy[classes, places[:, None], pictures].astype(np.float64))
        return judge_retraining(means, gathering.strengths(range(len(group)))).moved


def false_alarms(table: Maps, seeds: int, rng: np.random.Generator) -> dict[str, Any]:
    """The rate over ordered pairs of all networks, and its interval by leaving out one network at a time.

    Each pair is compared several times where they are few, and a part of them, drawn by chance, where they are many.

    Comparisons that share a network are dependent, and the delete-one jackknife over networks says how much.
    """
    count, total = table.predicted.shape
    rows: list[tuple[list[int], bool]] = []
    pairs = count * (count - 1)
    repeats, share = -(-COMPARISONS[0] // pairs), min(1.0, COMPARISONS[1] / pairs)
    for old in range(count):
        for new in range(count):
            for _ in range(repeats if old != new and rng.random() < share else 0):
                rest = [k for k in range(count) if k not in (old, new)]
                group = [old, new, *rng.choice(rest, seeds, replace=False).tolist()]
                rows.append((group, table.moved(group, rng.choice(total, PICTURES, replace=False))))
    alarms = np.array([moved for _, moved in rows])
    inside = np.zeros((len(rows), count), bool)
    for row, (group, _) in enumerate(rows):
        inside[row, group] = True
    rate, error = float(alarms.mean()), 0.0
    if seeds + 2 <= count / 2:
        without = np.array([alarms[~inside[:, k]].mean() for k in range(count)])
        error = float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
    return {
        "networks": count,
        "seeds": seeds,
        "comparisons": len(rows),
        "rate": rate,
        "interval": [rate - 1.96 * error, rate + 1.96 * error],
    }


def alarms(folder: Path, data: str = "mnist") -> None:
    """False alarms over the ordered pairs of all retrainings, in which nothing but the seed differs."""
    pixels = retrainings.pictures(data).test[0]
    rng = np.random.default_rng(1234)
    batch = pixels[np.sort(rng.permutation(len(pixels))[:300]), None].astype(np.float32) / 255
    paths = sorted(folder.glob("seed_*.onnx"))
    table = Maps.of(explainers(paths), batch)
    for seeds in (5, 10, 23):
        print(json.dumps(false_alarms(table, seeds, rng)), flush=True)


def shortcut(folder: Path, draws: int = DRAWS, data: str = "mnist") -> None:
    """A mark that gave a class away in 100 training pictures: every draw has another network as NEW, others as null.

    The pictures are the 100 of the class that no network was trained on, all marked.
    """
    pixels, classes = retrainings.pictures(data).test
    pictures = list(retrainings.marked(pixels[classes == retrainings.MARKED_CLASS]))
    plain = explainers(sorted(folder.glob("seed_*.onnx")))
    planted = explainers(sorted(folder.glob("shortcut_*.onnx"))[:draws])
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("alarms", "shortcut", "forms", "cost"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--data", default="mnist", choices=("mnist", "fashion_mnist"))
    options = parser.parse_args()
    if options.what == "cost":
        cost(*map(int, options.arguments))
    elif options.what == "forms":
        forms(*map(Path, options.arguments))
    elif options.what == "alarms":
        alarms(Path(options.arguments[0]), options.data)
    else:
        shortcut(Path(options.arguments[0]), *map(int, options.arguments[1:]), data=options.data)


if __name__ == "__main__":
    main()
