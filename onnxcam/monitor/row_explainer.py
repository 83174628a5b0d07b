"""Explains one row: from its picture, tensor or features to a record and picture files."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image, runtime
from onnxcam.errors import InputError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.maps import fuse, visible_parts
from onnxcam.graph.large_model import Serialized
from onnxcam.image import png
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import record as records
from onnxcam.monitor import task_rows
from onnxcam.monitor.predictions import Row
from onnxcam.network import manifest
from onnxcam.network.layout import Layout, window_of

if TYPE_CHECKING:
    from onnxcam.graph.window import Window

Files = dict[str, bytes]


@dataclass(frozen=True)
class Settings:
    """Settings of a `RowExplainer`; can be pickled, for a worker process.

    Attributes:
        source: an explainable model, as path or bytes.
        name, sha256: of the model, for the records.
        when: the condition's text.
        target: the class explained in every row; None for the row's predicted class.
        region: where the map should lie, `[H, W]` with weights 0 to 1.
        baseline: path of the baseline that records are compared with.
        layer_named: whether `layer` was chosen; of a detector each box is explained at its own where it was not.
    """

    source: str | Serialized
    name: str
    sha256: str
    when: str
    target: int | None
    labels: Sequence[str] | None
    preprocess: Any
    layer: str
    method: str
    providers: Sequence[runtime.Provider] | None
    redact: str
    colormap: str
    color: str
    region: np.ndarray | None
    baseline: str | None
    layer_named: bool = True


class RowExplainer:
    """Explains rows one at a time, on a session with one thread that never spins.

    Arguments:
        pause: called between short pieces of work, to let other threads take the interpreter lock.

    Raises:
        ModelError, RuntimeUnavailable: the model cannot be opened.
    """

    def __init__(self, settings: Settings, pause: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._pause = pause
        self._options = runtime.options.one_thread()
        self._explainer = Explainer(
            settings.source,
            labels=settings.labels,
            preprocess=settings.preprocess,
            providers=settings.providers,
            session_options=self._options,
        )
        self._tail: tuple[Any, tuple[str, ...]] | None = None
        self._baseline: Any = None
        if settings.baseline is not None:
            self._baseline = baselines.load(settings.baseline)

    def __call__(self, row: Row, waited: float) -> tuple[dict[str, Any], Files]:
        """Explain a row; returns its record, without `files`, and the files by kind.

        Arguments:
            waited: seconds in the queue.

        Raises:
            OnnxcamError: the row cannot be explained.
        """
        started = time.perf_counter()
        target = int(row.quantities["label"]) if self._settings.target is None else self._settings.target
        pixels, geometry, tensor = None, None, row.tensor
        if row.picture is not None:
            picture, tensor, geometry = self._explainer.prepare(row.picture, color=self._settings.color)
            pixels = picture.pixels
        layer, members = self._settings.layer, None
        if row.columns is None:
            raw = self._map(row, tensor, target)
        else:
            method, named = self._settings.method, layer if self._settings.layer_named else None
            raw, layer, members = task_rows.explain(self._explainer, row, self._input(tensor), geometry, method, named)
        window = window_of(manifest.layer(self._explainer.manifest, layer))
        self._pause()
        files: Files = {}
        if self._settings.redact != "hash":
            files = self._draw(raw, row, tensor, pixels, geometry, window)
            self._pause()
        explained = time.perf_counter()
        size = self._extent(row, tensor) if pixels is None else pixels.shape[:2]
        digest = _sha256(row)
        record = records.build(
            model={"name": self._settings.name, "sha256": self._settings.sha256},
            provider=self._explainer.providers[0],
            trigger={"when": self._settings.when, "reason": row.reason, "sample": row.sample},
            probabilities=row.probabilities,
            confidence=row.quantities["confidence"],
            margin=row.quantities.get("margin", math.nan),
            entropy=row.quantities.get("entropy", math.nan),
            calibrated=row.quantities.get("calibrated"),
            prediction_set=row.prediction_set,
            target=target,
            layer=layer,
            method=self._settings.method,
            raw_map=self._on_input(raw, window),
            covered=self._covered(window),
            members=members,
            latency_ms={"queued": waited * 1e3, "explain": (explained - started) * 1e3},
            labels=self._explainer.labels,
            region=self._settings.region,
            observed=row.observed,
            request=row.request,
            trace=row.trace,
            picture={"sha256": digest, "size": size},
            redact=self._settings.redact,
        )
        self._pause()
        if self._baseline is not None:
            record["drift"] = baselines.distances(self._baseline, record)
        return record, files

    def _map(self, row: Row, tensor: np.ndarray | None, target: int) -> np.ndarray:
        """Compute the map `[h, w]` at layer resolution, from the features if the serving model outputs them."""
        model = self._explainer.manifest
        entry = manifest.layer(model, self._settings.layer)
        output = entry["heatmaps"][self._settings.method]
        if row.features:
            session, cut = self._tail_session(output)
            feeds = {name: row.features[name] for name in cut}
            feeds[model["target"]["name"]] = np.array([target], np.int64)
            return np.asarray(runtime.run(session, [output], feeds)[output][0])
        maps = self._explainer.attribute(
            self._input(tensor), target, self._settings.method, self._settings.layer, normalize="none", size="layer"
        )
        return np.asarray(maps[0])

    def _input(self, tensor: np.ndarray | None) -> np.ndarray:
        """The model's input, in its dtype."""
        if tensor is None:
            raise InputError("the row has no tensor, picture or features; report this as a bug")
        dtype = self._explainer.manifest["input"]["dtype"]
        floating = tensor.dtype.kind == "f" and dtype.startswith("float")
        return tensor.astype(dtype) if floating and tensor.dtype != dtype else tensor

    def _tail_session(self, output: str) -> tuple[Any, tuple[str, ...]]:
        if self._tail is None:
            from onnxcam.graph.load import serialize
            from onnxcam.network.split import split

            _, tails = split(self._settings.source, [self._settings.layer])
            tail = tails[self._settings.layer]
            session = runtime.open_session(serialize(tail.model), self._settings.providers, self._options)
            self._tail = (session, tail.cut)
        return self._tail

    def _draw(
        self,
        raw: np.ndarray,
        row: Row,
        tensor: np.ndarray | None,
        pixels: np.ndarray | None,
        geometry: image.Geometry | None,
        window: Window | None,
    ) -> Files:
        extent = self._extent(row, tensor) or raw.shape
        size = (extent[0], extent[1])
        heatmap = fuse([raw[None]], "max", size, windows=[window], input_size=size)[0]
        self._pause()
        if geometry is not None:
            heatmap = geometry.to_picture(heatmap)
            self._pause()
        geometry = geometry or image.Geometry(size, size, (0, 0), size)
        marks = image.Marks.of(heatmap.shape, visible_parts(geometry, [window]))
        colormap = self._settings.colormap
        gray, table = image.grayscale(heatmap), image.palette(colormap)
        drawn = (marks.levels(gray), image.marked(table)) if marks else (gray, table)
        files = {"heatmap": png.shades(png.pack(drawn[0]), drawn[1])}
        if self._settings.redact == "none":
            if pixels is None and tensor is not None:
                layout = Layout.of(self._explainer.manifest["input"])
                pixels = to_pixels(tensor, self._explainer.preprocess, layout)
                self._pause()
            if pixels is not None:
                mixed = image.draw(pixels, gray, None, colormap, marks)
                self._pause()
                files["overlay"] = image.encode_png(mixed)
                self._pause()
                files["input"] = image.encode_png(pixels)
        return files

    def _covered(self, window: Window | None) -> tuple[float, ...] | None:
        """Top, left, bottom and right of what the layer covers of the input, 0 to 1; None for all of it."""
        if window is None:
            return None
        entry = self._explainer.manifest["input"]
        size = Layout.of(entry).size(entry["shape"])
        spans = [(min(span) / side, max(span) / side) for span, side in zip(window[:2], size, strict=True)]
        (top, bottom), (left, right) = [(max(low, 0.0), min(high, 1.0)) for low, high in spans]
        return None if (top, left, bottom, right) == (0, 0, 1, 1) else (top, left, bottom, right)

    def _on_input(self, raw: np.ndarray, window: Window | None) -> np.ndarray:
        """The map `[h, w]` over the whole input, in cells of the layer's size, so that records say where it lies."""
        if window is None:
            return raw
        entry = self._explainer.manifest["input"]
        size = Layout.of(entry).size(entry["shape"])
        grid = raw.shape[::-1] if window.transposed else raw.shape
        cells = [
            max(round(side * count / abs(stop - start)), 1)
            for side, count, (start, stop) in zip(size, grid, (window.height, window.width), strict=True)
        ]
        return np.asarray(window.place(raw[None], size, (cells[0], cells[1]))[0])

    def _extent(self, row: Row, tensor: np.ndarray | None) -> tuple[int, int] | None:
        """Return height and width of the model's input; None if unknown."""
        shape = row.shape if tensor is None else tensor.shape
        if shape is None or len(shape) != 4:
            return None
        return Layout.of(self._explainer.manifest["input"]).size(shape)


