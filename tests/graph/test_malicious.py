"""Promise 18: a model from a stranger reads no file of the user's, runs nothing, and is refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam import runtime
from onnxcam.cli import main
from onnxcam.errors import ModelError, OnnxcamError, TrustError
from onnxcam.graph import external_data
from onnxcam.graph.load import load
from tests.support.models import tiny_cnn

FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "plain": tiny_cnn,
    # opened by the runtime as it is, without onnx
    "explainable": lambda: onnxcam.augment(tiny_cnn()),
}


def outside(tensor: TensorProto, location: str) -> bytes:
    """Move a tensor's bytes to another file; returns them."""
    data = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    return data


def written(folder: Path, model: onnx.ModelProto, location: str) -> tuple[Path, bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    data = outside(model.graph.initializer[0], location)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path, data


TRAPS = {
    "above the folder": "../secret",
    "above by a detour": "parts/../../secret",
    "absolute": "{secret}",
    "symbolic link": "link",
    "behind a linked folder": "linked/secret",
    "hard link": "hard",
    "named pipe": "pipe",
    "folder": "folder",
    "windows drive": "C:\\secret",
    "windows above": "..\\secret",
    "empty": "",
    "memory of the runtime": "*/_ORT_MEM_ADDR_/*",
}


def trap(base: Path, name: str, form: str) -> Path:
    """A model whose weights are a file of somebody else's, holding exactly as many bytes as the model asks for."""
    folder = base / "model"
    (folder / "parts").mkdir(parents=True)
    secret = base / "secret"
    path, data = written(folder, FORMS[form](), TRAPS[name].format(secret=secret))
    secret.write_bytes(data)
    (folder / "link").symlink_to(secret)
    (folder / "linked").symlink_to(base)
    os.link(secret, folder / "hard")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TRAPS)
def test_weights_outside_the_models_own_files_are_refused(name: str, form: str, tmp_path: Path) -> None:
    path = trap(tmp_path, name, form)
    for opened in (load, onnxcam.Explainer, runtime.open_session, onnxcam.layers):
        with pytest.raises(ModelError) as caught:
            opened(path)
        assert isinstance(caught.value, TrustError) or "cannot be read" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes")
def test_the_command_line_ends_with_3(tmp_path: Path) -> None:
    path = trap(tmp_path, "hard link", "explainable")
    result = CliRunner().invoke(main, ["layers", str(path)])
    assert result.exit_code == 3
    assert "external data is refused: 'hard' has other names too" in result.stderr


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["held"], value=tensor)


def somewhere(place: str) -> onnx.ModelProto:
    """A model with a tensor in another file, at one of the places where a model can have a tensor."""
    model = tiny_cnn()
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "held")
    outside(tensor, "secret")
    out = [helper.make_tensor_value_info("held", TensorProto.FLOAT, [4])]
    match place:
        case "initializer":
            model.graph.initializer.append(tensor)
        case "sparse initializer":
            indices = numpy_helper.from_array(np.arange(4), "at")
            model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [9]))
        case "constant":
            model.graph.node.insert(0, constant(tensor))
        case "list of tensors":
            model.graph.node.insert(0, helper.make_node("Odd", [], ["held"], domain="x", several=[tensor]))
        case "branch":
            body = helper.make_graph([constant(tensor)], "then", [], out)
            branch = helper.make_node("If", ["yes"], ["held"], then_branch=body, else_branch=body)
            model.graph.node.insert(0, branch)
        case "branch within a branch":
            inner = helper.make_graph([helper.make_node("Identity", ["w"], ["held"])], "inner", [], out, [tensor])
            middle = helper.make_node("If", ["yes"], ["held"], then_branch=inner, else_branch=inner)
            body = helper.make_graph([middle], "then", [], out)
            model.graph.node.insert(0, helper.make_node("If", ["yes"], ["x"], then_branch=body, else_branch=body))
        case "function":
            model.functions.append(
                helper.make_function("own", "F", [], ["held"], [constant(tensor)], [helper.make_opsetid("", 18)])
            )
    return model


