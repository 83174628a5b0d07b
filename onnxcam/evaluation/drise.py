"""D-RISE: what a detector's boxes depend on, by masks alone: the file is run, nothing is differentiated.

https://arxiv.org/abs/2006.03204. Random masks hide parts of the picture; each mask is weighed by how much of the object
the detector still finds: over all of its candidates j the largest

    s(t, j) = IoU(box_t, box_j) * cos(p_t, p_j) * o_j

with the probabilities p of the classes, and o the objectness, or the best probability where the file has none of its
own. The map is the weighted sum of the masks. A thousand masks are a thousand runs of the model: a check on maps of
gradients, which share nothing with it but the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcam.errors import InputError, TargetError
from onnxcam.evaluation.trial import to_input
from onnxcam.image.opencv import import_cv2
from onnxcam.network.layout import Layout
from onnxcam.targets.tasks import Detect, Size

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

MASKS, CELLS, KEEP = 1000, 16, 0.5  # the paper takes 5,000 masks of 16 x 16 cells
ROWS = 16  # masked pictures of one run


@dataclass(frozen=True)
class Reference:
    """An object to be found again.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the model's input.
        classes: its probabilities, float64 `[K]`; of a file that names a single class the index, float64 `[]`.
    """

    box: tuple[float, float, float, float]
    classes: np.ndarray


def references(task: Detect, row: np.ndarray, candidates: Sequence[int], input_size: Size) -> list[Reference]:
    """Candidates of an unchanged picture as objects to be found again.

    Arguments:
        row: the scores of the picture, `[columns]`.
    """
    boxes, classes, _ = _candidates(task, row, input_size)
    sides = [[float(side) for side in boxes[index]] for index in candidates]
    return [
        Reference((x0, y0, x1, y1), classes[index]) for (x0, y0, x1, y1), index in zip(sides, candidates, strict=True)
    ]


def similarity(task: Detect, row: np.ndarray, objects: Sequence[Reference], input_size: Size) -> np.ndarray:
    """How much of each object a row of scores still has, the largest s(t, j), float64 `[objects]`."""
    boxes, classes, objectness = _candidates(task, row, input_size)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    values = np.zeros(len(objects))
    for place, one in enumerate(objects):
        box = np.asarray(one.box)
        inner = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None).prod(axis=1)
        near = np.flatnonzero(inner > 0)
        union = areas[near] + np.clip(box[2:] - box[:2], 0, None).prod() - inner[near]
        likeness = inner[near] / union * _cosine(classes[near], one.classes) * objectness[near]
        values[place] = likeness.max(initial=0.0)
    return values


def _cosine(classes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The cosine of probabilities `[n, K]` with those of an object; of indices whether they are equal."""
    if classes.ndim == 1:
        return np.asarray(classes == reference, np.float64)
    lengths = np.linalg.norm(classes, axis=1) * np.linalg.norm(reference)
    return np.asarray(np.divide(classes @ reference, lengths, out=np.zeros(len(classes)), where=lengths > 0))


