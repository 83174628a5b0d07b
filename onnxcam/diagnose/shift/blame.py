"""Blame by depth: the first layer in which two networks part, down to the pair that quantizes it.

Operations of both networks are matched (`alignment`), both are run on the same pictures, and each operation of the new
one is run again on the old one's values (`replay`): the error that accumulates with depth is told from the error that a
layer adds. What a layer may add is known (`layers`): nothing but rounding in floats, and in integers what the best grid
of as many levels leaves. A layer that adds more than three times that is blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcam import runtime
from onnxcam.diagnose.shift import layers as by_layer
from onnxcam.diagnose.shift import weights
from onnxcam.diagnose.shift.alignment import Match, align
from onnxcam.diagnose.shift.counterparts import Counterparts
from onnxcam.diagnose.shift.floats import in_floats
from onnxcam.diagnose.shift.inputs import describe_inputs
from onnxcam.diagnose.shift.layers import ACTIVATION, BIAS, EXCESS, OPERATOR, PICTURE, WEIGHTS, LayerDifference
from onnxcam.diagnose.shift.operations import Operations
from onnxcam.diagnose.shift.replay import Replay, exposing, relative
from onnxcam.diagnose.shift.weights import Weights
from onnxcam.errors import OnnxcamError
from onnxcam.explain.explainer import Explainer
from onnxcam.network.network import Network

PICTURES = 8  # are looked at
AGREE, INPUT, LAYER, SPREAD, RUNTIME, UNDECIDED = "agree", "input", "layer", "spread", "runtime", "undecided"
Rows = Sequence[tuple[np.ndarray, np.ndarray]]  # prepared tensors, one for each of the two

_SUSPECTS = 4  # layers whose effect on the scores is measured
_TRIALS = 4  # pictures on which it is
_WITHOUT_SATURATION = "session.x64quantprecision"


@dataclass(frozen=True)
class Blame:
    """Where two networks part.

    Attributes:
        verdict: `agree` (to rounding), `input` (the pictures they are given differ), `layer`, `spread` (every layer
            adds what its precision gives, and none more), `runtime` (the graphs agree as written and not as they
            run), or `undecided`.
        sentence: the verdict in words.
        layers: every layer of both networks, in the new one's order.
        first: the first layer blamed, None without one.
        largest: of the layers blamed the one that changes the scores most.
        score_error: relative distance of the scores, as the graphs are written; None where their classes differ, or
            the number of candidates.
        matched: layers with weights that were matched, and how many the new network has.
        pictures: how many were looked at.
        notes: sentences about what was not decided.
    """

    verdict: str
    sentence: str
    layers: tuple[LayerDifference, ...] = ()
    first: LayerDifference | None = None
    largest: LayerDifference | None = None
    score_error: float | None = None
    matched: tuple[int, int] = (0, 0)
    pictures: int = 0
    notes: tuple[str, ...] = ()

    @property
    def blamed(self) -> tuple[LayerDifference, ...]:
        """The layers that are blamed, in order."""
        return tuple(layer for layer in self.layers if layer.part)

    def describe(self) -> dict[str, Any]:
        """The blame, as JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "first": None if self.first is None else self.first.describe(),
            "largest": None if self.largest is None else self.largest.describe(),
            "score_error": self.score_error,
            "matched": {"layers": self.matched[0], "of": self.matched[1]},
            "pictures": self.pictures,
            "notes": list(self.notes),
            "layers": [layer.describe() for layer in self.layers],
        }


def blame(old: Explainer, new: Explainer, pictures: Sequence[Any], *, limit: int = PICTURES) -> Blame:
    """Find the first layer in which two classifiers part, from a few pictures.

    Arguments:
        old, new: the classifiers; each prepares the pictures as its own file says.
        pictures: as in `Explainer.explain`; those that cannot be read are passed over.
        limit: how many of them are looked at, spread over all.

    Returns:
        a `Blame`; what cannot be decided is said there, nothing is raised for it.
    """
    count = min(limit, len(pictures))
    places = sorted({round(place) for place in np.linspace(0, len(pictures) - 1, count).tolist()}) if count else []
    rows = []
    for place in places:
        try:
            rows.append((old.prepare(pictures[place])[1], new.prepare(pictures[place])[1]))
        except OnnxcamError:
            continue
    return blame_tensors(old, new, rows)


