"""Parity of an exported model with its framework: numbers compared per sample, recorded, refused above a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from onnxcam.errors import InputError, ModelError, VerificationError
from onnxcam.exporters import task_scalars
from onnxcam.exporters.task_scalars import Question
from onnxcam.graph.load import serialize
from onnxcam.network.manifest import NONE, SHARED, Manifest
from onnxcam.network.score_facts import without_masked
from onnxcam.runtime import open_session, options, run
from onnxcam.targets.readout import Readout

TOLERANCE = 1e-3
# multiples of the framework's own float32 error that are tolerated
SLACK = 3.0
# by which ONNX Runtime's Sigmoid may be off, whatever its value: as much as numbers next to 1 have to be
STEP = 2.0**-23
# relative size and number of the perturbations tried where that error does not explain a difference
ROUNDING, PERTURBATIONS = 1e-6, 8
SAMPLES = 4
# how often other samples are drawn before an export is called wrong
FURTHER = 2
SEED = 1234
QUANTITIES = ("scores", "activations", "gradients")


class Reference(Protocol):
    """What the framework computes for one batch.

    Attributes:
        scores: `[N, K]` (`[N, 1]` for a binary logit), before any ending Softmax or Sigmoid; of another task than
            classification its columns.
        outputs: the model's own output tensors, in order.
        activations: the value of each target layer.
    """

    scores: np.ndarray
    outputs: list[np.ndarray]
    activations: list[np.ndarray]

    def gradients(self, targets: Any) -> list[np.ndarray]:
        """d score[n, targets[n]] / d activations, per target layer.

        Of a `task_scalars.Target` d scalar / d activations.
        """
        ...


# a batch, and whether to compute in float64: the framework's answer, None where it cannot compute in float64
Oracle = Callable[[np.ndarray, bool], "Reference | None"]


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per sample ‖a−b‖ / max(‖b‖, 1e-12), in float64; NaN anywhere counts as infinitely far, -inf in both as equal.

    Arguments:
        a, b: arrays of the same shape `[N, …]`, `b` the reference.

    Returns:
        float64 `[N]`.
    """
    if a.shape != b.shape:
        return np.full(len(b), np.inf)
    a, b = without_masked(*(x.reshape(len(x), -1).astype(np.float64) for x in (a, b)))
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def draw(example: np.ndarray, count: int, seed: int = SEED) -> np.ndarray:
    """Random samples like the example: same shape, type, mean and deviation; standard normal where it is constant.

    Arguments:
        example: `[N, …]`, floating-point or integer (then drawn between its extremes).
        count: number of rows.
        seed: of the samples.
    """
    generator = np.random.default_rng(seed)
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
    """The number of samples that an exporter's `verify` argument stands for: True is 4, False 0.

    Raises:
        InputError: neither a boolean nor a number.
    """
    if verify is True:
        return SAMPLES
    if isinstance(verify, int) and verify >= 0:
        return verify
    raise InputError(f"verify={verify!r}; expected True, False or a number of samples")


def verify_on_samples(
    model: onnx.ModelProto, manifest: Manifest, oracle: Oracle, example: np.ndarray, count: int, against: str
) -> dict[str, Any]:
    """Compare an explainable model with its framework, as `verify` does, on random samples like an example.

    Where a ReLU's input is 0 but for rounding, or two elements of a pool are equal, two right gradients may differ.
    Where a sample fails, twice as many others are drawn, up to two times, and all of them have to pass.

    Arguments:
        example: `[N, …]`; see `draw`.
        count: number of samples at first.

    Returns:
        the manifest's `parity` entry, with the number of samples that were drawn in vain as `set_aside`.

    Raises:
        VerificationError: as of `verify`, about the first samples.
    """
    failure: VerificationError | None = None
    set_aside = 0
    for attempt in range(1 + FURTHER):
        batch = draw(example, count if attempt == 0 else 2 * count, SEED + attempt)
        try:
            record = verify(model, manifest, oracle, batch, against)
        except VerificationError as error:
            failure = failure or error
            set_aside += len(batch)
        else:
            return record | ({"set_aside": set_aside} if set_aside else {})
    assert failure is not None
    raise failure


