"""Measure what a file that takes pixels costs, and hold it to `Explainer`.

    python benchmarks/pixels.py [--models efficientnet_lite0 resnet50] [--rounds 40] [--pictures 200] [--write]

Files of one model are run on one picture of 640 x 480, round by round, in turns: the model alone and the explainable
file, which take the prepared tensor, and the file that takes the picture; `Explainer` prepares, explains and draws the
same picture in Python. Ratios are medians over rounds. The pictures are crops of the bundled photographs in 20 sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnxcam  # noqa: E402
from onnxcam import image, models  # noqa: E402
from onnxcam.graph.load import save  # noqa: E402
from onnxcam.image.resample import resize  # noqa: E402
from onnxcam.network import subgraphs  # noqa: E402
from onnxcam.network.network import Network  # noqa: E402
from onnxcam.runtime import open_session  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
PROMISED = 1.15
MODELS = ("efficientnet_lite0", "resnet50")
SIZE = 480, 640
CPU = ["CPUExecutionProvider"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=40, help="rounds, each a run of both files")
    parser.add_argument("--pictures", type=int, default=200, help="pictures to compare with Explainer, 0 for none")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    lines = [
        "# What pixels cost",
        "",
        f"`python benchmarks/pixels.py`: onnxruntime {version('onnxruntime')}, {os.cpu_count()} cores, load {load:.1f} "
        f"at the start, {arguments.rounds} rounds. A run of the file that takes a picture of 640 x 480, against one of "
        "the same explainable file, and one of the model alone, which take the prepared tensor; promised of the first: "
        f"at most {PROMISED}. The last column is `Explainer.explain(pixels)` and `.overlay()`, which do in Python what "
        "the file does by itself.",
        "",
        "| model | model alone | explainable file | file of pixels | / explainable | / alone | Python |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            times = measure(files(name, Path(folder)), arguments.rounds)
            alone, prepared, picture, python = (f"{1e3 * statistics.median(one):.1f} ms" for one in times)
            ratios = [statistics.median(c / b for b, c in zip(one, times[2], strict=True)) for one in times[:2]]
            row = f"{alone} | {prepared} | {picture} | {ratios[1]:.2f} | {ratios[0]:.2f} | {python}"
            lines.append(f"| {name} | {row} |")
    if arguments.pictures:
        lines += ["", compare(arguments.pictures)]
    text = "\n".join(lines) + "\n"
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


def files(name: str, folder: Path) -> tuple[Path, ...]:
    """The model alone, its explainable file, and the one that takes pixels."""
    source: Any = models.path(models.MODEL)
    if name != "efficientnet_lite0":
        import torch

        from benchmarks.speed import build
        from onnxcam.exporters import pytorch

        source = pytorch.export(
            build(name), torch.randn(1, 3, 224, 224), None, preprocess="imagenet", target="required", verify=False
        )
    paths = tuple(folder / f"{name}_{kind}.onnx" for kind in ("alone", "explainable", "pixels"))
    for path, pixels in zip(paths[1:], (False, True), strict=True):
        save(onnxcam.augment(source, target="required", pixels=pixels, probe=False), path)
    save(subgraphs.head(Network(str(paths[1]))), paths[0])
    return paths


def measure(paths: tuple[Path, ...], rounds: int) -> list[list[float]]:
    """Seconds of each run of the files, and of `Explainer`."""
    pixels = resize(image.load(models.path("coffee.png")).pixels, SIZE, "bicubic")
    explainer = onnxcam.Explainer(str(paths[1]))
    _, tensor, _ = explainer.prepare(pixels)
    target = np.array([-1], np.int64)
    feeds: list[dict[str, Any]] = [
        {"input": tensor}, {"input": tensor, "target": target}, {"pixels": pixels, "target": target},
    ]  # fmt: skip
    runs = [runner(open_session(str(path), CPU), feed) for path, feed in zip(paths, feeds, strict=True)]
    runs.append(lambda: explainer.explain(pixels).overlay())
    times: list[list[float]] = [[] for _ in runs]
    for number in range(-3, rounds):
        for which in np.roll(range(len(runs)), number).tolist():
            start = time.perf_counter()
            runs[which]()
            if number >= 0:
                times[which].append(time.perf_counter() - start)
    return times


def runner(session: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    return lambda: session.run(None, feeds)


def compare(count: int) -> str:
    """How far predictions, prepared pixels and heatmaps are from `Explainer`'s, in a sentence."""
    import onnx

    from onnxcam.network import manifest

    model = onnxcam.augment(models.path(models.MODEL), pixels=True)
    resized = (manifest.read(model) or {})["pixels"]["resized"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(resized, onnx.TensorProto.FLOAT, None))
    session, explainer = open_session(model.SerializeToString(), CPU), onnxcam.Explainer(models.path(models.MODEL))
    spec, rng = explainer.preprocess, np.random.default_rng(9)
    assert spec is not None
    photographs = [image.load(models.path(name)).pixels for name in ("cat.png", "coffee.png", "cat_and_coffee.png")]
    sizes = [(int(h), int(w)) for h, w in rng.integers(60, 700, (20, 2))]
    same, within, worst = 0, 1.0, 0.0
    for number in range(count):
        source = photographs[number % 3]
        top, left = (int(rng.integers(0, side // 2)) for side in source.shape[:2])
        pixels = resize(source[top:, left:], sizes[number % 20], "bicubic")
        predictions, heatmap, prepared = session.run(
            ["predictions", "picture_heatmap", resized], {"pixels": pixels}
        )  # fmt: skip
        want = explainer.explain(pixels)
        same += int(predictions.argmax()) == want.predictions[0][0]
        off = np.abs(prepared[0].transpose(1, 2, 0) - spec.transform(pixels)[0])
        within = min(within, float((off <= 1).mean()))
        worst = max(worst, float(np.abs(heatmap - want.heatmap).max()))
    return (
        f"On {count} pictures of {min(count, 20)} sizes: the best class is `Explainer`'s on {same}, at least "
        f"{100 * within:.3f} % of a picture's prepared pixels are within one grey level, heatmaps off by "
        f"at most {worst:.1e}."
    )


if __name__ == "__main__":
    main()
