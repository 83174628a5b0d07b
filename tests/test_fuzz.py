"""Thousands of damaged files, read in a child process: no crash, no hang, no traceback, no gibibyte.

Everything that is not usable ends as an error of the project's own. `make soak` reads all of them, `make test` and
`make check` the first ones.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcam
from tests.image.pictures import encode, noise, smooth
from tests.support import fuzz, models
from tests.support.examples import rest_slow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and counts memory as Linux does")


def listed() -> onnx.ModelProto:
    """An old file: opset 8, IR 3, weights listed as inputs."""
    model = models.tiny_cnn(size=12, width=2, opset=8)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    return model


def quantized(form: str, folder: Path) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    source, target = folder / "float.onnx", folder / "quantized.onnx"
    source.write_bytes(models.tiny_cnn(size=12, width=2).SerializeToString())

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        left = iter([{"input": np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(
        source, target, Noise(), quant_format=QuantFormat[form], weight_type=QuantType.QInt8, per_channel=True
    )
    return target.read_bytes()


def shaped() -> onnx.ModelProto:
    """Computed shapes, a branch of a known condition and a function, as older exporters write them."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
    shaped (float[N, 3, 8, 8] input) => (float[N, 4] logits)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] rest = {-1}, bool yes = {1}> {
      conv = Conv<pads = [1, 1, 1, 1], strides = [1, 1]>(input, w)
      relu = own.Twice(conv)
      pooled = AveragePool<kernel_shape = [2, 2], strides = [1, 1], pads = [0, 0, 1, 1]>(relu)
      small = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(pooled)
      padded = Pad(small, pads)
      cut = Slice(padded, one, rest, two)
      shape = Shape(cut)
      rows = Slice(shape, zero, one)
      target = Concat<axis = 0>(rows, rest)
      chosen = If(yes) <then_branch = t () => (float[a, b, c, d] p) { p = Identity(cut) },
                        else_branch = e () => (float[a, b, c, d] q) { q = Neg(cut) }>
      flat = Reshape(chosen, target)
      logits = MatMul(flat, u)
    }
    <domain: "own", opset_import: ["" : 18]> Twice (x) => (y) { r = Relu(x)  y = Add(r, r) }""")
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "u": rng.normal(size=(64, 4)), "pads": np.array([0, 0, 1, 0] * 2)}
    for name, value in weights.items():
        array = value if name == "pads" else value.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def model_seeds(folder: Path) -> dict[str, bytes]:
    plain = models.tiny_cnn(size=12, width=2)
    half = models.tiny_cnn(size=12, width=2, ending="Softmax")
    result = {
        "plain": plain,
        "nhwc": models.tiny_cnn(size=12, width=2, nhwc=True, ending="Sigmoid", pool="ReduceMean"),
        "listed": listed(),
        "shaped": shaped(),
        "flat": models.tiny_cnn(size=8, width=2, pool="Flatten", batch=1),
        "explainable": onnxcam.augment(half, ["relu1", "relu2"], methods=("gradcam", "hirescam")),
        "explainable of the manifest": onnxcam.augment(plain, labels=list("abcde"), preprocess="0..1"),
        "gate": onnxcam.augment(plain, gate="confidence < 0.6"),
    }
    return {name: model.SerializeToString() for name, model in result.items()} | {
        form: quantized(form, folder) for form in ("QDQ", "QOperator")
    }


def picture_seeds(folder: Path) -> dict[str, bytes]:
    pixels = smooth(40, 56)
    rgba = np.dstack([pixels, noise(40, 56, 0)])
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    return {
        "jpeg": encode(pixels, "JPEG", exif=exif),
        "jpeg progressive": encode(pixels, "JPEG", progressive=True, subsampling=0),
        "png": encode(rgba, "PNG"),
        "png palette": encode(noise(20, 30, 0) & 15, "PNG", bits=4),
        "bmp": encode(pixels, "BMP"),
        "bmp grey": encode(pixels[..., 0], "BMP"),
        "webp": encode(pixels, "WEBP"),
        "webp lossless": encode(rgba, "WEBP", lossless=True, exif=exif),
        "gif": encode(pixels, "GIF"),
        "tiff": encode(rgba, "TIFF"),
        "tiff deflated": encode(pixels, "TIFF", compression="tiff_adobe_deflate"),
        "tiff lzw": encode(pixels[..., 0], "TIFF", compression="tiff_lzw"),
        "tiff of 32 bits": encode(pixels[..., 0].astype(np.int32), "TIFF", compression="tiff_lzw"),
        "npy": saved(pixels),
        "npy in columns": saved(np.asfortranarray(pixels[..., 0])),
    }


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def manifest_seeds(folder: Path) -> dict[str, bytes]:
    explainable = onnxcam.augment(
        models.tiny_cnn(size=12, width=2), labels=list("abcde"), preprocess="0..1", gate="confidence < 0.9"
    )
    return {"manifest": next(p.value for p in explainable.metadata_props if p.key == "onnxcam").encode()}


def label_seeds(folder: Path) -> dict[str, bytes]:
    return {
        "lines": "cat\ntiger cat, tiger\nzèbre\n".encode(),
        "numbered": b"0 cat\n1 dog\n2: hen\n",
        "list": b'["cat", "dog", "hen"]',
        "by index": b'{"0": "cat", "1": ["n02", "dog"], "2": "hen"}',
        "by name": b'{"cat": 0, "dog": 1, "hen": 2}',
        "configuration": b'{"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}',
        "literal": b"{0: 'cat', 1: 'dog',\n 2: 'hen'}",
        "table": b'index,name\n0,cat\n1,"dog, brown"\n2,hen\n',
        "objects": b'[{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]',
        "numbers last": b"dog 1\ncat 0\nhen: 2\n",
        "yaml": b"nc: 2\nnames:\n  0: cat  # a comment\n  1: 'guinea pig'\n",
        "yaml of one line": b"names: [cat, \"dog\", 'it''s']\n",
        "map": b"item { id: 0 name: 'cat' }\nitem { id: 1 display_name: 'dog' }",
        "wordnet": b"n01440764 tench\nn01443537 goldfish\n",
    }


SEEDS: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "model": model_seeds,
    "picture": picture_seeds,
    "manifest": manifest_seeds,
    "labels": label_seeds,
}
FEW = {"model": 20, "picture": 100, "manifest": 20, "labels": 100}
MORE = {"model": 400, "picture": 400, "manifest": 100, "labels": 400}
MANY = {"model": 2000, "picture": 2000, "manifest": 500, "labels": 2000}


def seeds(reader: str, folder: Path) -> Path:
    result = SEEDS[reader](folder)
    (place := folder / "seeds").mkdir()
    for name, data in result.items():
        (place / name).write_bytes(data)
    return place


def judge(result: fuzz.Result, count: int) -> None:
    print(dict(result.outcomes), f"slowest {result.slowest:.1f} s, {result.highest} MiB")
    reasons = "\n".join(f"mutation {number}: {reason}" for number, reason in result.failures.items())
    assert not result.failures, reasons
    assert result.done == count
    refused = count - result.outcomes["read"]
    assert min(refused, result.outcomes["read"]) > count // 20, "the damage is too light or too heavy to prove anything"


@pytest.mark.slow
@pytest.mark.parametrize("reader", rest_slow(SEEDS, 2))
def test_some_damaged_files(reader: str, tmp_path: Path) -> None:
    judge(fuzz.run(reader, seeds(reader, tmp_path), FEW[reader]), FEW[reader])


@pytest.mark.parametrize(
    "counts",
    [pytest.param(MORE, marks=pytest.mark.slow), pytest.param(MANY, marks=pytest.mark.soak)],
    ids=["more", "all"],
)
@pytest.mark.parametrize("reader", SEEDS)
def test_many_damaged_files(reader: str, counts: dict[str, int], tmp_path: Path) -> None:
    judge(fuzz.run_side_by_side(reader, seeds(reader, tmp_path), counts[reader]), counts[reader])
