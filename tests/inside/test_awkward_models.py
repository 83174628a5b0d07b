"""Models that are no plain classifiers, and values that are not numbers: what is said of them inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam import image, inside
from onnxcam.errors import LayerError, ModelError
from onnxcam.inside import outcome
from tests.cli.conftest import RAW, Run
from tests.graph.text import model as parsed
from tests.inside import nets
from tests.inside.nets import conv, node, normal
from tests.support import models
from tests.support.batches import picture
from tests.support.runtime import run as run_model

COVER = (4, 10, 20, 26)


def opened(model: onnx.ModelProto, **options: Any) -> onnxcam.Explainer:
    return onnxcam.Explainer(model, preprocess=RAW, probe=False, providers=["CPUExecutionProvider"], **options)


def changed(model: onnx.ModelProto, name: str, place: int, value: float) -> onnx.ModelProto:
    """The model with one element of a weight replaced."""
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[place] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def vectors(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """What the plain model makes of the picture and of the picture with its cover, in float64."""
    pixels = picture(32, 32)
    tensor = (pixels / np.float32(255)).transpose(2, 0, 1)[None].astype(np.float32)
    covered = tensor.copy()
    covered[:, :, COVER[1] : COVER[3], COVER[0] : COVER[2]] = 0
    before, after = (run_model(model, one)["logits"][0].astype(np.float64) for one in (tensor, covered))
    return before, after


def embedding() -> onnx.ModelProto:
    """A tiny CNN whose scores are divided by their length."""
    model = models.tiny_cnn(classes=12)
    model.graph.output[0].name = "unit"
    norm = helper.make_node("LpNormalization", ["logits"], ["unit"], name="norm", axis=1, p=2)
    model.graph.node.append(norm)
    return model


def test_a_covered_part_turns_an_embedding_by_its_angle() -> None:
    explainer = opened(embedding())
    assert explainer.manifest["scores"]["kind"] == "embedding"
    result = inside.perturb(explainer, picture(32, 32), COVER)
    before, after = vectors(models.tiny_cnn(classes=12))
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert cosine < 0.999
    assert result.similarity == pytest.approx(cosine, abs=1e-5) and result.drop == pytest.approx(1 - cosine, abs=1e-5)
    assert result.before == result.after == [] and result.kind == outcome.VECTOR


def test_values_of_a_regression_are_no_percentages(run: Run, tmp_path: Path) -> None:
    model = models.tiny_cnn(classes=1)
    before, after = vectors(model)
    result = inside.perturb(opened(model, kind="regression"), picture(32, 32), COVER)
    assert result.before[0][2] == pytest.approx(before[0], abs=1e-5)
    assert result.drop == pytest.approx(abs(before[0] - after[0]), abs=1e-5) and result.similarity is None
    onnx.save(model, tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture(32, 32))
    common = (tmp_path / "cat.png", "-o", tmp_path / "out", "--preprocess", "0..1", "--kind", "regression")
    answer = run("inside", "perturb", tmp_path / "model.onnx", *common, "--cover", "4,10,20,26")
    assert answer.code == 0 and f"goes from {before[0]:.5g} to {after[0]:.5g}" in answer.out
    assert "%" not in answer.out.splitlines()[0]
    assert run("inside", "features", tmp_path / "model.onnx", *common).code == 0
    record = json.loads((tmp_path / "out" / "features.json").read_text())
    assert record["prediction"]["value"] == pytest.approx(before[0], abs=1e-5)


def test_values_that_are_not_finite_are_refused_or_told(run: Run, tmp_path: Path) -> None:
    broken = changed(models.tiny_cnn(), "b2", 3, float("nan"))
    with pytest.raises(ModelError, match="scores are not finite"):
        inside.perturb(opened(broken), picture(), (0, 0, 8, 8))
    first, second = inside.dead(opened(broken), [picture()])
    assert (first.broken, second.broken) == ((), (3,)) and 3 not in second.observed
    onnx.save(broken, tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture())
    where = (tmp_path / "model.onnx", tmp_path / "cat.png")
    assert run("inside", "features", *where, "-o", tmp_path / "out", "--preprocess", "0..1").code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "out" / "features.json").read_text(), parse_constant=refuse)
    assert record["layers"][1]["variance"][3] is None
    (maps,) = inside.features(opened(broken), picture(), "relu2")
    assert "1 channel holds values that are infinite or not a number (pink)" in maps.notes()
    answer = run("inside", "dead", *where, "--preprocess", "0..1")
    assert answer.code == 0 and "1 channel in 1 layer (relu2 first) took values that are not finite" in answer.out


def test_a_single_value_that_is_not_a_number_is_seen_wherever_it_stands() -> None:
    """ONNX Runtime's ReduceMax skips it unless it comes first."""
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[:, 0] = 1
    nodes = [conv("input", "w", "a"), node("Sub", ["a", "half"], "b"), node("Sqrt", ["b"], "last")]
    model = nets.classifier(nodes, width=2, w=weight, half=np.float32([0.5]))
    pixels = np.full((32, 32, 3), 255, np.uint8)
    (sound,) = inside.dead(opened(model), [pixels], "last")
    pixels[20, 20] = 0  # the root of a negative number
    (one,) = inside.dead(opened(model), [pixels], "last")
    assert (sound.broken, one.broken) == ((), (0, 1))


