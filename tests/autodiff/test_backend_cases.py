"""The cases that onnx itself tests its operators with, each differentiated and compared with differences in float64.

A case is one operator with inputs and outputs, or what the specification writes it out as. Of every pair of a
floating-point output and a floating-point input of every case, the gradient agrees, or the pair is left out for a
reason that is listed here: a gap that is not on the list fails.
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
from onnx import helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator

import onnxcam
from onnxcam.autodiff.sweep import path
from onnxcam.errors import ModelError, UnsupportedOperator
from onnxcam.graph.normalize import HIGHEST_OPSET, prepare
from onnxcam.graph.view import FLOATS
from tests.autodiff.harness import widen, widened

AGREES, AGREES_IN_EVALUATOR, ZERO = "agrees", "agrees in onnx's evaluator", "does not vary"
LEFT_OUT: dict[str, int] = {}


@dataclass
class Case:
    """One of onnx's cases, its opset lowered to one that onnxcam reads."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @cached_property
    def evaluator(self) -> ReferenceEvaluator:
        return ReferenceEvaluator(widened(self.model))

    @cached_property
    def session(self) -> onnxruntime.InferenceSession | None:
        try:
            return _session(self.model)
        except Exception:  # whatever the runtime has no kernel for
            return None

    @property
    def op_type(self) -> str:
        return re.sub(r"_expanded.*", "", self.name) if len(self.model.graph.node) > 1 else self.model.graph.node[0].op_type

    def floats(self, infos: Any) -> list[str]:
        return [info.name for info in infos if info.type.tensor_type.elem_type in FLOATS]


@cache
def _collected() -> list[TestCase]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _array(held: Any) -> np.ndarray:
    return numpy_helper.to_array(held) if isinstance(held, onnx.TensorProto) else np.asarray(held)


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model in an opset that onnxcam reads, None where its operators are not in there."""
    lower = onnx.ModelProto()
    lower.CopyFrom(model)
    for opset in lower.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > HIGHEST_OPSET:
            opset.version = HIGHEST_OPSET
            lower.ir_version = 10
            try:
                onnx.checker.check_model(lower, full_check=True)
            except Exception:
                return None
    return lower


def _verdicts(source: TestCase) -> Iterator[str]:
    """What became of each pair of output and input: a word, or the reason why it is left out."""
    infos = [*source.model.graph.input, *source.model.graph.output]
    if any(not info.type.HasField("tensor_type") for info in infos):
        yield "an input or output is no tensor"
        return
    kinds = [{info.type.tensor_type.elem_type for info in side} & FLOATS for side in (source.model.graph.input, source.model.graph.output)]
    if not all(kinds):
        yield f"no floating-point {'output' if kinds[0] else 'input'}"
        return
    model = _lowered(source.model)
    if model is None:
        yield f"newer than opset {HIGHEST_OPSET}"
        return
    [(inputs, outputs)] = source.data_sets
    case = Case(
        source.name,
        model,
        {info.name: _array(held) for info, held in zip(model.graph.input, inputs, strict=True)},
        {info.name: _array(held) for info, held in zip(model.graph.output, outputs, strict=True)},
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
        carrying = path(graph, graph.find(of), names)[1]
    except (ModelError, UnsupportedOperator) as error:
        yield _reason(case, error)
        return
    try:
        y = case.evaluator.run([of], {name: widen(held) for name, held in case.feeds.items()})[0]
    except Exception:
        yield f"onnx's evaluator does not run it in float64: {case.name}"
        return
    if y.shape != case.expected[of].shape or not np.allclose(y, widen(case.expected[of]), 3e-2, 1e-2, equal_nan=True):
        yield f"onnx's evaluator says something else than the case: {case.name}"
        return
    for name in names:
        derived: onnx.ModelProto | None = None
        if name in carrying:
            try:
                derived = _derived(case, of, name)
            except UnsupportedOperator as error:
                yield _reason(case, error)
                continue
            except ModelError as error:
                assert "pass no gradient on" in str(error), error
        yield _verdict(case, of, name, derived)


def _derived(case: Case, of: str, name: str) -> onnx.ModelProto:
    """The gradient; where it needs them known, with the integers among the inputs held constant."""
    try:
        return onnxcam.gradient(case.model, of=of, wrt=[name])
    except UnsupportedOperator:
        held = onnx.ModelProto()
        held.CopyFrom(case.model)
        loose = set(case.floats(held.graph.input))
        fixed = [info.name for info in held.graph.input if info.name not in loose]
        kept = [info for info in held.graph.input if info.name in loose]
        del held.graph.input[:]
        held.graph.input.extend(kept)
        held.graph.initializer.extend(numpy_helper.from_array(case.feeds[key], key) for key in fixed)
        return onnxcam.gradient(held, of=of, wrt=[name])


def _verdict(case: Case, of: str, name: str, derived: onnx.ModelProto | None) -> str:
    """Compared at the case's own point, and where that is a kink or outside the domain, at others close by."""
    rng = np.random.default_rng(0)
    found: list[str] = []
    run: Any = None
    if derived is not None:
        onnx.checker.check_model(derived, full_check=True)
        run = _session(derived) if case.session else ReferenceEvaluator(derived)
        fed = [info.name for info in derived.graph.input]
    for feeds in _points(case, name, rng):
        wide = {key: widen(held) for key, held in feeds.items()}
        y = case.evaluator.run([of], wide)[0]
        if y.size == 0 or feeds[name].size == 0:
            return "empty"
        told = np.isfinite(y)
        cotangent = np.where(told, rng.standard_normal(y.shape), 0).astype(case.expected[of].dtype)
        gradient = np.zeros(feeds[name].shape)
        if run is not None:
            given = {**feeds, f"cotangent.{of}": cotangent}
            gradient = widen(run.run([f"grad.{name}"], {key: given[key] for key in fed})[0])
        if gradient.shape != feeds[name].shape:
            return f"WRONG shape {gradient.shape}"
        says = _compared(case, of, name, wide, widen(cotangent), told, gradient, rng)
        if says == AGREES:
            if run is None:
                return ZERO
            return AGREES if case.session else AGREES_IN_EVALUATOR
        found.append(says)
    return f"WRONG {case.name} {of} {name}: {found}"


