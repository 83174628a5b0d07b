"""Classes from text embeddings: of a CLIP-like image tower and a matrix of embeddings a classifier is made.

The score of a text is CLIP's, 100 times the cosine of the picture's embedding and the text's
(https://arxiv.org/abs/2103.00020, section 2.4): a softmax of the scores is the zero-shot prediction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcam.errors import InputError, ModelError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.network.network import Network
from onnxcam.targets.tasks import EMBED, Embed

SCALE = 100.0  # to which CLIP's training clips its temperature, and which it reaches
SCORES = "text_logits"


def with_texts(source: Any, texts: Any, *, scores: str | None = None) -> onnx.ModelProto:
    """The image tower with a score per text as a further output, `SCORES`.

    Arguments:
        source: an embedding model: path, bytes or `ModelProto`.
        texts: text embeddings `[K, D]`, of any length.
        scores: the output with the embedding, where the model has several candidates.

    Raises:
        ModelError: the model is no embedding, or has an output of that name already.
        InputError: not a matrix of the embedding's size, or a text whose embedding is zero or not finite.
    """
    network = Network(source, scores=scores, task=EMBED)
    graph, task = network.graph, network.readout.task
    if not isinstance(task, Embed):
        raise ModelError(f"texts name classes of an embedding, and this model's kind is {network.readout.kind!r}")
    matrix = np.asarray(texts, np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != task.size or len(matrix) < 2:
        raise InputError(
            f"got texts of shape {list(matrix.shape)}; expected [K, {task.size}], the embeddings of two texts or more"
        )
    lengths = np.linalg.norm(matrix, axis=1)
    wrong = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(wrong):
        raise InputError(f"the embedding of text {int(wrong[0])} is zero or not finite: it has no direction to compare")
    if SCORES in graph:
        raise ModelError(f"the model has a value {SCORES!r} already: leave the texts out, or rename it")
    op = Builder(graph, prefix="onnxcam/texts")
    value = network.readout.value
    op.dtype = graph.dtype(value)
    kind = onnx.helper.tensor_dtype_to_np_dtype(op.dtype)
    length = op.Max(op.ReduceL2(value, [1], keepdims=1), float(np.finfo(np.float16).tiny))
    op.MatMul(op.Div(value, length), (SCALE * matrix / lengths[:, None]).T.astype(kind), name=SCORES)
    model = graph.model
    edit.add(model, op)
    rows = (graph.shape(value) or ("N",))[0]
    model.graph.output.append(edit.info(SCORES, op.dtype, [rows, len(matrix)]))
    return model
