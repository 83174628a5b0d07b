"""Real pictures beside a maximised one: those with the highest values, the part a neuron sees, the path they take.

That a made picture and a real one give a neuron the same value does not say that the network treats them alike: a
network can be built in which the two take different paths (Geirhos et al., https://arxiv.org/abs/2306.04719). So the
activations of the layers on the way are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcam.errors import OnnxcamError
from onnxcam.graph import layers
from onnxcam.image import Geometry
from onnxcam.inside.scalar import Scalar
from onnxcam.inside.subject import AscentSession, Subject
from onnxcam.network.layout import Layout

TOP = 4  # real pictures that are shown
_COMPARED = 3  # real pictures with the highest values, whose paths are compared
_LAYERS = 12  # on the path
_EDGE = 0.01  # share of a gradient's size that a part leaves out at each of its four sides


@dataclass(frozen=True, eq=False)
class Natural:
    """A real picture and the value that it reaches.

    Attributes:
        value: of the scalar, as the plain model computes it.
        name: of the picture.
        pixels: of the picture, uint8 `[H, W, 3]`.
        part: x0, y0, x1, y1 in its pixels: what the cell with the highest activation sees, the box with all but 1 % of
            the size of the gradient at each side; None where there is no such cell, or the file's picture is of
            another size.
    """

    value: float
    name: str
    pixels: np.ndarray
    part: tuple[int, int, int, int] | None = None

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {"value": self.value, "picture": self.name, "part": None if self.part is None else list(self.part)}


@dataclass(frozen=True)
class PathLayer:
    """How alike the activations of one layer are, as rank correlations of its channels' means.

    Attributes:
        layer: its name.
        maximized: the maximised picture with the real ones of the highest values, their median.
        real: those real pictures with each other; None of fewer than two.
        others: those real pictures with the remaining ones; None where none remain.
    """

    layer: str
    maximized: float
    real: float | None
    others: float | None

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {"layer": self.layer, "maximized": self.maximized, "real": self.real, "others": self.others}


@dataclass
class Comparison:
    """Real pictures, the best first, and the paths.

    Attributes:
        best: the real pictures with the highest values.
        count: how many pictures were compared.
        path: per layer on the way, from the picture on.
        failures: sentences about pictures that could not be read.
    """

    best: list[Natural] = field(default_factory=list)
    count: int = 0
    path: list[PathLayer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def doubt(self) -> str | None:
        """A sentence where the maximised picture takes another path than real ones."""
        judged = [layer for layer in self.path if layer.others is not None]
        apart = [layer for layer in judged if layer.others is not None and layer.maximized < layer.others]
        if not judged or 2 * len(apart) <= len(judged):
            return None
        worst = min(apart, key=lambda layer: layer.maximized - (layer.others or 0.0))
        return (
            f"the maximised picture takes another path through the network than real pictures: in {len(apart)} of "
            f"{len(judged)} layers its activations are less like those of the real pictures with the highest values "
            f"than those of other real pictures are (most in {worst.layer!r}, correlation {worst.maximized:.2f} "
            f"against {worst.others:.2f}); what excites this neuron in photographs may look different"
        )


def compare(
    subject: Subject,
    scalar: Scalar,
    session: AscentSession,
    maximized: np.ndarray,
    pictures: Sequence[Any],
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """The real pictures with the highest values of a scalar, and the path of a maximised picture against theirs.

    Arguments:
        session: of the scalar's gradient.
        maximized: the batch of the maximised picture.
        pictures: anything that `Explainer.explain` takes.
        progress: called with (done, total).
    """
    path = _path(subject, scalar)
    values = subject.values([scalar.value, *(value for _, value, _ in path)])
    comparison, means, numbers = Comparison(), [], []
    best: list[tuple[float, int, Natural, np.ndarray, np.ndarray, Geometry]] = []
    for index, picture in enumerate(pictures):
        try:
            loaded, tensor, geometry = subject.explainer.prepare(picture)
            outputs = values(subject.batch(tensor))
        except OnnxcamError as error:
            comparison.failures.append(str(error))
            continue
        finally:
            if progress is not None:
                progress(index + 1, len(pictures))
        number = scalar.of(outputs[scalar.value])
        if not np.isfinite(number):
            comparison.failures.append(f"{loaded.name!r}: {scalar.title} is not a finite number")
            continue
        means.append(_means(path, outputs))
        numbers.append(number)
        entry = Natural(number, loaded.name, loaded.pixels)
        best.append((number, -index, entry, tensor, outputs[scalar.value], geometry))
        best.sort(key=lambda entry: entry[:2], reverse=True)
        del best[TOP:]
    comparison.count = len(numbers)
    for number, _, natural, tensor, output, geometry in best:
        part = _part(subject, scalar, session, tensor, output, geometry)
        comparison.best.append(Natural(number, natural.name, natural.pixels, part))
    if numbers and path:
        comparison.path = _compared(path, _means(path, values(maximized)), means, numbers)
    return comparison


def _path(subject: Subject, scalar: Scalar) -> list[tuple[str, str, Layout]]:
    """Layers up to the scalar's value: name, value and axes; at most twelve, spread evenly."""
    graph = subject.graph
    _, reads = graph.upstream([scalar.value])
    before = {name for node in graph.upstream([scalar.value])[0] for name in node.output} | reads
    names = {layer.value: name for name, layer in subject.network.layers.items()}
    candidates = [
        (names.get(layer.value, layer.name), layer.value, Layout.of_layer(layer))
        for layer in layers.candidates(graph, subject.network.readout.value)
        if layer.value in before and (layer.layout != "NTC" or layer.grid is not None)
    ]
    if len(candidates) <= _LAYERS:
        return candidates
    return [candidates[round(place)] for place in np.linspace(0, len(candidates) - 1, _LAYERS)]


