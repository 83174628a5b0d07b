"""Files as other people's tools leave them, each taken from the file to the map, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper, parser

import onnxcam
from onnxcam.cli import main
from onnxcam.diagnose.gradients import check
from onnxcam.errors import LabelsError, ModelError
from onnxcam.graph.edit import replace_nodes
from onnxcam.network import manifest
from onnxcam.runtime import open_session, run
from tests.support import models, runtime

CPU = ["CPUExecutionProvider"]
BATCH = np.random.default_rng(2).normal(size=(3, 3, 16, 16)).astype(np.float32)


def plain(model: onnx.ModelProto | Path, batch: np.ndarray, output: str | None = None) -> np.ndarray:
    """What the runtime makes of the file as it came."""
    values = runtime.run(model, batch)
    return values[output] if output else next(iter(values.values()))


def proved(source: onnx.ModelProto | Path, batch: np.ndarray = BATCH, **arguments: object) -> manifest.Manifest:
    """Augment a file: predictions must be its own, gradients finite differences'. Returns the manifest."""
    explainable = onnxcam.augment(source, **arguments)  # type: ignore[arg-type]
    header = manifest.read(explainable)
    assert header is not None
    first = (source if isinstance(source, onnx.ModelProto) else onnx.load(source)).graph.output[0].name
    feeds = {header["input"]["name"]: batch}
    actual = run(
        open_session(explainable.SerializeToString(), CPU),
        [first, header["layers"][0]["activations"], "heatmap"],
        feeds,
    )
    want = plain(source, batch, first)
    assert want.std() > 1e-4
    np.testing.assert_allclose(actual[first], want, rtol=1e-5, atol=1e-6)
    assert len(actual["heatmap"]) == len(batch) and actual["heatmap"].any()
    report = check(explainable, providers=CPU)
    statuses = {finding.name.split(" at ")[0]: finding.status for finding in report.findings}
    assert statuses["gradients"] == statuses["predictions"] == statuses["target"] == statuses["heatmaps"] == "ok", (
        report.lines()
    )
    return header


def small(**arguments: object) -> onnx.ModelProto:
    return models.tiny_cnn(size=16, width=4, **arguments)  # type: ignore[arg-type]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ---- versions


@pytest.mark.sample(5)
@pytest.mark.parametrize("opset", range(8, 25))
def test_every_opset_from_8_to_24(opset: int) -> None:
    value = proved(small(opset=opset, ending="Softmax"))
    assert value["source"]["opset"] == opset and value["requires"]["opset"] == max(opset, 18)
    assert value["scores"]["probabilities"] == "probabilities"


@pytest.mark.parametrize("ir", range(3, 12))
def test_every_ir_version_from_3_on(ir: int) -> None:
    source = small(opset=8 if ir < 8 else 18)
    source.ir_version = ir
    if ir < 4:
        listed(source)
    assert proved(source)["requires"]["ir"] == 8


def listed(model: onnx.ModelProto) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    model.graph.input.extend(infos)
    return model


@pytest.mark.parametrize("ir", [3, 8])
def test_initializers_listed_as_inputs(ir: int) -> None:
    source = listed(small(opset=8))
    source.ir_version = ir
    explainable = onnxcam.augment(source)
    assert [i.name for i in explainable.graph.input] == ["input", "target"]
    proved(source)


# ---- names


def test_nodes_without_names() -> None:
    source = small()
    for node in source.graph.node:
        node.ClearField("name")
    assert proved(source)["layers"][0]["value"] == "relu2"


def test_nodes_of_the_same_name() -> None:
    """The runtime refuses them, and takes what comes out."""
    source = small()
    want = plain(source, BATCH)
    for node in source.graph.node:
        node.name = "node"
    np.testing.assert_allclose(onnxcam.Explainer(source, providers=CPU).run(BATCH).scores, want, rtol=1e-5)


NAMES = {
    "tensorflow": "StatefulPartitionedCall/model/{}/Relu:0",
    "torch": "/features/features.0/{}_output_0",
    "paddle": "{}.tmp_0",
    "spaces": "the {} of Ünïcode 猫",
    "windows": "C:\\{}",
    "upwards": "../../{}",
}