def _candidates(task: Detect, row: np.ndarray, input_size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in pixels of the input `[M, 4]`, probabilities `[M, K]` or indices `[M]`, and objectness `[M]`."""
    count = task.count(len(row))
    boxes, p = task.pixels(task.boxes.read(row, count), input_size), task.probabilities(row)
    if task.labels is not None:
        return boxes, np.rint(task.labels.read(row, count)[:, 0]).astype(np.float64), p[:, 0]
    if task.background is not None:
        p = np.delete(p, task.background, axis=1)
    if task.objectness is not None:
        return boxes, p, task.objectness.read(row, count)[:, 0].astype(np.float64)
    return boxes, p, p.max(axis=1, initial=0.0)


def masks(
    rng: np.random.Generator, count: int, size: Size, cells: int = CELLS, keep: float = KEEP
) -> Iterator[np.ndarray]:
    """Masks of RISE, float32 `[H, W]`, 0 to 1: a grid of cells, each kept with probability `keep`, enlarged smoothly
    by one cell more than the picture and cropped at random."""
    cv2 = import_cv2()
    cell = (-(-size[0] // cells), -(-size[1] // cells))
    for _ in range(count):
        grid = (rng.random((cells + 1, cells + 1)) < keep).astype(np.float32)
        whole = ((cells + 1) * cell[1], (cells + 1) * cell[0])
        top, left = int(rng.integers(0, cell[0] + 1)), int(rng.integers(0, cell[1] + 1))
        enlarged = cv2.resize(grid, whole, interpolation=cv2.INTER_LINEAR)
        yield enlarged[top : top + size[0], left : left + size[1]]


def saliency(
    run: Callable[[np.ndarray], np.ndarray],
    picture: np.ndarray,
    weigh: Callable[[np.ndarray], np.ndarray],
    *,
    count: int = MASKS,
    cells: int = CELLS,
    keep: float = KEEP,
    seed: int = 1234,
    rows: int = ROWS,
    tell: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Weighted sums of masks.

    Arguments:
        run: scores `[n, columns]` of pictures `[n, C, H, W]`.
        picture: as the model takes it, float32 `[C, H, W]`; a masked pixel fades to 0.
        weigh: the weight of each map under one row of scores, float64 `[maps]`.
        count: of masks.
        rows: masked pictures per run.
        tell: called after each run; an exception it raises ends the work.

    Returns:
        float32 `[maps, H, W]`, sum_i w_i M_i / (count keep), less what every pixel would have of masks that say
        nothing: the mean weight.

    Raises:
        InputError: no masks, or a probability that is none.
    """
    if count < 1 or cells < 1 or not 0 < keep < 1:
        raise InputError(f"masks={count}, cells={cells}, keep={keep}; expected at least one, and a probability in 0..1")
    rng, total, weights, mean = np.random.default_rng(seed), None, 0.0, 0.0
    source = masks(rng, count, (picture.shape[1], picture.shape[2]), cells, keep)
    for start in range(0, count, rows):
        some = np.stack([next(source) for _ in range(min(rows, count - start))])
        scores = run(picture[None] * some[:, None])
        weight = np.stack([weigh(row) for row in scores])  # [n, maps]
        part = np.tensordot(weight, some.astype(np.float64), axes=(0, 0))
        total = part if total is None else total + part
        mean, weights = mean + some.sum(axis=0, dtype=np.float64), weights + weight.sum(axis=0)
        tell()
    assert total is not None
    expected = np.asarray(weights)[:, None, None] * np.asarray(mean)[None] / count
    return np.asarray((total - expected) / (count * keep), np.float32)


def drise(
    explainer: Explainer,
    batch: np.ndarray,
    candidates: Sequence[int],
    *,
    masks: int = MASKS,
    cells: int = CELLS,
    keep: float = KEEP,
    seed: int = 1234,
    tell: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """D-RISE of some candidates of one picture.

    Arguments:
        explainer: of a detector.
        batch: one row, in the model's own layout and dtype.
        candidates: indices in the file's own output, on the unchanged picture.
        masks, cells, keep, seed: of the masks.

    Returns:
        float32 `[candidates, H, W]` of the input's size; not normalised, 0 where the masks say nothing.

    Raises:
        TargetError: the model is not a detector.
    """
    entry, task = explainer.manifest["input"], explainer.terms.readout.task
    if not isinstance(task, Detect):
        raise TargetError("D-RISE explains boxes, and this model is not a detector")
    picture = np.asarray(Layout.of(entry).to_canonical(batch), np.float32)[0]
    size = (picture.shape[1], picture.shape[2])
    objects = references(task, explainer.batch_scores(batch)[0], candidates, size)
    return saliency(
        lambda pictures: explainer.batch_scores(to_input(pictures, entry)),
        picture,
        lambda row: similarity(task, row, objects, size),
        count=masks,
        cells=cells,
        keep=keep,
        seed=seed,
        rows=explainer.batch_size or ROWS,
        tell=tell,
    )
