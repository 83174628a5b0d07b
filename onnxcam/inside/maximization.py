"""Activation maximisation: make the picture that a channel, a place in it or a class's score responds to most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import ModelError, SettingError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.question import SEED
from onnxcam.inside import natural as real
from onnxcam.inside import scalar as scalars
from onnxcam.inside.ascent import Ascent, ascend
from onnxcam.inside.natural import Comparison, Natural
from onnxcam.inside.parametrization import Canvas
from onnxcam.inside.penalty import Penalty
from onnxcam.inside.scalar import Scalar
from onnxcam.inside.sheet import sheet
from onnxcam.inside.subject import AscentSession, Subject
from onnxcam.inside.transformation import Transformation

STEPS, RATE = 256, 0.1
NOISE = "noise"
DEVIATION = 0.3  # of the noise that an ascent begins with: its pixels vary by 9 % of their range
_STARTS, _LOUDER = 4, 3.0  # where the gradient is zero, as behind a ReLU, louder noise is tried
_WAKING = 128  # steps at most on the value before an activation that is flat
_TOLERANCE = 0.01  # share by which rounding to 8 bits may change the value without a warning


@dataclass(frozen=True)
class Settings:
    """How a picture is made, checked.

    Attributes:
        steps, rate: of Adam.
        parametrization: one of `onnxcam.inside.parametrization.BASES`.
        transformation, penalty: of every step.
        seed: of the noise and the transformations.
    """

    steps: int
    rate: float
    parametrization: str
    transformation: Transformation
    penalty: Penalty
    seed: int

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        *,
        steps: int = STEPS,
        parametrization: str = "fourier",
        learning_rate: float = RATE,
        jitter: int | None = None,
        scale: float = 0.0,
        rotation: float = 0.0,
        l2: float = 0.0,
        tv: float = 0.0,
        seed: int = SEED,
    ) -> Settings:
        """Settings for pictures of a size, as of `maximize`.

        Raises:
            SettingError: a value that cannot be.
        """
        whole = {"steps": (steps, 1), "jitter": (0 if jitter is None else jitter, 0), "seed": (seed, 0)}
        for name, (value, low) in whole.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
                raise SettingError(f"{name} is {value!r}; expected a whole number from {low}")
        numbers = {"learning_rate": learning_rate, "scale": scale, "rotation": rotation, "l2": l2, "tv": tv}
        for name, number in numbers.items():
            real_number = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
            if not real_number or not math.isfinite(number) or number < 0 or (name == "learning_rate" and not number):
                low_end = "above 0" if name == "learning_rate" else "from 0"
                raise SettingError(f"{name} is {number!r}; expected a number {low_end}")
        if scale >= 1:
            raise SettingError(f"scale is {scale!r}; expected less than 1: 0.1 means sizes of 0.9 to 1.1")
        shift = max(round(min(size) / 28), 1) if jitter is None else int(jitter)
        if shift >= min(size):
            raise SettingError(f"jitter is {shift}; expected less than the picture's shorter side, {min(size)} pixels")
        transformation = Transformation(shift, float(scale), float(rotation))
        penalty = Penalty(float(l2), float(tv))
        return cls(int(steps), float(learning_rate), parametrization, transformation, penalty, int(seed))

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "steps": self.steps,
            "learning_rate": self.rate,
            "parametrization": self.parametrization,
            "jitter": self.transformation.jitter,
            "scale": self.transformation.scale,
            "rotation": self.transformation.rotation,
            "l2": self.penalty.l2,
            "tv": self.penalty.tv,
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class Maximized:
    """A picture that was made for a neuron or a class.

    Attributes:
        picture: uint8 `[H, W, C]`, red first where there are colours: what the model is given, undone by scale, mean
            and standard deviation alone, rounded.
        tensor: the model's own input of `picture`, `[1, ...]`.
        history: the value before each step, under its jitter and other transformations, float64 `[steps]`.
        reached: the value of the picture as the ascent has it, not rounded and not transformed.
        verified: by the plain model on `tensor`, without resizing and cropping.
        verified_through_preprocessing: by the plain model on `picture` as `Explainer.explain` would prepare it.
        natural: the real picture with the highest value, None without pictures.
        comparison: all that was compared with real pictures, None without.
        scalar: what was maximised.
        settings: of the ascent.
        interrupted: whether Ctrl-C ended it; the picture is the best so far.
        warnings: sentences about what is doubtful.
    """

    picture: np.ndarray
    tensor: np.ndarray
    history: np.ndarray
    reached: float
    verified: float
    verified_through_preprocessing: float
    scalar: Scalar
    settings: Settings
    comparison: Comparison | None = None
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def natural(self) -> Natural | None:
        """The real picture with the highest value."""
        return self.comparison.best[0] if self.comparison is not None and self.comparison.best else None

    @property
    def stem(self) -> str:
        """The beginning of its files' names."""
        return f"maximize_{self.scalar.stem}"

    def rgb(self) -> np.ndarray:
        """The picture as uint8 `[H, W, 3]` for display; of a model of bands the first three, or the first."""
        pixels = self.picture
        if pixels.shape[2] == 3:
            return pixels
        return np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] > 3 else np.repeat(pixels[..., :1], 3, axis=2))

    def sheet(self) -> np.ndarray:
        """The picture beside the real ones with the highest values and the parts that the neuron sees, uint8 RGB."""
        return sheet(self.rgb(), self.scalar.title, self.verified, self.comparison)

    def save(self, folder: str | Path, stem: str | None = None) -> dict[str, str]:
        """Write the picture, and where real ones were compared the sheet; return the files' names.

        Arguments:
            folder: which exists.
            stem: the beginning of the names, instead of the usual one.
        """
        stem = self.stem if stem is None else stem
        files = {"picture": f"{stem}.png"}
        image.write_png(Path(folder) / files["picture"], self.rgb())
        if self.picture.shape[2] not in (1, 3):
            import io

            buffer = io.BytesIO()
            np.save(buffer, self.picture)
            files["bands"] = f"{stem}.npy"
            image.write_bytes(Path(folder) / files["bands"], buffer.getvalue())
        if self.comparison is not None and self.comparison.best:
            files["sheet"] = f"{stem}_real.png"
            image.write_png(Path(folder) / files["sheet"], self.sheet())
        return files

    def describe(self) -> dict[str, Any]:
        """All but the pixels, for JSON."""
        comparison = self.comparison
        return {
            "objective": self.scalar.describe(),
            "settings": self.settings.describe(),
            "steps": len(self.history),
            "interrupted": self.interrupted,
            "reached": self.reached,
            "verified": self.verified,
            "verified_through_preprocessing": self.verified_through_preprocessing,
            "natural": None if self.natural is None else self.natural.describe(),
            "real": [] if comparison is None else [entry.describe() for entry in comparison.best],
            "real_pictures": 0 if comparison is None else comparison.count,
            "path": [] if comparison is None else [layer.describe() for layer in comparison.path],
            "history": [float(value) for value in self.history],
            "warnings": list(self.warnings),
        }