def _points(case: Case, name: str, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The case's inputs, anything infinite replaced, and moved a little."""
    finite = {key: held for key, held in case.feeds.items()}
    for key in case.floats(case.model.graph.input):
        held = widen(finite[key])
        if not np.isfinite(held).all():
            finite[key] = np.where(np.isfinite(held), held, rng.uniform(0.5, 2, held.shape)).astype(finite[key].dtype)
    yield finite
    for lowest in (-1, 0):
        move = rng.uniform(lowest, 1, finite[name].shape) * 0.1
        yield {**finite, name: (widen(finite[name]) + move).astype(finite[name].dtype)}


def _compared(
    case: Case,
    of: str,
    name: str,
    wide: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
    told: np.ndarray,
    gradient: np.ndarray,
    rng: np.random.Generator,
) -> str:
    """AGREES if along two directions the slope is the gradient's; parts of onnx's evaluator compute in float32, so steps
    of several sizes are tried."""
    tolerance = max(_tolerance(case.feeds[name]), _tolerance(case.expected[of]))
    directions = rng.standard_normal((2, *gradient.shape))
    says = ""
    for step in (1e-6, 1e-4, 1e-2):
        close = True
        for direction in directions:
            sides = [case.evaluator.run([of], {**wide, name: wide[name] + s * direction})[0] for s in (step, -step)]
            if any(side.shape != told.shape for side in sides):
                return "its shape varies"
            slope = float(np.vdot(cotangent[told], (sides[0] - sides[1])[told])) / (2 * step)
            got = float(np.vdot(gradient, direction))
            close &= abs(got - slope) <= tolerance * max(abs(slope), 0.3 * float(np.linalg.norm(gradient)), 1e-5)
            says += f" {got:.4g} for {slope:.4g}"
        if close:
            return AGREES
    return says


def _tolerance(array: np.ndarray) -> float:
    return {"float16": 3e-2, "bfloat16": 1e-1}.get(str(array.dtype), 1e-3)


def _reason(case: Case, error: Exception) -> str:
    text = re.sub(r"\(node [^)]*\)|node '[^']*' \(opset \d+\)|'[^']*'", "", str(error))
    return re.sub(r"\s+", " ", text)[:100]


def main() -> None:
    import time, sys
    total: Counter[str] = Counter()
    wrong=[]
    t=time.time()
    for c in _collected():
        if len(sys.argv)>1 and sys.argv[1] not in c.name: continue
        try: vs=list(_verdicts(c))
        except Exception as e: vs=[f"EXC {c.name} {type(e).__name__} {e}"[:250]]
        for v in vs:
            if v.startswith(("WRONG","EXC")): wrong.append(c.name+" "+v)
            else: total[v]+=1
    print(time.time()-t)
    for k,v in total.most_common(): print(v,k)
    print(len(wrong))
    for w in wrong: print(w[:330])
if __name__=="__main__": main()
