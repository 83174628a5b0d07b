"""How far an exported model's numbers are from its framework's: measured per sample, recorded, refused if too far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from onnxcam.errors import InputError, VerificationError
from onnxcam.graph.load import serialize
from onnxcam.network.manifest import Manifest
from onnxcam.runtime import open_session, run
from onnxcam.targets.readout import Readout

TOLERANCE = 1e-3
# the framework's own error, float32 against float64, may be that many times exceeded
SLACK = 3.0
# the samples moved by that much of themselves, at most so often, where that error does not explain a difference
ROUNDING, SHAKES = 1e-6, 8
SAMPLES = 4
SEED = 1234
QUANTITIES = ("scores", "activations", "gradients")


class Reference(Protocol):
    """What the framework computes for one batch.

    Attributes:
        scores: `[N, K]` (`[N, 1]` for a binary logit), before any ending Softmax or Sigmoid.
        outputs: the model's own output tensors, in order.
        activations: the value of each target layer.
    """

    scores: np.ndarray
    outputs: list[np.ndarray]
    activations: list[np.ndarray]

    def gradients(self, targets: np.ndarray) -> list[np.ndarray]:
        """d score[n, targets[n]] / d activations, per target layer."""
        ...


# a batch, and whether to compute in float64: the framework's answer, None where it cannot compute in float64
Oracle = Callable[[np.ndarray, bool], "Reference | None"]


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per sample ‖a−b‖ / max(‖b‖, 1e-12), in float64; NaN anywhere counts as infinitely far.

    Arguments:
        a, b: arrays of the same shape `[N, …]`, `b` the reference.

    Returns:
        float64 `[N]`.
    """
    if a.shape != b.shape:
        return np.full(len(b), np.inf)
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def draw(example: np.ndarray, count: int) -> np.ndarray:
    """Random samples like the example: same shape, type, mean and deviation; standard normal where it is constant.

    Arguments:
        example: `[N, …]`, floating-point or integer (then drawn between its extremes).
        count: rows wanted.
    """
    generator = np.random.default_rng(SEED)
    shape = (count, *example.shape[1:])
    if not np.issubdtype(example.dtype, np.floating):
        low, high = int(example.min()), int(example.max())
        low, high = (low, high) if high > low else (0, 255)
        return generator.integers(low, high + 1, shape).astype(example.dtype)
    mean, deviation = float(example.mean()), float(example.std())
    if not np.isfinite(deviation) or deviation < 1e-6:
        mean, deviation = 0.0, 1.0
    return (mean + deviation * generator.standard_normal(shape)).astype(example.dtype)


def samples(verify: bool | int) -> int:
    """How many samples an exporter's `verify` argument means.

    Raises:
        InputError: neither a boolean nor a number.
    """
    if verify is True:
        return SAMPLES
    if isinstance(verify, int) and verify >= 0:
        return verify
    raise InputError(f"verify={verify!r}; expected True, False or a number of samples")


def verify(model: onnx.ModelProto, held: Manifest, oracle: Oracle, batch: np.ndarray, against: str) -> dict[str, Any]:
    """Compare an explainable model with its framework on a batch, at the top-1 class of each row and at a random one.

    Arguments:
        model: with activations and gradients among its outputs.
        held: its manifest.
        oracle: the framework.
        batch: samples, `[N, …]`.
        against: the oracle's name, for the record.

    Returns:
        the manifest's `parity` entry: the largest error of each quantity over samples, layers and targets.

    Raises:
        VerificationError: an error above 1e-3 and above three times the framework's own noise: its float32 error, or
            what its float64 gradients change by when the samples move by a rounding error.
    """
    reference = oracle(batch, False)
    assert reference is not None
    wanted = _targets(reference.scores, held)
    session = open_session(serialize(model), ["CPUExecutionProvider"])
    found = [_found(session, held, batch, targets) for targets in wanted]
    errors = [_errors(held, rows, expected) for rows, expected in zip(found, _expected(reference, wanted), strict=True)]
    worst = {q: max(float(far.max()) for part in errors for far in part[q].values()) for q in QUANTITIES}
    allowed = TOLERANCE
    if max(worst.values()) > TOLERANCE:
        exact = oracle(batch, True)
        floors = None
        if exact is not None:
            sure = _expected(exact, wanted)
            pairs = zip(_expected(reference, wanted), sure, strict=True)
            floors = [_errors(held, rows, expected) for rows, expected in pairs]
            for shaken in _shaken(batch):
                if not _above(errors, floors):
                    break
                moved = oracle(shaken, True)
                if moved is not None:
                    pairs = zip(_expected(moved, wanted), sure, strict=True)
                    floors = _larger(floors, [_errors(held, rows, expected) for rows, expected in pairs])
        allowed = _judge(errors, floors, len(batch), against)
    return {"against": against, "samples": len(batch), **worst, "tolerance": allowed}


Values = dict[str, dict[str, np.ndarray]]


