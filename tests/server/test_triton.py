"""`onnxcam triton`: the repository against Triton's own definitions and rules, and against the plain file.

Triton itself is not run here. Its `model_config.proto` comes with tritonclient; the rules of `model_config_utils.cc`
(core) and of `onnxruntime.cc` (onnxruntime_backend) that a model is loaded by are written out below.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.graph import load
from onnxcam.network import manifest as manifests
from onnxcam.server import triton
from tests.cli.conftest import LABELS, RAW, Run, run  # noqa: F401
from tests.support import environments, models
from tests.support.batches import distance

PARSE = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
texts = [open(path, encoding="utf-8").read() for path in sys.argv[1:]]
configs = [text_format.Parse(text, model_config_pb2.ModelConfig()) for text in texts]
print("[" + ",".join(json_format.MessageToJson(c, preserving_proto_field_name=True) for c in configs) + "]")
"""
TYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_, "TYPE_FP16": np.float16}


def explainable(**settings: Any) -> onnx.ModelProto:
    return onnxcam.augment(models.tiny_cnn(), **{"labels": LABELS, "preprocess": RAW, **settings})


def two_layers() -> onnx.ModelProto:
    return explainable(layers=["relu1", "relu2"], methods=["gradcam", "layercam"])


def binary_column() -> onnx.ModelProto:
    """A model with one score a picture, `[N]`."""
    model = models.tiny_cnn(classes=1)
    name = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Sigmoid", [name], ["all_columns"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"))
    model.graph.node.append(onnx.helper.make_node("Squeeze", ["all_columns", "axis"], ["p"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["N"]))
    return onnxcam.augment(model, preprocess=RAW, probe=False)


SOURCES: dict[str, Any] = {
    "optional": explainable,
    "required": lambda: explainable(target="required"),
    "constant": lambda: explainable(target=2),
    "portable": lambda: explainable(portable=True, target="required"),
    "gated": lambda: explainable(gate="confidence < 0.9"),
    "two layers": two_layers,
    "one number a row": binary_column,
    "fixed batch": lambda: onnxcam.augment(models.tiny_cnn(batch=2), probe=False),
    "odd names": lambda: explainable(labels=['a "b" \\', "line\nbreak", "größe 猫", "\x1b[1m", "e"]),
}


def validated(config: dict[str, Any], model: onnx.ModelProto) -> None:
    """The rules of `ValidateModelConfig`, `ValidateIOShape` (core) and `CompareDimsSupported` (the backend)."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = int(config.get("max_batch_size", 0))
    assert not session.get_overridable_initializers(), "an optional input, which batching models may not have"
    assert "dynamic_batching" not in config or batch > 0
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        actual = {value.name: value for value in values}
        entries = config[kind]
        if kind == "input":
            assert {entry["name"] for entry in entries} == set(actual)
        for entry in entries:
            value = actual[entry["name"]]
            dims = [int(side) for side in entry.get("dims", [])]
            assert dims and all(side >= 1 or side == -1 for side in dims)
            assert not entry.get("optional")
            reshape = entry.get("reshape")
            if reshape is not None:
                shape = [int(side) for side in reshape.get("shape", [])]
                assert math.prod(shape) == math.prod(dims) and (shape or batch)
                dims = shape
            expected = [side if isinstance(side, int) else -1 for side in value.shape]
            full = [-1, *dims] if batch else dims
            if batch:
                assert expected[0] == -1
            assert len(full) == len(expected)
            assert all(there in (-1, here) for there, here in zip(expected, full, strict=True)), (entry, expected)
            assert np.dtype(TYPES[entry["data_type"]]).name == {"tensor(float)": "float32", "tensor(int64)": "int64",
                    "tensor(bool)": "bool", "tensor(float16)": "float16"}[value.type]  # fmt: skip


class Batcher:
    """Triton's dynamic batcher and onnxruntime backend, of one model: requests are joined, run once, and split."""

    def __init__(self, config: dict[str, Any], model: Path) -> None:
        self.config = config
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def infer(self, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        entries = {entry["name"]: entry for entry in [*self.config["input"], *self.config["output"]]}
        rows = [len(next(iter(request.values()))) for request in requests]
        assert sum(rows) <= self.config["max_batch_size"]
        feeds = {}
        for entry in self.config["input"]:
            parts = [request[entry["name"]] for request in requests]
            for part in parts:
                assert list(part.shape[1:]) == [int(side) for side in entry["dims"]]
            joined = np.concatenate(parts)
            if "reshape" in entry:
                joined = joined.reshape(len(joined), *map(int, entry["reshape"].get("shape", [])))
            feeds[entry["name"]] = joined
        names = [entry["name"] for entry in self.config["output"]]
        values = dict(zip(names, self.session.run(names, feeds), strict=True))
        starts = np.cumsum([0, *rows])
        answers: list[dict[str, np.ndarray]] = []
        for start, stop in itertools.pairwise(starts):
            shapes = {name: [int(side) for side in entries[name]["dims"]] for name in names}
            answers.append({name: values[name][start:stop].reshape(stop - start, *shapes[name]) for name in names})
        return answers


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("repository")
    for number, make in enumerate(SOURCES.values()):
        triton.Repository.of(make(), f"model{number}").write(folder)
    return {name: folder / f"model{number}" for number, name in enumerate(SOURCES)}


@pytest.fixture(scope="module")
def configs(repositories: dict[str, Path]) -> dict[str, dict[str, Any]]:
    parsed = environments.run("triton", PARSE, *(place / "config.pbtxt" for place in repositories.values()))
    return dict(zip(repositories, parsed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_triton_takes_it(name: str, repositories: dict[str, Path], configs: dict[str, dict[str, Any]]) -> None:
    config, place = configs[name], repositories[name]
    model = onnx.load(place / "1" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    validated(config, model)
    assert config["name"] == place.name and config["backend"] == "onnxruntime"
    assert ("dynamic_batching" in config) == (name != "fixed batch")
    manifest = manifests.read(model)
    assert manifest is not None and manifest["target"]["mode"] == ("constant" if name == "constant" else "required")
    assert json.loads(config["parameters"]["onnxcam.target"]["string_value"]) == manifest["target"]
    stored = config["parameters"].get("onnxcam.preprocess")
    assert (None if stored is None else json.loads(stored["string_value"])) == (
        manifest["input"].get("preprocess") or None
    )
    labelled = [entry["name"] for entry in config["output"] if "label_filename" in entry]
    if manifest.get("labels") and name != "one number a row":
        assert labelled == ["logits"]
        assert len((place / "labels.txt").read_text("utf-8").splitlines()) == len(manifest["labels"])
    else:
        assert not labelled and not (place / "labels.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optional", "required", "portable", "two layers", "odd names"])
def test_requests_of_several_clients_share_a_run(
    name: str, repositories: dict[str, Path], configs: dict[str, dict[str, Any]]
) -> None:
    """Each client gets the maps of its own rows and classes: those of `Explainer` for each alone."""
    batcher = Batcher(configs[name], repositories[name] / "1" / "model.onnx")
    explainer = onnxcam.Explainer(models.tiny_cnn(), layers=["relu1", "relu2"], methods=["gradcam", "layercam"])
    rng = np.random.default_rng(1234)
    pictures = [rng.random((rows, 3, 32, 32), np.float32) for rows in (1, 3, 2)]
    targets = [np.array(one, np.int64)[:, None] for one in ([-1], [0, 4, -1], [2, 2])]
    manifest = manifests.read(onnx.load(repositories[name] / "1" / "model.onnx"))
    assert manifest is not None
    requests = [{"input": x, "target": t} for x, t in zip(pictures, targets, strict=True)]
    for request, answer in zip(requests, batcher.infer(requests), strict=True):
        for layer in manifest["layers"]:
            for method, output in layer["heatmaps"].items():
                maps = explainer.attribute(
                    request["input"], request["target"][:, 0].tolist(), method, layer["name"], "none", "layer"
                )
                assert distance(answer[output], maps) <= 1e-5
        raw = explainer.run(request["input"])
        assert distance(answer["logits"], raw.scores) <= 1e-5


@pytest.mark.slow
def test_the_comments_say_how_a_picture_becomes_the_input(repositories: dict[str, Path]) -> None:
    text = (repositories["odd names"] / "config.pbtxt").read_text("utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any('color "RGB"' in line and '"mode": "stretch"' in line and "EXIF" in line for line in comments)
    assert not any(character < " " and character != "\n" for character in text)


def test_coupled_rows_are_never_batched() -> None:
    model = explainable()
    manifest = manifests.read(model)
    assert manifest is not None
    manifest.setdefault("measured", {})["rows"] = manifests.COUPLED
    manifests.write(model, manifest)
    repository = triton.Repository.of(model, "coupled")
    assert repository.max_batch == 0 and "dynamic_batching" not in repository.config()
    assert {tensor.name: tensor.dims for tensor in repository.inputs} == {"input": (1, 3, 32, 32), "target": (1,)}
    assert any("depend on the other rows" in note for note in repository.notes)


def test_the_command(run: Run, tmp_path: Path) -> None:  # noqa: F811
    plain, ready = tmp_path / "my net.onnx", tmp_path / "ready.cam.onnx"
    onnx.save(models.tiny_cnn(), plain)
    load.save(explainable(), ready)
    done = run("triton", ready, "-o", tmp_path / "repository")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"{tmp_path / 'repository' / 'ready'}: up to 8 rows a run"
    assert "optional target became an ordinary input" in done.err
    listing = run("triton", plain, "-o", tmp_path / "repository", "--layer", "relu1", "--max-batch", 4,
                  "--model-version", 3, "--json").json()  # fmt: skip
    assert listing["name"] == "my_net" and listing["max_batch_size"] == 4
    assert listing["files"][0].endswith("/repository/my_net/3/model.onnx")
    assert {"name": "heatmap", "data_type": "TYPE_FP32", "dims": [32, 32]} in listing["outputs"]
    assert onnx.load(listing["files"][0]).graph.input[1].name == "target"


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b", "a\nb", "x" * 129])
def test_names_that_are_no_folder(run: Run, tmp_path: Path, name: str) -> None:  # noqa: F811
    ready = tmp_path / "ready.onnx"
    load.save(explainable(), ready)
    done = run("triton", ready, "-o", tmp_path / "repository", "--name", name)
    assert (done.code, (tmp_path / "repository").exists()) == (2, False), done.err


def test_refused(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "file").write_text("x")
    ready = tmp_path / "ready.onnx"
    load.save(explainable(), ready)
    assert "not a folder" in run("triton", ready, "-o", tmp_path / "file").sentence
    assert "could not be written" in run("triton", ready, "-o", tmp_path / "file" / "below").sentence
    with pytest.raises(ModelError, match="not explainable yet"):
        triton.Repository.of(models.tiny_cnn(), "plain")


def test_an_optional_target_that_a_tool_removed() -> None:
    model = explainable()
    del model.graph.initializer[[one.name for one in model.graph.initializer].index("target")]
    with pytest.raises(ModelError, match="export it again"):
        triton.Repository.of(model, "simplified")
