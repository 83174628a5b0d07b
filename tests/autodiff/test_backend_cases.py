"""The cases that onnx tests its own operators with, each differentiated and compared with differences in float64.

A case is one operator with inputs and outputs, or what the specification writes that operator out as. For every pair of
a floating-point output and a floating-point input the gradient agrees, or the output does not vary, or the pair is left
out for a reason that is listed here: a gap that is not on the list fails.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_pool_common

import onnxcam
from onnxcam.autodiff.sweep import path
from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.graph.normalize import HIGHEST_OPSET, prepare
from onnxcam.graph.view import FLOATS
from tests.autodiff import windows
from tests.autodiff.harness import widen, widened
from tests.support.runtime import run, session

COUNTED_WITH = ("1.23.2", "1.32.0")  # the releases of onnx and onnxruntime that the numbers below are from
AGREES, UNVARIED = "agrees", "does not vary, and so it says"
# pairs at least: of the operators as they are, and written out
AGREEING = {"as it is": 1440, "written out": 1080}
LEFT_OUT: dict[str, tuple[int, int]] = {
    "an empty tensor": (60, 33),
    "an input or an output is no tensor": (23, 6),
    "an optimizer of training": (27, 0),
    "no floating-point input": (294, 26),
    "no floating-point output": (152, 30),
    "onnx's evaluator does not run it in float64": (5, 22),
    "onnx's evaluator pads by no negative numbers": (3, 2),
    "onnx's evaluator says something else than the case": (0, 3),
    "random": (3, 3),
    "taken as given: rois of RoiAlign": (2, 0),
    "taken as given: scales of Resize": (1, 0),
    "taken as given: scales of Upsample": (1, 0),
    "taken as given: x_scale of DequantizeLinear": (14, 0),
    "taken as given: y_scale of DynamicQuantizeLinear": (3, 0),
    "the runtime refuses it once its integers are known": (0, 2),
    "the runtime says something else than the case": (7, 0),
    # refused by name
    "BatchNormalization: a gradient is needed through one of its further outputs": (20, 0),
    "BatchNormalization: it is in training mode; export the model for inference": (10, 0),
    "CumProd: running products are not covered": (7, 0),
    "DFT: spectra are not covered": (10, 0),
    "DeformConv: convolution at sampled offsets is not covered": (14, 0),
    "Dropout: it is in training mode, or may be at run time; export the model for inference": (4, 0),
    "GRU: it is recurrent, and onnxcam does not differentiate through time": (29, 0),
    "GridSample: mode 'cubic' is not covered, 'linear' and 'nearest' are": (6, 0),
    "LSTM: it is recurrent, and onnxcam does not differentiate through time": (32, 0),
    "LinearAttention: it is recurrent, and onnxcam does not differentiate through time": (132, 0),
    "Loop: it is control flow, which repeats a subgraph a number of times that depends on the data": (2, 0),
    "MatMul: the rank of a value is unknown after shape inference": (0, 2),
    "MelWeightMatrix: spectra are not covered": (2, 0),
    "OptionalGetElement: onnxcam follows tensors, not sequences or optional values": (1, 0),
    "RNN: it is recurrent, and onnxcam does not differentiate through time": (23, 0),
    "Resize: it crops a region of interest (tf_crop_and_resize); crop and resize with separate nodes": (8, 0),
    "Resize: its scales follow from keep_aspect_ratio_policy; export it with explicit scales or sizes": (4, 0),
    "RoiAlign: mode 'max' is not covered, 'avg' is": (2, 0),
    "RotaryEmbedding: a gradient is needed for its cosines or sines": (16, 0),
    "STFT: spectra are not covered": (3, 0),
    "Scan: it is control flow, which repeats a subgraph a number of times that depends on the data": (17, 36),
    "ScatterElements: reduction='mul' is not covered, only 'none', 'add', 'max' and 'min' are": (2, 0),
    "ScatterND: reduction='mul' is not covered, only 'none', 'add', 'max' and 'min' are": (2, 0),
    "Slice: the rank of a value is unknown after shape inference": (0, 3),
    "Unique: which elements it drops depends on all of them": (6, 0),
    "ai.onnx.preview::FlexAttention: has no gradient rule": (33, 0),
}
# float inputs that are taken as given: they say how to compute, or how big the output is
CONSTANTS = {("DequantizeLinear", "x_scale"), ("Resize", "scales"), ("RoiAlign", "rois"), ("Upsample", "scales")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "every"), [("as it is", 1), ("written out", 4), pytest.param("written out", 1, marks=pytest.mark.soak)]
)
def test_every_case_agrees_or_is_left_out_for_a_listed_reason(
    form: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_pool_common, "pool", windows.pool)  # what it computes is compared with the case
    totals: Counter[str] = Counter()
    wrong = []
    for source in [case for case in _collected() if ("_expanded" in case.name) == (form == "written out")][::every]:
        for verdict in _verdicts(source):
            totals[verdict] += 1
            if verdict not in (AGREES, UNVARIED) and verdict not in LEFT_OUT:
                wrong.append(f"{source.name}: {verdict}")
    assert not wrong, f"{len(wrong)} pairs neither agree nor are left out on purpose:\n" + "\n".join(wrong[:20])
    if every > 1:
        assert totals[AGREES] >= AGREEING[form] / every / 2
        return
    assert totals[AGREES] >= AGREEING[form]
    if (onnx.__version__, onnxruntime.__version__) == COUNTED_WITH:
        column = list(AGREEING).index(form)
        other = {why: totals[why] for why, counts in LEFT_OUT.items() if totals[why] != counts[column]}
        assert not other, f"pairs left out, other than are listed: {other}"


@dataclass(frozen=True)
class Case:
    """A case, in an opset that onnxcam reads."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @cached_property
    def evaluator(self) -> ReferenceEvaluator:
        return ReferenceEvaluator(widened(self.model))

    @cached_property
    def results(self) -> dict[str, np.ndarray] | None:
        """What the runtime computes; None where it has no kernel, or none for such numbers."""
        try:
            return run(self.model, self.feeds, outputs=list(self.expected), threads=1)
        except Exception:
            return None

    def floats(self, infos: Any) -> list[str]:
        return [info.name for info in infos if info.type.tensor_type.elem_type in FLOATS]