@pytest.mark.parametrize("form", NAMES)
def test_names_with_slashes_and_colons(form: str, tmp_path: Path) -> None:
    source = small()
    public = {"input", "logits"}
    for node in source.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = name if name in public else NAMES[form].format(name)
    for tensor in source.graph.initializer:
        tensor.name = NAMES[form].format(tensor.name)
    layers = [NAMES[form].format(name) for name in ("relu1", "relu2")]
    value = proved(source)
    assert value["layers"][0]["value"] == layers[1]

    onnx.save(source, tmp_path / "model.onnx")
    onnxcam.image.write_png(tmp_path / "picture.png", np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    arguments = [tmp_path / "model.onnx", tmp_path / "picture.png", "--preprocess", "0..1", "--layer", layers[0]]
    (tmp_path / "in").mkdir()
    reply = command("explain", *arguments, "--layer", layers[1], "-o", tmp_path / "in" / "out")
    assert reply.exit_code == 0, reply.stderr
    assert (tmp_path / "in" / "out" / "gradcam_overlay.png").is_file()
    # no name becomes a path out of the folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "model.onnx", "picture.png"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]


# ---- forms of graphs


def test_a_graph_full_of_transposes() -> None:
    """As converters from channels-last frameworks leave it: a pair of them around every operator."""
    source = parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
    nhwc (float[N, 16, 16, 3] input) => (float[N, 5] logits) {
      a = Transpose<perm = [0, 3, 1, 2]>(input)
      b = Conv<pads = [1, 1, 1, 1]>(a, w1)  c = Transpose<perm = [0, 2, 3, 1]>(b)
      d = Add(c, b1)  e = Relu(d)  f = Transpose<perm = [0, 3, 1, 2]>(e)
      g = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)  h = Transpose<perm = [0, 2, 3, 1]>(g)
      i = Transpose<perm = [0, 3, 1, 2]>(h)  j = Conv<pads = [1, 1, 1, 1]>(i, w2)
      k = Transpose<perm = [0, 2, 3, 1]>(j)  l = Mul(k, b2)  m = Transpose<perm = [0, 3, 1, 2]>(l)
      n = Relu(m)  o = Transpose<perm = [0, 2, 3, 1]>(n)  p = ReduceMean<keepdims = 0>(o, axes)  logits = MatMul(p, w3)
    }""")
    rng = np.random.default_rng(3)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (6, 4, 3, 3), "b2": (6,), "w3": (6, 5)}
    weights = {name: (rng.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}
    for name, value in (weights | {"axes": np.array([1, 2])}).items():
        source.graph.initializer.append(numpy_helper.from_array(value, name))
    value = proved(source, np.moveaxis(BATCH, 1, 3))
    assert value["input"]["layout"] == "NHWC" and value["layers"][0]["grid"] == [8, 8]


def test_a_softmax_in_the_middle() -> None:
    """Attention over places: it is no ending, and the scores behind it stay what they are."""
    source = small()
    at = next(k for k, node in enumerate(source.graph.node) if node.name == "pool")
    nodes = list(source.graph.node)
    nodes[at : at + 1] = [
        helper.make_node("Reshape", ["relu2", "rows"], ["places"], name="places"),
        helper.make_node("Softmax", ["places"], ["share"], name="share", axis=-1),
        helper.make_node("Mul", ["share", "places"], ["shared"], name="shared"),
        helper.make_node("ReduceSum", ["shared", "last"], ["pooled"], name="pool", keepdims=0),
    ]
    replace_nodes(source, nodes)
    for name, value in (("rows", np.array([0, 0, -1])), ("last", np.array([-1]))):
        source.graph.initializer.append(numpy_helper.from_array(value, name))
    result = proved(source)["scores"]
    assert (result["name"], result["kind"], result["probabilities"]) == ("logits", "logits", None)


def test_a_multi_label_head() -> None:
    source = small(ending="Sigmoid")
    value = proved(source)
    assert value["scores"]["kind"] == "multilabel" and value["scores"]["probabilities"] == "probabilities"
    explainer = onnxcam.Explainer(source, labels=list("abcde"), preprocess="0..1", providers=CPU)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    explanation = explainer.explain(picture, target="d")
    probabilities = {label: probability for _, label, probability in explanation.predictions}
    want = plain(source, np.moveaxis(picture, 2, 0)[None].astype(np.float32) / 255)[0]
    assert probabilities == pytest.approx(dict(zip("abcde", want, strict=True)), rel=1e-4)
    assert explanation.target == 3 and abs(sum(probabilities.values()) - 1) > 1e-3


def test_external_data(tmp_path: Path) -> None:
    source = small()
    onnx.save(small(), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").stat().st_size > 1000
    proved(tmp_path / "model.onnx")
    reply = command("export", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx")
    assert reply.exit_code == 0, reply.stderr
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (tmp_path / "out.onnx").rename(alone / "out.onnx")
    np.testing.assert_allclose(onnxcam.Explainer(alone / "out.onnx").run(BATCH).scores, plain(source, BATCH), rtol=1e-5)
    (tmp_path / "w.bin").unlink()
    reply = command("layers", tmp_path / "model.onnx")
    assert reply.exit_code == 3 and "w.bin" in reply.stderr


# ---- outputs and inputs


def also(source: onnx.ModelProto, value: str, shape: list[int | str]) -> onnx.ModelProto:
    """The model with an inner value for a first output."""
    outputs = list(source.graph.output)
    del source.graph.output[:]
    source.graph.output.extend([helper.make_tensor_value_info(value, TensorProto.FLOAT, shape), *outputs])
    return source


@pytest.mark.parametrize(("value", "shape"), [("relu2", ["N", 8, 8, 8]), ("relu1", ["N", 4, 16, 16])])
def test_scores_are_found_among_outputs_that_cannot_be_scores(value: str, shape: list[int | str]) -> None:
    assert proved(also(small(ending="Softmax"), value, shape))["scores"]["probabilities"] == "probabilities"


@pytest.mark.slow
def test_scores_are_asked_for_where_two_outputs_could_be_them(tmp_path: Path) -> None:
    source = also(small(), "flat", ["N", 8])
    onnx.save(source, tmp_path / "model.onnx")
    reply = command("export", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx")
    assert reply.exit_code == 3 and "'flat' [N, 8], 'logits' [N, 5]" in reply.stderr and "--scores NAME" in reply.stderr
    for name, classes in (("logits", 5), ("flat", 8)):
        reply = command("export", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--scores", name)
        assert reply.exit_code == 0, reply.stderr
        header = manifest.read(onnx.load(tmp_path / "out.onnx"))
        assert header is not None and (header["scores"]["name"], header["scores"]["classes"]) == (name, classes)
        assert command("check", tmp_path / "out.onnx").exit_code == 0
        assert command("layers", tmp_path / "out.onnx").exit_code == 0
    assert proved(source, scores="logits")["scores"]["classes"] == 5


def test_1001_classes_and_1000_names(tmp_path: Path) -> None:
    source = small(classes=1001)
    names = [f"class {k}" for k in range(1000)]
    onnx.save(source, tmp_path / "model.onnx")
    (tmp_path / "labels.json").write_text(json.dumps(names))
    reply = command(
        "export", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--labels", tmp_path / "labels.json"
    )
    assert reply.exit_code == 2 and "1000 labels for a model with 1001 classes" in reply.stderr
    assert "background class in front" in reply.stderr
    with pytest.raises(LabelsError, match="1000 labels for a model with 1001 classes"):
        onnxcam.augment(source, labels=names)
    (tmp_path / "labels.json").write_text(json.dumps(["background", *names]))
    reply = command(
        "export", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--labels", tmp_path / "labels.json"
    )
    assert reply.exit_code == 0, reply.stderr
    explainer = onnxcam.Explainer(tmp_path / "out.onnx", preprocess="0..1", providers=CPU)
    explanation = explainer.explain(np.full((16, 16, 3), 90, np.uint8), target="class 7")
    assert (explanation.target, explanation.label) == (8, "class 7")


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "two pictures": (models.two_inputs, r"2 inputs \('input' \[N, 3, 32, 32\], 'second' \[N, 3, 32, 32\]\)"),
    "features": (models.tabular, r"'input' is FLOAT \[N, 10\]; expected a batch of pictures"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_one_picture_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    onnx.save(make(), tmp_path / "model.onnx")
    for opened in (onnxcam.augment, onnxcam.Explainer, onnxcam.layers, check):
        with pytest.raises(ModelError, match=words):
            opened(tmp_path / "model.onnx")
    for name in ("layers", "check"):
        reply = command(name, tmp_path / "model.onnx")
        assert reply.exit_code == 3 and reply.stderr.count("\n") == 1