def to_pixels(tensor: np.ndarray, preprocess: image.Preprocess | None, layout: Layout) -> np.ndarray:
    """Convert a prepared row `[1, …]` back to a picture, uint8 `[H, W, 3]` RGB.

    If the preprocessing is known its arithmetic is inverted; otherwise the values are rescaled to 0..255.
    """
    values = np.moveaxis(np.asarray(layout.to_canonical(tensor)[0], np.float64), 0, -1)
    if preprocess is not None:
        values = (values * np.asarray(preprocess.std) + np.asarray(preprocess.mean)) / preprocess.scale
    elif tensor.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    pixels = np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)
    if preprocess is not None and preprocess.color == "BGR":
        pixels = pixels[..., ::-1]
    # of two bands the first is shown, of more than three the first three, as `onnxcam.image.arrays.display` does
    return np.ascontiguousarray(pixels[..., :3] if pixels.shape[-1] > 2 else np.repeat(pixels[..., :1], 3, axis=-1))


def _sha256(row: Row) -> str | None:
    """Hash the tensor, the encoded picture or its pixels; None if the row has only features."""
    pixels = row.picture if row.tensor is None else row.tensor
    if isinstance(pixels, np.ndarray):
        return hashlib.sha256(pixels.data).hexdigest()
    if isinstance(row.picture, bytes):
        return hashlib.sha256(row.picture).hexdigest()
    if row.picture is not None:
        return hashlib.sha256(Path(row.picture).read_bytes()).hexdigest()
    return None