def test_channels_of_layers_that_go_below_0_are_not_called_dead(run: Run, tmp_path: Path) -> None:
    model = changed(changed(models.tiny_cnn(), "b1", 0, -100.0), "b2", 3, -100.0)
    linear, rectified = inside.dead(opened(model), [picture()], ["conv2", "relu2"])
    assert linear.signed and not rectified.signed and 3 in linear.proven and 3 in rectified.proven
    onnx.save(model, tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture())
    common = ("inside", "dead", tmp_path / "model.onnx", tmp_path / "cat.png", "--preprocess", "0..1", "--layer")
    answer = run(*common, "conv2")
    assert answer.code == 0 and "conv2 ±" in answer.out and "is not dead" in answer.out
    answer = run(*common, "relu2")
    assert answer.code == 0 and "±" not in answer.out


def test_each_picture_is_read_once_and_named_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(models.tiny_cnn(), tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture())
    (tmp_path / "note.png").write_text("no picture")
    reads: list[str] = []
    prepare = onnxcam.Explainer.prepare
    monkeypatch.setattr(
        onnxcam.Explainer, "prepare", lambda self, one, **more: (reads.append(str(one)), prepare(self, one, **more))[1]
    )
    names = (tmp_path / "model.onnx", tmp_path / "cat.png", tmp_path / "note.png", "--preprocess", "0..1")
    for command, more in (("dead", ()), ("features", ("-o", tmp_path / "out"))):
        reads.clear()
        answer = run("inside", command, *names, *more)
        assert answer.code == 1 and answer.sentence.count("note.png") == 1
        assert sorted(reads) == [str(tmp_path / "cat.png"), str(tmp_path / "note.png")]


@pytest.mark.parametrize("cover", [(0, 0, 1, 1), (449, 299, 450, 300), (0, 299, 1, 300), (200, 0, 201, 300)])
def test_the_smallest_covers_are_a_pixel_of_the_input(cover: tuple[int, int, int, int]) -> None:
    """Of a picture that is made much smaller a box of one pixel rounds to nothing."""
    result = inside.perturb(opened(models.tiny_cnn()), picture(300, 450), cover, layers="conv1")
    left, top, right, bottom = result.covered
    assert 0 <= left < right <= 32 and 0 <= top < bottom <= 32 and right - left == 1
    assert result.spread["conv1"] > 0


