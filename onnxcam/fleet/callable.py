"""`Explain`: the callable that engines and loops call on batches of pictures."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, ModelError, SettingError
from onnxcam.fleet import batches, process_session, workers
from onnxcam.fleet.columns import Column, Row, columns
from onnxcam.targets.tasks import DETECT, SEGMENT

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer
    from onnxcam.explain.question import Question
    from onnxcam.fleet.answering import Job

# keywords of `Explainer`; those of a question; all others are options of the method
_OPENING = (
    *("labels", "preprocess", "input_size", "value_range", "bands", "scores", "kind", "task", "boxes_output"),
    *("providers", "allow_fallback", "probe"),
)
_QUESTION = ("target", "method", "layer", "normalize", "fusion", "smooth", "seed")
_ONE_MAP = ("top", "side_by_side", "size")
_ACCELERATED = 16  # rows in a run on a GPU


class Explain:
    """A callable that predicts and explains the pictures of a batch, for Ray Data, Daft, Spark or a plain loop.

    Pickles as the model's path and SHA-256 (or its bytes) and settings, without a session and whatever the engine's
    pickle. Each process opens the model once, when it is first called there, on as many threads as the worker's share
    of the cores; several callables about one model share it.

    Every row of a batch comes back, with the columns of `onnxcam.fleet.columns`: a picture that fails is a row with
    its `error`. What would be wrong with every row is raised instead. A row's numbers do not depend on the batch that
    it came in, on the other rows, or on the number of threads.

    Arguments:
        model: an explainable model, or any classifier `.onnx` (augmented in each process): a path that every worker
            has, or bytes.
        when: which rows are explained: a condition such as `confidence < 0.6`, `always` or `never`; None for all. The
            others have predictions only, and nothing is differentiated for them.
        column: name of the column with the pictures: encoded bytes, paths, arrays, PIL images, or structs of `bytes`
            and `path`. It is dropped unless `keep`.
        rows: in each run of the model, the last of which is padded; None for what the file fixes, else 1 on a
            processor and 16 on a GPU.
        threads: that work on pictures side by side; None for the worker's share of the cores.
        top_k: classes in `top` and `top_confidence`.
        overlay: add a column `overlay` of PNG pictures, drawn with `alpha` and `colormap`, as in
            `Explanation.overlay`.
        keep: let the column of pictures pass through.
        prefix: what the names of the added columns begin with.
        color: channel order of arrays, `RGB` or `BGR`.
        max_pixels: refuse encoded pictures of more pixels; None for no limit.
        question: `target`, `method`, `layer`, `normalize`, `fusion`, `smooth`, `seed` and options of the method as of
            `Explainer.explain`; `labels`, `preprocess`, `input_size`, `value_range`, `bands`, `scores`, `kind`, `task`,
            `boxes_output`, `providers`, `allow_fallback` and `probe` as of `Explainer`.

    Raises:
        ModelError, TrustError: no usable classifier. TargetError, LayerError, MethodError, LabelsError: no such class,
        layer or method, or not one label per class. SettingError, InputError: a condition or setting that cannot be
        used. PreprocessError: one that does not exist.
    """

    def __init__(
        self,
        model: Any,
        *,
        when: str | None = None,
        column: str = "bytes",
        rows: int | None = None,
        threads: int | None = None,
        top_k: int = 5,
        overlay: bool = False,
        alpha: float | None = None,
        colormap: str | None = None,
        keep: bool = False,
        prefix: str = "",
        color: str = "RGB",
        max_pixels: int | None = image.MAX_PIXELS,
        **question: Any,
    ) -> None:
        self.model = _source(model)
        self.when = "always" if when is None else when
        self.column = column
        self.rows = _count(rows, "rows")
        self.threads = _count(threads, "threads")
        self.top_k = _count(top_k, "top_k") or 1
        self.overlay, self.alpha, self.colormap = bool(overlay), alpha, colormap
        self.keep = bool(keep)
        self.prefix = prefix
        self.color = color
        self.max_pixels = max_pixels
        self._question = {name: value for name, value in question.items() if name in _QUESTION}
        self._opening = {name: _plain(value) for name, value in question.items() if name in _OPENING}
        self._options = {
            name: value for name, value in question.items() if name not in (*_QUESTION, *_OPENING, *_ONE_MAP)
        }
        several = [name for name in _ONE_MAP if question.get(name) is not None]
        if several:
            raise InputError(
                f"{several[0]}= makes more than the one map a row; leave it out, and call again for others"
            )
        if not isinstance(self._question.get("method", ""), str):
            raise InputError("method= must be one name: a row has one map; make a callable for each method")
        if isinstance(self._question.get("target"), (list, tuple, np.ndarray)):
            raise InputError("target= must be one class: it holds for every row")
        if color not in ("RGB", "BGR"):
            raise InputError(f"color={color!r}; expected 'RGB' or 'BGR', the channel order of arrays")
        if not isinstance(column, str) or not isinstance(prefix, str):
            raise InputError("column= and prefix= are names; expected texts")
        if colormap is not None and colormap not in image.COLORMAPS:
            raise InputError(f"colormap={colormap!r}; expected one of {', '.join(image.COLORMAPS)}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha!r}; expected a number from 0 to 1")
        self.sha256 = process_session.sha256(self.model)
        settings = pickle.dumps((self.model, self.sha256, sorted(self._arguments.items(), key=lambda item: item[0])))
        self._key = hashlib.sha256(settings).hexdigest()
        self._check()

    def __call__(self, batch: Any) -> Any:
        """Predict and explain the pictures of a batch.

        Arguments:
            batch: a dict of arrays (or lists) by column, `[N]` each; a pandas `DataFrame`; a pyarrow `Table` or
                `RecordBatch`.

        Returns:
            a batch of the same type and as many rows in the same order: the other columns as they were, then those of
            `self.columns`.

        Raises:
            InputError: another type, no column of that name, one that would be added is there already, two of one name,
                or one without as many rows as there are pictures.
            ModelError: the model is missing in this process, or another file. RuntimeUnavailable: a provider is.
            PreprocessError: nothing says how pictures become tensors.
        """
        from onnxcam.fleet.cells import cells

        added = self.columns
        values, others = batches.take(batch, self.column, added, self.keep)
        return batches.assemble(batch, others, list(self.explain(cells(values, self.column))), added, self.prefix)

    def explain(self, pictures: Iterable[Any]) -> Iterator[Row]:
        """Predict and explain any number of pictures, a few at a time: memory stays flat.

        Returns:
            a dict for each in order, with the names of `onnxcam.fleet.columns()`; what does not apply is None, lists
            are arrays.

        Raises:
            ModelError, RuntimeUnavailable, PreprocessError: as of a call.
        """
        return self._job().answers(pictures, self.threads or workers.share())

    @property
    def columns(self) -> list[Column]:
        """The columns that are added to a batch, in order."""
        return columns(overlay=self.overlay, prefix=self.prefix)

    @property
    def explainer(self) -> Explainer:
        """The explainer of this process, which is opened where it is not yet; raises as a call."""
        return self._job().explainer

    @property
    def question(self) -> Question:
        """The question about every picture; opens the explainer of this process."""
        return self._job().question

    @property
    def rows_per_run(self) -> int:
        """Rows in each run of the model in this process; opens its explainer."""
        return self._job().rows

    def __repr__(self) -> str:
        where = self.model if isinstance(self.model, str) else f"{len(self.model):,} bytes"
        return f"Explain({where!r}, when={self.when!r}, column={self.column!r})"

    @property
    def __name__(self) -> str:
        """For engines that name a step after its function."""
        return "Explain"

    @property
    def _arguments(self) -> dict[str, Any]:
        """The arguments of `Explainer`."""
        layer = self._question.get("layer")
        layers = [layer] if isinstance(layer, str) else layer
        fixed = {} if self.rows is None else {"rows": self.rows}
        return {"layers": layers, "methods": [self._question.get("method", "gradcam")], **fixed, **self._opening}

    def _job(self) -> Job:
        from onnxcam.explain.conditional import read_condition
        from onnxcam.fleet.answering import Job
        from onnxcam.network.calibration.record import of_manifest
        from onnxcam.runtime.session import CPU

        explainer = process_session.explainer_of(self._key, self.model, self.sha256, self._arguments)
        size = explainer.batch_size
        if size is not None and self.rows not in (None, size):
            raise SettingError(f"rows={self.rows}, and this model runs {size} rows at a time; leave it out")
        rows = size or self.rows or (1 if explainer.providers[0] == CPU else _ACCELERATED)
        explainer.sessions.rows = rows  # no clock decides how a worker's numbers are rounded
        return Job(
            explainer,
            explainer.question(**self._question, options=self._options),
            read_condition(self.when, explainer.labels, explainer.classes, of_manifest(explainer.manifest)),
            rows,
            min(self.top_k, explainer.classes or self.top_k),  # some detectors do not tell how many
            self.overlay,
            self.alpha,
            self.colormap,
            self.color,
            self.max_pixels,
            self.sha256,
        )

    def _check(self) -> None:
        """Refuse what can be refused without a session, where the callable is made and not on every worker."""
        from onnxcam.cam.methods import GRAPH, find
        from onnxcam.explain.conditional import read_condition
        from onnxcam.explain.preparation import Preparation
        from onnxcam.explain.question import Question, Terms
        from onnxcam.network.calibration.record import of_manifest
        from onnxcam.network.opening import open_model
        from onnxcam.targets.readout import Readout
        from onnxcam.targets.task_labels import check_labels

        method = find(self._question.get("method", "gradcam"))
        arguments = self._arguments
        names = ("preprocess", "input_size", "scores", "kind", "task", "boxes_output")
        opening = {name: arguments[name] for name in names if name in arguments}
        methods = [method.name] if method.kind == GRAPH else ["gradcam"]
        opened = open_model(self.model, layers=arguments["layers"], methods=methods, probe=False, **opening)
        manifest = opened.manifest
        readout = Readout.from_manifest(manifest["scores"])
        if readout.task is not None and readout.task.name not in (DETECT, SEGMENT) and readout.size > 1:
            raise ModelError(
                f"a row explains what the model reports by itself, and this model's task is {readout.task.name!r}: "
                "explain its pictures by Explainer.explain (`onnxcam explain`) or over HTTP (`onnxcam serve`)"
            )
        labels = check_labels(self._opening.get("labels") or manifest.get("labels"), readout)
        layers = arguments["layers"] or [entry["name"] for entry in manifest["layers"]]
        if labels is not None or not isinstance(self._question.get("target"), str):
            terms = Terms(readout, labels, layers, opened.bound_class)
            Question.of(terms, **self._question, options=self._options)
        condition = read_condition(self.when, labels, readout.size, of_manifest(manifest))
        if not isinstance(condition, bool):
            readout.require_probabilities("this condition")
        Preparation.of(manifest["input"], *(self._opening.get(name) for name in ("preprocess", "value_range", "bands")))


def _source(model: Any) -> str | bytes:
    if isinstance(model, (str, os.PathLike)):
        return os.path.abspath(os.fspath(model))  # noqa: PTH100
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    if hasattr(model, "SerializeToString"):
        from onnxcam.graph.load import serialize

        data = serialize(model)
        if isinstance(data, bytes):
            return data
    raise InputError(f"a {type(model).__name__} is not a model for workers; pass a path or bytes")


def _count(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SettingError(f"{name}={value!r}; expected a whole number from 1")
    return int(value)


def _plain(value: Any) -> Any:
    """A setting without arrays, so that equal ones are equal."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes, tuple)) else value
