"""Exported Keras models: what the file computes is what the model and its tape do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

from onnxcam.autodiff import registry  # noqa: E402
from onnxcam.errors import ModelError, VerificationError  # noqa: E402
from onnxcam.exporters import parity  # noqa: E402
from onnxcam.exporters.keras import export  # noqa: E402
from onnxcam.exporters.keras_module import Watched  # noqa: E402
from onnxcam.exporters.keras_oracle import KerasOracle  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from onnxcam.targets.readout import LOGITS, Readout  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402
from tests.exporters.keras_numbers import SINGLE_INPUT, close, nested_with, pictures, tape_of, without_softmax  # noqa: E402
from tests.support.examples import rest_slow  # noqa: E402
from tests.support.runtime import run  # noqa: E402

pytestmark = [
    pytest.mark.keras,
    pytest.mark.usefixtures("few_collections"),
    pytest.mark.filterwarnings(SINGLE_INPUT),
]
K = keras.layers
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", rest_slow(["relu2", "conv1", "norm1", "relu1", "pool1", "conv2"]))
def test_values_and_gradients_are_those_of_the_tape(layer: str) -> None:
    model = nets.functional()
    batch, targets = pictures(3, 16, 16, 3), [4, 0, 2]
    value, gradient = tape_of(model, model.get_layer(layer).output, without_softmax(model), batch, targets)

    explained = export(model, None, layers=[layer])

    outputs = run(explained, batch, target=targets)
    assert list(outputs) == ["probabilities", "logits", "activations", "gradients", "heatmap"]
    close(outputs["activations"], value)
    close(outputs["gradients"], gradient)
    close(outputs["probabilities"], np.asarray(model(batch)))
    cam = np.maximum((gradient.mean(axis=(1, 2), keepdims=True) * value).sum(axis=3), 0)
    np.testing.assert_allclose(outputs["heatmap"], cam, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_several_layers_nested_and_not() -> None:
    model = nets.nested()
    batch = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    explained = export(model, None, layers=["backbone/conv", "top_conv", "backbone"])
    header = manifest.read(explained)
    assert header is not None
    assert [entry["name"] for entry in header["layers"]] == ["backbone/conv", "backbone/top_conv", "backbone"]
    outputs = run(explained, batch)
    scaled = tf.constant(batch / 255.0)
    inner = model.get_layer("backbone")
    for name in ("conv", "top_conv"):
        expected = keras.Model(inner.inputs, inner.get_layer(name).output)(scaled, training=False)
        close(outputs[f"activations/backbone/{name}"], np.asarray(expected))
    close(outputs["activations/backbone"], np.asarray(inner(scaled, training=False)))
    close(outputs["probabilities"], np.asarray(model(batch, training=False)))
    assert header["parity"]["gradients"] < 1e-4 and header["parity"]["against"] == "TensorFlow GradientTape"


@pytest.mark.slow
def test_the_tape_inside_a_nested_model() -> None:
    """Keras.Model([outer input], [inner value]) raises, so the network is put together again without nesting."""
    model = nets.nested()
    batch = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    inner, head = model.get_layer("backbone"), model.get_layer("head")
    both = keras.Model(inner.inputs, [inner.get_layer("top_conv").output, inner.output])
    kernel, bias = head.get_weights()
    with tf.GradientTape() as tape:
        value, last = both(tf.constant(batch / 255.0), training=False)
        scores = tf.reduce_mean(last, axis=(1, 2)) @ kernel + bias
        total = scores[0, 2] + scores[1, 0]
    outputs = run(nested_with("top_conv"), batch, target=[2, 0])
    close(outputs["logits"], np.asarray(scores))
    close(outputs["activations"], np.asarray(value))
    close(outputs["gradients"], np.asarray(tape.gradient(total, value)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "activation", "kind"),
    rest_slow(
        [
            (5, "softmax", "logits"),
            (1, "sigmoid", "binary_logit"),
            (5, None, "logits"),
            (5, "sigmoid", "multilabel"),
            (2, "log_softmax", "logits"),
        ],
        2,
    ),
)
def test_heads(classes: int, activation: str | None, kind: str) -> None:
    model = nets.functional(classes, activation)
    explained = export(model, None)
    header = manifest.read(explained)
    assert header is not None
    assert header["scores"]["kind"] == kind and header["scores"]["classes"] == max(classes, 2)
    assert header["parity"]["gradients"] < 1e-4
    batch = pictures(2, 16, 16, 3)
    outputs = run(explained, batch)
    name = {None: "logits", "log_softmax": "log_probabilities"}.get(activation, "probabilities")
    assert next(iter(outputs)) == name
    close(outputs[name], np.asarray(model(batch)))
    close(outputs["logits"], np.asarray(keras.Model(model.inputs, without_softmax(model))(batch)))


@pytest.mark.slow
def test_a_grey_sequential_model_with_a_flatten_head() -> None:
    header = manifest.read(export(nets.flattened(), None, labels=["a", "b", "c"], preprocess="0..1"))
    assert header is not None
    assert header["layers"][0]["name"] == "b" and header["layers"][0]["shape"] == ["N", 8, 8, 6]
    assert header["input"]["layout"] == "NHWC" and header["input"]["preprocess"]["color"] == "L"


@pytest.mark.slow
def test_a_subclassed_model_and_blocks_of_code() -> None:
    model = nets.Subclassed()
    model(np.zeros((1, 17, 17, 3), np.float32))
    nets.seeded(model)
    for preprocess in (None, "0..1"):
        header = manifest.read(export(model, None, preprocess=preprocess, verify=preprocess is None))
        assert header is not None and header["layers"][0]["name"] == "block"
    both = manifest.read(export(model, None, layers=["block/first", "second", model.stem]))
    assert both is not None
    assert [entry["name"] for entry in both["layers"]] == ["block/first", "block/second", "stem"]
    assert max(both["parity"][key] for key in parity.QUANTITIES) < 1e-4


@pytest.mark.slow
def test_a_model_never_built_needs_its_size() -> None:
    model = nets.Subclassed()
    with pytest.raises(ModelError, match="--input-size"):
        export(model, None)
    assert isinstance(export(model, None, input_size=17, verify=False), onnx.ModelProto)


def test_a_model_that_branches_on_a_tensor() -> None:
    """Only autograph can trace this."""

    class Branching(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = K.Conv2D(4, 3), K.Dense(3)

        def call(self, x: Any) -> Any:
            x = self.conv(x)
            for _ in tf.range(2):
                x = x * 1.5
            return self.head(tf.reduce_mean(x, axis=(1, 2)))

    model = Branching()
    model(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ModelError):  # a Loop between the layer and the scores has no gradient rule
        export(nets.seeded(model), None, layers=["conv2d"] if "conv2d" in model.conv.name else [model.conv])


@pytest.mark.slow
def test_calls_of_a_shared_layer() -> None:
    model = nets.shared()
    batch, conv = pictures(2, 10, 10, 4), model.get_layer("again")
    explained = export(model, None, layers=["again#0", "again#1", "again"])
    outputs = run(explained, batch)
    first = conv(batch)
    second = conv(first)
    close(outputs["activations/again#0"], np.asarray(first))
    close(outputs["activations/again#1"], np.asarray(second))
    close(outputs["activations/again"], np.asarray(conv(second)))


@pytest.mark.slow
def test_mixed_precision_is_exported_as_float32() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = nets.functional()
    finally:
        keras.config.set_dtype_policy("float32")
    policies = [layer.dtype_policy.name for layer in model.layers]
    assert "mixed_float16" in policies
    explained = export(model, None)
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert all(t.data_type != onnx.TensorProto.FLOAT16 for t in explained.graph.initializer)
    batch = pictures(2, 16, 16, 3)
    twin = nets.functional()
    twin.set_weights(model.get_weights())
    close(run(explained, batch)["probabilities"], np.asarray(twin(batch)))


@pytest.mark.slow
def test_the_oracle_in_float64_agrees_with_itself() -> None:
    model = nets.functional()
    watched, batch = Watched(model), pictures(2, 16, 16, 3)
    calls, _ = watched.calls(batch)
    targets = [watched.resolve(name, calls) for name in ("conv1", "relu2")]
    oracle = KerasOracle(
        watched, targets, batch, outputs=1, places=[0], readout=Readout("scores", LOGITS, 5), stepped_over=True
    )
    single, double = oracle(batch, False), oracle(batch, True)
    assert single is not None and double is not None
    assert double.scores.dtype == np.float64 and double.activations[0].dtype == np.float64
    close(single.scores, double.scores)
    index = np.asarray([1, 4])
    for part, exact in zip(single.gradients(index), double.gradients(index), strict=True):
        assert exact.dtype == np.float64
        assert 1e-9 < parity.distance(part, exact).max() < 1e-5


@pytest.mark.slow
def test_a_wrong_gradient_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._rules, "Relu", [(1, None, registry.Entry(lambda op, node, dy: [dy], False, False))])
    with pytest.raises(VerificationError, match="GradientTape"):
        export(nets.functional(), tmp_path / "out.onnx", layers=["conv2"])
    assert list(tmp_path.iterdir()) == []


# -- what fails silently elsewhere -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_constants_do_not_become_inputs_and_nothing_is_random() -> None:
    explained = nested_with()
    header = manifest.read(explained)
    assert header is not None
    names = [i.name for i in explained.graph.input if i.name not in {t.name for t in explained.graph.initializer}]
    assert names == ["input"]
    assert not RANDOM & {node.op_type for node in explained.graph.node}
    assert [o.domain for o in explained.opset_import] == [""]
    assert explained.opset_import[0].version == 18
    assert [o.name for o in explained.graph.output][:2] == ["probabilities", "logits"]
    assert all(o.type.tensor_type.shape.dim[0].dim_param == "N" for o in explained.graph.output)
    assert header["input"]["preprocess"]["scale"] == 1.0  # the model divides by 255 itself


@pytest.mark.slow
def test_a_convolution_is_not_folded_into_its_batch_norm() -> None:
    model = nets.nested()
    inner = model.get_layer("backbone")
    batch = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    outputs = run(nested_with("top_conv"), batch)["activations"]
    before = keras.Model(inner.inputs, inner.get_layer("top_conv").output)(batch / 255.0, training=False)
    after = keras.Model(inner.inputs, inner.get_layer("top_bn").output)(batch / 255.0, training=False)
    close(outputs, np.asarray(before))
    assert parity.distance(outputs, np.asarray(after)).max() > 0.1


@pytest.mark.slow
def test_a_model_that_draws_numbers_when_it_predicts_is_refused() -> None:
    class Noisy(K.Layer):
        def call(self, x: Any) -> Any:
            return x + tf.random.normal(tf.shape(x))

    picture = keras.Input((8, 8, 3))
    x = K.GlobalAveragePooling2D()(Noisy()(K.Conv2D(4, 3)(picture)))
    with pytest.raises(ModelError, match="random numbers"):
        export(keras.Model(picture, K.Dense(2)(x)), None)


@pytest.mark.slow
@pytest.mark.parametrize("opset", rest_slow([18, 19, 21]))
def test_opsets(opset: int) -> None:
    explained = export(nets.functional(), None, opset=opset)
    assert [o.version for o in explained.opset_import if o.domain == ""] == [opset]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "expected"),
    [([K.Rescaling(1 / 255)], 1.0), ([K.Rescaling(2.0, offset=-1)], 1 / 255), ([], None)],
)
def test_preprocessing_is_known_where_the_model_scales_its_pixels(layers: list[Any], expected: float | None) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, K.Conv2D(4, 3), K.GlobalAveragePooling2D(), K.Dense(2)])
    header = manifest.read(export(model, None, verify=False))
    assert header is not None
    assert (header["input"]["preprocess"] or {}).get("scale") == expected


@pytest.mark.slow
def test_preprocess_input_inside_a_functional_model() -> None:
    picture = keras.Input((32, 32, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(picture)
    x = K.GlobalAveragePooling2D()(K.Conv2D(4, 3)(x))
    activations = manifest.read(export(keras.Model(picture, K.Dense(2)(x)), None, verify=False))
    assert activations is not None and activations["input"]["preprocess"]["scale"] == 1.0
