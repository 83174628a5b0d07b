"""Adebayo's sanity check: a map that does not change when the model's weights are redrawn says nothing of the model.

https://arxiv.org/abs/1810.03292: from the scores down, ever more layers lose what they have learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.evaluation.metrics.coherence import pearson
from onnxcam.evaluation.registry import LOWER, metric
from onnxcam.evaluation.trial import Trial
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.operators import Trait, having
from onnxcam.image.opencv import import_cv2

if TYPE_CHECKING:  # they import onnx, which judging without a cascade does without
    import onnx

    from onnxcam.graph.view import Graph

STAGES = 4
_WEIGHTED = having(Trait.WEIGHTED)


@metric("randomization", title="redrawn", better=LOWER, redrawn=True)
def randomization(trial: Trial) -> np.ndarray:
    """Spearman's rank correlation of the map with that of the model whose weights were redrawn, mean over the stages of
    the cascade.  https://arxiv.org/abs/1810.03292.

    Likeness of the map to that of the model with its weights redrawn, from the scores down: about 0 where the map
    depends on what the model has learned, 1 where it does not.
    """
    assert trial.redrawn is not None
    return spearman(trial.maps, trial.redrawn)


@metric("randomization_ssim", title="redrawn SSIM", better=LOWER, redrawn=True, usual=False)
def randomization_ssim(trial: Trial) -> np.ndarray:
    """Structural similarity of the map with that of the model whose weights were redrawn, mean over the stages of the
    cascade.  https://arxiv.org/abs/1810.03292.

    The same likeness as `randomization`, of local structure instead of ranks.
    """
    assert trial.redrawn is not None
    return ssim(trial.maps, trial.redrawn)


def cascade(explainer: Explainer, stages: int = STAGES, seed: int = 1234) -> Iterator[tuple[float, Explainer]]:
    """Models with ever more layers redrawn, the one that makes the scores first: (part of the layers, explainer).

    A layer's weights are shuffled, so that their distribution (and, of a quantised model, their type and scale) stays.
    The last stage has every layer redrawn. Each explainer is made when it is asked for.

    Raises:
        ModelError: the model has no weights.
    """
    from onnxcam.graph.load import load
    from onnxcam.network.network import Network, prepare

    whole = prepare(explainer.source)
    layers = weights(Network(whole.model).graph)
    if not layers:
        raise ModelError("the model has no weights that could be redrawn; leave the metric `randomization` out")
    rng = np.random.default_rng(seed)
    model = load(whole.model)
    done = 0
    for stage in range(stages):
        # the scores' own layer first, then equal parts of the rest
        upto = 1 if stage == 0 else 1 + round((len(layers) - 1) * stage / max(1, stages - 1))
        for name in layers[done:upto]:
            _shuffle(model, name, rng)
        done = max(done, upto)
        yield done / len(layers), explainer.beside(model)


def weights(graph: Graph) -> list[str]:
    """The weights of a classifier's layers, those nearest to the scores first: names of initializers or constants."""
    names: list[str] = []
    for node in reversed(graph.nodes):
        if node.op_type not in _WEIGHTED:
            continue
        for value in node.input[:5]:
            name = _stored(graph, value)
            if name is not None and name not in names:
                names.append(name)
                break
    return names


def _stored(graph: Graph, value: str) -> str | None:
    """Where a layer's weights lie: the largest constant that a constant value with two axes or more is made of."""
    if not value or not graph.is_constant(value):
        return None
    nodes, outside = graph.upstream([value])
    shapes = {name: graph.shape(name) or () for name in outside}
    shapes |= {node.output[0]: graph.shape(node.output[0]) or () for node in nodes if node.op_type == "Constant"}
    large = {
        name: int(np.prod([d for d in dims if isinstance(d, int)])) for name, dims in shapes.items() if len(dims) > 1
    }
    return max(large, key=lambda name: large[name]) if large else None


def _shuffle(model: onnx.ModelProto, name: str, rng: np.random.Generator) -> None:
    from onnx import numpy_helper

    tensors = [tensor for tensor in model.graph.initializer if tensor.name == name]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            tensors += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    for tensor in tensors:
        values = numpy_helper.to_array(tensor)
        drawn = rng.permutation(values.ravel()).reshape(values.shape)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(drawn), tensor.name))


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rank correlation of each row of `[N, ...]` with the other's, float64 `[N]`; 0 where one is constant."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks per row, equal values sharing the mean of theirs."""
    rows = values.reshape(len(values), -1)
    ranks = np.empty(rows.shape)
    for row, out in zip(rows, ranks, strict=True):
        order = np.argsort(row)
        ordered = row[order]
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        count = np.diff(np.append(first, len(row)))
        out[order] = np.repeat(first + (count + 1) / 2, count)
    return ranks


def ssim(first: np.ndarray, second: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Structural similarity of maps `[N, H, W]` from 0 to 1, float64 `[N]` (Wang et al. 2004, a Gaussian window)."""
    cv2 = import_cv2()

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), sigma, borderType=cv2.BORDER_REFLECT))

    similarities = []
    for a, b in zip(first.astype(np.float64), second.astype(np.float64), strict=True):
        m, n = mean(a), mean(b)
        va, vb, both = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
        similar = (2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m * m + n * n + 1e-4) * (va + vb + 9e-4))
        edge = 5 if min(a.shape) > 10 else 0
        similarities.append(float(similar[edge : a.shape[0] - edge, edge : a.shape[1] - edge].mean()))
    return np.asarray(similarities)