def blame_tensors(old: Explainer, new: Explainer, rows: Rows) -> Blame:
    """Find the first layer in which two classifiers part, from prepared tensors of one row.

    Arguments:
        old, new: the classifiers.
        rows: of each picture the tensor of the old one and that of the new one.
    """
    if not rows:
        return Blame(UNDECIDED, "Where the two part is undecided: no picture could be prepared for both.")
    try:
        return _Comparison(old, new).blame(rows)
    except (OnnxcamError, MemoryError) as error:
        return Blame(UNDECIDED, f"Where the two part is undecided: {error or 'there is not enough memory'}")


class _Comparison:
    """Two networks that are compared layer by layer."""

    def __init__(self, old: Explainer, new: Explainer) -> None:
        self._explainers = old, new
        self._networks = in_floats(old.sessions.network), in_floats(new.sessions.network)
        self._open = _opening(old), _opening(new)
        self._operations = [Operations(one.graph, one.picture.name, one.readout.value) for one in self._networks]
        constants = [
            weights.read(network.graph, of_one.all, opened)
            for network, of_one, opened in zip(self._networks, self._operations, self._open, strict=True)
        ]
        self._constants: tuple[dict[str, Weights], dict[str, Weights]] = (constants[0], constants[1])
        self._matches = align(self._operations[0], self._operations[1], *self._constants)
        self._weighted = sum(operation.weight is not None for operation in self._operations[1].all)

    def blame(self, rows: Rows) -> Blame:
        """Compare the two on prepared tensors."""
        old, new = self._networks
        rows = [_together(_filled(old, a), _filled(new, b)) for a, b in rows]
        allowed = max(by_layer.tolerance(network.graph) for network in self._networks)
        replay = Replay(old, new, self._matches, *self._open, first=rows[0], tolerance=allowed)
        layers = self._layers(replay, rows, allowed)
        self._constants = {}, {}  # the memory is needed
        counterparts = Counterparts(self._operations[0], self._operations[1], self._matches, replay.matches)
        layers = [_explained(one, counterparts, match) for one, match in zip(layers, replay.matches, strict=True)]
        layers = self._effects(replay, layers, rows)
        weighted = sum(match.new.weight is not None for match in replay.matches)
        absorbed = replay.absorbed
        del replay
        return self._conclude(layers, (weighted, self._weighted), absorbed, rows, allowed, counterparts.behind())

    def _layers(self, replay: Replay, rows: Rows, allowed: float) -> list[LayerDifference]:
        """What each layer adds, and whether that is more than it may."""
        graph, matches = self._networks[1].graph, replay.matches
        sums = [by_layer.Sums() for _ in matches]
        limits = [by_layer.pair_limits(graph, match) for match in matches]
        for pair in rows:
            for sight in replay.run(*pair):
                sums[sight.place].add(sight, limits[sight.place])
        judge = by_layer.Judge(graph, self._constants, allowed)
        ends = {match.new.value for match in matches} | {match.new.delivered for match in matches}
        judged = [
            judge.difference(match, total, ends, replay.absorbed and match.new.node is None)
            for match, total in zip(matches, sums, strict=True)
        ]
        layers = by_layer.assign(*(list(side) for side in zip(*judged, strict=True))) if judged else []
        integers = [
            place
            for place, match in enumerate(matches)
            if match.new.node is not None and (match.new.pairs or judge.of_integers(match, ends))
        ]
        return by_layer.unusual(layers, integers)

    def _effects(self, replay: Replay, layers: list[LayerDifference], rows: Rows) -> list[LayerDifference]:
        """Measure by how much the suspects alone change the old network's scores."""
        blamed = [k for k, layer in enumerate(layers) if layer.part and layer.operator != PICTURE]
        suspects = {*blamed[:1], *sorted(blamed, key=lambda k: -layers[k].local_error)[: _SUSPECTS - 1]}
        if not suspects:
            return layers
        scores = {place: replay.substitute(place) for place in suspects}
        changed: dict[int, list[float]] = {place: [] for place in suspects}
        for old, new in rows[:_TRIALS]:
            for sight in replay.run(old, new):
                if sight.place in scores:
                    plain, other = (scores[sight.place](old, value) for value in (sight.old, sight.local))
                    changed[sight.place].append(relative(other, plain))
        effects = {place: float(np.median(numbers)) for place, numbers in changed.items()}
        return [replace(layer, score_effect=effects.get(place)) for place, layer in enumerate(layers)]

    def _conclude(
        self,
        layers: Sequence[LayerDifference],
        matched: tuple[int, int],
        absorbed: bool,
        rows: Rows,
        allowed: float,
        tail: str,
    ) -> Blame:
        written = self._written(rows)
        error = _far(written)
        notes = []
        if matched[0] < matched[1]:
            notes.append(
                f"{matched[1] - matched[0]} of the new file's {matched[1]} layers with weights have no "
                "counterpart in the old one; what they add counts for the next layer that has one."
            )
        if absorbed:
            notes.append("The two are given different values, and the new file's first layer makes up for it.")
        blamed = [layer for layer in layers if layer.part]
        if _cancels(blamed, written, allowed):
            notes.append(
                f"From {blamed[0].name!r} on {len(blamed)} layers differ and make up for each other: their weights are "
                "arranged differently, as with channels in another order or scaled."
            )
            layers, blamed = [replace(layer, part="", node="", excess=0.0) for layer in layers], []
        behind = [layer for layer in blamed if layer.part != PICTURE]
        largest = max(behind, key=lambda layer: (layer.score_effect or 0.0, layer.local_error), default=None)
        first = blamed[0] if blamed else None
        verdict, sentence = self._verdict(layers, blamed, error, allowed, rows, tail)
        doubt = "" if error is None else self._runtime(rows, error, allowed)
        if doubt:
            notes.append(doubt)
            if not blamed:
                verdict, sentence = RUNTIME, f"No layer is to blame. {doubt}"
        return Blame(
            verdict, sentence, tuple(layers), first, largest or first, error, matched, len(rows),
            tuple(notes),
        )  # fmt: skip

    def _verdict(
        self,
        layers: Sequence[LayerDifference],
        blamed: Sequence[LayerDifference],
        error: float | None,
        allowed: float,
        rows: Rows,
        tail: str,
    ) -> tuple[str, str]:
        """The verdict, and a sentence."""
        if not blamed:
            return _without_blame(layers, error, allowed, tail)
        first = blamed[0]
        rest = [layer for layer in blamed[1:] if not first.between or layer.apart != first.apart]
        if first.part == PICTURE:
            differ = (
                f"given the same values, {len(rest)} of {len(layers) - 1} layers differ too"
                if rest
                else ("given the same values, no layer adds more than its precision gives")
            )
            what = describe_inputs(*self._explainers, rows)
            return INPUT, f"The pictures the two are given differ before the first layer: {what}; {differ}."
        changed = [layer for layer in blamed if layer.part == WEIGHTS and layer.weight_expected is None]
        if len(changed) > 1 and len(changed) == len(blamed):
            weighted = sum(layer.weight_error is not None for layer in layers[layers.index(first) :])
            if len(changed) == weighted:
                what = f"from there on all {weighted} layers with weights have others, as after another training"
            else:
                what = f"of the {weighted} layers with weights from there on {len(changed)} have others"
            return LAYER, f"The two part at {first.name!r}: {what}."
        add = "1 more layer adds" if len(rest) == 1 else f"{len(rest)} more layers add"
        more = f"; {add} more than their precision gives" if rest else ""
        where = f"between {first.between}" if first.between else f"at {first.name!r}"
        return LAYER, f"The two part {where}: {_reason(first)}{more}."

    def _runtime(self, rows: Rows, error: float, allowed: float) -> str:
        """Say where the files differ as they run but not as their graphs are written; empty where they do not."""
        if not np.isfinite(error):
            return ""
        runs = [
            tuple(one.batch_scores(x)[:1] for one, x in zip(self._explainers, pair, strict=True))
            for pair in rows[:_TRIALS]
        ]
        run = _far(runs)
        if run is None or run <= EXCESS * max(error, allowed):
            return ""
        exact = runtime.options.serving(single_use=True)
        exact.add_session_config_entry(_WITHOUT_SATURATION, "1")
        network, explainer = self._networks[1], self._explainers[1]
        value = network.readout.value
        session = explainer.sessions.open(exposing(network, [value]), lambda **_: exact)
        scores = [
            (old, runtime.run(session, [value], {network.picture.name: pair[1]})[value][:1])
            for (old, _), pair in zip(runs, rows, strict=False)
        ]
        without = _far(scores)
        reason = "the difference comes from how the runtime joins operators"
        if without is not None and without <= EXCESS * max(error, allowed):
            reason = (
                "on this processor products of 8-bit integers saturate in it; quantize the file with "
                f"reduce_range=True, or set {_WITHOUT_SATURATION} to 1 in its session options"
            )
        return (
            f"As this runtime optimises the files their scores differ by {percent(run)}, as the graphs are written by "
            f"{percent(error)}: {reason}."
        )

    def _written(self, rows: Rows) -> list[tuple[np.ndarray, ...]]:
        """The scores of both for a few pictures, as the graphs are written."""
        sessions = [
            opened(exposing(network, [network.readout.value]))
            for network, opened in zip(self._networks, self._open, strict=True)
        ]
        result = []
        for pair in rows[:_TRIALS]:
            scores = []
            for session, network, batch in zip(sessions, self._networks, pair, strict=True):
                value = network.readout.value
                scores.append(runtime.run(session, [value], {network.picture.name: batch})[value][:1])
            result.append(tuple(scores))
        return result