def verify(
    model: onnx.ModelProto, manifest: Manifest, oracle: Oracle, batch: np.ndarray, against: str
) -> dict[str, Any]:
    """Compare an explainable model with its framework on a batch, at the top-1 class of each row and at a random one.

    A model of another task is compared at two of its scalars (`onnxcam.exporters.task_scalars`).

    Arguments:
        model: with activations and gradients among its outputs.
        manifest: its manifest.
        oracle: the framework.
        batch: samples, `[N, …]`.
        against: the oracle's name, for the record.

    Returns:
        the manifest's `parity` entry: the largest error of each quantity over samples, layers and targets.

    Raises:
        VerificationError: an error above 1e-3 and above three times the noise: the framework's own float32 error, the
            change of its float64 gradients when the samples are perturbed by a rounding error, or what a rounding of
            probabilities by `STEP` causes, which matters where all of them are small.
    """
    reference = oracle(batch, False)
    assert reference is not None
    questions = _questions(reference.scores, manifest)
    classes = [question.target for question in questions]
    session = open_session(serialize(model), ["CPUExecutionProvider"], options.proving())
    outputs = [_outputs(session, manifest, {manifest["input"]["name"]: batch} | q.feeds) for q in questions]
    expected = _expected(manifest, reference, classes)
    errors = _errors(outputs, expected)
    worst = {q: max(float(far.max()) for part in errors for far in part[q].values()) for q in QUANTITIES}
    allowed = TOLERANCE
    if max(worst.values()) > TOLERANCE:
        floors = _resolution(expected, reference.scores, classes)
        double = oracle(batch, True) if _above(errors, floors) else None
        if double is not None:
            exact = _expected(manifest, double, classes)
            floors = _larger(floors, _errors(expected, exact))
            for perturbed in _perturbed(batch):
                if not _above(errors, floors):
                    break
                nearby = oracle(perturbed, True)
                if nearby is not None:
                    floors = _larger(floors, _errors(_expected(manifest, nearby, classes), exact))
        allowed = _judge(errors, floors, len(batch), against)
    _require_own_best(session, manifest, batch, classes[0], outputs[0])
    return {"against": against, "samples": len(batch), **worst, "tolerance": allowed}


# {quantity: {name of output or layer: array}}
Values = dict[str, dict[str, np.ndarray]]


def _questions(scores: np.ndarray, manifest: Manifest) -> list[Question]:
    """What to compare at, and the inputs that ask the file for it."""
    if manifest["target"]["mode"] == NONE:
        raise ModelError(f"target={NONE!r}: the file has no gradients that could be verified; export with verify=False")
    if manifest["scores"].get("task") is not None:
        return task_scalars.draw(manifest, scores, np.random.default_rng(SEED))
    target = manifest["target"]
    shared = target.get("rows") == SHARED
    return [
        Question({} if target["mode"] == "constant" else {target["name"]: classes[:1] if shared else classes}, classes)
        for classes in _targets(scores, manifest)
    ]


def _targets(scores: np.ndarray, manifest: Manifest) -> list[np.ndarray]:
    """The class of each row to compare at: by index, so that near-ties of the top class do no harm."""
    rows, classes = len(scores), int(manifest["scores"]["classes"])
    if manifest["target"]["mode"] == "constant":
        return [np.full(rows, manifest["target"]["class"], np.int64)]
    readout = Readout.from_manifest(manifest["scores"])
    top = readout.top1(scores)
    other = np.random.default_rng(SEED).integers(1, max(classes, 2), rows)
    if manifest["target"].get("rows") == SHARED:
        top, other = np.full(rows, top[0]), np.full(rows, other[0])
    other = (top + other) % classes
    masked = np.isneginf(readout.per_class(scores)[np.arange(rows), other])  # has no gradient to compare
    return [top, np.where(masked.any() if manifest["target"].get("rows") == SHARED else masked, top, other)]