def _targets(scores: np.ndarray, held: Manifest) -> list[np.ndarray]:
    """The class of each row to compare at: given explicitly, so that near-ties of the top class do no harm."""
    rows, classes = len(scores), int(held["scores"]["classes"])
    if held["target"]["mode"] == "constant":
        return [np.full(rows, held["target"]["class"], np.int64)]
    top = Readout.from_manifest(held["scores"]).top1(scores)
    other = np.random.default_rng(SEED).integers(1, max(classes, 2), rows)
    return [top, (top + other) % classes]


def _found(session: Any, held: Manifest, batch: np.ndarray, targets: np.ndarray) -> Values:
    """What the model says: {quantity: {output name: array}}."""
    layers = held["layers"]
    names = dict.fromkeys([*held["source"]["outputs"], held["scores"]["name"]])
    kinds = {output.name: output.type for output in session.get_outputs()}
    scores = [name for name in names if kinds[name].startswith("tensor(float") or kinds[name] == "tensor(double)"]
    wanted = [*scores, *(layer[key] for key in ("activations", "gradients") for layer in layers)]
    feeds = {held["input"]["name"]: batch}
    if held["target"]["mode"] != "constant":
        feeds[held["target"]["name"]] = targets
    arrays = run(session, wanted, feeds)
    return {
        "scores": {name: arrays[name] for name in scores},
        "activations": {layer["name"]: arrays[layer["activations"]] for layer in layers},
        "gradients": {layer["name"]: arrays[layer["gradients"]] for layer in layers},
    }


def _expected(reference: Reference, wanted: Sequence[np.ndarray]) -> list[tuple[Reference, list[np.ndarray]]]:
    return [(reference, reference.gradients(targets)) for targets in wanted]


def _errors(
    held: Manifest, found: Values | tuple[Reference, list[np.ndarray]], expected: tuple[Reference, list[np.ndarray]]
) -> Values:
    """Per quantity and output or layer: the distance of each sample."""
    if isinstance(found, tuple):
        found = _named(held, *found)
    reference = _named(held, *expected)
    return {
        quantity: {name: distance(array, reference[quantity][name]) for name, array in found[quantity].items()}
        for quantity in QUANTITIES
    }


def _named(held: Manifest, reference: Reference, gradients: Sequence[np.ndarray]) -> Values:
    layers = [layer["name"] for layer in held["layers"]]
    outputs = dict(zip(held["source"]["outputs"], reference.outputs, strict=True))
    return {
        "scores": {**outputs, held["scores"]["name"]: reference.scores},
        "activations": dict(zip(layers, reference.activations, strict=True)),
        "gradients": dict(zip(layers, gradients, strict=True)),
    }


def _shaken(batch: np.ndarray) -> Iterator[np.ndarray]:
    """The samples moved by a rounding error, several times.

    Gradients jump where a ReLU is fed a value next to 0. When only ONNX Runtime's float32 falls on the other side, the
    framework's float32 agrees with its float64, and its own error says nothing about how unsure the sample is.
    """
    generator = np.random.default_rng(SEED)
    if np.issubdtype(batch.dtype, np.floating):
        for _ in range(SHAKES):
            yield (batch * (1 + ROUNDING * generator.standard_normal(batch.shape))).astype(batch.dtype)


def _above(errors: Sequence[Values], floors: Sequence[Values]) -> bool:
    """Whether an error is above what the floors allow."""
    return any(
        bool((far > np.maximum(TOLERANCE, SLACK * quiet[quantity][name])).any())
        for part, quiet in zip(errors, floors, strict=True)
        for quantity in QUANTITIES
        for name, far in part[quantity].items()
    )


def _larger(floors: Sequence[Values], others: Sequence[Values]) -> list[Values]:
    return [
        {q: {name: np.maximum(far, other[q][name]) for name, far in part[q].items()} for q in QUANTITIES}
        for part, other in zip(floors, others, strict=True)
    ]


def _judge(errors: Sequence[Values], floors: Sequence[Values] | None, samples: int, against: str) -> float:
    """The largest tolerance that was needed.

    Raises:
        VerificationError: an error above what its row is allowed.
    """
    needed = TOLERANCE
    for part, quiet in zip(errors, floors or [{}] * len(errors), strict=True):
        for quantity in QUANTITIES:
            for name, far in part[quantity].items():
                floor = quiet[quantity][name] if quiet else np.zeros(len(far))
                floor = np.where(np.isfinite(floor), floor, 0.0)
                limit = np.maximum(TOLERANCE, SLACK * floor)
                row = int(np.argmax(far / limit))
                if far[row] > limit[row]:
                    raise VerificationError(
                        f"the {quantity} of {name!r} differ from {against} by {far[row]:.3g} in sample {row + 1} of "
                        f"{samples}, more than the {limit[row]:.3g} allowed; the file was not written. Try another "
                        "opset or target layer, and please report the model"
                    )
                needed = max(needed, float(limit[far > TOLERANCE].max(initial=TOLERANCE)))
    return needed