def _explained(layer: LayerDifference, counterparts: Counterparts, match: Match) -> LayerDifference:
    """A layer whose operator is blamed, with the operators that may be the reason."""
    apart = counterparts.before(match) if layer.part == OPERATOR else None
    return layer if apart is None else replace(layer, apart=apart.text, between=apart.between or None)


def _cancels(blamed: Sequence[LayerDifference], scores: Sequence[tuple[np.ndarray, ...]], allowed: float) -> bool:
    """Whether layers change the scores one by one and not together."""
    together = _far(scores, np.max)
    if len(blamed) < 2 or blamed[0].part == PICTURE or together is None:
        return False
    alone = max(layer.score_effect or 0.0 for layer in blamed)
    return together <= EXCESS * allowed < alone


def _without_blame(
    layers: Sequence[LayerDifference], error: float | None, allowed: float, tail: str
) -> tuple[str, str]:
    if error is None:
        return UNDECIDED, "Where the two part is undecided: their scores are of different classes or candidates."
    if error <= EXCESS * allowed:
        return AGREE, f"The two agree to rounding: their scores differ by {percent(error)}, and no layer is blamed."
    if len(layers) < 2:
        return UNDECIDED, "Where the two part is undecided: none of their layers could be matched."
    if tail and not error <= EXCESS * max(allowed, *(layer.error for layer in layers)):
        return LAYER, f"The two part behind the last layer of both: {tail}; the scores differ by {percent(error)}."
    most = max(layers, key=lambda layer: layer.local_error)
    return SPREAD, (
        f"No single layer is to blame: each adds what its precision gives, at most {percent(most.local_error)} "
        f"({most.name!r}), and together the scores differ by {percent(error)}."
    )