def _require_own_best(session: Any, manifest: Manifest, batch: np.ndarray, top: Any, at_top: Values) -> None:
    """Compare a file at negative targets, each row's own top-1 class, with itself at those classes by index.

    Rows whose top-1 class in the file is another than the framework's, at a tie, are left out.

    Raises:
        VerificationError: a negative target means another class.
    """
    target, scores = manifest["target"], manifest["scores"]
    if target["mode"] not in ("optional", "required") or target.get("rows") == SHARED or scores.get("task") is not None:
        return
    feeds = {manifest["input"]["name"]: batch, target["name"]: np.full(len(batch), -1, np.int64)}
    values = _outputs(session, manifest, feeds)
    same = Readout.from_manifest(scores).top1(values["scores"][scores["name"]]) == top
    for name, gradients in values["gradients"].items():
        far = distance(gradients, at_top["gradients"][name])
        if (far[same] > TOLERANCE).any():
            raise VerificationError(
                f"the gradients of {name!r} at a negative target are not those of each row's own top-1 class: they "
                f"differ by {far[same].max():.3g}; the file was not written. Please report the model"
            )


def _outputs(session: Any, manifest: Manifest, feeds: dict[str, np.ndarray]) -> Values:
    """The explainable model's values."""
    layers = manifest["layers"]
    names = dict.fromkeys([*manifest["source"]["outputs"], manifest["scores"]["name"]])
    kinds = {output.name: output.type for output in session.get_outputs()}
    scores = [name for name in names if kinds[name].startswith("tensor(float") or kinds[name] == "tensor(double)"]
    outputs = [*scores, *(layer[key] for key in ("activations", "gradients") for layer in layers)]
    arrays = run(session, outputs, feeds)
    return {
        "scores": {name: arrays[name] for name in scores},
        "activations": {layer["name"]: arrays[layer["activations"]] for layer in layers},
        "gradients": {layer["name"]: arrays[layer["gradients"]] for layer in layers},
    }


def _expected(manifest: Manifest, reference: Reference, classes: Sequence[Any]) -> list[Values]:
    """The framework's values at each of the targets."""
    layers = [layer["name"] for layer in manifest["layers"]]
    outputs = dict(zip(manifest["source"]["outputs"], reference.outputs, strict=True))
    return [
        {
            "scores": {**outputs, manifest["scores"]["name"]: reference.scores},
            "activations": dict(zip(layers, reference.activations, strict=True)),
            "gradients": dict(zip(layers, reference.gradients(targets), strict=True)),
        }
        for targets in classes
    ]


def _errors(values: Sequence[Values], expected: Sequence[Values]) -> list[Values]:
    """The distance of each sample, per targets, quantity, and output or layer."""
    return [
        {
            quantity: {name: distance(array, reference[quantity][name]) for name, array in part[quantity].items()}
            for quantity in QUANTITIES
        }
        for part, reference in zip(values, expected, strict=True)
    ]


def _resolution(expected: Sequence[Values], columns: np.ndarray, targets: Sequence[Any]) -> list[Values]:
    """The distances that a rounding of probabilities by `STEP` causes.

    Arguments:
        columns: of the framework, `[N, K]`.
    """
    return [
        {
            "scores": {name: _resolution_of(array) for name, array in part["scores"].items()},
            "activations": {name: np.zeros(len(array)) for name, array in part["activations"].items()},
            "gradients": dict.fromkeys(part["gradients"], task_scalars.resolution(target, columns, STEP)),
        }
        for part, target in zip(expected, targets, strict=True)
    ]


def _resolution_of(values: np.ndarray) -> np.ndarray:
    """The same of each row of an output, 0 where it holds other numbers than probabilities."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    inside = ((rows >= 0) & (rows <= 1)).all(axis=1)
    return np.where(inside, STEP * np.sqrt(rows.shape[1]) / np.maximum(np.linalg.norm(rows, axis=1), 1e-12), 0.0)


def _perturbed(batch: np.ndarray) -> Iterator[np.ndarray]:
    """The samples perturbed by a rounding error, several times.

    Gradients jump where the input of a ReLU is next to 0. When only ONNX Runtime's float32 falls on the other side, the
    framework's float32 agrees with its float64, and its own error does not show how sensitive the sample is.
    """
    generator = np.random.default_rng(SEED)
    if np.issubdtype(batch.dtype, np.floating):
        for _ in range(PERTURBATIONS):
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


def _judge(errors: Sequence[Values], floors: Sequence[Values], samples: int, against: str) -> float:
    """The largest tolerance that was needed.

    Raises:
        VerificationError: an error above what its row is allowed.
    """
    needed = TOLERANCE
    for part, quiet in zip(errors, floors, strict=True):
        for quantity in QUANTITIES:
            for name, far in part[quantity].items():
                floor = quiet[quantity][name]
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
