from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

from onnxcam.autodiff import registry  # noqa: E402
from onnxcam.errors import InputError, LayerError, ModelError, OutputError, SettingError, VerificationError  # noqa: E402
from onnxcam.exporters import keras_capture, parity  # noqa: E402
from onnxcam.exporters.keras import export, list_layers  # noqa: E402
from onnxcam.exporters.keras_module import Watched  # noqa: E402
from onnxcam.exporters.keras_oracle import KerasOracle  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from onnxcam.targets.readout import LOGITS, Readout  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402

# Keras warns that a functional model made from a list of one input is called with that input alone
pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")]
K = keras.layers
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """Spare the garbage collections of each export what was alive before the first one."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    keras.backend.clear_session()


@functools.cache
def nested_with(*layers: str) -> onnx.ModelProto:
    """The nested model exported, verified; nobody changes it."""
    return export(nets.nested(), None, layers=layers or None)


def pictures(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def run(model: onnx.ModelProto, batch: np.ndarray, targets: Any = None) -> dict[str, np.ndarray]:
    """All outputs of a file, in nothing but onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: batch}
    if targets is not None:
        feeds["target"] = np.asarray(targets, np.int64)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def tape_of(model: Any, value: Any, logits: Any, batch: np.ndarray, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """The way a Keras Grad-CAM script does it: a functional model of the inner value and the logits, and a tape."""
    both = keras.Model(model.inputs, [value, logits])
    with tf.GradientTape() as tape:
        held, scores = both(tf.constant(batch), training=False)
        total = tf.reduce_sum(tf.gather(scores, targets, axis=1, batch_dims=1))
    return np.asarray(held), np.asarray(tape.gradient(total, held))


def without_softmax(model: Any) -> Any:
    """The same network's logits, from a Dense layer of its own with the head's weights."""
    head = model.get_layer("head")
    plain = K.Dense(head.units)
    logits = plain(head.input)
    plain.set_weights(head.get_weights())
    return logits


def close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert parity.distance(a, b).max() < 1e-5


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["conv1", "norm1", "relu1", "pool1", "conv2", "relu2"])
def test_values_and_gradients_are_those_of_the_tape(layer: str) -> None:
    model = nets.functional()
    batch, targets = pictures(3, 16, 16, 3), [4, 0, 2]
    value, gradient = tape_of(model, model.get_layer(layer).output, without_softmax(model), batch, targets)

    explained = export(model, None, layers=[layer])

    found = run(explained, batch, targets)
    assert list(found) == ["probabilities", "logits", "activations", "gradients", "heatmap"]
    close(found["activations"], value)
    close(found["gradients"], gradient)
    close(found["probabilities"], np.asarray(model(batch)))
    cam = np.maximum((gradient.mean(axis=(1, 2), keepdims=True) * value).sum(axis=3), 0)
    np.testing.assert_allclose(found["heatmap"], cam, rtol=1e-4, atol=1e-6)


def test_several_layers_nested_and_not() -> None:
    model = nets.nested()
    batch = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    explained = export(model, None, layers=["backbone/conv", "top_conv", "backbone"])
    held = manifest.read(explained)
    assert held is not None
    assert [entry["name"] for entry in held["layers"]] == ["backbone/conv", "backbone/top_conv", "backbone"]
    found = run(explained, batch)
    scaled = tf.constant(batch / 255.0)
    inner = model.get_layer("backbone")
    for name in ("conv", "top_conv"):
        expected = keras.Model(inner.inputs, inner.get_layer(name).output)(scaled, training=False)
        close(found[f"activations/backbone/{name}"], np.asarray(expected))
    close(found["activations/backbone"], np.asarray(inner(scaled, training=False)))
    close(found["probabilities"], np.asarray(model(batch, training=False)))
    assert held["parity"]["gradients"] < 1e-4 and held["parity"]["against"] == "TensorFlow GradientTape"


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
    found = run(nested_with("top_conv"), batch, [2, 0])
    close(found["logits"], np.asarray(scores))
    close(found["activations"], np.asarray(value))
    close(found["gradients"], np.asarray(tape.gradient(total, value)))


