from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam import runtime
from onnxcam.errors import VerificationError
from onnxcam.exporters import parity
from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from tests.exporters.linear import Reference, linear


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return augment(linear(2), ["y"])


def verify(model: onnx.ModelProto, oracle: parity.Oracle) -> dict[str, Any]:
    header = manifest.read(model)
    assert header is not None
    batch = parity.draw(np.ones((1, 2, 2, 2), np.float32), 4)
    return parity.verify(model, header, oracle, batch, "numpy")


def test_distance_is_relative_per_sample_and_nan_is_far() -> None:
    b = np.asarray([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0], [6.0, 8.0]])
    a = np.asarray([[3.0, 4.5], [0.0, 0.0], [np.nan, 1.0], [6.0, 8.0]])
    assert parity.distance(a, b).tolist() == [0.1, 0.0, np.inf, 0.0]
    assert parity.distance(np.asarray([[1e-12]]), np.asarray([[0.0]])).tolist() == [1.0]
    assert parity.distance(a[:, :1], b).tolist() == [np.inf] * 4


def test_samples_are_drawn_like_the_example() -> None:
    example = np.random.default_rng(0).normal(5.0, 2.0, (1, 3, 40, 40)).astype(np.float32)
    drawn = parity.draw(example, 3)
    assert drawn.shape == (3, 3, 40, 40)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean() - 5) < 0.1
    assert abs(drawn.std() - 2) < 0.1
    assert np.array_equal(drawn, parity.draw(example, 3))
    assert abs(parity.draw(np.zeros((1, 3, 40, 40), np.float32), 2).std() - 1) < 0.05
    pixels = parity.draw(np.zeros((1, 40, 40, 3), np.uint8), 1)
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_equal_numbers_are_recorded(model: onnx.ModelProto) -> None:
    outcome = verify(model, lambda batch, double: Reference(batch))
    assert outcome["against"] == "numpy"
    assert outcome["samples"] == 4
    assert outcome["tolerance"] == 1e-3
    assert max(outcome[q] for q in parity.QUANTITIES) < 1e-6


def test_different_numbers_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(VerificationError, match=r"the gradients of 'y' differ from numpy by 0\.0196 in sample 1 of 4"):
        verify(model, lambda batch, double: Reference(batch, 0.02))


def test_the_frameworks_own_error_widens_the_tolerance_threefold(model: onnx.ModelProto) -> None:
    # the framework's float32 is 2 % off itself in float64: an error of 2 % against it proves nothing
    outcome = verify(model, lambda batch, double: Reference(batch, 0.0 if double else 0.02))
    assert outcome["gradients"] == pytest.approx(0.02 / 1.02, rel=1e-4)
    assert outcome["tolerance"] == pytest.approx(0.06, rel=1e-3)
    with pytest.raises(VerificationError, match=r"more than the 0\.0145 allowed"):
        verify(model, lambda batch, double: Reference(batch, 0.0151 if double else 0.02))


def test_a_framework_that_has_no_float64_form_gets_no_slack(model: onnx.ModelProto) -> None:
    with pytest.raises(VerificationError, match=r"more than the 0\.001 allowed"):
        verify(model, lambda batch, double: None if double else Reference(batch, 0.02))


def test_a_gradient_that_jumps_within_a_rounding_error_of_the_samples_is_no_fault(model: onnx.ModelProto) -> None:
    """The framework agrees with itself on the samples, and its gradients are 2 % different right next to them."""
    calls: list[np.ndarray] = []

    def oracle(batch: np.ndarray, double: bool) -> Reference:
        calls.append(batch)
        same = np.array_equal(batch, calls[0])
        assert np.allclose(batch, calls[0], rtol=1e-5)
        return Reference(batch, 0.02 if same else 0.0)

    outcome = verify(model, oracle)
    assert outcome["gradients"] == pytest.approx(0.02 / 1.02, rel=1e-4)
    assert outcome["tolerance"] == pytest.approx(3 * 0.02 / 1.02, rel=1e-3)
    assert len(calls) == 3, "one move was enough"


