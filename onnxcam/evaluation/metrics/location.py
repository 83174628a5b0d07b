"""Where a map points, against boxes drawn around the objects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcam.evaluation.registry import HIGHER, metric
from onnxcam.evaluation.trial import Trial
from onnxcam.image.opencv import import_cv2

TOLERANCE = 0.03


@metric("pointing_game", title="pointing", better=HIGHER, boxes=True)
def pointing_game(trial: Trial, *, tolerance: float = TOLERANCE) -> np.ndarray:
    """1 where the map's maximum lies in a box or at most a tolerance outside, else 0.
    https://arxiv.org/abs/1608.00507.

    Whether the maximum of the map lies in a box. The paper's tolerance is 15 pixels on pictures of 500: 3 % of the
    longer side. Of several equal maxima the one nearest to their middle points; a map that is the same everywhere
    misses.
    """
    return _each(trial, lambda heatmap, inside: _points(heatmap, inside, tolerance))


@metric("energy_in_box", title="energy", better=HIGHER, boxes=True)
def energy_in_box(trial: Trial) -> np.ndarray:
    """sum of L in the boxes / sum of L.  https://arxiv.org/abs/1910.01279.

    The share of the map that lies in boxes.
    """
    return _each(
        trial, lambda heatmap, inside: float(heatmap[inside].sum(dtype=np.float64) / max(_sum(heatmap), 1e-12))
    )


def _each(trial: Trial, judged: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    values = np.full(len(trial), np.nan)
    for row, inside in enumerate(trial.boxes):
        if inside is not None:
            values[row] = judged(trial.originals[row], inside)
    return values


def _points(heatmap: np.ndarray, inside: np.ndarray, tolerance: float) -> float:
    if np.ptp(heatmap) <= 0:
        return 0.0
    rows, columns = np.nonzero(heatmap == heatmap.max())
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    y, x = rows[nearest], columns[nearest]
    away = import_cv2().distanceTransform((~inside).astype(np.uint8), import_cv2().DIST_L2, 5)
    return float(inside[y, x] or away[y, x] <= tolerance * max(heatmap.shape))


def _sum(heatmap: np.ndarray) -> float:
    return float(heatmap.sum(dtype=np.float64))