@pytest.mark.parametrize(
    ("classes", "activation", "kind"),
    [
        (5, "softmax", "logits"),
        (5, None, "logits"),
        (5, "sigmoid", "multilabel"),
        (1, "sigmoid", "binary_logit"),
        (2, "log_softmax", "logits"),
    ],
)
def test_heads(classes: int, activation: str | None, kind: str) -> None:
    model = nets.functional(classes, activation)
    explained = export(model, None)
    held = manifest.read(explained)
    assert held is not None
    assert held["scores"]["kind"] == kind and held["scores"]["classes"] == max(classes, 2)
    assert held["parity"]["gradients"] < 1e-4
    batch = pictures(2, 16, 16, 3)
    found = run(explained, batch)
    name = {None: "logits", "log_softmax": "log_probabilities"}.get(activation, "probabilities")
    assert next(iter(found)) == name
    close(found[name], np.asarray(model(batch)))
    close(found["logits"], np.asarray(keras.Model(model.inputs, without_softmax(model))(batch)))


def test_a_grey_sequential_model_with_a_flatten_head() -> None:
    held = manifest.read(export(nets.flattened(), None, labels=["a", "b", "c"], preprocess="0..1"))
    assert held is not None
    assert held["layers"][0]["name"] == "b" and held["layers"][0]["shape"] == ["N", 8, 8, 6]
    assert held["input"]["layout"] == "NHWC" and held["input"]["preprocess"]["color"] == "L"


def test_a_subclassed_model_and_blocks_of_code() -> None:
    model = nets.Subclassed()
    model(np.zeros((1, 17, 17, 3), np.float32))
    nets.seeded(model)
    for preprocess in (None, "0..1"):
        held = manifest.read(export(model, None, preprocess=preprocess, verify=preprocess is None))
        assert held is not None and held["layers"][0]["name"] == "block"
    both = manifest.read(export(model, None, layers=["block/first", "second", model.stem]))
    assert both is not None
    assert [entry["name"] for entry in both["layers"]] == ["block/first", "block/second", "stem"]
    assert max(both["parity"][key] for key in parity.QUANTITIES) < 1e-4


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


def test_calls_of_a_shared_layer() -> None:
    model = nets.shared()
    batch, conv = pictures(2, 10, 10, 4), model.get_layer("again")
    explained = export(model, None, layers=["again#0", "again#1", "again"])
    found = run(explained, batch)
    first = conv(batch)
    second = conv(first)
    close(found["activations/again#0"], np.asarray(first))
    close(found["activations/again#1"], np.asarray(second))
    close(found["activations/again"], np.asarray(conv(second)))


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


def test_the_oracle_in_float64_agrees_with_itself() -> None:
    model = nets.functional()
    watched, batch = Watched(model), pictures(2, 16, 16, 3)
    calls, _ = watched.calls(batch)
    targets = [watched.resolve(name, calls) for name in ("conv1", "relu2")]
    oracle = KerasOracle(
        watched, targets, batch, outputs=1, place=0, readout=Readout("scores", LOGITS, 5), stepped_over=True
    )
    single, double = oracle(batch, False), oracle(batch, True)
    assert single is not None and double is not None
    assert double.scores.dtype == np.float64 and double.activations[0].dtype == np.float64
    close(single.scores, double.scores)
    index = np.asarray([1, 4])
    for part, exact in zip(single.gradients(index), double.gradients(index), strict=True):
        assert exact.dtype == np.float64
        assert 1e-9 < parity.distance(part, exact).max() < 1e-5


def test_a_wrong_gradient_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._rules, "Relu", [(1, None, registry.Entry(lambda op, node, dy: [dy], False, False))])
    with pytest.raises(VerificationError, match="GradientTape"):
        export(nets.functional(), tmp_path / "out.onnx", layers=["conv2"])
    assert list(tmp_path.iterdir()) == []


# -- what fails without a word elsewhere ------------------------------------------------------------------------------


def test_constants_do_not_become_inputs_and_nothing_is_random() -> None:
    explained = nested_with()
    held = manifest.read(explained)
    assert held is not None
    names = [i.name for i in explained.graph.input if i.name not in {t.name for t in explained.graph.initializer}]
    assert names == ["input"]
    assert not RANDOM & {node.op_type for node in explained.graph.node}
    assert [o.domain for o in explained.opset_import] == [""]
    assert explained.opset_import[0].version == 18
    assert [o.name for o in explained.graph.output][:2] == ["probabilities", "logits"]
    assert all(o.type.tensor_type.shape.dim[0].dim_param == "N" for o in explained.graph.output)
    assert held["input"]["preprocess"]["scale"] == 1.0  # the model divides by 255 itself


def test_a_convolution_is_not_folded_into_its_batch_norm() -> None:
    model = nets.nested()
    inner = model.get_layer("backbone")
    batch = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    found = run(nested_with("top_conv"), batch)["activations"]
    before = keras.Model(inner.inputs, inner.get_layer("top_conv").output)(batch / 255.0, training=False)
    after = keras.Model(inner.inputs, inner.get_layer("top_bn").output)(batch / 255.0, training=False)
    close(found, np.asarray(before))
    assert parity.distance(found, np.asarray(after)).max() > 0.1