PLACES = (
    "initializer",
    "sparse initializer",
    "constant",
    "list of tensors",
    "branch",
    "branch within a branch",
    "function",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_is_found_wherever_a_tensor_names_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = somewhere(place).SerializeToString()
    assert external_data.locations(data, "x") == ["secret"]
    (tmp_path / "elsewhere").write_bytes(bytes(16))
    os.link(tmp_path / "elsewhere", tmp_path / "secret")
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(TrustError, match="has other names too"):
        load(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    for source in (data, onnx.load_from_string(data)):
        with pytest.raises(ModelError, match=r"another file \('secret'\)"):
            load(source)
    with pytest.raises(ModelError, match=r"another file \('secret'\)"):
        runtime.open_session(data)


@pytest.mark.parametrize("form", FORMS)
def test_weights_next_to_the_model_are_read(form: str, tmp_path: Path) -> None:
    path, data = written(tmp_path / "a b", FORMS[form](), "parts/weights.bin")
    (tmp_path / "a b" / "parts").mkdir()
    (tmp_path / "a b" / "parts" / "weights.bin").write_bytes(data)
    batch = np.ones((1, 3, 32, 32), np.float32)
    want = onnxcam.Explainer(tiny_cnn()).run(batch).scores
    (tmp_path / "link").symlink_to(tmp_path / "a b")  # how the folder is reached is the user's own business
    for where in (path, tmp_path / "link" / "model.onnx"):
        np.testing.assert_array_equal(onnxcam.Explainer(where).run(batch).scores, want)


def test_a_model_may_speak_of_locations() -> None:
    model = onnxcam.augment(tiny_cnn())
    model.doc_string = "location of tumours"
    model.graph.node[0].name = "location"
    model.metadata_props.add(key="location", value="../secret")
    assert external_data.locations(model.SerializeToString(), "x") == []
    assert onnxcam.Explainer(model.SerializeToString()).classes == 5


@pytest.mark.parametrize("cut", [1, 7, 40, 300, 1500])
def test_damage_is_told_as_damage(cut: int) -> None:
    data = somewhere("branch within a branch").SerializeToString()
    for broken in (data[:-cut], data[: len(data) // 2] + bytes([0xFF] * cut), b"\x0b" + data):
        try:
            named = external_data.locations(broken, "the file")
        except ModelError as error:
            assert "not an ONNX model" in str(error)
        else:
            assert set(named) <= {"secret"}
        with pytest.raises(OnnxcamError):
            onnxcam.Explainer(broken)


def test_nesting_without_end_is_no_stack_overflow() -> None:
    def field(number: int, data: bytes) -> bytes:
        size, length = len(data), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number * 8 + 2]) + length + bytes([size]) + data

    data = b"location"
    for _ in range(2000):
        data = field(1, field(5, field(6, data)))  # node, attribute, graph
    data = field(7, data)
    with pytest.raises(ModelError, match="not an ONNX model"):
        external_data.locations(data, "it")
    with pytest.raises(ModelError, match="not an ONNX model"):
        onnxcam.Explainer(data)


# ---- operators of strangers, and graphs made to break what reads them


def through(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    """The model with a node between its input and whatever reads it."""
    for other in model.graph.node:
        for k, name in enumerate(other.input):
            if name == "input":
                other.input[k] = node.output[0]
    model.graph.node.insert(0, node)
    return model


def custom(model: onnx.ModelProto, op: str = "Run", domain: str = "com.stranger") -> onnx.ModelProto:
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return through(model, helper.make_node(op, ["input"], ["let in"], domain=domain))


def recursive(model: onnx.ModelProto) -> onnx.ModelProto:
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [call], [helper.make_opsetid("own", 1)]))
    return custom(model, "F", "own")


def cyclic(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].input[0] = model.graph.node[3].output[0]
    return model


def oversized(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.initializer[0].dims[0] = 1 << 40
    return model


STRANGE: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "custom domain": custom,
    "compiled blob": lambda model: custom(model, "EPContext", "com.microsoft"),
    "python operator": lambda model: custom(model, "PythonOp", "com.microsoft"),
    "function that calls itself": recursive,
    "cycle": cyclic,
    "weights of a tebibyte in a few bytes": oversized,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_models_are_refused(kind: str, form: str, tmp_path: Path) -> None:
    model = STRANGE[kind](FORMS[form]())
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for source in (path, path.read_bytes()):
        with pytest.raises(ModelError) as caught:
            onnxcam.Explainer(source)
        assert "\n" not in str(caught.value)
