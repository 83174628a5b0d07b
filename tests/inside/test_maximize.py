"""Activation maximisation against PyTorch's ascent, and its values against the plain file."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam
from onnxcam import Explainer, inside
from onnxcam.errors import (
    LayerError,
    ModelError,
    OnnxcamError,
    PreprocessError,
    SettingError,
    TargetError,
)
from onnxcam.image import Preprocess
from onnxcam.inside import ascent as ascents
from onnxcam.inside import differentiated
from onnxcam.inside.maximization import Settings, climb, scalar_of
from onnxcam.inside.parametrization import COLORS, Canvas
from onnxcam.inside.subject import Subject
from onnxcam.inside.transformation import Transformation
from onnxcam.targets import Contrast, Probability, Weights
from tests.inside.graphs import text
from tests.support import torch_models
from tests.support.models import mlp, tiny_cnn
from tests.support.runtime import run

IMAGENET = {"color": "RGB", "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
LABELS = ["cat", "dog", "hen", "pig", "cow"]
QUICK: dict[str, Any] = {"steps": 12, "seed": 3}


def explainer(model: onnx.ModelProto | None = None, **keywords: Any) -> Explainer:
    keywords.setdefault("preprocess", IMAGENET | {"resize": None})
    return Explainer(tiny_cnn(size=16) if model is None else model, probe=False, **keywords)


def torch_ascent(
    objective: Any, settings: Settings, start: np.ndarray, size: tuple[int, int], shifts: list[tuple[int, int]]
) -> tuple[list[float], np.ndarray]:
    """A plain ascent in PyTorch, its parametrisation written out anew: history and the last picture `[3, H, W]`."""
    torch = pytest.importorskip("torch")
    height, width = size
    parameters = torch.tensor(start, requires_grad=True)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = torch.tensor(1 / np.maximum(frequency, 1 / max(size)) * np.sqrt(height * width) / 4).float()
    matrix = torch.tensor(COLORS)
    mean_of_pixels, std = (torch.tensor(IMAGENET[key]).float()[:, None, None] for key in ("mean", "std"))

    def picture() -> Any:
        values = parameters
        if settings.parametrization == "fourier":
            values = torch.fft.irfft2(torch.view_as_complex(parameters) * amplitude, s=size)
        return torch.sigmoid(torch.einsum("ij,jhw->ihw", matrix, values))

    mean, square, history = torch.zeros_like(parameters), torch.zeros_like(parameters), []
    for step, shift in enumerate(shifts, 1):
        value = objective(((torch.roll(picture(), shift, (1, 2)) - mean_of_pixels) / std)[None])
        (gradient,) = torch.autograd.grad(value, parameters)
        history.append(value.item())
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        corrected = square / (1 - 0.999**step)
        move = 2 * settings.rate * mean / (1 - 0.9**step) / (corrected.sqrt() + corrected.mean().sqrt())
        parameters = (parameters + move).detach().requires_grad_()
    return history, picture().detach().numpy()


@pytest.mark.torch
@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
@pytest.mark.parametrize("what", [{"target": 2}, {"layer": "relu1", "channel": 3}, {"target": 1, "contrast": 4}])
def test_it_climbs_as_a_plain_ascent_in_pytorch(parametrization: str, what: dict[str, Any]) -> None:
    model = tiny_cnn(size=16)
    twin = torch_models.build(model)
    subject = Subject(explainer(model), (16, 16))
    settings = Settings.of((16, 16), steps=24, parametrization=parametrization, jitter=2, learning_rate=0.05)
    scalar = scalar_of(subject, what.get("layer"), what.get("channel"), None, what.get("target"), what.get("contrast"))
    canvas = Canvas(parametrization, 3, 16, 16, colors=True)
    start = canvas.noise(np.random.default_rng(0), 0.3)
    rng = np.random.default_rng(1)
    warps = [settings.transformation.draw(rng, (16, 16)) for _ in range(24)]

    def objective(batch: Any) -> Any:
        if "layer" in what:
            return twin.relu1(twin.conv1(batch))[0, what["channel"]].mean()
        logits = twin(batch)[0]
        return logits[what["target"]] - (logits[what["contrast"]] if "contrast" in what else 0)

    climbed = ascents.ascend(
        subject.ascent(scalar), canvas, start, steps=24, rate=settings.rate, transformation=settings.transformation,
        penalty=settings.penalty, rng=np.random.default_rng(1),
    )  # fmt: skip
    shifts = [(warp.rows, warp.columns) for warp in warps]  # type: ignore[attr-defined]
    history, picture = torch_ascent(objective, settings, start, (16, 16), shifts)
    assert len(set(shifts)) > 3
    assert climbed.history == pytest.approx(history, rel=2e-3, abs=2e-3)
    assert np.abs(canvas.picture(climbed.parameters) - picture).max() < 1e-2
    assert climbed.history[-1] > climbed.history[0] + 0.1 * abs(climbed.history[0])


@pytest.mark.sample(2)
@pytest.mark.torch
@pytest.mark.parametrize("seed", range(6))
def test_it_reaches_what_adam_of_the_usual_epsilon_reaches(seed: int) -> None:
    torch = pytest.importorskip("torch")
    model = tiny_cnn(size=16, seed=seed)
    twin = torch_models.build(model)
    result = inside.maximize(
        explainer(model), target=1, steps=48, jitter=0, learning_rate=0.05, size=(16, 16), seed=seed
    )
    canvas = Canvas("fourier", 3, 16, 16, colors=True)
    parameters = torch.tensor(canvas.noise(np.random.default_rng(seed), 0.3), requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=0.05)
    frequency = np.hypot(np.fft.fftfreq(16)[:, None], np.fft.rfftfreq(16)[None])
    amplitude = torch.tensor(1 / np.maximum(frequency, 1 / 16) * 4).float()
    mean, std = (torch.tensor(IMAGENET[key]).float()[:, None, None] for key in ("mean", "std"))
    value = torch.zeros(())
    for _ in range(48):
        values = torch.fft.irfft2(torch.view_as_complex(parameters) * amplitude, s=(16, 16))
        value = twin(((torch.sigmoid(torch.einsum("ij,jhw->ihw", torch.tensor(COLORS), values)) - mean) / std)[None])
        optimiser.zero_grad()
        (-value[0, 1]).backward()
        optimiser.step()
    first = result.history[0]
    assert result.reached - first >= 0.95 * (value[0, 1].item() - first)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("batch", ["N", 2])
def test_the_value_is_the_plain_files_on_the_picture(nhwc: bool, color: str, batch: str | int) -> None:
    channels = 1 if color == "L" else 3
    model = tiny_cnn(size=(16, 12), channels=channels, nhwc=nhwc, batch=batch)
    spec = {"color": color, "scale": 1 / 128, "mean": [0.9, 1.0, 1.1][:channels], "std": [1.0, 0.7, 2.0][:channels]}
    result = inside.maximize(explainer(model, preprocess=spec | {"resize": None}), target=3, **QUICK)
    assert result.picture.shape == (16, 12, channels)
    assert result.picture.dtype == np.uint8
    pixels = result.picture[..., ::-1] if color == "BGR" else result.picture
    tensor = ((pixels / 128.0 - spec["mean"]) / spec["std"]).astype(np.float32)[None]
    tensor = tensor if nhwc else tensor.transpose(0, 3, 1, 2)
    assert np.allclose(tensor, result.tensor, atol=1e-5)
    rows = np.repeat(tensor, 2, axis=0) if batch == 2 else tensor
    logits = run(model, np.ascontiguousarray(rows))["logits"][0]
    rounding = 1e-5 * float(np.abs(logits).max())  # the class's own logit may lie near 0
    assert result.verified == pytest.approx(logits[3], abs=rounding)
    assert result.verified == pytest.approx(result.reached, rel=1e-2, abs=2e-3)
    assert result.verified_through_preprocessing == pytest.approx(result.verified, abs=rounding)
    assert result.reached > result.history[0]
    assert result.history.shape == (12,)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"layer": "conv1", "channel": 2}, lambda out: out["conv1"][0, 2].mean()),
        ({"layer": "conv1", "channel": [2, 5]}, lambda out: out["conv1"][0, [2, 5]].mean()),
        ({"layer": "relu2", "channel": 1, "place": (3, 4)}, lambda out: out["relu2"][0, 1, 3, 4]),
        ({"layer": "conv2", "channel": 7, "contrast": 6}, lambda out: (out["conv2"][0, 7] - out["conv2"][0, 6]).mean()),
        ({"layer": "flat", "channel": 4}, lambda out: out["flat"][0, 4]),
        ({"layer": "last", "channel": 0}, lambda out: out["conv2"][0, 0].mean()),
        ({"target": "hen"}, lambda out: out["logits"][0, 2]),
        ({"target": "hen", "contrast": "pig"}, lambda out: out["logits"][0, 2] - out["logits"][0, 3]),
        ({"target": Contrast(0, 1)}, lambda out: out["logits"][0, 0] - out["logits"][0, 1]),
        ({"target": Weights([0, 1, 1, 0, 0])}, lambda out: out["logits"][0, 1] + out["logits"][0, 2]),
    ],
)
def test_what_is_maximised_is_what_was_named(what: dict[str, Any], expected: Any) -> None:
    model = tiny_cnn(size=16)
    result = inside.maximize(explainer(model, labels=LABELS), **what, **QUICK)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for name in ("conv1", "conv2", "relu2", "flat"):
        exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    assert result.verified == pytest.approx(float(expected(run(exposed, result.tensor))), rel=1e-5)
    assert result.reached > result.history[0]


def test_only_the_graph_up_to_the_layer_runs() -> None:
    network = explainer().sessions.network
    early = differentiated.ascent(network, "conv1", (1, 3, 16, 16))
    late = differentiated.ascent(network, "logits", (1, 3, 16, 16))
    assert len(early.graph.node) < len(late.graph.node)
    assert {t.name for t in early.graph.initializer} & {"w2", "w3"} == set()


def test_whole_numbers_and_rounding_are_passed_straight_through() -> None:
    rng = np.random.default_rng(0)
    model = text(
        """(uint8[N,16,16,3] input) => (float[N,5] logits) {
        f = Cast<to = 1>(input)  t = Transpose<perm = [0, 3, 1, 2]>(f)  s = Mul(t, k)
        q = QuantizeLinear(s, d, z)  x = DequantizeLinear(q, d, z)
        a = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(a)  p = GlobalAveragePool(r)  e = Flatten(p)
        logits = MatMul(e, h) }""",
        k=np.asarray(1 / 255, np.float32),
        d=np.asarray(1 / 255, np.float32),
        z=np.asarray(0, np.uint8),
        w=rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        h=rng.normal(size=(8, 5)).astype(np.float32),
    )
    result = inside.maximize(explainer(model, preprocess="raw"), target=1, steps=40)
    assert result.tensor.dtype == np.uint8
    assert np.array_equal(result.tensor[0], result.picture)
    assert result.verified == pytest.approx(run(model, result.tensor)["logits"][0, 1], rel=1e-5)
    assert result.verified == pytest.approx(result.reached, rel=1e-2)
    assert result.reached > result.history[0] + 0.5


def test_half_precision_does_not_lose_its_gradient() -> None:
    model = tiny_cnn(size=64)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    single = inside.maximize(explainer(tiny_cnn(size=64)), layer="conv1", channel=2, **QUICK)
    half = inside.maximize(explainer(model), layer="conv1", channel=2, **QUICK)
    assert half.reached == pytest.approx(single.reached, rel=1e-2)


def test_tokens_are_channels_at_every_patch() -> None:
    rng = np.random.default_rng(0)
    model = text(
        """(float[N,3,16,16] input) => (float[N,5] logits) {
        c = Conv<kernel_shape = [4, 4], strides = [4, 4]>(input, w)  s = Reshape(c, shape)
        t = Transpose<perm = [0, 2, 1]>(s)  m = MatMul(t, v)  g = Relu(m)  u = MatMul(g, o)  r = Add(t, u)
        p = ReduceMean<keepdims = 0>(r, axis)  logits = MatMul(p, h) }""",
        w=rng.normal(size=(8, 3, 4, 4)).astype(np.float32),
        shape=np.array([0, 8, 16], np.int64),
        axis=np.array([1], np.int64),
        v=rng.normal(size=(8, 12)).astype(np.float32),
        o=rng.normal(size=(12, 8)).astype(np.float32),
        h=rng.normal(size=(8, 5)).astype(np.float32),
    )
    result = inside.maximize(explainer(model), layer="r", channel=3, **QUICK)
    at = inside.maximize(explainer(model), layer="r", channel=3, place=(1, 2), **QUICK)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    assert result.verified == pytest.approx(float(run(exposed, result.tensor)["r"][0, :, 3].mean()), rel=1e-5)
    assert at.verified == pytest.approx(float(run(exposed, at.tensor)["r"][0, 6, 3]), rel=1e-5)
    with pytest.raises(LayerError, match="4 rows and 4 columns"):
        inside.maximize(explainer(model), layer="r", channel=3, place=(4, 0), **QUICK)


def test_settings_change_the_picture_and_a_seed_repeats_it() -> None:
    subject = Subject(explainer())
    scalar = scalar_of(subject, None, None, None, 2, None)

    def result(**keywords: Any) -> np.ndarray:
        return climb(subject, scalar, subject.ascent(scalar), Settings.of((16, 16), steps=6, **keywords)).picture

    plain = result()
    assert np.array_equal(plain, result())
    for keywords in ({"seed": 5}, {"l2": 50.0}, {"tv": 20.0}, {"rotation": 20.0}, {"scale": 0.2}, {"jitter": 0}):
        assert not np.array_equal(plain, result(**keywords)), keywords
    l2 = [np.mean((result(l2=weight) / 255 - 0.5) ** 2) for weight in (0.0, 300.0)]
    assert l2[1] < l2[0]
    variation = [np.abs(np.diff(result(tv=weight).astype(float), axis=0)).mean() for weight in (0.0, 300.0)]
    assert variation[1] < variation[0]


def test_it_begins_from_a_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    subject = Subject(explainer())
    scalar = scalar_of(subject, None, None, None, 2, None)
    settings = Settings.of((16, 16), steps=1, learning_rate=1e-6, jitter=0)
    result = climb(subject, scalar, subject.ascent(scalar), settings, start=pixels)
    assert np.abs(result.picture.astype(int) - pixels).max() <= 1
    resized = Preprocess.from_dict(IMAGENET, (16, 16))
    other = np.full((40, 20, 3), (200, 30, 90), np.uint8)
    result = inside.maximize(explainer(preprocess=resized), target=2, start=other, steps=1, learning_rate=1e-6)
    assert np.abs(result.picture.astype(int) - (200, 30, 90)).max() <= 1


def interrupting(step: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_keeps_the_best_so_far() -> None:
    whole = inside.maximize(explainer(), target=2, steps=30)
    result = inside.maximize(explainer(), target=2, steps=30, progress=interrupting(10))
    assert result.interrupted
    assert np.array_equal(result.history, whole.history[:10])
    assert result.reached > result.history[0]
    assert result.warnings == ["interrupted after 10 of 30 steps; the best so far was kept"]
    assert result.verified == pytest.approx(result.reached, rel=1e-2)


def test_other_errors_of_the_progress_callback_are_passed_on() -> None:
    def progress(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        inside.maximize(explainer(), target=2, steps=30, progress=progress)


def test_a_value_that_is_no_number_ends_the_ascent_with_the_best_before_it() -> None:
    # the logarithm of what is above 0.6 only at first
    model = text(
        """(float[N,1,8,8] input) => (float[N,2] logits) {
        m = ReduceMean<keepdims = 1>(input, axes)  s = Sub(limit, m)  l = Log(s)  n = Neg(l)
        b = Add(input, n)  c = Conv(b, w)  p = GlobalAveragePool(c)  logits = Flatten(p) }""",
        axes=np.array([2, 3], np.int64),
        limit=np.asarray(0.8, np.float32),
        w=np.ones((2, 1, 1, 1), np.float32),
    )
    spec = {"color": "L", "scale": 1 / 255, "mean": [0.0], "std": [1.0], "resize": None}
    result = inside.maximize(explainer(model, preprocess=spec), target=0, steps=100, learning_rate=0.5, size=(8, 8))
    assert any("not a finite number" in warning for warning in result.warnings)
    assert np.isfinite(result.history).all()
    assert np.isfinite([result.reached, result.verified]).all()
    assert len(result.history) < 100
    hopeless = text("(float[N,1,8,8] input) => (float[N,1,8,8] y, float[N,2] logits) { y = Log(zero) "
                    " m = Mul(input, y)  c = Conv(m, w)  p = GlobalAveragePool(c)  logits = Flatten(p) }",
                    zero=np.zeros(1, np.float32), w=np.ones((2, 1, 1, 1), np.float32))  # fmt: skip
    with pytest.raises(ModelError, match="not a finite number at the picture that the ascent begins with"):
        inside.maximize(explainer(hopeless, preprocess=spec, scores="logits"), target=0, size=(8, 8))


def dead_or_asleep(bias: float) -> onnx.ModelProto:
    model = tiny_cnn(size=16)
    for tensor in model.graph.initializer:
        if tensor.name == "b2":
            values = numpy_helper.to_array(tensor).copy()
            values[3] = bias
            tensor.CopyFrom(numpy_helper.from_array(values, "b2"))
    return model


def test_a_channel_that_sleeps_at_noise_is_woken() -> None:
    result = inside.maximize(explainer(dead_or_asleep(-2.0)), layer="relu2", channel=3, steps=40, seed=1)
    assert result.reached > 0.05
    assert result.verified == pytest.approx(result.reached, rel=2e-2)
    assert any("before its Relu" in warning or "times as loud" in warning for warning in result.warnings)


@pytest.mark.slow
def test_what_never_changes_is_said_to_be_constant() -> None:
    with pytest.raises(ModelError, match=r"does not change with the picture.*inside dead"):
        inside.maximize(explainer(dead_or_asleep(-1e4)), layer="relu2", channel=3)
    with pytest.raises(ModelError, match="at the picture that the ascent begins with"):
        start = np.zeros((16, 16, 3), np.uint8)
        inside.maximize(explainer(dead_or_asleep(-1e4)), layer="relu2", channel=3, start=start)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps() -> None:
    subject = Subject(explainer())
    scalar = scalar_of(subject, "conv1", 0, None, None, None)
    session = subject.ascent(scalar)
    climb(subject, scalar, session, Settings.of((16, 16), steps=2))
    peaks = []
    for steps in (4, 200):
        tracemalloc.start()
        climb(subject, scalar, session, Settings.of((16, 16), steps=steps))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 40_000  # numbers of 196 steps, where a picture of float32 has 3,072 bytes


@pytest.mark.parametrize(
    ("what", "error", "sentence"),
    [
        ({}, SettingError, "nothing was named"),
        ({"target": 1, "channel": 0}, SettingError, "both were named"),
        ({"layer": "relu1"}, SettingError, "no channel of layer 'relu1'"),
        ({"layer": "rule1", "channel": 0}, LayerError, "nearest are"),
        ({"channel": 16}, LayerError, "which has 16, counted from 0 to 15; the nearest is 15"),
        ({"channel": -1}, LayerError, "the nearest is 0"),
        ({"channel": True}, LayerError, "counted from 0 to 15"),
        ({"channel": [1, 1]}, LayerError, "several different ones"),
        ({"channel": []}, LayerError, "several different ones"),
        ({"channel": 1, "contrast": 1}, LayerError, "contrasted with itself"),
        ({"channel": 1, "place": (8, 0)}, LayerError, "8 rows and 8 columns"),
        ({"channel": 1, "place": 3}, SettingError, "row and column"),
        ({"channel": 1, "layer": "flat", "place": (0, 0)}, LayerError, "one number per channel"),
        ({"channel": 1, "layer": "w1"}, LayerError, "not computed from the picture"),
        ({"channel": 1, "layer": "input"}, LayerError, "not computed from the picture"),
        ({"target": "bird"}, TargetError, "nearest are"),
        ({"target": 5}, TargetError, "0 to 4"),
        ({"target": -1}, TargetError, "depends on the picture"),
        ({"target": Contrast(1)}, TargetError, "depends on the picture"),
        ({"target": Probability(1)}, TargetError, "saturates"),
        ({"target": 1, "contrast": 1}, TargetError, "contrast of"),
        ({"target": 1, "steps": 0}, SettingError, "steps is 0"),
        ({"target": 1, "steps": 2.5}, SettingError, "whole number"),
        ({"target": 1, "learning_rate": float("nan")}, SettingError, "learning_rate"),
        ({"target": 1, "learning_rate": 0}, SettingError, "above 0"),
        ({"target": 1, "jitter": 16}, SettingError, "shorter side"),
        ({"target": 1, "scale": 1.0}, SettingError, "less than 1"),
        ({"target": 1, "tv": -1}, SettingError, "tv is -1"),
        ({"target": 1, "size": (8, 8)}, SettingError, "16 x 16"),
        ({"target": 1, "parametrization": "wavelets"}, SettingError, "expected one of"),
        ({"target": 1, "start": "nowhere.png"}, OnnxcamError, "does not exist"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_in_a_sentence(what: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        inside.maximize(explainer(labels=LABELS), **{"steps": 2} | what)


def test_a_model_that_does_not_say_how_pictures_become_tensors_is_refused() -> None:
    with pytest.raises(PreprocessError, match="which values a picture may have"):
        inside.maximize(Explainer(tiny_cnn(size=16), probe=False), target=1)
    with pytest.raises(SettingError, match="leaves the size of its picture open"):
        inside.maximize(explainer(tiny_cnn(size=None)), target=1)
    result = inside.maximize(explainer(tiny_cnn(size=None)), target=1, size=(10, 14), **QUICK)
    assert result.picture.shape == (10, 14, 3)


def test_a_model_without_maps_has_its_neurons_and_classes() -> None:
    model = mlp()
    spec = IMAGENET | {"resize": {"mode": "stretch", "size": [8, 8]}}
    with pytest.raises(LayerError):  # which the explainer needs, and not the ascent
        Explainer(model, probe=False, preprocess=spec)


def test_the_public_names() -> None:
    assert callable(onnxcam.inside.maximize)
    assert Transformation(3).draw(np.random.default_rng(0), (8, 8))