def test_a_jump_smaller_than_the_error_excuses_nothing(model: onnx.ModelProto) -> None:
    first: list[np.ndarray] = []

    def oracle(batch: np.ndarray, double: bool) -> Reference:
        first.append(batch)
        return Reference(batch, 0.02 if np.array_equal(batch, first[0]) else 0.016)

    with pytest.raises(VerificationError, match=r"differ from numpy by 0\.0196"):
        verify(model, oracle)
    assert len(first) == 2 + parity.PERTURBATIONS


class Kinked:
    """NumPy's own numbers for `_kinked`: scores, the layer's value, gradients."""

    def __init__(self, batch: np.ndarray, double: bool, kink: np.float32) -> None:
        kind = np.float64 if double else np.float32
        a = batch.astype(kind) * kind(2)
        above = a.mean(axis=(1, 2, 3), dtype=np.float64) - kink
        self.on, raised = above > 0, np.maximum(above, 0).astype(kind)
        self.scores = a.mean(axis=(2, 3)) + 5 * raised[:, None]
        self.outputs, self.activations = [self.scores], [a]

    def gradients(self, targets: np.ndarray) -> list[np.ndarray]:
        a = self.activations[0]
        g = np.zeros_like(a) + (5 * self.on / np.prod(a.shape[1:]))[:, None, None, None]
        g[np.arange(len(a)), targets] += 1 / np.prod(a.shape[2:])
        return [g]


def _kinked(kink: np.float32) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        small (float[N, 3, 64, 64] input) => (float[N, 3] logits) <float two = {2.0}, float five = {5.0},
            int64[3] all = {1, 2, 3}, int64[2] places = {2, 3}, int64[1] one = {1}> {
        a = Mul(input, two)  m = ReduceMean<keepdims = 0>(a, all)  d = Sub(m, kink)  r = Relu(d)
        s = Mul(r, five)  u = Unsqueeze(s, one)  p = ReduceMean<keepdims = 0>(a, places)  logits = Add(p, u)
        }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(kink), "kink"))
    return augment(model, ["a"])


def test_other_samples_are_tried_where_one_lies_on_a_kink() -> None:
    """A sample is put on the kink of a ReLU: its input is 0 in ONNX Runtime, and above 0 for the framework in float32
    and float64, by a rounding error that is larger than the perturbations."""
    example = np.random.default_rng(3).normal(1000, 1, (1, 3, 64, 64)).astype(np.float32)
    batch = parity.draw(example, 4)
    plain = _kinked(np.float32(0))
    plain.graph.output.append(onnx.helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, ["N"]))
    session = runtime.open_session(plain.SerializeToString(), ["CPUExecutionProvider"])
    sums = runtime.run(session, ["m"], {"input": batch})["m"]
    low = (2 * batch.mean(axis=(1, 2, 3), dtype=np.float64)) - sums
    row, kink = int(low.argmax()), sums[low.argmax()]
    assert low[row] > 1e-4, "five times what a perturbation moves the mean by"
    model = _kinked(kink)
    record = manifest.read(model)
    assert record is not None

    def oracle(batch: np.ndarray, double: bool) -> Kinked:
        return Kinked(batch, double, kink)

    with pytest.raises(
        VerificationError, match=rf"the gradients of 'a' differ from numpy by .* in sample {row + 1} of 4"
    ):
        parity.verify(model, record, oracle, batch, "numpy")
    outcome = parity.verify_on_samples(model, record, oracle, example, 4, "numpy")
    assert outcome["samples"] == 8 and outcome["set_aside"] == 4
    assert max(outcome[q] for q in parity.QUANTITIES) < 1e-4


def test_other_samples_excuse_no_wrong_gradient(model: onnx.ModelProto) -> None:
    record = manifest.read(model)
    assert record is not None
    calls: list[int] = []

    def oracle(batch: np.ndarray, double: bool) -> Reference:
        calls.append(len(batch))
        # wrong for a third of the samples
        return Reference(batch, np.where(np.arange(len(batch)) % 3 == 1, 0.02, 0.0)[:, None, None, None])

    with pytest.raises(VerificationError, match=r"in sample 2 of 4"):
        parity.verify_on_samples(model, record, oracle, np.ones((1, 2, 2, 2), np.float32), 4, "numpy")
    assert {4, 8} <= set(calls)