def test_three_layers_are_an_early_a_middle_and_a_deep_one() -> None:
    nodes = [
        conv("input", "w0", "a", pads=[1] * 4), node("Relu", ["a"], "r0"),
        conv("r0", "w1", "b", pads=[1] * 4, strides=[2, 2]), node("Relu", ["b"], "r1"),
        conv("r1", "w2", "c", pads=[1] * 4, strides=[2, 2]), node("Relu", ["c"], "last"),
    ]  # fmt: skip
    weights = {"w0": normal(4, 3, 3, 3), "w1": normal(4, 4, 3, 3), "w2": normal(4, 4, 3, 3)}
    model = nets.classifier(nodes, width=4, **weights)
    assert [one.layer for one in inside.features(opened(model), picture())] == ["r0", "r1", "last"]


def test_fields_take_what_is_said_of_the_output_and_the_preprocessing(run: Run, tmp_path: Path) -> None:
    model = models.tiny_cnn(size=None)
    model.graph.initializer.append(numpy_helper.from_array(normal(16, 7), "w4"))
    model.graph.node.append(helper.make_node("MatMul", ["flat", "w4"], ["others"], name="second"))
    model.graph.output.append(helper.make_tensor_value_info("others", TensorProto.FLOAT, ["N", 7]))
    onnx.save(model, tmp_path / "model.onnx")
    refused = run("inside", "fields", tmp_path / "model.onnx")
    assert refused.code == 3 and "--scores" in refused.err
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"color": "RGB", "resize": {"mode": "stretch", "size": [40, 60]}}))
    answer = run("inside", "fields", tmp_path / "model.onnx", "--scores", "logits", "--preprocess", spec, "--json")
    assert answer.code == 0 and [field["grid"] for field in answer.json()["fields"]] == [[40, 60], [20, 30]]
    assert run("inside", "fields", tmp_path / "model.onnx", "--scores", "logits", "--preprocess", "imgnet").code == 2


def test_a_dynamically_quantized_input_keeps_its_fields() -> None:
    """The scale depends on the whole picture, the numbers that are meant do not."""
    weight = np.random.default_rng(0).integers(-8, 8, (4, 3, 3, 3)).astype(np.int8)
    text = """g (float[N, 3, 16, 16] x) => (float[N, 4] y) {
      q, s, z = DynamicQuantizeLinear(x)
      c = ConvInteger<pads = [1, 1, 1, 1]>(q, w, z)
      f = Cast<to = 1>(c)
      m = Mul(f, s)
      r = Relu(m)
      p = GlobalAveragePool(r)
      y = Flatten(p)
    }"""
    for field in inside.fields(parsed(text, w=weight)):
        assert (field.size, field.whole, field.mixing) == ((3, 3), False, None)


def test_a_layer_of_one_place_has_neurons_to_maximise() -> None:
    explainer = opened(models.tiny_cnn())
    result = inside.maximize(explainer, layer="pooled", channel=3, steps=12)
    tensor = result.picture.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    value = nets.values(models.tiny_cnn(), tensor, ["pooled"])["pooled"][0, 3, 0, 0]
    assert result.verified == pytest.approx(value, rel=1e-5) and result.scalar.title == "neuron 3 of 'pooled'"
    with pytest.raises(LayerError, match="one number per channel"):
        inside.maximize(explainer, layer="pooled", channel=3, place=(0, 0))


def test_a_real_picture_that_reaches_more_is_told() -> None:
    explainer = opened(models.tiny_cnn())
    pictures = [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 255)]
    channels = [inside.maximize(explainer, layer="relu1", channel=k, steps=1, pictures=pictures) for k in range(8)]
    doubts = [any("a real picture reaches more" in warning for warning in one.warnings) for one in channels]
    assert doubts == [one.natural is not None and one.natural.value > one.verified for one in channels]
    assert any(doubts) and not all(doubts)


