"""What the fuzzing tests read damaged files with; each says in a word what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.diagnose.gradients import check
from onnxcam.errors import OnnxcamError, RuntimeUnavailable
from onnxcam.graph.load import load
from onnxcam.targets import labels
from tests.support import models

CPU = ["CPUExecutionProvider"]


def model(data: bytes, place: Path) -> str:
    """Every way in which a model file is read; none is run. How far it was understood is the outcome."""
    path = place / "model.onnx"
    path.write_bytes(data)
    result = CliRunner().invoke(main, ["layers", str(path)])
    if result.exit_code not in (0, 3):
        raise RuntimeError(f"onnxcam layers ends with {result.exit_code}: {result.stderr.strip()[-800:]}")
    if result.exit_code and result.stderr.count("\n") != 1:
        raise RuntimeError(f"onnxcam layers says {result.stderr!r}")
    reached = "refused"
    for step in (
        lambda: load(path),
        lambda: load(data),
        lambda: onnxcam.augment(path),
        lambda: check(path, providers=["NoSuchExecutionProvider"]),
        lambda: onnxcam.Explainer(path, providers=CPU),
        lambda: onnxcam.Explainer(data, providers=CPU),
    ):
        try:
            step()
        except RuntimeUnavailable:
            pass  # `check` has read everything and wants to run it
        except OnnxcamError as error:
            if "\n" in str(error):
                raise RuntimeError(f"a message of several lines: {error}") from error
            continue
        reached = "read"
    return reached


def picture(data: bytes, place: Path) -> str:
    """A picture in memory and as a file."""
    path = place / "picture"
    path.write_bytes(data)
    size: tuple[int, int] | None = None
    try:
        size = image.load(data).size
    finally:
        if size is None:
            try:
                image.load(path)
            except OnnxcamError:
                pass
            else:
                raise RuntimeError("the file is read, its bytes are not")
    pixels = image.load(path).pixels
    if pixels.shape != (*size, 3) or pixels.dtype != np.uint8:
        raise RuntimeError(f"{pixels.dtype} {pixels.shape} where {size} was announced")
    return "read"


def manifest(data: bytes, place: Path) -> str:
    """A model that is whole, with a damaged manifest: everything that is done with a model."""
    text = data.decode("utf-8", "replace")
    source = _explainable(place)
    model_proto = onnx.load(source)
    entry = next(p for p in model_proto.metadata_props if p.key == "onnxcam")
    entry.value = text
    path = place / "damaged.onnx"
    path.write_bytes(model_proto.SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image.write_png(place / "picture.png", pixels)
    reached = "refused"
    for command in (["layers", path, "--json"], ["explain", path, place / "picture.png", "-o", place / "out"]):
        result = CliRunner().invoke(main, [str(part) for part in command])
        if "unexpectedly" in result.stderr or "Traceback" in result.stderr:
            raise RuntimeError(f"onnxcam {command[0]} says {result.stderr!r}")
    for step in (
        lambda: onnxcam.layers(path),
        lambda: onnxcam.augment(path),
        lambda: onnxcam.Explainer(path, providers=CPU).run(np.zeros((1, 3, 12, 12), np.float32)),
        lambda: onnxcam.Explainer(path, providers=CPU).explain(pixels, top=2),
        lambda: check(path, providers=CPU, samples=1, directions=1),
    ):
        try:
            step()
        except OnnxcamError:
            continue
        reached = "read"
    return reached


def _explainable(place: Path) -> Path:
    path = place / "explainable.onnx"
    if not path.exists():
        explainable = onnxcam.augment(
            models.tiny_cnn(size=12, width=2), labels=list("abcde"), preprocess="0..1", gate="confidence < 0.9"
        )
        path.write_bytes(explainable.SerializeToString())
    return path


def label_file(data: bytes, place: Path) -> str:
    """Class names in every kind of file name."""
    reached = "refused"
    for name in ("labels.txt", "labels.json", "labels.csv", "labels.yaml", "labels"):
        path = place / name
        path.write_bytes(data)
        try:
            names = labels.read(path)
        except OnnxcamError as error:
            if "\n" in str(error):
                raise RuntimeError(f"a message of several lines: {error}") from error
            continue
        if not names or not all(isinstance(label, str) and label for label in names):
            raise RuntimeError(f"names {names!r}")
        reached = "read"
    return reached


BY_NAME: dict[str, Callable[[bytes, Path], str]] = {
    "model": model,
    "picture": picture,
    "manifest": manifest,
    "labels": label_file,
}
