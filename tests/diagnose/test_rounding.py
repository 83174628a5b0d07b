"""`check` on files that the runtime rounds on its way, and at ties: right gradients are not accused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxcam
from onnxcam.diagnose import differences
from onnxcam.diagnose.gradients import check
from onnxcam.network import manifest

CPU = ["CPUExecutionProvider"]
CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize("name", ["int8_matmul", "int8_gemm", "int8_weights_only"])
def test_dequantized_weights_do_not_round_the_activations_while_proving(name: str) -> None:
    report = check(CASES / f"{name}.onnx", providers=CPU)
    assert report.passed, report.lines()
    (gradients,) = [finding for finding in report.findings if finding.name.startswith("gradients")]
    assert gradients.status == "ok" and max(gradients.figures.values()) < 1e-3


def test_what_the_runtime_rounds_by_optimising_is_said() -> None:
    names = {
        name: [f.name for f in check(CASES / f"{name}.onnx", providers=CPU).findings]
        for name in ("int8_gemm", "int8_weights_only")
    }
    assert "optimisation" in names["int8_weights_only"]  # MatMulNBits rounds the activations to 8 bits
    assert "optimisation" not in names["int8_gemm"]


def network(layers: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A classifier of pictures `[N, 3, 16, 16]` from its layers as ONNX text, up to `e`, `[N, 8, h, w]`."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 3, 16, 16] input) => (float[N, 6] logits) {\n'
        f"c = Conv<pads = [1, 1, 1, 1]>(input, w1, b1)  {layers}  p = GlobalAveragePool(e)  f = Flatten(p)\n"
        "logits = Gemm(f, w3, b3) }"
    )
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 5,
        "b1": rng.normal(size=8),
        "w2": rng.normal(size=(8, 8, 3, 3)) / 8,
    }
    weights |= {"w3": rng.normal(size=(8, 6)), "b3": rng.normal(size=6)}
    for name, array in (weights | constants).items():
        kind = array.dtype if name in constants else np.float32
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, kind), name))
    return model


SCALE = {"s": np.array(0.02, np.float32), "z": np.array(-128, np.int8)}  # 0 is the lowest value


@pytest.mark.parametrize("seed", range(3))
def test_a_layer_half_of_which_lies_on_the_lower_bound_is_not_accused(seed: int) -> None:
    """Of a layer after a ReLU half the cells are 0, the lowest value of the next quantization, where only one side has
    a derivative. Behind it a pool selects among rounded values, which tie."""
    model = network(
        "r = Relu(c)  q = QuantizeLinear(r, s, z)  a = DequantizeLinear(q, s, z)\n"
        "k = QuantizeLinear(a, s, z)  l = DequantizeLinear(k, s, z)\n"
        "m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(l)  e = Conv<pads = [1, 1, 1, 1]>(m, w2)",
        **SCALE,
    )
    report = check(onnxcam.augment(model, ["a"]), providers=CPU, seed=seed)
    assert report.passed, report.lines()
    (gradients,) = [finding for finding in report.findings if finding.name.startswith("gradients")]
    assert max(gradients.figures.values()) < 0.05


@pytest.mark.parametrize("pool", ["GlobalMaxPool(r)", "ReduceMax(r, axes)", "MaxPool<kernel_shape = [16, 16]>(r)"])
def test_dead_channels_are_no_error_at_a_maximum(pool: str) -> None:
    """All cells of a dead channel tie: whoever gets the gradient, finite differences there mean nothing."""
    model = network(f"r = Relu(c)  m = {pool}  e = Sub(r, m)", axes=np.array([2, 3]))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(np.array([-99] * 4 + [0.1] * 4, np.float32), "b1"))
    # the layer itself is dead there
    report = check(onnxcam.augment(model, ["r"]), providers=CPU)
    assert report.passed, report.lines()


def test_activations_move_away_from_where_nothing_has_a_derivative() -> None:
    moved = differences.off_kinks(
        np.zeros((2, 8, 64, 64), np.float32) + np.eye(2)[:, :, None, None].repeat(4, 1), np.random.default_rng(0)
    )
    size = np.sqrt(0.5)
    change = np.abs(moved - np.eye(2)[:, :, None, None].repeat(4, 1))
    assert change.min() >= 0.029 * size
    top = np.sort(moved[0, 4].ravel())[-2:]  # a channel of zeros
    assert top[1] - top[0] > 1e-3 * size


@pytest.mark.filterwarnings("ignore:a picture.s results depend on the others")
@pytest.mark.parametrize("mode", [0, 1])
def test_a_batch_normalization_in_training_mode_before_the_layer_fails(mode: int) -> None:
    outputs = "n, u, v" if mode else "n"
    model = network(
        f"{outputs} = BatchNormalization<training_mode = {mode}>(c, g, k, m, t)  r = Relu(n)\n"
        "e = Conv<pads = [1, 1, 1, 1]>(r, w2)",
        **{name: np.full(8, value, np.float32) for name, value in {"g": 1.0, "k": 0.1, "m": 0.2, "t": 2.0}.items()},
    )
    model.graph.name = "small"
    explainable = onnxcam.augment(model, ["r"])
    report = check(explainable, providers=CPU)
    assert ("training mode" in report.failed) == bool(mode), report.lines()
    record = manifest.read(explainable)
    assert record is not None and ("approximations" in record) == bool(mode)
