"""Where the class scores are: before the ending, one pair for several outputs, an error where they are not known."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from onnxcam.errors import ModelError
from onnxcam.graph.normalize import prepare
from onnxcam.network import readout as scores
from onnxcam.targets.readout import Readout


def find(body: str, outputs: str, opset: int = 18, named: str | None = None) -> Readout:
    """The scores of a graph whose value `z` is [N,5], `b` is [N,1] and `q` is [N,5,1,1]."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,5] z, float[N,1] b, float[N,5,1,1] q) '
        f"=> ({outputs}) {{ {body} }}"
    )
    return scores.find(prepare(onnx.parser.parse_model(text)), named)


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("o = Neg(z)", "float[N,5] o", Readout("o", "logits", 5, "o", None)),
        ("o = Softmax(z)", "float[N,5] o", Readout("z", "logits", 5, None, "o")),
        ("o = Softmax<axis=1>(z)", "float[N,5] o", Readout("z", "logits", 5, None, "o")),
        ("o = LogSoftmax(z)", "float[N,5] o", Readout("z", "logits", 5, None, None)),
        ("o = Sigmoid(z)", "float[N,5] o", Readout("z", "multilabel", 5, None, "o")),
        ("o = Sigmoid(b)", "float[N,1] o", Readout("b", "binary_logit", 2, None, "o")),
        ("o = Neg(b)", "float[N,1] o", Readout("o", "binary_logit", 2, "o", None)),
        ("o = Softmax<axis=1>(q)", "float[N,5,1,1] o", Readout("q", "logits", 5, None, "o")),
        ("o = Neg(q)", "float[N,5,1,1] o", Readout("o", "logits", 5, None, None)),
        ("l = Neg(z) o = Softmax(l)", "float[N,5] l, float[N,5] o", Readout("l", "logits", 5, "l", "o")),
        ("l = Neg(z) o = Softmax(l)", "float[N,5] o, float[N,5] l", Readout("l", "logits", 5, "l", "o")),
        ("l = Neg(z) o = Sigmoid(l)", "float[N,5] l, float[N,5] o", Readout("l", "multilabel", 5, "l", "o")),
        ("l = Neg(z) s = Softmax(l) o = Identity(s)", "float[N,5] o", Readout("l", "logits", 5, None, "o")),
        ("o = Softmax(z) i = ArgMax<axis=1>(z)", "float[N,5] o, int64[N,1] i", Readout("z", "logits", 5, None, "o")),
    ],
)
def test_scores(body: str, outputs: str, expected: Readout) -> None:
    assert find(body, outputs) == expected


def test_a_softmax_of_another_axis_is_no_ending() -> None:
    assert find("o = Softmax<axis=0>(z)", "float[N,5] o").value == "o"


@pytest.mark.parametrize("named", ["l", "o"])
def test_asked_for_by_any_of_its_names(named: str) -> None:
    result = find("l = Neg(z) o = Sigmoid(l) t = Abs(z)", "float[N,5] l, float[N,5] o, float[N,5] t", named=named)
    assert result == Readout("l", "multilabel", 5, "l", "o")


def test_several_are_ambiguous() -> None:
    with pytest.raises(ModelError, match=r"several outputs.*'l' \[N, 5\], 'o' \[N, 5\].*--scores"):
        find("l = Neg(z) o = Abs(z)", "float[N,5] l, float[N,5] o")


def test_asked_for_something_else() -> None:
    with pytest.raises(ModelError, match="expected class scores"):
        find("o = Neg(z) i = ArgMax<axis=1>(z)", "float[N,5] o, int64[N,1] i", named="i")


@pytest.mark.parametrize("shape", ["N,5,7", "N,5,2,2", "N,C", "5"])
def test_no_scores(shape: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[{shape}] z) => (float[{shape}] o) {{ o = Neg(z) }}'
    with pytest.raises(ModelError, match="not an image classifier"):
        scores.find(prepare(onnx.parser.parse_model(text)))
