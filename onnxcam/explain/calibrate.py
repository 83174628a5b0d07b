"""`onnxcam.calibrate`: labelled pictures in, a file with calibrated probabilities and prediction sets out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import image, runtime
from onnxcam.errors import LabelsError, ModelError, PictureError, PreprocessError, VerificationError, listing
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.folder import workers
from onnxcam.explain.pictures import collect
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import conformal
from onnxcam.network.calibration.fit import SEED, check_settings, fit
from onnxcam.network.calibration.record import MARGIN, Calibration
from onnxcam.network.manifest import Manifest
from onnxcam.runtime.rows import portions
from onnxcam.targets import classes as targets
from onnxcam.targets.readout import Readout
from onnxcam.targets.truth import Table, by_folder

if TYPE_CHECKING:
    import onnx

_ROWS = 8  # pictures per run, as in `Explainer`
_VERIFIED = 16  # pictures on which the written nodes are compared with NumPy
_TOLERANCE = 1e-5  # of their probabilities
BY_FOLDER = "by-folder"
Progress = Callable[[int, int], None]


class Scored(NamedTuple):
    """Scores of pictures that could be read.

    Attributes:
        scores: `[N, columns]`.
        truth: int64 `[N]`, or bool `[N, classes]` of independent classes.
        tensors: the first few, as the model takes them.
        failures: the errors of the pictures that could not be read.
    """

    scores: np.ndarray
    truth: np.ndarray
    tensors: list[np.ndarray]
    failures: list[PictureError]


def calibrate(
    source: Any,
    pictures: Any,
    truth: Any,
    *,
    alpha: float = 0.1,
    score: str = conformal.LAC,
    penalty: float | None = None,
    k: int | None = None,
    set_temperature: float | str = 1.0,
    never_empty: bool = False,
    split: float = 0.2,
    seed: int = SEED,
    max_risk: float | None = None,
    confidence: float = 0.95,
    on_warning: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> onnx.ModelProto:
    """Calibrate a classifier on labelled pictures, and write the result into the file as ordinary nodes.

    The file gains the outputs `calibrated`, float32 `[N, classes]`: probabilities at the temperature of the highest
    likelihood; and `prediction_set`, bool `[N, classes]`: the classes of a set that contains the true one for a share
    1 - alpha of pictures that are drawn like these. The manifest says under `calibration` how.

    Arguments:
        source: an explainable model, which keeps everything else; or any classifier `.onnx`, which is made explainable
            first: path, bytes or `ModelProto`.
        pictures: a folder, or a sequence of what `Explainer.explain` takes. They must not have been trained on.
        truth: their classes in order, as indices or labels; `by-folder` (each picture's folder names its class); or a
            CSV file `picture,class`. Of a `multilabel` model a table may name several classes of a picture, and a
            sequence may be bool `[N, classes]`.
        alpha: share of pictures whose set may miss the true class.
        score: `lac` (the smallest sets on average), `aps` or `raps` (sets that adapt to the picture).
        penalty, k: lambda and k of `raps`; None to choose them on a part of the pictures.
        set_temperature: of the probabilities that sets are made from: 1 for the file's own; `choose` for that of the
            smallest sets.
        never_empty: put the best class into every set.
        split: share of the pictures that are used to choose what is left open, and for nothing else but the
            temperature.
        seed: of that split.
        max_risk: share of wrong predictions, such as 0.01: find the confidence at or above which at most that many are
            wrong, for the condition `risk > 1%`; None for none.
        confidence: the probability, over draws of the pictures, with which that holds.
        on_warning: called with each doubt; None for Python's `warnings.warn`.
        progress: called with (done, total); an exception it raises stops the run.
        settings: of the `Explainer` that predicts: `labels`, `preprocess`, `layers`, `kind`, `providers`, …

    Returns:
        a new `ModelProto`.

    Raises:
        LabelsError: true classes that the model does not have, or that its scores say nothing about.
        SettingError: a setting out of its range, or too few pictures for alpha.
        PictureError: a picture cannot be read. InputError: scores are not finite.
        ModelError, PreprocessError, RuntimeUnavailable: as for `Explainer`.
        VerificationError: the written file computes something else.
    """
    explainer = Explainer(source, **settings)
    check_settings(explainer.terms.readout, alpha, score, penalty, k, set_temperature, split)
    if isinstance(pictures, (str, os.PathLike)):
        collection = collect([os.fspath(pictures)], Path(".onnxcam-none"))
        if collection.failures:
            raise collection.failures[0][1]
        items: list[Any] = [item.source for item in collection.items]
        root: Path | None = Path(pictures)
    else:
        items, root = list(pictures), None
    classes = true_classes(truth, items, root, explainer)
    scored = score_pictures(explainer, items, classes, progress)
    if scored.failures:
        raise scored.failures[0]
    return write(
        source, explainer, scored, alpha=alpha, score=score, penalty=penalty, k=k, set_temperature=set_temperature,
        never_empty=never_empty, split=split, seed=seed,
        max_risk=max_risk, confidence=confidence, on_warning=on_warning or _warn, settings=settings,
    )[0]  # fmt: skip


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


def true_classes(truth: Any, items: Sequence[Any], root: Path | None, explainer: Explainer) -> np.ndarray:
    """The true classes of pictures, int64 `[N]` or bool `[N, classes]`.

    Arguments:
        truth: as in `calibrate`.
        root: the folder with a folder per class, for classes by folder.

    Raises:
        LabelsError: nobody says, not as many as pictures, or no class of the model.
    """
    if not items:
        raise LabelsError("there are no pictures to calibrate on; give a folder with pictures, or a list of them")
    if truth is None:
        raise LabelsError(
            "nothing says what the pictures show: give their classes (truth=, --truth by-folder or --truth FILE.csv)"
        )
    labels, size = explainer.labels, explainer.classes
    if isinstance(truth, (str, os.PathLike)):
        paths = [Path(item) for item in items if isinstance(item, (str, os.PathLike))]
        if len(paths) != len(items):
            raise LabelsError("classes by folder or from a table need pictures that are files; give a list of classes")
        if os.fspath(truth) == BY_FOLDER:
            if root is None or not root.is_dir():
                raise LabelsError("truth='by-folder' takes one folder of pictures, with a folder per class in it")
            return np.array(by_folder(paths, root, labels, size), np.int64)
        if explainer.terms.readout.independent:
            return Table(truth, labels, size, several=True).find_several(paths)
        return np.array(Table(truth, labels, size).find_all(paths), np.int64)
    array = np.asarray(truth)
    if array.ndim == 2 or array.dtype.kind in "iu":
        if len(array) != len(items):
            raise LabelsError(f"got {len(array)} true classes for {len(items)} pictures; give one for each")
        return array
    return np.asarray(targets.resolve(list(truth), len(items), size, labels), np.int64)


def score_pictures(
    explainer: Explainer, items: Sequence[Any], truth: np.ndarray, progress: Progress | None = None
) -> Scored:
    """Run the model over pictures, a few at a time; those that cannot be read are left out.

    Raises:
        PictureError: none can be read.
    """
    parts: list[np.ndarray] = []
    tensors: list[np.ndarray] = []
    failures: list[PictureError] = []
    readable: list[int] = []
    rows = explainer.batch_size or _ROWS
    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(items), rows):
            prepared = list(pool.map(lambda item: _prepared(explainer, item), items[start : start + rows]))
            batches: list[np.ndarray] = []
            for place, one in enumerate(prepared, start):
                if isinstance(one, PictureError):
                    failures.append(one)
                    continue
                readable.append(place)
                batches.append(one)
            for batch in _joined(batches):
                parts.append(explainer.batch_scores(batch))
                if sum(map(len, tensors)) < _VERIFIED:
                    tensors.append(batch)
            if progress is not None:
                progress(min(start + rows, len(items)), len(items))
    if not parts:
        raise failures[0]
    return Scored(np.concatenate(parts), truth[readable], tensors, failures)


def _prepared(explainer: Explainer, item: Any) -> np.ndarray | PictureError:
    try:
        return explainer.prepare(item)[1]
    except PictureError as error:
        return error


def _joined(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Tensors of one picture each, joined where they follow each other with the same size."""
    waiting: list[np.ndarray] = []
    for batch in batches:
        if waiting and waiting[0].shape != batch.shape:
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield np.concatenate(waiting)


def write(
    source: Any,
    explainer: Explainer,
    scored: Scored,
    *,
    on_warning: Callable[[str], None],
    settings: dict[str, Any],
    **choices: Any,
) -> tuple[onnx.ModelProto, Calibration]:
    """Fit a calibration to scores, and make the calibrated model.

    Arguments:
        source, settings: what `explainer` was made of.
        choices: the keyword arguments of `calibration.fit.fit`.

    Raises:
        SettingError, LabelsError, InputError: as of `fit`.
        VerificationError: the file computes something else than NumPy.
    """
    readout = explainer.terms.readout
    calibration = fit(scored.scores, scored.truth, readout, labels=explainer.labels, on_warning=on_warning, **choices)
    model = explainable(source, explainer, settings, on_warning)
    calibration = embed(model, calibration)
    verify(model, calibration, scored)
    return model, calibration


def explainable(
    source: Any, explainer: Explainer, settings: dict[str, Any], on_warning: Callable[[str], None]
) -> onnx.ModelProto:
    """The explainable model to write into: the source itself, or what a plain classifier becomes.

    Raises:
        ModelError: the source was made for other scores than those that are calibrated.
        PreprocessError: it prepares pictures itself, otherwise than those that were scored.
    """
    from onnxcam.graph.load import load
    from onnxcam.network.explainable import augment

    model = load(source)
    manifest = manifests.read(model)
    if manifest is None:
        names = ("layers", "methods", "scores", "kind", "input_size", "preprocess")
        keywords = {name: settings[name] for name in names if settings.get(name) is not None}
        model = augment(source, labels=explainer.labels, on_warning=on_warning, **keywords)
        fresh = manifests.read(model)
        if fresh is not None:
            state_preprocessing(fresh, explainer, lambda sentence: None)
            manifests.write(model, fresh)
        return model
    scores = manifest["scores"]
    if scores["name"] != explainer.manifest["scores"]["name"] or scores["kind"] != explainer.manifest["scores"]["kind"]:
        raise ModelError(
            f"the file explains the scores {scores['name']!r} of kind {scores['kind']!r}, and others were named; leave "
            "scores and kind out, or export the plain model again with them"
        )
    if explainer.labels is not None:
        manifest["labels"] = list(explainer.labels)
    state_preprocessing(manifest, explainer, on_warning)
    manifests.write(model, manifest)
    return model


def state_preprocessing(manifest: Manifest, explainer: Explainer, on_warning: Callable[[str], None]) -> None:
    """Let a manifest state the preprocessing that the pictures were scored with, where it states another or none.

    Raises:
        PreprocessError: the graph prepares pictures itself, in another way.
    """
    entry, preprocess = manifest["input"], explainer.preprocess
    stored = entry.get("preprocess")
    if preprocess is None or (stored and image.resolve(stored, entry["shape"], layout=entry["layout"]) == preprocess):
        return
    if manifest.get("pixels"):
        raise PreprocessError(
            "the file takes pixels and prepares them itself, in another way than the one that was named to calibrate "
            "it; leave preprocess and value_range out (--preprocess, --range), or export it again with them"
        )
    if stored:
        on_warning(
            "the pictures were prepared otherwise than the file states: the calibrated file states the preprocessing "
            "that was named, as its probabilities and sets hold for no other"
        )
    entry["preprocess"] = preprocess.to_dict()


def embed(model: onnx.ModelProto, calibration: Calibration) -> Calibration:
    """Write a calibration into an explainable model in place, instead of the one that it has."""
    from onnxcam.network.calibration.nodes import attach, detach, seal

    manifest = manifests.read(model)
    if manifest is None:
        raise ModelError("the model is not explainable; export it first (onnxcam export)")
    detach(model, manifest)
    attach(model, manifest, calibration)
    seal(model, manifest)
    manifests.write(model, manifest)
    return Calibration.from_manifest(manifest["calibration"])


def verify(model: onnx.ModelProto, calibration: Calibration, scored: Scored) -> None:
    """Compare what the file computes of a few pictures with NumPy.

    Raises:
        VerificationError: a probability differs by more than 1e-5, or a set by a class that is no tie.
    """
    from onnxcam.graph.load import load, serialize
    from onnxcam.network.pixels import unwrap

    bare = load(model)
    unwrap(bare)
    manifest = manifests.read(bare)
    if manifest is None:
        raise ModelError("the model is not explainable; export it first (onnxcam export)")
    session = runtime.open_session(serialize(bare), ["CPUExecutionProvider"])
    wrong = [sentence for batch in scored.tensors for sentence in _differences(session, manifest, calibration, batch)]
    if wrong:
        raise VerificationError(
            f"the calibrated file computes something else than NumPy ({listing(wrong, 3)}), so nothing was written; "
            "report this as a bug"
        )


def _differences(session: Any, manifest: Manifest, calibration: Calibration, batch: np.ndarray) -> Iterator[str]:
    readout, target = Readout.from_manifest(manifest["scores"]), manifest["target"]
    rows = manifest["input"]["shape"][0]
    for part in portions(batch, rows if isinstance(rows, int) else None):
        feeds = {manifest["input"]["name"]: part}
        if target["mode"] == "required":
            count = 1 if target.get("rows") == manifests.SHARED else len(part)
            feeds[target["name"]] = np.full(count, targets.TOP1, np.int64)
        outputs = runtime.run(session, [readout.value, *calibration.outputs], feeds)
        scores, p, inside = (outputs[name] for name in (readout.value, *calibration.outputs))
        difference = float(np.abs(p - calibration.probabilities(scores, readout)).max())
        if not difference <= _TOLERANCE:
            yield f"a probability differs by {difference:.2g}"
        narrow, wide = (
            conformal.sets(scores, readout, calibration.rule, calibration.threshold, margin=margin)
            for margin in (-4 * MARGIN, 4 * MARGIN)
        )
        if (inside < narrow).any() or (inside > wide).any():
            yield "a prediction set has other classes"