def test_a_model_that_draws_numbers_when_it_predicts_is_refused() -> None:
    class Noisy(K.Layer):
        def call(self, x: Any) -> Any:
            return x + tf.random.normal(tf.shape(x))

    picture = keras.Input((8, 8, 3))
    x = K.GlobalAveragePooling2D()(Noisy()(K.Conv2D(4, 3)(picture)))
    with pytest.raises(ModelError, match="random numbers"):
        export(keras.Model(picture, K.Dense(2)(x)), None)


@pytest.mark.parametrize("opset", [18, 19, 21])
def test_opsets(opset: int) -> None:
    explained = export(nets.functional(), None, opset=opset)
    assert [o.version for o in explained.opset_import if o.domain == ""] == [opset]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([K.Rescaling(1 / 255)], 1.0), ([K.Rescaling(2.0, offset=-1)], 1 / 255), ([], None)],
)
def test_preprocessing_is_known_where_the_model_scales_its_pixels(layers: list[Any], expected: float | None) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, K.Conv2D(4, 3), K.GlobalAveragePooling2D(), K.Dense(2)])
    held = manifest.read(export(model, None, verify=False))
    assert held is not None
    assert (held["input"]["preprocess"] or {}).get("scale") == expected


def test_preprocess_input_inside_a_functional_model() -> None:
    picture = keras.Input((32, 32, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(picture)
    x = K.GlobalAveragePooling2D()(K.Conv2D(4, 3)(x))
    held = manifest.read(export(keras.Model(picture, K.Dense(2)(x)), None, verify=False))
    assert held is not None and held["input"]["preprocess"]["scale"] == 1.0


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "layer", "told"),
    [
        (nets.functional, "conv3", r"'conv2', 'conv1'|'conv1', 'conv2'"),
        (nets.twins, "conv", "left/conv.*right/conv"),
        (nets.functional, "mean", "spatial map"),
        (nets.functional, "head", "spatial map"),
        (nets.shared, "again#3", "again#2 is its last"),
        (nets.functional, K.Conv2D(2, 3), "neither a layer"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_with_candidates(build: Callable[[], Any], layer: Any, told: str) -> None:
    with pytest.raises(LayerError, match=told):
        export(build(), None, layers=[layer])
    with pytest.raises(LayerError, match="empty"):
        export(build(), None, layers=[])


def test_a_path_tells_twins_apart() -> None:
    held = manifest.read(export(nets.twins(), None, layers=["left/conv", "right/conv"]))
    assert held is not None
    assert [entry["shape"] for entry in held["layers"]] == [["N", 8, 8, 4], ["N", 6, 6, 4]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("VGG16", "block5_conv3"),
        ("ResNet50", "conv5_block3_out"),
        ("EfficientNetB0", "top_conv"),
        ("MobileNetV2", "Conv_1"),
    ],
)
def test_the_default_layer_is_the_one_of_long_habit(name: str, default: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=4)
    held = manifest.read(export(model, None, verify=False))
    assert held is not None
    assert [entry["name"] for entry in held["layers"]] == [default]


@pytest.mark.parametrize(("token", "default"), [(True, "norm_1"), (False, "norm")])
def test_a_transformer_is_explained_where_its_patches_end(token: bool, default: str) -> None:
    model = nets.transformer(token)
    batch, targets = pictures(3, 24, 32, 3), [4, 0, 2]
    explained = export(model, None)
    held = manifest.read(explained)
    assert held is not None
    (entry,) = held["layers"]
    assert (entry["name"], entry["layout"], entry["grid"], entry["prefix_tokens"]) == (default, "NTC", [3, 4], token)
    value, gradient = tape_of(model, model.get_layer(default).output, model.output, batch, targets)
    found = run(explained, batch, targets)
    close(found["activations"], value)
    close(found["gradients"], gradient)
    value, gradient = value[:, token:], gradient[:, token:]
    cam = np.maximum((gradient.mean(axis=1, keepdims=True) * value).sum(axis=2), 0).reshape(3, 3, 4)
    np.testing.assert_allclose(found["heatmap"], cam, rtol=1e-3, atol=1e-5)
    assert found["heatmap"].max(axis=(1, 2)).min() > 0

    listed = list_layers(model)
    assert [layer.name for layer in listed if layer.default] == [default]
    assert {layer.grid for layer in listed} == {(3, 4)}
    # behind the last attention only the class token matters
    assert ("block_1" in [layer.name for layer in listed]) is not token


def test_layers_are_listed_as_export_takes_them() -> None:
    found = list_layers(nets.nested())
    names = [layer.name for layer in found]
    assert names == [
        "scale", "backbone/normal", "backbone/conv", "backbone/bn", "backbone/act", "backbone/top_conv",
        "backbone/top_bn", "backbone/top_activation",
    ]  # fmt: skip
    assert [layer.name for layer in found if layer.default] == ["backbone/top_activation"]
    held = manifest.read(nested_with())
    assert held is not None and held["layers"][0]["name"] == "backbone/top_activation"
    assert next(layer for layer in found if layer.default).shape == tuple(held["layers"][0]["shape"])


# -- bad input --------------------------------------------------------------------------------------------------------


def test_models_that_cannot_be(tmp_path: Path) -> None:
    one, two = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    x = K.GlobalAveragePooling2D()(K.Conv2D(4, 3)(K.Add()([one, two])))
    with pytest.raises(ModelError, match=r"2 inputs.*'left'.*'right'"):
        export(keras.Model([one, two], K.Dense(2)(x)), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="expected a Keras model"):
        export(K.Dense(2), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"\[N, 5\].*pictures"):
        export(keras.Sequential([keras.Input((5,)), K.Dense(2)]), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="not an image classifier"):
        export(keras.Sequential([keras.Input((8, 8, 3)), K.Conv2D(4, 3)]), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="no spatial layer"):
        export(keras.Sequential([keras.Input((8, 8, 3)), K.Flatten(), K.Dense(2)]), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="input size"):
        export(nets.functional(), tmp_path / "a.onnx", input_size=32)
    with pytest.raises(ModelError, match="opset 17"):
        export(nets.functional(), tmp_path / "a.onnx", opset=17)
    with pytest.raises(InputError, match="verify"):
        export(nets.functional(), tmp_path / "a.onnx", verify="yes")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="no folder"):
        export(nets.functional(), tmp_path / "missing" / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match="KERAS_BACKEND=tensorflow"):
        export(nets.functional(), None)


def test_several_outputs_and_which_are_the_scores() -> None:
    base = nets.functional()
    both = keras.Model(base.inputs, [base.output, base.get_layer("mean").output])
    explained = export(both, None)
    held = manifest.read(explained)
    assert held is not None and held["scores"]["classes"] == 5
    assert held["source"]["outputs"] == ["head", "mean"]
    with pytest.raises(ModelError, match="no output 'other'"):
        export(both, None, scores="other")
    named = keras.Model(base.inputs, {"features": base.get_layer("relu2").output, "classes": base.output})
    held = manifest.read(export(named, None))
    assert held is not None and held["source"]["outputs"] == ["features", "classes"]


def test_the_model_is_left_as_it_was() -> None:
    model = nets.nested()
    weights = [np.array(w) for w in model.get_weights()]
    call = keras.layers.Layer.__call__
    model.trainable = True
    with pytest.raises(LayerError):
        export(model, None, layers=["nothing"])
    export(model, None)
    assert keras.layers.Layer.__call__ is call
    assert model.trainable
    assert all((a == b).all() for a, b in zip(weights, model.get_weights(), strict=True))


def test_outputs_heatmap_keeps_the_record() -> None:
    held = manifest.read(export(nets.functional(), None, outputs="heatmap", target="required", methods=["hirescam"]))
    assert held is not None
    assert held["layers"][0]["activations"] is None and held["parity"]["gradients"] < 1e-4
    assert held["target"]["mode"] == "required" and list(held["layers"][0]["heatmaps"]) == ["hirescam"]


def test_a_gate_is_put_in_after_the_proof() -> None:
    model = nets.functional()
    plain, always, never = (export(model, None, gate=g) for g in (None, "margin <= 1", "margin < 0"))
    held, known = manifest.read(never), manifest.read(plain)
    assert held is not None and known is not None
    assert held["gate"] == {"condition": "margin < 0", "output": "fired"} and held["parity"] == known["parity"]
    x = pictures(3, *known["input"]["shape"][1:])
    want, fired, blank = (run(made, x) for made in (plain, always, never))
    assert fired["fired"].all() and not blank["fired"].any()
    for name in ("gradients", "heatmap"):
        np.testing.assert_allclose(fired[name], want[name], rtol=1e-5, atol=1e-7)
        assert not blank[name].any() and blank[name].shape == want[name].shape
    assert want["gradients"].any()
    with pytest.raises(SettingError, match="expected one of"):
        export(model, None, gate="margin")


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    export(nets.functional(), None)
    assert capfd.readouterr() == ("", "")
    assert keras_capture.DEFAULT_OPSET == 18
