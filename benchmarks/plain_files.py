"""Plain ONNX files of whole architectures, with seeded random weights whose signal reaches the last layers.

Names are those of `benchmarks.architectures`: as they are for torchvision, behind `keras_` for Keras Applications.
Behind `light_` stand the onnx package's light models, behind `jax_` the networks of `benchmarks.jax_network`.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import KERAS, TORCH
from benchmarks.files import SEED
from tests.support.onnx_models import NAMES

LIGHT = tuple(f"light_{name}" for name in NAMES)
JAX = ("jax_residual", "jax_separable")
MATRIX = (*TORCH, *(f"keras_{name}" for name in KERAS))
SIDE = 224
# those whose usual picture is larger
SIDES = {"inception_v3": 299}
SETTLING = 6  # pictures of that size have as many cells in the last map as 64 of 64 pixels a side
SCALES = (1, 4, 16, 64)  # pixels
_LARGEST = 2**31  # bytes of a file without external data


def family(name: str) -> str:
    """`torchvision`, `keras`, `light` or `jax`."""
    return "torchvision" if name in TORCH else name.partition("_")[0]


def load_libraries(name: str) -> None:
    """Import what a file of that architecture needs, and compute nothing: processes are forked afterwards."""
    import onnxruntime  # noqa: F401

    import onnxcam.network.probe.probe

    if family(name) == "torchvision":
        from tests.support.torchvision_stub import import_torchvision

        import_torchvision()
    elif family(name) == "keras":
        import keras  # noqa: F401
        import tf2onnx  # noqa: F401

        import onnxcam.exporters.keras  # noqa: F401


def plain_file(name: str, folder: Path, jax: Path | None = None) -> Any:
    """The plain model of an architecture: a `ModelProto`, bytes or a path in the folder.

    Arguments:
        name: the architecture.
        folder: where files may be written.
        jax: an environment as `benchmarks.jax_network` describes it.
    """
    if family(name) == "light":
        from tests.support.onnx_models import light

        return light(name.removeprefix("light_"))
    if family(name) == "jax":
        command = [str(jax and jax / "bin" / "python"), "-m", "benchmarks.jax_network", str(folder)]
        subprocess.run([*command, name.removeprefix("jax_")], check=True, cwd=Path(__file__).parents[1])
        return folder / "network.onnx"
    return _keras(name.removeprefix("keras_")) if family(name) == "keras" else _torch(name, folder)


def pictures(side: int) -> np.ndarray:
    """Noise of several scales, as photographs have, for the batch norms: float32 `[SETTLING, 3, side, side]`.

    White noise is averaged away with depth. Norms that settle on what is left make far too much of any other picture,
    and gates of squeeze and excitation are then open or shut: one change tips the whole network over.
    """
    rng = np.random.default_rng(SEED)
    layers = []
    for scale in SCALES:
        cells = rng.standard_normal((SETTLING, 3, -(-side // scale), -(-side // scale)))
        layers.append(cells.repeat(scale, 2).repeat(scale, 3)[:, :, :side, :side])
    return (np.sum(layers, axis=0) / np.sqrt(len(SCALES))).astype(np.float32)


def _torch(name: str, folder: Path) -> Any:
    import torch

    from benchmarks.torch_matrix import build

    model, picture = build(name, size=SIDES.get(name, SIDE), settling=pictures(SIDES.get(name, SIDE)))
    buffer = io.BytesIO()
    large = sum(weight.numel() for weight in model.parameters()) * 4 >= _LARGEST
    path = folder / "model.onnx"
    axes = {"input": {0: "N"}, "scores": {0: "N"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["scores"], "dynamic_axes": axes}
    batch = picture.repeat(2, 1, 1, 1)
    torch.onnx.export(model, (batch,), path if large else buffer, dynamo=False, opset_version=18, **names)
    return path if large else buffer.getvalue()


def _keras(name: str) -> Any:
    """What the exporter converts: tf2onnx's file with constants in place of the inputs without values."""
    from benchmarks.keras_matrix import Built
    from onnxcam.exporters import keras_capture, keras_input
    from onnxcam.exporters.keras_module import Watched

    settling = pictures(SIDE).transpose(0, 2, 3, 1)
    watched = Watched(Built(name, size=SIDE, settling=settling).model)
    shape, dtype, layout = keras_input.shape_and_type(watched, None)
    picture = keras_input.example(shape, dtype, None, layout)
    with keras_capture.quiet():
        return keras_capture.capture(watched, picture, (), ("scores",), None).model
