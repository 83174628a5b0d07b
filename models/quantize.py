"""Write the bundled classifier in other precisions, as quantization tools leave it: float16, and int8 in both forms.

    python models/quantize.py FOLDER [PICTURE...]

The files are efficientnet_lite0.float16.onnx, .qdq.onnx and .qoperator.onnx. Activations are calibrated on the
pictures (the bundled ones without any) and their mirror images; weights are int8 per channel, activations uint8.
Needs onnxruntime's own tools alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcam import Explainer, models
from onnxcam.graph import load
from onnxcam.graph.normalize import prepare
from onnxcam.network import manifest
from onnxcam.network.split import head_of

FORMS = ("float16", "qdq", "qoperator")


def plain() -> onnx.ModelProto:
    """The bundled model as it was before it could be explained: picture in, logits out."""
    graph = prepare(models.path(models.MODEL))
    header = manifest.read(graph.model)
    assert header is not None
    return head_of(graph, header)


def make(form: str, folder: Path, tensors: Sequence[np.ndarray]) -> Path:
    """Write one of the forms.

    Arguments:
        form: `float16`, `qdq` or `qoperator`.
        folder: where to; the float model is written next to it.
        tensors: prepared pictures `[1, 3, 224, 224]` to calibrate on.
    """
    source = folder / "efficientnet_lite0.float32.onnx"
    if not source.exists():
        load.save(plain(), source)
    path = folder / f"efficientnet_lite0.{form}.onnx"
    if form == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        load.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)
        return path
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(source).graph.input[0].name

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([side for tensor in tensors for side in (tensor, tensor[..., ::-1])])

        def get_next(self) -> dict[str, Any] | None:
            tensor = next(self.left, None)
            return None if tensor is None else {name: np.ascontiguousarray(tensor)}

    ready = folder / "efficientnet_lite0.ready.onnx"
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(path),
        Pictures(),
        quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    ready.unlink()
    return path


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        raise SystemExit((__doc__ or "").strip())
    folder, explainer = Path(arguments[0]), Explainer(models.path(models.MODEL))
    folder.mkdir(parents=True, exist_ok=True)
    pictures = list(arguments[1:]) or [models.path(name) for name in ("cat.png", "coffee.png", "cat_and_coffee.png")]
    tensors = [explainer.prepare(picture)[1] for picture in pictures]
    for form in FORMS:
        path = make(form, folder, tensors)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
