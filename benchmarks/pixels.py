"""Measure what a file that takes pixels costs, and hold it to `Explainer`.

    python benchmarks/pixels.py [--models efficientnet_lite0 resnet50] [--rounds 40] [--pictures 200] [--write]

Files of one model are run on one picture of 640 x 480, round by round, in turns: the model alone and the explainable
file, which take the prepared tensor, and the file that takes the picture, also without the outputs that draw and
without those that explain, as ONNX Runtime computes all outputs of a file whichever are fetched; `Explainer` prepares,
explains and draws the same picture in Python. Ratios are medians over rounds. The pictures are crops of the bundled
photographs in 20 sizes.
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
from onnxcam.graph import edit  # noqa: E402
from onnxcam.graph.load import save  # noqa: E402
from onnxcam.image.resample import resize  # noqa: E402
from onnxcam.network import subgraphs  # noqa: E402
from onnxcam.network.network import Network  # noqa: E402
from onnxcam.runtime import open_session, options  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
ALONE, PREPARED, PYTHON = "model alone", "explainable file", "`Explainer` in Python"
# what is run of the file of pixels, from all outputs to fewer
WITHOUT: dict[str, tuple[str, ...] | None] = {
    "pixels to all outputs": None,
    "pixels to predictions and the layer's heatmap": ("logits", "predictions", "target_class", "heatmap"),
    "pixels to predictions": ("logits", "predictions"),
}
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
        "the model alone and one of the explainable file, which take the prepared tensor. A file of pixels is run "
        "whole, without the outputs that draw (`picture_heatmap`, `overlay`), and without any that explain; ONNX "
        "Runtime computes all outputs that a file has, so that each is a file of its own. The last row is "
        "`Explainer.explain(pixels)` and `.overlay()`, which do in Python what the file does by itself.",
        "",
        "| model | run | ms | / model alone | / explainable file |",
        "|---|---|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            times = measure(files(name, Path(folder)), arguments.rounds)
            for what, one in times.items():
                alone, prepared = (
                    statistics.median(b / a for a, b in zip(times[base], one, strict=True))
                    for base in (ALONE, PREPARED)
                )
                lines.append(f"| {name} | {what} | {1e3 * statistics.median(one):.1f} | {alone:.2f} | {prepared:.2f} |")
    if arguments.pictures:
        lines += ["", compare(arguments.pictures)]
    text = "\n".join(lines) + "\n"
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


def files(name: str, folder: Path) -> dict[str, Path]:
    """The model alone, its explainable file, and those that take pixels."""
    source: Any = models.path(models.MODEL)
    if name != "efficientnet_lite0":
        import torch

        from benchmarks.speed import build
        from onnxcam.exporters import pytorch

        source = pytorch.export(
            build(name), torch.randn(1, 3, 224, 224), None, preprocess="imagenet", target="required", verify=False
        )
    plain, pixels = (onnxcam.augment(source, target="required", pixels=pixels, probe=False) for pixels in (False, True))
    paths = {what: folder / f"{name}-{number}.onnx" for number, what in enumerate((ALONE, PREPARED, *WITHOUT))}
    save(plain, paths[PREPARED])
    save(subgraphs.head(Network(str(paths[PREPARED]))), paths[ALONE])
    for what, outputs in WITHOUT.items():
        rest = [output for output in pixels.graph.output if outputs is None or output.name in outputs]
        del pixels.graph.output[:]
        pixels.graph.output.extend(rest)
        edit.prune(pixels)
        save(pixels, paths[what])
    return paths


def measure(paths: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run of the files, and of `Explainer`."""
    pixels = resize(image.load(models.path("coffee.png")).pixels, SIZE, "bicubic")
    explainer = onnxcam.Explainer(str(paths[PREPARED]))
    _, tensor, _ = explainer.prepare(pixels)
    feeds = {"input": tensor, "pixels": pixels, "target": np.array([-1], np.int64)}
    # threads that spin after a run would take a core from the next session's
    runs = {what: runner(open_session(str(path), CPU, options.in_turn()), feeds) for what, path in paths.items()}
    runs[PYTHON] = lambda: explainer.explain(pixels).overlay()
    times: dict[str, list[float]] = {what: [] for what in runs}
    for number in range(-3, rounds):
        for which in np.roll(list(runs), number).tolist():
            start = time.perf_counter()
            runs[which]()
            if number >= 0:
                times[which].append(time.perf_counter() - start)
    return times


def runner(session: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
    inputs = {one.name: feeds[one.name] for one in session.get_inputs()}
    return lambda: session.run(None, inputs)


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