@cache
def _collected() -> list[TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return list(collect_testcases(None))


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model in an opset that onnxcam reads, None where that has not got its operator, attributes or types."""
    lower = onnx.ModelProto()
    lower.CopyFrom(model)
    for opset in lower.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > HIGHEST_OPSET:
            opset.version, lower.ir_version = HIGHEST_OPSET, 10
            try:
                onnx.checker.check_model(lower, full_check=True)
            except Exception:
                return None
    return lower


def _verdicts(source: TestCase) -> Iterator[str]:
    """What became of each pair of output and input: AGREES, UNVARIED, or why not."""
    inputs, outputs = source.model.graph.input, source.model.graph.output
    if any(not info.type.HasField("tensor_type") for info in (*inputs, *outputs)):
        yield "an input or an output is no tensor"
        return
    for side, infos in (("input", inputs), ("output", outputs)):
        if not any(info.type.tensor_type.elem_type in FLOATS for info in infos):
            yield f"no floating-point {side}"
            return
    if {node.op_type for node in source.model.graph.node} & {"Bernoulli", "RandomUniformLike"}:
        yield "random"
        return
    model = _lowered(source.model)
    if model is None:
        yield "newer than the opsets that onnxcam reads"
        return
    [(arrays, expected)] = source.data_sets
    case = Case(
        source.name,
        model,
        {info.name: _array(value) for info, value in zip(inputs, arrays, strict=True)},
        {info.name: _array(value) for info, value in zip(outputs, expected, strict=True)},
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for of in case.floats(model.graph.output):
            yield from _pairs(case, of)


def _pairs(case: Case, of: str) -> Iterator[str]:
    """The verdicts on one output."""
    names = case.floats(case.model.graph.input)
    try:
        graph = prepare(case.model)
    except (ModelError, UnsupportedOperator) as error:
        yield _reason(error)
        return
    source = graph.producer.get(graph.find(of))
    if source is not None and source.op_type == "DynamicQuantizeLinear":
        yield f"taken as given: {of} of DynamicQuantizeLinear"
        return
    carrying = path(graph, graph.find(of), names)[1]
    expected = widen(case.expected[of])
    try:
        y = case.evaluator.run([of], {name: widen(value) for name, value in case.feeds.items()})[0]
    except Exception:
        yield "onnx's evaluator does not run it in float64"
        return
    if not _alike(y, expected):
        yield "onnx's evaluator says something else than the case"
        return
    if case.results and not _alike(widen(case.results[of]), expected):
        yield "the runtime says something else than the case"
        return
    for name in names:
        derived, plain = None, case.model
        if name in carrying:
            try:
                derived, plain = _derived(case, of, name)
            except UnsupportedOperator as error:
                yield _reason(error)
                continue
            except ModelError as error:
                assert "pass no gradient on" in str(error), error
        yield _verdict(case, of, name, plain, derived)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    # minus infinity, of what is masked, is the lowest number to some
    return a.shape == b.shape and np.allclose(a.clip(-1e30, 1e30), b.clip(-1e30, 1e30), 3e-2, 1e-2, equal_nan=True)


def _derived(case: Case, of: str, name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The gradient, and the model it is of: where that needs them known, with its integer inputs as constants."""
    try:
        return onnxcam.gradient(case.model, of=of, wrt=[name]), case.model
    except UnsupportedOperator:
        model_proto = onnx.ModelProto()
        model_proto.CopyFrom(case.model)
        loose = case.floats(model_proto.graph.input)
        fixed = [info.name for info in model_proto.graph.input if info.name not in loose]
        loose_inputs = [info for info in model_proto.graph.input if info.name in loose]
        del model_proto.graph.input[:]
        model_proto.graph.input.extend(loose_inputs)
        model_proto.graph.initializer.extend(numpy_helper.from_array(case.feeds[key], key) for key in fixed)
        return onnxcam.gradient(model_proto, of=of, wrt=[name]), model_proto


def _verdict(case: Case, of: str, name: str, plain: onnx.ModelProto, derived: onnx.ModelProto | None) -> str:
    """Compared at the case's own point, and where that lies on a kink or at the end of the domain, close by."""
    rng = np.random.default_rng(0)
    evaluator: Any = None
    if derived is not None:
        onnx.checker.check_model(derived, full_check=True)
        try:
            evaluator = session(derived, threads=1) if case.results else ReferenceEvaluator(derived)
        except Exception:
            with pytest.raises(Exception, match="ONNXRuntimeError"):
                session(plain, threads=1)
            return "the runtime refuses it once its integers are known"
    message = ""
    for feeds in _points(case, name, rng):
        wide = {key: widen(value) for key, value in feeds.items()}
        try:
            y = case.evaluator.run([of], wide)[0]
        except RuntimeError:
            message += " it cannot be moved;"
            continue
        if y.size == 0 or feeds[name].size == 0:
            return "an empty tensor"
        finite_values = np.isfinite(y)
        cotangent = np.where(finite_values, rng.standard_normal(y.shape), 0).astype(case.expected[of].dtype)
        gradient = np.zeros(feeds[name].shape)
        if evaluator is not None:
            inputs = {**feeds, f"cotangent.{of}": cotangent}
            inputs = {info.name: inputs[info.name] for info in derived.graph.input} if derived else inputs
            try:
                gradient = widen(evaluator.run([f"grad.{name}"], inputs)[0])
            except ValueError:
                if case.results:
                    raise
                return "onnx's evaluator pads by no negative numbers"
        agrees, slopes = _compared(case, of, name, wide, widen(cotangent), finite_values, gradient, rng)
        if agrees:
            return AGREES if evaluator is not None else UNVARIED
        message += slopes
    [node] = case.model.graph.node[:1]
    if evaluator is None and (node.op_type, name) in CONSTANTS:
        return f"taken as given: {name} of {node.op_type}"
    return f"the gradient of {of} with respect to {name} is wrong:{message}"


def _points(case: Case, name: str, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The case's inputs with what is not finite replaced; then one of them moved a little, any way and upwards."""
    finite = dict(case.feeds)
    for key in case.floats(case.model.graph.input):
        value = widen(finite[key])
        if not np.isfinite(value).all():
            finite[key] = np.where(np.isfinite(value), value, rng.uniform(0.5, 2, value.shape)).astype(
                finite[key].dtype
            )
    yield finite
    for lowest in (-0.1, 0):
        moved = widen(finite[name]) + rng.uniform(lowest, 0.1, finite[name].shape)
        yield {**finite, name: np.asarray(moved).astype(finite[name].dtype)}


def _compared(
    case: Case,
    of: str,
    name: str,
    wide: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
    mask: np.ndarray,
    gradient: np.ndarray,
    rng: np.random.Generator,
) -> tuple[bool, str]:
    """Whether along two directions the slope is the gradient's, and what both are.

    Steps of several sizes are tried: parts of onnx's evaluator compute in float32.
    """
    if gradient.shape != wide[name].shape:
        return False, f" shape {gradient.shape} for {wide[name].shape}"
    tolerance = max(_tolerance(case.feeds[name]), _tolerance(case.expected[of]))
    directions = rng.standard_normal((2, *gradient.shape))
    message = ""
    for step in (1e-6, 1e-4, 1e-2):
        agrees = True
        for direction in directions:
            try:
                ends = [case.evaluator.run([of], {**wide, name: wide[name] + s * direction})[0] for s in (step, -step)]
            except RuntimeError:
                return False, " it cannot be moved;"
            if any(end.shape != mask.shape for end in ends):
                return False, " its shape varies"
            slope = float(np.vdot(cotangent[mask], (ends[0] - ends[1])[mask])) / (2 * step)
            actual = float(np.vdot(gradient, direction))
            bound = tolerance * max(abs(slope), 0.3 * float(np.linalg.norm(gradient)), 1e-5)
            agrees = agrees and abs(actual - slope) <= bound
            message += f" {actual:.4g} for {slope:.4g},"
        if agrees:
            return True, message
    return False, message


def _tolerance(array: np.ndarray) -> float:
    return {"float16": 3e-2, "bfloat16": 1e-1}.get(str(array.dtype), 1e-3)


def _reason(error: Exception) -> str:
    """A refusal without the names of this model's nodes and values."""
    text = str(error)
    for pattern in (
        r"operator (\S+) .*?cannot be differentiated: (.*?); it lies",
        r"operator (\S+) .*?is (dynamically quantized)",
        r"operator (\S+) .*?(has no gradient rule)",
        r"(\S+) node .*?cannot be differentiated: (.*)",
    ):
        match = re.match(pattern, text)
        if match:
            return f"{match[1]}: " + re.sub(r"'[^']*_function_[^']*'", "a value", match[2])
    return "an optimizer of training" if "opset 1 cannot be upgraded" in text else text
