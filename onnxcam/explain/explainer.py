"""`onnxcam.Explainer`: the one class most users meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, LabelsError, PreprocessError, TargetError, label_count
from onnxcam.explain.examination import Examination, needed, single
from onnxcam.explain.explanation import BatchMaps, Explanation, name_of
from onnxcam.explain.features import HeadRun, InputGradient, Progress
from onnxcam.explain.file import FileSession, Raw
from onnxcam.explain.maps import AUGMENT, EIGEN, fuse, map_size, smoothings
from onnxcam.explain.warnings import input_size_warnings, preprocessing_warnings
from onnxcam.graph.large_model import Serialized
from onnxcam.network.layout import Layout
from onnxcam.runtime import Provider
from onnxcam.targets import classes as targets
from onnxcam.targets import objectives
from onnxcam.targets.labels import beside
from onnxcam.targets.readout import Readout

_CHUNK = 8  # pictures per run: more gains nothing on a CPU, and memory stays flat
SEED = 1234


class _Asked(NamedTuple):
    """What `stream` was asked about every picture."""

    methods: list[str]
    layers: list[str]
    layer: Any
    top: int | None
    normalize: str
    fusion: str
    smooth: frozenset[str]
    side_by_side: bool
    seed: int
    progress: Progress | None
    options: dict[str, Any]


class Explainer:
    """Explains one classifier.

    Arguments:
        source: an explainable model, or any classifier `.onnx` (augmented in memory): path, bytes or `ModelProto`.
        labels: class names by index, instead of those in the file; those of a folder `preprocess="hf:FOLDER"` names
            serve where the file has none.
        preprocess: how pictures become tensors, instead of what the file says: a preset's name, a dict in the
            manifest's form, a JSON file, or `onnxcam.image.Preprocess`.
        layers: target layers; None for those of the file, or the default layer of a plain classifier.
        methods: CAM methods wanted of a plain classifier.
        providers: execution providers, names or (name, options); None for the best that really works.
        session_options: `onnxruntime.SessionOptions`.
        allow_fallback: accept a session that does not use every provider named.

    One object serves many threads at once and keeps no state between calls. A layer or method the file lacks is added
    in memory when first asked for.

    Raises:
        ModelError: the file is not a usable classifier. LabelsError: not one label per class.
        RuntimeUnavailable: no runtime, or a provider is not in use.
    """

    def __init__(
        self,
        source: Any,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] = ("gradcam",),
        providers: Sequence[Provider] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
    ) -> None:
        self._engine = FileSession(
            source,
            layers=layers,
            methods=methods,
            preprocess=preprocess,
            providers=providers,
            session_options=session_options,
            allow_fallback=allow_fallback,
        )
        held = self._engine.manifest
        self.labels: list[str] | None = list(labels) if labels is not None else held.get("labels")
        if self.labels is None:
            configured = beside(preprocess)
            self.labels = configured if configured is not None and len(configured) == self.classes else None
        if self.labels is not None and len(self.labels) != self.classes:
            raise LabelsError(label_count(len(self.labels), self.classes))
        names = [layers] if isinstance(layers, str) else layers
        self._default_layers: list[str] = list(names or [entry["name"] for entry in held["layers"]])
        self._default_layer: str = self._default_layers[-1]
        # a file bound to one class explains that one where none is named, also once others were added in memory
        self._fixed: int | None = self._engine.bound_class
        spec = preprocess if preprocess is not None else held["input"].get("preprocess")
        entry = held["input"]
        self._preprocess = image.resolve(spec, entry["shape"], layout=entry["layout"]) if spec else None
        self._warnings = input_size_warnings(entry)
        if self._preprocess is not None:
            self._warnings += preprocessing_warnings(entry, self._preprocess, preprocess is not None)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the model in use."""
        return self._engine.manifest

    @property
    def source(self) -> str | Serialized:
        """The model in use, an explainable file: its path or its bytes; over 2 GiB its graph and weights."""
        return self._engine.source

    def beside(self, model: Any) -> Explainer:
        """An explainer of a changed copy of the model on the same terms: labels, preprocessing, layers, providers."""
        return Explainer(
            **self._engine.on(model), labels=self.labels, preprocess=self._preprocess, layers=self._default_layers
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._readout.size

    @property
    def layers(self) -> list[str]:
        """Names of the target layers asked for, or else those of the file; the last one is the default."""
        return list(self._default_layers)

    @property
    def methods(self) -> list[str]:
        """Methods whose maps the model computes; others are added in memory when asked for."""
        return list(self._engine.manifest["layers"][-1]["heatmaps"])

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, first choice first."""
        return self._engine.providers

    @property
    def preprocess(self) -> image.Preprocess | None:
        """How pictures become tensors, None where nobody said."""
        return self._preprocess

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about the picture as the model takes it; each explanation carries these sentences too."""
        return list(self._warnings)

    def run(self, batch: np.ndarray, target: Any = None, layer: Any = None) -> Raw:
        """Scores, activations and gradients as the model computes them.

        Arguments:
            batch: tensor in the model's own layout and dtype.
            target: None or -1 (each row's top-1), an index, a label, or a sequence with one per row.
            layer: a layer's name, None for the last one of the manifest, or a list of names for lists.

        Returns:
            `Raw(scores, activations, gradients, target)`.
        """
        batch = self._engine.check_batch(batch)
        wanted = self._targets(target, len(batch))
        names = self._layer_names(layer)
        scores, activations, gradients = self._engine.run(batch, wanted, names)
        done = self._explained(wanted, scores)
        if isinstance(layer, (list, tuple)):
            return Raw(scores, activations, gradients, done)
        return Raw(scores, activations[0], gradients[0], done)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Probabilities `[N, classes]`, float32, at the cost of the plain model: nothing is differentiated."""
        return self._readout.probabilities(self._engine.scores(self._engine.check_batch(batch)))

    def attribute(
        self,
        batch: np.ndarray,
        target: Any = None,
        method: Any = "gradcam",
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
        """Maps of a prepared batch.

        Arguments:
            batch: tensor in the model's own layout and dtype.
            target: as in `run`; or a `Contrast`, a `Probability` or `Weights` (`onnxcam.targets.objectives`).
            method: a method's name, or a list of names for a list of maps.
            layer: a layer's name, None for the last one, or a list of names whose maps are fused.
            normalize: `minmax` (as pytorch-grad-cam), `max` (as the paper) or `none`.
            size: `input` for the model's input size, `layer` for the layer's own, or (height, width).
            fusion: how the maps of several layers become one: `mean`, `max` or `product`.
            smooth: `eigen` (the first principal component over channels instead of their sum), `augment` (the mean over
                mirrored and scaled copies of the tensor), or both; as pytorch-grad-cam's eigen_smooth and aug_smooth.
            seed: of methods that draw random numbers.
            progress: called with (done, total) as long methods go; an exception it raises stops them.
            options: of the method, see `onnxcam.cam.methods`.

        Returns:
            float32 `[N, H, W]`.

        Raises:
            MethodError: no such method, or an option it does not have.
        """
        batch = self._engine.check_batch(batch)
        names = self._layer_names(layer)
        if isinstance(method, str) and not options and not smooth and self._in_file(target, len(batch), names, method):
            _, raw = self._engine.maps(batch, self._targets(target, len(batch)), names, method)
            return fuse(raw, normalize, map_size(size, self._input_size(batch), raw), fusion)
        methods = list(method) if isinstance(method, (list, tuple)) else [method]
        held = self._examine(batch, names, seed, progress, methods, target, smooth=smooth)
        return held.attribute(target, method, names, normalize, size, fusion=fusion, smooth=smooth, **options)

    def examine(
        self, batch: np.ndarray, layers: Any = None, *, seed: int = SEED, progress: Progress | None = None
    ) -> Examination:
        """Run the model once for many questions: each further class, method or layer costs the tail alone.

        Arguments:
            batch: tensor in the model's own layout and dtype.
            layers: those that will be asked about; others cost one more run. The default layer if None.
            seed, progress: as in `attribute`.

        Returns:
            an `Examination` with `scores`, `probabilities`, `attribute(...)` and `attribution(...)`.
        """
        return self._examine(self._engine.check_batch(batch), self._layer_names(layers), seed, progress)

    def attribution(
        self,
        batch: np.ndarray,
        target: Any = None,
        method: str = "saliency",
        layer: Any = None,
        *,
        seed: int = SEED,
        progress: Progress | None = None,
        **options: Any,
    ) -> np.ndarray:
        """The signed attribution of every input value by an input method, float32 `[N, C, H, W]`."""
        batch, names = self._engine.check_batch(batch), self._layer_names(layer)
        held = self._examine(batch, names, seed, progress, [method], target)
        return held.attribution(target, method, layer, **options)

    def _examine(
        self,
        batch: np.ndarray,
        names: Sequence[str],
        seed: int,
        progress: Progress | None,
        methods: Sequence[str] | None = None,
        target: Any = None,
        top: int | None = None,
        smooth: Any = (),
    ) -> Examination:
        """An examination that exposes the layers these methods need; where all they need is one gradient at the input,
        it comes with the scores.
        """
        aimless = methods is None or top is not None or smooth or objectives.special(target)
        rules = None if aimless else single(methods or [])
        gradient = None if rules is None else InputGradient(rules, self._targets(target, len(batch)))

        def features(layers: Sequence[str], tensor: np.ndarray) -> HeadRun:
            first = None if layers else gradient
            return self._engine.features(tensor, layers, seed=seed, progress=progress, gradient=first)

        wanted = names if methods is None else needed(methods, names)
        return Examination(features, batch, wanted, names[0], self.labels, self._fixed)

    def _in_file(self, target: Any, rows: int, names: Sequence[str], method: str) -> bool:
        """Whether the file itself computes the maps, so that nothing has to be taken apart."""
        if objectives.special(target):
            return False
        return self._engine.holds(names, method, self._targets(target, rows))

    def explain(
        self,
        picture: Any,
        target: Any = None,
        method: Any = "gradcam",
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
            picture: a path, encoded bytes, a PIL image, or a uint8 array `[H, W]` or `[H, W, 3]`; or a list of these.
            target: None or -1 (top-1), an index, a label, a `Contrast`, a `Probability` or `Weights`, or a list with
                one per picture.
            method: a method's name; or a list of names, each further one in `.per_method`.
            layer, normalize, fusion, smooth, seed, progress, options: as in `attribute`.
            top: explain the k best classes of each picture instead of `target`.
            side_by_side: beside the map in which the layers are fused, explain each layer alone (`.per_layer`);
                without `layer` all layers of the model in use.
            color: channel order of arrays, `RGB` or `BGR` (OpenCV's).

        Returns:
            an `Explanation`, or for a list of pictures a list of them in order.

        Raises:
            PreprocessError: neither the file nor the caller says how pictures become tensors.
            PictureError, TargetError, LayerError, MethodError: as their names say.
        """
        many = isinstance(picture, (list, tuple))
        found = list(
            self.stream(
                list(picture) if many else [picture],
                target,
                method,
                layer,
                top,
                normalize,
                side_by_side=side_by_side,
                color=color,
                fusion=fusion,
                smooth=smooth,
                seed=seed,
                progress=progress,
                **options,
            )
        )
        return found if many else found[0]

    def stream(
        self,
        pictures: Iterable[Any],
        target: Any = None,
        method: Any = "gradcam",
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
    ) -> Iterator[Explanation]:
        """`explain` for any number of pictures, a few at a time: memory stays flat. Arguments as there."""
        if top is not None and target is not None:
            raise TargetError("both target and top were given; `top` explains the best classes, `target` one of yours")
        if normalize not in image.NORMALIZATIONS:
            raise InputError(f"normalize={normalize!r}; expected one of {', '.join(image.NORMALIZATIONS)}")
        items = list(pictures)
        wanted = self._each(target, len(items))
        if side_by_side and layer is None:
            layer = self.layers
        names = self._layer_names(layer)
        if side_by_side and len(names) < 2:
            raise InputError(f"only layer {names[0]!r} was named; name two or more to see them side by side")
        methods = list(method) if isinstance(method, (list, tuple)) else [method]
        smoothing = smoothings(smooth)
        if AUGMENT in smoothing and (side_by_side or top is not None):
            raise InputError(
                "smooth='augment' makes one map of all layers, of one class; leave top and side_by_side out"
            )
        asked = _Asked(methods, names, layer, top, normalize, fusion, smoothing, side_by_side, seed, progress, options)
        for start in range(0, len(items), self._chunk):
            prepared = [self.prepare(item, color=color) for item in items[start : start + self._chunk]]
            yield from self._explain(prepared, wanted[start : start + self._chunk], asked)

    def prepare(self, picture: Any, *, color: str = "RGB") -> tuple[image.Picture, np.ndarray, image.Geometry]:
        """Read one picture and make it a batch of one row: (picture, tensor, how to map back)."""
        if self._preprocess is None:
            raise PreprocessError(
                "the model does not say how pictures become tensors, and a wrong guess gives a wrong map without a "
                f"word; name it: preprocess= or --preprocess, one of {', '.join(image.candidates())}"
            )
        entry = self._engine.manifest["input"]
        loaded = image.load(picture, color=color)
        tensor, geometry = self._preprocess.apply(loaded, layout=entry["layout"], dtype=entry["dtype"])
        return loaded, tensor, geometry

    def _explain(
        self, prepared: list[tuple[image.Picture, np.ndarray, image.Geometry]], wanted: Any, asked: _Asked
    ) -> Iterator[Explanation]:
        batch = self._engine.check_batch(np.concatenate([tensor for _, tensor, _ in prepared]))
        methods, names = asked.methods, asked.layers
        objective = None
        alone = asked.top is None and len(methods) == 1 and not asked.options and not asked.smooth
        if alone and self._in_file(wanted, len(batch), names, methods[0]):
            targets_of = self._targets(wanted, len(batch))
            scores, maps = self._engine.maps(batch, targets_of, names, methods[0])
            classes = self._explained(targets_of, scores)[:, None]
            raw = [[held[:, None] for held in maps]]
        else:
            held = self._examine(batch, names, asked.seed, asked.progress, methods, wanted, asked.top, asked.smooth)
            scores, eigen = held.scores, EIGEN in asked.smooth
            if asked.top is None:
                objective = held.objective(wanted)
                classes = objective.classes[:, None]
                if AUGMENT in asked.smooth:
                    mean = held.augmented(
                        objective, methods, names, asked.options, asked.normalize, asked.fusion, eigen
                    )
                    found = [[maps] for maps in mean]
                else:
                    found = held.every_map(objective, methods, names, asked.options, eigen)
                raw = [[maps[:, None] for maps in every] for every in found]
            else:
                classes = self._readout.best(scores, asked.top)
                raw = held.classes_map(classes, methods, names, asked.options, eigen)
        probabilities = self._readout.probabilities(scores)
        every = [
            BatchMaps(
                scores,
                probabilities,
                classes,
                maps,
                method,
                "none" if AUGMENT in asked.smooth else asked.normalize,
                self._input_size(batch),
                asked.fusion,
                self.labels,
                self._warnings,
                {"source": self.manifest.get("source"), "parity": self.manifest.get("parity")},
                objective,
            )
            for method, maps in zip(methods, raw, strict=True)
        ]
        layer: Any = list(names) if isinstance(asked.layer, (list, tuple)) else names[0]
        for row, (picture, _, geometry) in enumerate(prepared):
            told = [found.explanation(row, picture, geometry, range(len(found.raw)), layer) for found in every]
            if asked.side_by_side:
                told[0].per_layer.extend(
                    every[0].explanation(row, picture, geometry, [place], name) for place, name in enumerate(names)
                )
            told[0].per_method.extend(told if len(told) > 1 else [])
            yield told[0]

    def label(self, index: int) -> str:
        """The name of a class; its index as text where no labels are known."""
        return name_of(index, self.labels)

    @property
    def _readout(self) -> Readout:
        return self._engine.readout

    @property
    def _chunk(self) -> int:
        # pictures of one size can share a run; without a fixed size each picture has its own
        fixed = self._preprocess is not None and self._preprocess.output_size is not None
        return self._engine.batch_size or _CHUNK if fixed else 1

    def _each(self, target: Any, rows: int) -> Any:
        """One target per picture, checked as far as they are classes."""
        if not objectives.special(target):
            return self._targets(target, rows)
        listed = list(target) if isinstance(target, (list, tuple)) else [target] * rows
        if len(listed) != rows:
            raise TargetError(f"got {len(listed)} targets for {rows} pictures; pass one for all, or one per picture")
        return listed

    def _targets(self, target: Any, rows: int) -> np.ndarray:
        wanted = targets.resolve(target, rows, self.classes, self.labels)
        return wanted if self._fixed is None else np.where(wanted < 0, self._fixed, wanted)

    def _explained(self, wanted: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return self._readout.fill_top1(wanted, scores)

    def _layer_names(self, layer: Any) -> list[str]:
        if layer is None:
            return [self._default_layer]
        names = list(layer) if isinstance(layer, (list, tuple)) else [layer]
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"layer={layer!r}; expected a layer's name, a list of names, or None for the last layer")
        return names

    def _input_size(self, batch: np.ndarray) -> tuple[int, int]:
        return Layout.of(self._engine.manifest["input"]).size(batch.shape)
