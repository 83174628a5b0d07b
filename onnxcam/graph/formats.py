"""Files of models in other formats than ONNX: what each is, and the step that makes an ONNX file of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

_TF2ONNX = "convert it with `python -m tf2onnx.convert"
# formats that are told by their first bytes: offset, bytes, what it is and the next step
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (
        *(4, b"TFL3"),
        f"a TensorFlow Lite model: {_TF2ONNX} --tflite FILE --output model.onnx` (pip install tf2onnx) and give that",
    ),
    (4, b"ORTM", "a model in ONNX Runtime's ORT format, which no longer has the original graph: give the .onnx file"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (0, b"<?xml", "an XML file, as OpenVINO's are: give the .onnx file that it was converted from"),
    (0, b"<", "an HTML or XML page: was a download page saved instead of the file?"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x93NUMPY", "a NumPy array: it may be a picture, and is no model"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it"),
)
_ENGINE = "a TensorRT engine, compiled for one kind of GPU: give the .onnx file that it was built from"
_CORE_ML = "a Core ML model: write the ONNX file from the framework it was trained in"
# formats that are told by their names
_SUFFIXES = {
    ".pb": f"a TensorFlow graph: {_TF2ONNX} --saved-model FOLDER --output model.onnx` (a frozen graph: --graphdef FILE "
    "--inputs NAME:0 --outputs NAME:0), or save the model as .keras",
    ".engine": _ENGINE,
    ".plan": _ENGINE,
    ".trt": _ENGINE,
    ".mlmodel": _CORE_ML,
    ".mlpackage": _CORE_ML,
    ".pdmodel": "a PaddlePaddle model: convert it with paddle2onnx and give the .onnx file",
    ".pdparams": "a file of PaddlePaddle weights: export the model with paddle2onnx and give the .onnx file",
    ".caffemodel": "a file of Caffe weights: convert the model to ONNX first and give that",
    ".prototxt": "a Caffe network without its weights: convert the model to ONNX first and give that",
    ".param": "an ncnn model: give the .onnx file that it was converted from",
    ".mnn": "an MNN model: give the .onnx file that it was converted from",
    ".msgpack": "a file of Flax weights: convert the model that they belong to with jax2onnx and give the .onnx file",
    ".npz": "an archive of arrays, as weights of JAX models are: convert the model that they belong to with jax2onnx",
    ".joblib": "a pickled Python object, as scikit-learn models are: convert it with skl2onnx and give the .onnx file",
    ".data": "a file that holds an ONNX model's weights only: give the .onnx file next to it",
}
_SAFETENSORS = (
    "a file of weights (safetensors), not the model: name the code that makes the model and give the file as its "
    "weights, package.module:callable --weights FILE"
)


def describe(start: bytes, name: str = "", size: int | None = None) -> str:
    """Describe data that is not an ONNX model, with the next step where there is one.

    Arguments:
        start: the first bytes, 512 or so.
        name: of the file, if there is one.
        size: of the whole, in bytes.
    """
    kind = _by_content(start) or _SUFFIXES.get(Path(name).suffix.lower())
    if kind is not None:
        return f"it looks like {kind}"
    if start.startswith(b"PK\x03\x04"):
        return "it looks like a zip archive, as .keras, .pt2 and .pth files are: use `onnxcam export` on it"
    if start.startswith(b"\x89HDF"):
        return "it looks like an HDF5 file, as .h5 models are: use `onnxcam export` on it"
    if start.startswith(b"\x80") and Path(name).suffix.lower() in (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"):
        return "it looks like a pickled PyTorch file: use `onnxcam export` on it"
    sample = start[:512]
    if sum(32 <= b < 127 or b in b"\r\n\t" for b in sample) > 0.95 * len(sample):
        return "it looks like a text file"
    return f"{len(start) if size is None else size} bytes that are cut off or in another format"


def foreign(path: Path) -> str | None:
    """Describe a file given to `onnxcam export` as ONNX that is certainly something else, None if it may be ONNX."""
    with path.open("rb") as file:
        start = file.read(512)
    kind = _by_content(start)
    if kind is not None:
        return kind
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file: if it is a Keras model, call it .h5"
    if start.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            return "a zip archive, as .keras and .pt files are, but cut off or damaged: copy it again"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "config.json" in names:
            return "a Keras model: call it .keras"
        if any(name.endswith("data.pkl") or "/models/" in name for name in names):
            return "a PyTorch file: call it .pt (.pt2 if torch.export wrote it)"
        return f"a zip archive of {len(names)} files ({', '.join(names[:3])}): unpack it and give the model in it"
    if start.startswith(b"\x80") and path.suffix.lower() != ".onnx":
        return "a pickled Python object: if it is a PyTorch model, call it .pt"
    return None


def _by_content(start: bytes) -> str | None:
    for offset, magic, kind in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return kind
    # the length of the header, then JSON
    return _SAFETENSORS if start[8:10] == b'{"' and start[4:8] == b"\0\0\0\0" else None