def _means(path: Sequence[tuple[str, str, Layout]], outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Per layer the mean of each channel over a picture, `[C]`."""
    return [
        layout.to_canonical(outputs[value][:1].astype(np.float64)).mean(axis=(2, 3))[0] for _, value, layout in path
    ]


def _compared(
    path: Sequence[tuple[str, str, Layout]],
    maximized: Sequence[np.ndarray],
    means: Sequence[Sequence[np.ndarray]],
    numbers: Sequence[float],
) -> list[PathLayer]:
    order = np.argsort(-np.asarray(numbers), kind="stable")
    count = max(1, min(_COMPARED, len(numbers) // 2))
    top, rest = order[:count], order[count:]
    compared = []
    for place, (name, _, _) in enumerate(path):
        ranks = [_ranks(row[place]) for row in means]
        if len(ranks[0]) < 3:  # of one or two channels a correlation says nothing
            continue
        maximized_ranks = _ranks(maximized[place])
        pairs = [_correlation(ranks[a], ranks[b]) for k, a in enumerate(top) for b in top[k + 1 :]]
        others = [_correlation(ranks[a], ranks[b]) for a in top for b in rest]
        compared.append(
            PathLayer(
                name,
                float(np.median([_correlation(maximized_ranks, ranks[a]) for a in top])),
                float(np.median(pairs)) if pairs else None,
                float(np.median(others)) if len(rest) > 1 else None,
            )
        )
    return compared


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.asarray((first + (counts - 1) / 2)[inverse.reshape(-1)])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def _part(
    subject: Subject, scalar: Scalar, session: AscentSession, tensor: np.ndarray, output: np.ndarray, geometry: Geometry
) -> tuple[int, int, int, int] | None:
    """What the cell with the highest activation sees, in the picture's own pixels."""
    activation = scalar.map_of(output)
    if activation is None or tensor.shape[1:] != subject.shape[1:] or activation.max() <= activation.min():
        return None
    row, column = scalar.place or np.unravel_index(int(activation.argmax()), activation.shape)
    session.aim(scalar.at(int(row), int(column)))
    try:
        _, gradient = session.at(tensor[:1].astype(np.float32))
    finally:
        session.aim(scalar)
    size = np.abs(subject.adjoint(gradient)).sum(axis=0)
    if not np.isfinite(size).all() or not size.any():
        return None
    top, bottom = _span(size.sum(axis=1))
    left, right = _span(size.sum(axis=0))
    height, width = geometry.picture_size
    (down, across), (above, before) = geometry.scale, geometry.offset
    x0, x1 = np.clip(((left - before) / across, (right - before) / across), 0, width)
    y0, y1 = np.clip(((top - above) / down, (bottom - above) / down), 0, height)
    box = int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _span(sizes: np.ndarray) -> tuple[int, int]:
    """The first and one behind the last place that hold all but a small share of a sum at each end."""
    share = np.cumsum(sizes, dtype=np.float64) / sizes.sum(dtype=np.float64)
    return int(np.searchsorted(share, _EDGE)), int(np.searchsorted(share, 1 - _EDGE)) + 1
