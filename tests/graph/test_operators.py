"""The table of operators: complete, free of contradictions, and true of what the operators compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxcam.autodiff.registry import registered
from onnxcam.autodiff.sweep import sweep  # noqa: F401  (registers the rules)
from onnxcam.graph.operators import TRAITS, Trait, having

OPSET = onnx.defs.onnx_opset_version()
IMPLIED = (
    (Trait.ENDS_LAYER, Trait.ELEMENTWISE),
    (Trait.CHEAP, Trait.ELEMENTWISE),
    (Trait.BLOCKED, Trait.ELEMENTWISE),
    (Trait.PASSES, Trait.ELEMENTWISE),
    (Trait.RESHAPES, Trait.MOVES),
    (Trait.MOVES, Trait.AFFINE),
    (Trait.JOINTLY_AFFINE, Trait.AFFINE),
    (Trait.PRODUCT, Trait.AFFINE),
    (Trait.CONVOLVES, Trait.AFFINE | Trait.CHANNELS_FIRST | Trait.REGRIDS | Trait.WEIGHTED),
)
EXCLUDED = (
    (Trait.ELEMENTWISE, Trait.REDUCES | Trait.NORMALIZES | Trait.KEEPS_SHAPE | Trait.REGRIDS),
    (Trait.JOINTLY_AFFINE, Trait.PRODUCT),
    (Trait.REDUCES, Trait.KEEPS_AXES | Trait.KEEPS_SHAPE),
)


def test_every_operator_has_its_traits() -> None:
    """So that a new gradient rule needs none, and a new release of onnx is looked through."""
    current = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == "" and not schema.deprecated}
    assert sorted((current | registered()) - TRAITS.keys()) == []


@pytest.mark.skipif(OPSET < 28, reason="the table has operators of later releases of onnx")
def test_every_name_is_an_operator() -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert sorted(TRAITS.keys() - standard) == []


@pytest.mark.parametrize("trait", list(Trait), ids=str)
def test_every_trait_has_an_operator(trait: Trait) -> None:
    assert having(trait)


def test_traits_do_not_contradict_each_other() -> None:
    for name, traits in TRAITS.items():
        assert [both for both in IMPLIED if both[0] in traits and both[1] not in traits] == [], name
        assert [both for both in EXCLUDED if both[0] in traits and both[1] & traits] == [], name


def unary(trait: Trait) -> list[str]:
    """Operators of a trait that compute a float from a float and need nothing else."""
    result = []
    for schema in onnx.defs.get_all_schemas():
        if schema.domain or schema.name not in having(trait) - having(Trait.RANDOM) or schema.min_input != 1:
            continue
        if schema.name == "Resize":  # its further inputs are optional, but not all at once
            continue
        floats = all("tensor(float)" in formal.types for formal in (schema.inputs[0], schema.outputs[0]))
        if floats and not any(attribute.required for attribute in schema.attributes.values()):
            result.append(schema.name)
    return sorted(result)


def compute(name: str, x: np.ndarray) -> np.ndarray:
    node = helper.make_node(name, ["x"], ["y"])
    infos = [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, None) for key in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "one", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", OPSET)]
    )
    with np.errstate(invalid="ignore"):  # outside its domain a function is NaN
        return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


@pytest.mark.parametrize("name", unary(Trait.ELEMENTWISE))
def test_element_wise_means_element_by_element(name: str) -> None:
    x = np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(1, 3, 4)
    changed = x.copy()
    changed[0, 1, 2] = 0.05
    before, after = compute(name, x), compute(name, changed)
    before[0, 1, 2] = after[0, 1, 2]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", unary(Trait.AFFINE))
def test_affine_means_affine(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, 4, 3, 3)).astype(np.float32) for _ in range(2))
    half = compute(name, (a + b) / 2)
    np.testing.assert_allclose(half, (compute(name, a) + compute(name, b)) / 2, rtol=1e-5, atol=1e-6)