def _reason(layer: LayerDifference) -> str:
    times = f"{layer.excess:.3g} times what its precision gives"
    match layer.part:
        case part if part == ACTIVATION:
            return (
                f"the pair {layer.node!r}, QuantizeLinear and DequantizeLinear, changes the activation by "
                f"{percent(layer.pair_error or 0)}, {times}"
            )
        case part if part == WEIGHTS and layer.weight_expected is not None:
            return f"its weights, dequantized by {layer.node!r}, are off by {percent(layer.weight_error or 0)}, {times}"
        case part if part == WEIGHTS:
            return f"its weights {layer.node!r} differ by {percent(layer.weight_error or 0)}"
        case part if part == BIAS:
            return f"its bias {layer.node!r} is off by {percent(layer.bias_error or 0)} of the layer's values"
        case _:
            away = f"{percent(layer.local_error)} away"
            if layer.apart and layer.between:
                return f"{layer.apart}; given the same values, what {layer.node!r} gives is {away}"
            more = f"; {layer.apart}" if layer.apart else ""
            return f"given the same values, its {layer.operator} ({layer.node!r}) gives others, {away}{more}"


def percent(value: float) -> str:
    """A relative distance as a percentage of at most three digits."""
    return f"{100 * value:.3g} %" if np.isfinite(value) else "beyond all numbers"


def _far(scores: Sequence[tuple[np.ndarray, ...]], over: Callable[..., Any] = np.median) -> float | None:
    """Relative distance of the scores of both, over pictures; None if they are of different classes."""
    distances = []
    for old, new in scores:
        if old.size != new.size:
            return None
        distances.append(relative(new.reshape(1, -1), old.reshape(1, -1)))
    return float(over(distances))


def _opening(explainer: Explainer) -> Callable[[Any], Any]:
    """Opens sessions of parts of a network that run as they are written: joined operators round elsewhere."""
    return lambda model: explainer.sessions.open(model, lambda **_: runtime.options.unoptimized())


def _filled(network: Network, tensor: np.ndarray) -> np.ndarray:
    """A tensor with as many rows as a file fixes."""
    rows = (network.graph.shape(network.picture.name) or (None,))[0]
    return np.repeat(tensor[:1], rows, axis=0) if isinstance(rows, int) and rows > 1 else tensor[:1]


def _together(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with as many rows: one file may fix them where the other does not."""
    rows = max(len(old), len(new))
    first, second = (np.repeat(x[:1], rows, axis=0) if len(x) < rows else x for x in (old, new))
    return np.ascontiguousarray(first), np.ascontiguousarray(second)
