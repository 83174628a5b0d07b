"""`onnxcam.Explainer`: pictures in, explanations out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.cam.methods import Method
from onnxcam.errors import TargetError
from onnxcam.explain import task_answers
from onnxcam.explain.batch_maps import BatchMaps
from onnxcam.explain.examination import Examination
from onnxcam.explain.explanation import Explanation
from onnxcam.explain.features import Component, HeadRun, InputGradient, Progress
from onnxcam.explain.file import FileSession, Raw, as_made
from onnxcam.explain.maps import fuse, map_size, windows_of
from onnxcam.explain.opened_model import OpenedModel
from onnxcam.explain.preparation import Preparation, Prepared, labels_of
from onnxcam.explain.question import SEED, Question
from onnxcam.explain.recent import Recent
from onnxcam.explain.warnings import model_warnings, preprocessing_warnings
from onnxcam.runtime import Provider
from onnxcam.targets.classes import TOP1
from onnxcam.targets.objectives import Objective
from onnxcam.targets.readout import LOGITS
from onnxcam.targets.scalars import Several
from onnxcam.targets.tasks import Detect, Detection

_CHUNK = 8  # pictures per run: more gains nothing on a CPU, and memory stays flat


class Explainer(OpenedModel):
    """Explains one model: a classifier, a detector, a segmentation, an embedding or a regression.

    One object serves many threads at once and keeps no state between calls. A layer or method that the file lacks is
    added in memory when first asked for.

    Arguments:
        source: an explainable model, or any classifier `.onnx` (augmented in memory): path, bytes or `ModelProto`.
        labels: class names by index, instead of those in the file (its manifest, or metadata such as Ultralytics'
            `names`); without either, those in the folder that `preprocess="hf:FOLDER"` names.
        preprocess: how pictures become tensors, instead of what the file says: a preset's name, a dict in the
            manifest's form, a JSON file, or `onnxcam.image.Preprocess`.
        layers: names of target layers; None for those of the file, or the default layer of a plain classifier.
        methods: names of the CAM methods that a plain classifier is augmented with.
        input_size: (height, width) of the picture, where the file leaves them open.
        value_range: the values that count as pixels of 0 and 255, of pictures of more than 8 bits and of arrays.
        bands: indices of the one or three bands that are shown of pictures of many; None for the first three.
        scores, kind: the output with the class scores, and what they are, as of `onnxcam.augment`.
        task, boxes_output: what a model that is no classifier does, and where its boxes are, as of `onnxcam.augment`.
        texts: text embeddings `[K, D]` of a CLIP-like image tower, which make it a classifier of K texts: the score of
            a text is 100 times the cosine of both embeddings. `labels` are the texts.
        providers: execution providers, names (also `cuda:1`) or (name, options); None for the best that works.
        session_options: `onnxruntime.SessionOptions`.
        allow_fallback: accept a session that does not use every provider named.
        probe: measure facts about a plain classifier on 12 pictures, see `onnxcam.probe`; an explainable model carries
            them. Without, every explanation says that they were not measured.
        rows: in each run of methods that run the model many times (integrated gradients, RISE, …); None to choose them
            by the times of the first runs. They change floats by rounding alone.

    Raises:
        ModelError: the file is not a usable classifier, or contradicts `kind`.
        LayerError, MethodError: no such layer or method. LabelsError: not one label per class.
        PreprocessError: a preprocessing that does not exist or does not fit the model.
        RuntimeUnavailable: no runtime, or a provider is not in use.
    """

    def __init__(
        self,
        source: Any,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str | Method] = ("gradcam",),
        input_size: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
        bands: Sequence[int] | None = None,
        scores: str | None = None,
        kind: str | None = None,
        task: str | None = None,
        boxes_output: str | None = None,
        texts: Any = None,
        providers: Sequence[Provider] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
        probe: bool = True,
        rows: int | None = None,
    ) -> None:
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "source")}
        if texts is not None:
            from onnxcam.network.text_classes import SCORES, with_texts

            source = with_texts(source, texts, scores=scores)
            scores, kind, task = SCORES, LOGITS, None
            self.settings |= {"texts": None, "scores": scores, "kind": kind, "task": task}  # the source has them now
        self._file = FileSession(
            source, layers=layers, methods=methods, preprocess=preprocess, input_size=input_size, scores=scores,
            kind=kind, task=task, boxes_output=boxes_output, providers=providers, session_options=session_options,
            allow_fallback=allow_fallback, probe=probe, rows=rows,
        )  # fmt: skip
        self.check_batch = self._file.check_batch  # refuses a batch of another shape or dtype
        manifest = self._file.manifest
        self._readout, self._recent = self._file.readout, Recent()
        self.labels = labels_of(labels, manifest, preprocess)
        names = [layers] if isinstance(layers, str) else layers
        self._layers: list[str] = list(names or [entry["name"] for entry in manifest["layers"]])
        entry = manifest["input"]
        self.preparation = Preparation.of(entry, preprocess, value_range, bands)
        self._preprocess = self.preparation.preprocess
        self._warnings = model_warnings(manifest, self._layers, skipped=self._file.plain and not probe)
        self._warnings += self._file.doubts(self.labels)
        if self._preprocess is not None:
            self._warnings += preprocessing_warnings(entry, self._preprocess, preprocess is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it was made of: path or bytes of the model, and the settings; sessions are opened anew."""
        return as_made(type(self), self._file.origin, self.settings | {"labels": self.labels})

    def beside(self, model: Any) -> Explainer:
        """An explainer of a changed copy of the model on the same terms: labels, preprocessing, layers, providers."""
        terms: dict[str, Any] = {"labels": self.labels, "preprocess": self._preprocess, "layers": self._layers}
        return Explainer(**self._file.on(model), **terms, bands=self.preparation.bands)

    def question(self, **keywords: Any) -> Question:
        """A question about this model, checked once; keywords as in `Question.of`.

        Raises:
            TargetError, MethodError, InputError: as their names say.
        """
        if self._readout.task is not None and keywords.get("target") is not None:
            keywords["target"] = task_answers.with_vectors(self, keywords["target"])
        return Question.of(self.terms, **keywords)

    def run(self, batch: np.ndarray, target: Any = None, layer: Any = None) -> Raw:
        """Compute scores, activations and gradients.

        Arguments:
            batch: tensor in the model's own layout and dtype.
            target: None (each row's top-1; in a file bound to one class, that class), -1 (each row's top-1, always),
                an index, a label, or a sequence with one per row.
            layer: a layer's name, None for the last one, or a list of names for lists.

        Returns:
            `Raw(scores, activations, gradients, target)`: logits `[N, K]`, log p of a model whose manifest says kind
            `probabilities`; the layer's value and d scores[n, target[n]]
            / d value, in the layer's own layout and dtype; the class explained per row, int64 `[N]`.

        Raises:
            InputError: a batch of another shape or dtype.
            TargetError, LayerError: as their names say.
        """
        batch = self._file.check_batch(batch)
        question = self.question(rows=len(batch), target=target, layer=layer)
        if self._readout.task is not None:
            raise TargetError(
                f"run() computes the gradient of a class's score, and this model's kind is {self._readout.kind!r}; use "
                "attribute() or explain()"
            )
        if not question.of_classes:
            raise TargetError(
                f"target {target!r} is more than a class, and run() computes the gradient of a class's score; "
                "use attribute() or explain()"
            )
        classes = question.classes(len(batch))
        scores, activations, gradients = self._file.run(batch, classes, question.layers)
        explained = question.explained(classes, scores)
        if question.several_layers:
            return Raw(scores, activations, gradients, explained)
        return Raw(scores, activations[0], gradients[0], explained)

    def attribute(
        self,
        batch: np.ndarray,
        target: Any = None,
        method: Any = None,
        layer: Any = None,
        normalize: str = "minmax",
        size: Any = "input",
        *,
        fusion: str = "mean",
        smooth: Any = (),
        seed: int = SEED,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """Compute maps of a prepared batch.

        Arguments:
            batch: tensor in the model's own layout and dtype.
            target: as in `run`; or a `Contrast`, a `Probability` or `Weights` (`onnxcam.targets`).
            method: a method's name, or a list of names for a list of maps; None for the usual one
                (`onnxcam.cam.registry.default_method`): Grad-CAM, of a detector LayerCAM, of a segmentation HiResCAM.
            layer: a layer's name, None for the last one, or a list of names whose maps are fused.
            normalize: `minmax` (as pytorch-grad-cam), `max` (as the paper) or `none`.
            size: `input` for the model's input size, `layer` for the layer's own, or (height, width).
            fusion: how the maps of several layers become one: `mean`, `max` or `product`.
            smooth: `eigen` (the first principal component over channels instead of their sum), `augment` (the mean over
                mirrored and scaled copies of the tensor), or both; as pytorch-grad-cam's eigen_smooth and aug_smooth.
            seed: of methods that draw random numbers.
            progress: called with (done, total) as long methods go; an exception it raises stops them.
            options: of the method, see `onnxcam methods`.

        Returns:
            float32 `[N, H, W]`, or for a list of methods a list of these in order.

        Raises:
            InputError: a batch of another shape or dtype, or a setting that does not exist.
            MethodError, TargetError, LayerError: no such method, option of it, class or layer.
        """
        batch = self._file.check_batch(batch)
        question = self._recent.question(
            self.question, self.labels, rows=len(batch), target=target, method=method, layer=layer,
            normalize=normalize, size=size, fusion=fusion, smooth=smooth, seed=seed, options=options,
        )  # fmt: skip
        if self._readout.task is not None:
            fused = task_answers.attribute(self, question, batch, progress)
        elif self._in_file(question, len(batch)):
            classes = question.classes(len(batch))
            scores, maps = self._file.maps(batch, classes, question.layers, question.methods[0].name)
            question.check_scores(classes, scores)
            input_size = self._file.layout.size(batch.shape)
            windows = windows_of(question.methods[0], self._file.windows(question.layers), question.size)
            size = map_size(question.size, input_size, maps)
            fused = [fuse(maps, question.normalize, size, question.fusion, windows=windows, input_size=input_size)]
        else:
            fused = self.examination(question, batch, progress).fused(question)
        return fused if question.several_methods else fused[0]

    def attribution(
        self,
        batch: np.ndarray,
        target: Any = None,
        method: Any = "saliency",
        layer: Any = None,
        *,
        seed: int = SEED,
        progress: Progress | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Compute the signed attribution of every input value by an input method.

        Arguments:
            batch, target, seed, progress, options: as in `attribute`.
            method: name of an input method (`onnxcam methods` lists them).
            layer: for the methods that read one.

        Returns:
            float32 `[N, C, H, W]`, whatever the model's own layout is.

        Raises:
            MethodError: the method's map is not an attribution of the input, or it does not have an option.
            InputError, TargetError, LayerError: as their names say.
        """
        batch = self._file.check_batch(batch)
        question = self.question(rows=len(batch), target=target, method=method, layer=layer, seed=seed, options=options)
        return self.examination(question, batch, progress).attribution_of(question)

    def examine(
        self, batch: np.ndarray, layers: Any = None, *, seed: int = SEED, progress: Progress | None = None
    ) -> Examination:
        """Run the head once for many questions: each further class, method or layer costs the tail alone.

        Arguments:
            batch: tensor in the model's own layout and dtype.
            layers: a name or a list of names, of those that will be asked about; others cost one more run. The default
                layer if None, of a box that of its own level.
            seed, progress: as in `attribute`.

        Returns:
            an `Examination` with `scores`, `probabilities`, `attribute(...)` and `attribution(...)`.

        Raises:
            InputError: a batch of another shape or dtype.
            LayerError: no such layer.
        """
        batch = self._file.check_batch(batch)
        question = self.question(layer=layers, seed=seed)
        exposed = question.layers if self._readout.task is None else task_answers.exposed_layers(self, question)
        return self.examination(question, batch, progress, layers=exposed)

    def explain(
        self,
        picture: Any,
        target: Any = None,
        method: Any = None,
        layer: Any = None,
        top: int | None = None,
        normalize: str = "minmax",
        *,
        side_by_side: bool = False,
        color: str = "RGB",
        fusion: str = "mean",
        smooth: Any = (),
        seed: int = SEED,
        progress: Progress | None = None,
        **options: Any,
    ) -> Any:
        """Explain pictures.

        Arguments:
            picture: a path, encoded bytes, a PIL image, or a uint8 array `[H, W]` or `[H, W, 3]`; any other array (and
                `.npy` file) with a `value_range`, or of the model's own input; or a list of these.
            target: None (top-1; in a file bound to one class, that class), -1 (top-1, always), an index, a label, a
                `Contrast`, a `Probability` or `Weights`, a scalar of `onnxcam.targets` for a model of another task, or
                a list with one per picture; of a single picture a list of boxes, regions, … has one map each.
            method: a method's name; or a list of names, each further one in `.per_method`; None as in `attribute`.
            layer, normalize, fusion, smooth, seed, progress, options: as in `attribute`.
            top: explain the k best classes of each picture instead of `target`.
            side_by_side: besides the map in which the layers are fused, explain each layer alone (`.per_layer`);
                without `layer` all layers of the model in use.
            color: channel order of arrays, `RGB` or `BGR` (OpenCV's).

        Returns:
            an `Explanation`, or for a list of pictures a list of them in order.

        Raises:
            PreprocessError: neither the file nor the caller says how pictures become tensors.
            PictureError, TargetError, LayerError, MethodError, InputError: as their names say.
        """
        several = isinstance(picture, (list, tuple))
        if not several and self._readout.task is not None and isinstance(target, (list, tuple)):
            target = Several(target)
        explanations = list(self.stream(
            picture if several else [picture], target, method, layer, top, normalize, side_by_side=side_by_side,
            color=color, fusion=fusion, smooth=smooth, seed=seed, progress=progress, **options,
        ))  # fmt: skip
        return explanations if several else explanations[0]

    def stream(
        self, pictures: Iterable[Any], target: Any = None, method: Any = None, layer: Any = None,
        top: int | None = None, normalize: str = "minmax", *, side_by_side: bool = False, color: str = "RGB",
        fusion: str = "mean", smooth: Any = (), seed: int = SEED, progress: Progress | None = None, **options: Any,
    ) -> Iterator[Explanation]:  # fmt: skip
        """Explain any number of pictures, a few at a time: memory stays flat. Arguments and errors as in `explain`."""
        items = list(pictures)
        question = self.question(
            rows=len(items), target=target, method=method, layer=layer, top=top, normalize=normalize,
            side_by_side=side_by_side, fusion=fusion, smooth=smooth, seed=seed, options=options,
        )  # fmt: skip
        return self.answer(question, items, color=color, progress=progress)

    def boxes(self, picture: Any, *, color: str = "RGB") -> list[Detection]:
        """Detect the objects on a picture, as the model's own decoding does: at most 300 with a score of 0.25 or more.

        Candidates of a file without a non-maximum suppression are suppressed, per class, above an IoU of 0.45.

        Arguments:
            picture, color: as in `explain`.

        Returns:
            `Detection(index, label, class_index, score, box)`, best first: `index` names it to `onnxcam.targets.Box`,
            `box` is x0, y0, x1, y1 in pixels of the picture.

        Raises:
            TargetError: the model is no detector.
        """
        if not isinstance(self._readout.task, Detect):
            raise TargetError(f"the model is of kind {self._readout.kind!r} and reports no boxes; only detectors do")
        _, tensor, geometry = self.prepare(picture, color=color)
        return task_answers.reported_boxes(self, self.batch_scores(tensor)[0], geometry)

    def answer(
        self, question: Question, pictures: Sequence[Any], *, color: str = "RGB", progress: Progress | None = None
    ) -> Iterator[Explanation]:
        """Answer a question about each of these pictures, a few at a time.

        Arguments:
            question: of `question(...)` or `Question.parse`, with one target or one per picture (else a `TargetError`).
            pictures, color, progress: as in `explain`.
        """
        question.check_rows(len(pictures))
        for start in range(0, len(pictures), self._chunk):
            stop = start + self._chunk
            prepared = [self.prepare(picture, color=color) for picture in pictures[start:stop]]
            yield from self._explanations(question.of_rows(start, stop), prepared, progress)

    def prepare(self, picture: Any, *, color: str = "RGB") -> Prepared:
        """Read one picture and make it a batch of one row.

        Arguments:
            picture, color: as in `explain`.

        Returns:
            the picture; the tensor `[1, ...]` in the model's own layout and dtype; the geometry that maps back.

        Raises:
            PreprocessError: nothing says how pictures become tensors. PictureError: it cannot be read.
        """
        return self.preparation.prepare(picture, color=color)

    def _explanations(
        self, question: Question, prepared: list[Prepared], progress: Progress | None
    ) -> Iterator[Explanation]:
        """The answer for pictures that share a run."""
        if self._readout.task is not None:
            yield from task_answers.explanations(self, question, prepared, progress)
            return
        batch = self._file.check_batch(np.concatenate([tensor for _, tensor, _ in prepared]))
        methods = self.batch_maps(question, batch, progress)
        for row, (picture, _, geometry) in enumerate(prepared):
            by_method = [maps.explanation(row, picture, geometry) for maps in methods]
            first = by_method[0]
            if question.side_by_side:
                first.per_layer.extend(
                    methods[0].explanation(row, picture, geometry, place) for place in range(len(question.layers))
                )
            if len(by_method) > 1:
                first.per_method.extend(by_method)
            yield first

    def batch_maps(self, question: Question, batch: np.ndarray, progress: Progress | None = None) -> list[BatchMaps]:
        """Scores and maps of a checked batch, method by method: from the file itself where it computes them."""
        if not self._in_file(question, len(batch)):
            return self.examined_maps(question, batch, self.examination(question, batch, progress))
        classes = question.classes(len(batch))
        scores, maps = self._file.maps(batch, classes, question.layers, question.methods[0].name)
        explained = question.explained(classes, scores)[:, None]
        return self._batch_maps(question, batch, scores, explained, [[layer_maps[:, None] for layer_maps in maps]])

    def examined_maps(self, question: Question, batch: np.ndarray, examination: Examination) -> list[BatchMaps]:
        """Scores and maps of the rows of an examination, method by method; `batch` are their tensors."""
        return self._batch_maps(question, batch, examination.scores, *examination.explained(question))

    def _batch_maps(
        self, question: Question, batch: np.ndarray, scores: np.ndarray, explained: np.ndarray,
        by_method: list[list[np.ndarray]], objective: Objective | None = None,
    ) -> list[BatchMaps]:  # fmt: skip
        p, size = self._readout.probabilities(scores), self._file.layout.size(batch.shape)
        windows = self._file.windows(question.layers)
        model = self.model

        def examine(row: int, layers: Sequence[str]) -> Examination:
            return self.examination(question.of_rows(row, row + 1), batch[row : row + 1], layers=layers)

        return [
            BatchMaps(
                question, method, scores, p, explained, maps, size, self._warnings, model, objective, windows, examine
            )
            for method, maps in zip(question.methods, by_method, strict=True)
        ]

    def examination(
        self,
        question: Question,
        batch: np.ndarray,
        progress: Progress | None = None,
        layers: Sequence[str] | None = None,
        placements: Sequence[image.Geometry] = (),
    ) -> Examination:
        """Run the head, exposing the question's layers or these; if one gradient at the input is all, it comes too."""
        rules = question.input_gradient if layers is None else None
        gradient = None if rules is None else InputGradient(rules, question.classes(len(batch)))
        component, exposing = None, question.layers_read if layers is None else layers
        if layers is None and question.component is not None:
            classes = question.classes(len(batch)) if question.component else np.full(len(batch), TOP1)
            component = Component(question.layers[0], question.component, classes)
            if self.sessions.component(component.layer, component.gradient) is None:
                component = None
            else:
                exposing = ()

        def run_head(exposed: Sequence[str], tensor: np.ndarray) -> HeadRun:
            return self._file.features(
                tensor, exposed, seed=question.seed, progress=progress,
                gradient=None if exposed else gradient, component=None if exposed else component,
            )  # fmt: skip

        terms = question.terms._replace(layers=question.layers[:1])
        manifest = self.manifest if self._readout.task is not None and not question.layer_named else None
        return Examination(run_head, batch, exposing, terms, self._file.windows, placements, manifest)

    def _in_file(self, question: Question, rows: int) -> bool:
        """Whether the file itself computes the maps, so that it need not be split."""
        return self._recent.in_file(question, self._file, rows)

    @property
    def _chunk(self) -> int:
        # pictures of one size can share a run; without a fixed size each picture has its own
        fixed = self._preprocess is not None and self._preprocess.output_size is not None
        return self._file.batch_size or _CHUNK if fixed and self._readout.task is None else 1
