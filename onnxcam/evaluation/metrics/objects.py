"""Whether the map of one object is its own, and what masks alone say of it."""

from __future__ import annotations

import numpy as np

from onnxcam.evaluation.drise import MASKS
from onnxcam.evaluation.metrics.coherence import pearson
from onnxcam.evaluation.registry import HIGHER, metric
from onnxcam.evaluation.trial import Trial


@metric("own_box", title="own box", better=HIGHER, boxes=True, objects=True)
def own_box(trial: Trial) -> np.ndarray:
    """E / (E + max_o E_o), E the sum of L in the object's own box, E_o in that of another object of its class.
    After the question of object discrimination in https://arxiv.org/abs/2304.06354.

    The share that an object has of what lies in its box and in that of the other one of its class that has the most:
    1/2 says nothing of which of both is meant, 3/4 is three times as much. What lies in both boxes counts in neither;
    only objects that have another of their class take part.
    """
    values = np.full(len(trial), np.nan)
    for row, (inside, others) in enumerate(zip(trial.boxes, trial.others, strict=True)):
        heatmap = trial.originals[row].astype(np.float64) if inside is not None and others else None
        if inside is None or heatmap is None:
            continue
        pairs = [(heatmap[inside & ~other].sum(), heatmap[other & ~inside].sum()) for other in others]
        values[row] = min(0.5 if not mine + theirs else mine / (mine + theirs) for mine, theirs in pairs)
    return values


@metric("drise", title="D-RISE", better=HIGHER, usual=False, objects=True)
def drise(trial: Trial, *, masks: int = MASKS) -> np.ndarray:
    """Pearson correlation of L with the map of D-RISE.  https://arxiv.org/abs/2006.03204.

    Likeness to the map of random masks, each weighed by how much of the object the file still finds behind it. Of a
    region of a segmentation a mask is weighed by the class's mean probability there. A thousand masks are a thousand
    runs of the model.
    """
    if trial.masking is None:
        return np.full(len(trial), np.nan)
    return pearson(trial.maps, trial.masking(masks))