def maximize(
    explainer: Explainer,
    *,
    layer: str | None = None,
    channel: Any = None,
    place: Sequence[int] | None = None,
    target: Any = None,
    contrast: Any = None,
    steps: int = STEPS,
    start: Any = NOISE,
    parametrization: str = "fourier",
    learning_rate: float = RATE,
    jitter: int | None = None,
    scale: float = 0.0,
    rotation: float = 0.0,
    l2: float = 0.0,
    tv: float = 0.0,
    size: Sequence[int] | None = None,
    seed: int = SEED,
    pictures: Sequence[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Maximized:
    """Make the picture that excites a channel, a place in it, or a class most, by gradient ascent.

    Only the graph up to the layer runs. The picture is made of numbers from 0 to 1 which the model's own scale, mean
    and standard deviation turn into its tensor, whatever its layout, colours and element type are; nothing is resized
    or cropped. Ctrl-C ends the ascent with the best picture so far.

    Arguments:
        explainer: of the classifier; it has to know how pictures become tensors (`preprocess`).
        layer: name of a layer, value or node; the explainer's default one where only a channel is named.
        channel: an index, counted from 0, or several whose mean is maximised; the mean over its map.
        place: row and column in the channel's map, instead of its mean.
        target: a class instead of a channel, index or label: its logit; or a `Contrast` of two or `Weights`
            (`onnxcam.targets`).
        contrast: another channel of the layer, or another class, that is subtracted.
        steps: of Adam.
        start: `noise`, or a picture, as `Explainer.explain` takes them.
        parametrization: `fourier` (a spectrum of natural amplitudes), `cosine` (the same as real cosines), or `pixels`.
        learning_rate: of Adam.
        jitter: at each step the picture is shifted by up to so many pixels; None for 1/28 of its shorter side.
        scale, rotation: at each step it is enlarged or reduced by up to this share, and turned by up to this angle in
            degrees.
        l2, tv: weights of the penalties: the mean squared distance from grey, and the mean total variation, of pixels
            from 0 to 1.
        size: (height, width) where the file leaves them open.
        seed: of the noise and the transformations.
        pictures: real ones to compare with.
        progress: called with (done, total); an exception it raises stops the ascent.

    Raises:
        LayerError: no such layer, channel or place. TargetError: no such class. SettingError: a value that cannot be.
        PreprocessError: nothing says how pictures become tensors. PictureError: the start cannot be read.
        ModelError: the value does not change with the picture, or is not a number; UnsupportedOperator: an operator on
            the way has no gradient.
    """
    subject = Subject(explainer, size)
    settings = Settings.of(
        subject.size,
        steps=steps,
        parametrization=parametrization,
        learning_rate=learning_rate,
        jitter=jitter,
        scale=scale,
        rotation=rotation,
        l2=l2,
        tv=tv,
        seed=seed,
    )
    scalar = scalar_of(subject, layer, channel, place, target, contrast)
    return climb(subject, scalar, subject.ascent(scalar), settings, start=start, pictures=pictures, progress=progress)


def scalar_of(subject: Subject, layer: Any, channel: Any, place: Any, target: Any, contrast: Any) -> Scalar:
    """What is maximised, as of `maximize`.

    Raises:
        SettingError: neither a channel nor a class, or both. LayerError, TargetError: no such one.
    """
    if target is not None:
        if layer is not None or channel is not None or place is not None:
            raise SettingError("either a channel of a layer or a class is maximised, and both were named: drop one")
        return scalars.of_score(subject.network, subject.explainer.labels, target, contrast)
    name = subject.explainer.layers[-1] if layer is None else layer
    if channel is None:
        if layer is None:
            raise SettingError(
                "nothing was named to be maximised; name a channel of a layer (layer=, channel=; --layer, --channel) "
                "or a class (target=, --class)"
            )
        scalars.of_channel(subject.network, subject.graph, str(name), 0, None, None)  # refuses a layer without any
        raise SettingError(f"no channel of layer {name!r} was named; name one: channel=, --channel")
    return scalars.of_channel(subject.network, subject.graph, str(name), channel, place, contrast)


def climb(
    subject: Subject,
    scalar: Scalar,
    session: AscentSession,
    settings: Settings,
    *,
    start: Any = NOISE,
    pictures: Sequence[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Maximized:
    """`maximize` with everything opened and checked; `session` is the scalar's (`subject.ascent`)."""
    canvas = Canvas(settings.parametrization, subject.channels, *subject.size, colors=subject.colors)
    rng = np.random.default_rng(settings.seed)
    warnings: list[str] = []
    parameters = _start(subject, scalar, session, canvas, settings, rng, start, warnings)
    ascent = ascend(
        session,
        canvas,
        parameters,
        steps=settings.steps,
        rate=settings.rate,
        transformation=settings.transformation,
        penalty=settings.penalty,
        rng=rng,
        progress=progress,
    )
    picture, reached = _better(ascent, canvas, session, settings.penalty)
    if ascent.failed is not None:
        warnings.append(
            f"at step {ascent.failed} the value or its gradient was not a finite number, which ended the ascent; the "
            "picture is the best before it"
        )
    if ascent.interrupted:
        warnings.append(f"interrupted after {len(ascent.history)} of {settings.steps} steps; the best so far was kept")
    pixels = subject.pixels(picture)
    tensor = subject.batch(subject.tensor(subject.picture(pixels)))
    plain = subject.values([scalar.value])
    verified = scalar.of(plain(tensor)[scalar.value])
    if not abs(verified - reached) <= _TOLERANCE * abs(reached):
        warnings.append(
            f"rounding the picture to 8 bits changes the value from {reached:.6g} to {verified:.6g}; the plain model's "
            "is the second"
        )
    prepared = subject.explainer.prepare(subject.as_picture(pixels))[1]
    through = scalar.of(plain(subject.batch(prepared))[scalar.value])
    comparison, interrupted = None, ascent.interrupted
    if pictures is not None and len(pictures) and not interrupted:
        try:
            comparison = real.compare(subject, scalar, session, tensor, pictures, progress)
        except KeyboardInterrupt:
            interrupted = True
            warnings.append("interrupted while real pictures were compared, which are left out")
        else:
            warnings += comparison.failures
            if comparison.best and comparison.best[0].value > verified:
                warnings.append(
                    f"a real picture reaches more than the made one: {comparison.best[0].value:.5g} "
                    f"({comparison.best[0].name}) against {verified:.5g}; take more steps (steps=, --steps), or begin "
                    "from that picture (start=, --start)"
                )
            warnings += [comparison.doubt] if comparison.doubt else []
    return Maximized(
        pixels, tensor[:1], ascent.history, reached, verified, through, scalar, settings, comparison, interrupted,
        warnings,
    )  # fmt: skip


def _start(
    subject: Subject,
    scalar: Scalar,
    session: AscentSession,
    canvas: Canvas,
    settings: Settings,
    rng: np.random.Generator,
    start: Any,
    warnings: list[str],
) -> np.ndarray:
    """Parameters to begin with, at which the gradient is not zero.

    Raises:
        ModelError: it is zero, or not a number.
    """
    noise = isinstance(start, str) and start == NOISE
    deviations = [DEVIATION * _LOUDER**k for k in range(_STARTS)]
    first: np.ndarray | None = None
    for place, deviation in enumerate(deviations if noise else deviations[:1]):
        parameters = canvas.noise(rng, deviation) if noise else canvas.parameters(subject.begin(start))
        if _climbable(session, canvas, parameters, scalar):
            if place:
                warnings.append(
                    f"at noise as quiet as usual the gradient of {scalar.title} is zero, so the ascent began from "
                    f"noise {_LOUDER**place:.0f} times as loud"
                )
            return parameters
        first = parameters if first is None else first
    assert first is not None
    before = scalar.before_activation(subject.graph)
    if before is not None:
        steps = _wake(subject, before[0], scalar, canvas, settings, first)
        if steps is not None:
            parameters, count = steps
            warnings.append(
                f"where the ascent began the gradient of {scalar.title} is zero, so it was preceded by {count} "
                f"step{'s' * (count > 1)} on the value before its {before[1]}, which the history leaves out"
            )
            return parameters
    where = f"{len(deviations)} starts of noise" if noise else "the picture that the ascent begins with"
    raise ModelError(
        f"{scalar.title} does not change with the picture: its gradient is zero everywhere at {where}, so there is "
        "nothing to climb; is it dead? (`onnxcam inside dead`); or begin from a picture that it responds to (start=, "
        "--start)"
    )


def _climbable(session: AscentSession, canvas: Canvas, parameters: np.ndarray, scalar: Scalar) -> bool:
    """Whether there is a gradient.

    Raises:
        ModelError: the value or the gradient is not a number.
    """
    value, gradient = session(canvas.picture(parameters))
    if not np.isfinite(value) or not np.isfinite(gradient).all():
        raise ModelError(
            f"{scalar.title} or its gradient is not a finite number at the picture that the ascent begins with; the "
            "model cannot be maximised there (`onnxcam check` looks for the reason)"
        )
    return bool(gradient.any())


def _wake(
    subject: Subject, before: Scalar, scalar: Scalar, canvas: Canvas, settings: Settings, parameters: np.ndarray
) -> tuple[np.ndarray, int] | None:
    """Climb the value before a flat activation until the activation has a gradient: the parameters and the number of
    steps; None where it has none after `_WAKING` steps.
    """
    below, session = AscentSession(subject, before), subject.ascent(scalar)
    for count in range(1, _WAKING + 1):  # one at a time, lest a Clip is passed on its upper side
        climbed = ascend(
            below,
            canvas,
            parameters,
            steps=1,
            rate=settings.rate,
            transformation=Transformation(),
            penalty=settings.penalty,
            rng=np.random.default_rng(settings.seed),
        )
        if climbed.interrupted:
            raise KeyboardInterrupt
        if climbed.failed is not None or not climbed.gradients:
            return None
        parameters = climbed.parameters
        if _climbable(session, canvas, parameters, scalar):
            return parameters, count
    return None


def _better(ascent: Ascent, canvas: Canvas, session: AscentSession, penalty: Penalty) -> tuple[np.ndarray, float]:
    """The picture of the last step or of the best, whichever has the higher value untransformed, and that value."""
    pictures = [canvas.picture(parameters) for parameters in (ascent.best, ascent.parameters)]
    values = [session(picture)[0] for picture in pictures]
    scores = [value - penalty.value(picture)[0] for value, picture in zip(values, pictures, strict=True)]
    place = 1 if scores[1] >= scores[0] or not np.isfinite(scores[0]) else 0
    if not np.isfinite(scores[place]):
        place = 0
    return pictures[place], values[place]