def test_a_real_picture_that_cannot_be_read_is_a_failure(run: Run, tmp_path: Path) -> None:
    onnx.save(models.tiny_cnn(), tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture())
    common = ("--class", 1, "--steps", 2, "--preprocess", "0..1", "--pictures", tmp_path / "cat.png")
    where = ("inside", "maximize", tmp_path / "model.onnx", "-o", tmp_path / "out", *common)
    assert run(*where).code == 0
    (tmp_path / "note.png").write_text("no picture")
    answer = run(*where, "--pictures", tmp_path / "note.png")
    assert answer.code == 1 and "note.png" in answer.err and "best of 1 real picture" in answer.out


def test_an_embeddings_component_is_no_logit() -> None:
    result = inside.maximize(opened(embedding()), target=4, steps=2)
    assert result.scalar.title == "component '4'"


def test_a_name_that_is_like_none_lists_layers() -> None:
    with pytest.raises(LayerError, match=r"'relu1', 'relu2'"):
        inside.fields(models.tiny_cnn(), "zzz")


def test_filters_of_three_axes_are_said_to_be_such() -> None:
    nodes = [
        node("Unsqueeze", ["input", "one"], "deep"), conv("deep", "w", "volume", pads=[1] * 6),
        node("Squeeze", ["volume", "one"], "squeezed"), conv("squeezed", "v", "last"),
    ]  # fmt: skip
    weights = {"one": np.array([1]), "w": normal(1, 1, 3, 3, 3), "v": normal(4, 3, 1, 1)}
    model = nets.classifier(nodes, width=4, **weights)
    with pytest.raises(LayerError, match=r"filters of 3 axes, \[1, 1, 3, 3, 3\].*layers that have are 'last'"):
        inside.filters(model, "volume")


def test_a_quantized_convolution_is_called_as_its_layer_is(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 3, 16, 16] x) => (float[N, 4] y) {
      q = QuantizeLinear(x, s, z)
      c = QLinearConv<pads = [1, 1, 1, 1]>(q, s, z, w, s, zw, s, z)
      d = DequantizeLinear(c, s, z)
      r = Relu(d)
      p = GlobalAveragePool(r)
      y = Flatten(p)
    }"""
    weight = rng.integers(-100, 100, (4, 3, 3, 3)).astype(np.int8)
    scales = {"s": np.float32(0.02), "z": np.uint8(0), "zw": np.int8(0)}
    model = parsed(text, w=weight, **{name: np.asarray(value) for name, value in scales.items()})
    filters = inside.filters(model)
    np.testing.assert_allclose(filters.weights, weight * np.float32(0.02), rtol=1e-6)
    onnx.save(model, tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture(16, 16))
    names = (tmp_path / "model.onnx", tmp_path / "cat.png", "-o", tmp_path / "out", "--preprocess", "0..1")
    assert not filters.layer.startswith("onnxcam")
    assert run("inside", "features", *names, "--layer", filters.layer).code == 0


def test_a_tall_matrix_of_filters_is_wide_enough_to_see() -> None:
    nodes = [conv("input", "w0", "a"), conv("a", "w1", "last")]
    model = nets.classifier(nodes, width=4096, w0=normal(4, 3, 1, 1), w1=normal(4096, 4, 1, 1))
    filters = inside.filters(model, "last")
    page = filters.grid()
    assert page.shape[0] < 3 * page.shape[1]
    assert "Shown: the 64 that vary most." in filters.notes()
    colored = (page.max(axis=2).astype(int) - page.min(axis=2) > 60).any(axis=0)
    assert colored[:400].sum() > 60


def test_few_slices_leave_no_empty_frames() -> None:
    nodes = [conv("input", "w0", "a"), conv("a", "w1", "last", group=2)]
    model = nets.classifier(nodes, width=8, w0=normal(4, 3, 1, 1), w1=normal(8, 2, 3, 3))
    page, _ = inside.filters(model, "last").parts()
    below = page.shape[0] // 4 // 2
    for column in range(4):
        tile = page[below - 60 : below + 60, 20 + column * 187 : 20 + column * 187 + 170]
        assert (tile.max(axis=2).astype(int) - tile.min(axis=2) > 20).any(), column
