"""A batch whose head has run: any class, method and layer of it costs the tail alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.cam.methods import GRAPH, INPUT, find
from onnxcam.errors import InputError, MethodError
from onnxcam.explain.features import HeadRun
from onnxcam.explain.maps import AUGMENT, EIGEN, fuse, map_size, smoothings
from onnxcam.explain.view import view
from onnxcam.network.names import INPUT as WHOLE
from onnxcam.targets.objectives import Objective, logit

# of test-time augmentation: each also mirrored
_FACTORS = (0.9, 1.0, 1.1)


class Examination:
    """What `Explainer.examine` returns. Not made by users; serves one thread.

    Attributes:
        scores: logits `[N, K]`.
        probabilities: float32 `[N, classes]`.
        readout: the meaning of the scores.
    """

    def __init__(
        self,
        features: Callable[[Sequence[str], np.ndarray], HeadRun],
        batch: np.ndarray,
        layers: Sequence[str],
        default: str,
        labels: Sequence[str] | None,
        fixed: int | None,
    ) -> None:
        self._make = features
        self._batch = batch
        self._layers = list(layers)
        self._default = default
        self._labels = labels
        self._fixed = fixed
        self._features = features(self._layers, batch)
        self.scores = self._features.scores
        self.readout = self._features.batch.readout
        self.probabilities = self.readout.probabilities(self.scores)

    def objective(self, target: Any = None) -> Objective:
        """What a target means for these rows, see `onnxcam.targets.objectives`."""
        if self._fixed is not None and target is None:
            target = self._fixed
        return self._features.objective(target, self._labels)

    def classes_map(
        self,
        classes: np.ndarray,
        methods: Sequence[str],
        layers: Sequence[str],
        options: dict[str, Any],
        eigen: bool = False,
    ) -> list[list[np.ndarray]]:
        """Per method and layer the maps `[N, k, h, w]` of several classes `[N, k]` of each row, after ReLU."""
        rows, count = classes.shape
        features = self._having(needed(methods, layers))
        readout = features.batch.readout
        if not eigen and not options and all(find(name).kind == GRAPH for name in methods):
            own = logit(classes[:, 0], readout)
            together = list(dict.fromkeys(find(name).name for name in methods))
            held = [view(features, name, own).class_maps(classes, together) for name in layers]
            if all(maps is not None for maps in held):
                shared = [dict(zip(together, maps or [], strict=True)) for maps in held]
                return [[np.maximum(maps[find(name).name], 0) for maps in shared] for name in methods]
        repeated = features.repeat(count, needed(methods, layers))
        if repeated is None:
            each = [
                self.every_map(logit(classes[:, k], readout), methods, layers, options, eigen) for k in range(count)
            ]
            return [
                [np.stack([each[k][m][place] for k in range(count)], axis=1) for place in range(len(layers))]
                for m in range(len(methods))
            ]
        found = _every_map(repeated, logit(classes.reshape(-1), readout), methods, layers, options, eigen)
        return [[maps.reshape(rows, count, *maps.shape[1:]) for maps in held] for held in found]

    def attribute(
        self,
        target: Any = None,
        method: Any = "gradcam",
        layer: Any = None,
        normalize: str = "minmax",
        size: Any = "input",
        *,
        fusion: str = "mean",
        smooth: Any = (),
        **options: Any,
    ) -> Any:
        """Maps as `Explainer.attribute` gives them; a list of methods gives a list, in order."""
        names = [self._default] if layer is None else list(layer) if isinstance(layer, (list, tuple)) else [layer]
        many = isinstance(method, (list, tuple))
        methods = list(method) if many else [method]
        objective = self.objective(target)
        smoothing = smoothings(smooth)
        if AUGMENT in smoothing:
            if size == "layer":
                raise InputError(
                    "smooth='augment' averages maps of the input's size; pass size=(height, width) instead"
                )
            mean = self.augmented(objective, methods, names, options, normalize, fusion, EIGEN in smoothing)
            found = (
                mean if size == "input" else [image.resize_map(maps, map_size(size, (0, 0), [maps])) for maps in mean]
            )
            return found if many else found[0]
        raw = self.every_map(objective, methods, names, options, EIGEN in smoothing)
        input_size = view(self._features, WHOLE, objective).shape
        found = [fuse(maps, normalize, map_size(size, input_size, maps), fusion) for maps in raw]
        return found if many else found[0]

    def augmented(
        self,
        objective: Objective,
        methods: Sequence[str],
        layers: Sequence[str],
        options: dict[str, Any],
        normalize: str,
        fusion: str,
        eigen: bool = False,
    ) -> list[np.ndarray]:
        """Per method the mean of the maps of six altered batches: 0.9, 1 and 1.1 times the tensor, also mirrored.

        As pytorch-grad-cam's `aug_smooth`: each map is normalised and of the input's size before the mean is taken.
        """
        axis = self._features.batch.sessions.cut(WHOLE).layout.width
        if not np.issubdtype(self._batch.dtype, np.floating):
            raise InputError(f"smooth='augment' scales the tensor, and this model takes {self._batch.dtype}")
        total = [np.zeros(1, np.float32)] * len(methods)
        for mirrored in (False, True):
            batch = np.flip(self._batch, axis) if mirrored else self._batch
            for factor in _FACTORS:
                features = self._make(
                    needed(methods, layers), np.ascontiguousarray(batch * self._batch.dtype.type(factor))
                )
                size = view(features, WHOLE, objective).shape
                for k, maps in enumerate(_every_map(features, objective, methods, layers, options, eigen)):
                    fused = fuse(maps, normalize, size, fusion)
                    total[k] = total[k] + (fused[:, :, ::-1] if mirrored else fused)
        return [np.asarray(maps / (2 * len(_FACTORS)), np.float32) for maps in total]

    def every_map(
        self,
        objective: Objective,
        methods: Sequence[str],
        layers: Sequence[str],
        options: dict[str, Any],
        eigen: bool = False,
    ) -> list[list[np.ndarray]]:
        """Per method and layer the maps `[N, h, w]` after ReLU; those of graph methods share one pass back.

        Raises:
            MethodError: no such method, or an option that none of them has.
        """
        return _every_map(self._having(needed(methods, layers)), objective, methods, layers, options, eigen)

    def attribution(
        self, target: Any = None, method: str = "saliency", layer: Any = None, **options: Any
    ) -> np.ndarray:
        """The signed attribution of every input value, float32 `[N, C, H, W]`.

        Raises:
            MethodError: the method's map is no attribution of the input.
        """
        held = find(method)
        if held.kind != INPUT:
            raise MethodError(
                f"method {method!r} gives a map of a layer, not one number per input value; use attribute()"
            )
        held.check(options)
        name = (self._default if layer is None else layer) if held.layered else WHOLE
        features = self._having(needed([method], [name]))
        return np.asarray(held.function(view(features, name, self.objective(target)), **options), np.float32)

    def _having(self, layers: Sequence[str]) -> HeadRun:
        lacking = [name for name in layers if name not in self._layers]
        if lacking:
            self._layers += lacking
            self._features = self._make(self._layers, self._batch)
        return self._features


def needed(methods: Sequence[str], layers: Sequence[str]) -> list[str]:
    """The layers, if any of the methods reads one."""
    return list(layers) if any(find(name).layered for name in methods) else []


def single(methods: Sequence[str]) -> str | None:
    """The rules of the one gradient at the input that all of the methods live on, None if they need more."""
    rules = {find(name).single for name in methods}
    return rules.pop() if len(rules) == 1 else None


def _every_map(
    features: HeadRun,
    objective: Objective,
    methods: Sequence[str],
    layers: Sequence[str],
    options: dict[str, Any],
    eigen: bool = False,
) -> list[list[np.ndarray]]:
    held = [find(name) for name in methods]
    for option in options:
        if not any(option in method.options for method in held):
            held[0].check([option])
    views = [view(features, name, objective) for name in needed(methods, layers)]
    if eigen:
        views = views or [view(features, WHOLE, objective)]  # whose methods then say why not
        own = [{key: value for key, value in options.items() if key in method.options} for method in held]
        return [[layer.smooth(method.name, given) for layer in views] for method, given in zip(held, own, strict=True)]
    together = list(dict.fromkeys(method.name for method in held if method.kind == GRAPH))
    shared = [dict(zip(together, layer.maps(together), strict=True)) for layer in views] if together else []
    found = []
    for method in held:
        if method.kind == GRAPH:
            found.append([np.maximum(maps[method.name], 0) for maps in shared])
        else:
            given = {key: value for key, value in options.items() if key in method.options}
            if method.layered:
                found.append([layer.explain(method.name, given) for layer in views])
            else:
                found.append([view(features, WHOLE, objective).explain(method.name, given)] * len(layers))
    return found
