"""The model under test: its graph and manifest, sessions on it, and a batch of noise to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnxcam import image, runtime
from onnxcam.graph.view import Graph
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import SHARED, Manifest
from onnxcam.network.score_facts import without_masked
from onnxcam.network.split import head_of
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Embed, Values

OPEN_SIDE = 224  # pixels per side where the model leaves its input size open
TOP_1 = -1  # the target that means each row's own best class


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under test.

    Attributes:
        open_session: opens a session on a part of the model, on the execution providers under test; with session
            options of `runtime.options`, those for proving by default.
        file: a session on the whole file.
        ungated: the same without a gate, so that the maps are computed for every row.
        batch: the model's input, `[N, …]` in its own layout and type.
    """

    graph: Graph
    manifest: Manifest
    open_session: Callable[..., Any]
    file: Any
    ungated: Any
    batch: np.ndarray

    @cached_property
    def readout(self) -> Readout:
        """What the scores mean."""
        return Readout.from_manifest(self.manifest["scores"])

    @property
    def scores(self) -> str:
        """The name of the output with the scores."""
        return self.readout.value

    @property
    def fixed_batch(self) -> bool:
        """Whether the model takes one batch size only."""
        return isinstance(self.manifest["input"]["shape"][0], int)

    @cached_property
    def precision(self) -> str:
        """The coarsest floating-point type that the model computes in: `float32` or `float16`."""
        kinds = {self.graph.dtype(name) for node in self.graph.nodes for name in node.output}
        return "float16" if onnx.TensorProto.FLOAT16 in kinds else "float32"

    @cached_property
    def optimization(self) -> float | None:
        """How far a quantized model's scores are, in this runtime, from those that it computes without optimising.

        It joins quantized operators into others, which round at other places or round what was not rounded. None of a
        model without quantization.
        """
        if not any("quantize" in node.op_type.lower() for node in self.graph.nodes):
            return None
        head, scores = head_of(self.graph, self.manifest), []
        for options in (runtime.options.serving(single_use=True), runtime.options.unoptimized()):
            session = self.open_session(head, options)
            scores.append(runtime.run(session, [self.scores], self.feeds(self.batch))[self.scores])
        return distance(*scores)

    def feeds(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return the input of a run without a target."""
        return {self.manifest["input"]["name"]: batch}

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        height, width = Layout.of(self.manifest["input"]).size(self.batch.shape)
        return int(height), int(width)

    def target(self, classes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the feeds that set the target: a class, a box or a value per row, -1 for each row's first choice.

        Of what has no first choice another one: an embedding of ones, the first value. Empty where the file has a
        constant one.
        """
        entry, task = self.manifest["target"], self.readout.task
        rows = 1 if entry.get("rows") == SHARED else len(classes)
        feeds = {entry["region"]: np.zeros((rows, 4), np.float32)} if entry.get("region") else {}
        if entry["mode"] == "constant":
            return feeds
        if isinstance(task, Embed):
            return {entry["name"]: np.ones((rows, task.size), np.float32)}
        classes = np.maximum(classes, 0) if isinstance(task, Values) else classes
        return feeds | {entry["name"]: classes[:rows]}

    def top_1(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return the feeds that explain each row's best class."""
        return self.feeds(batch) | self.target(np.full(len(batch), TOP_1, np.int64))

    def head_values(self, names: list[str]) -> dict[str, np.ndarray]:
        """Run the plain model on the batch; return the values of these names, and the scores."""
        head = self.open_session(head_of(self.graph, self.manifest, names))
        return runtime.run(head, list(dict.fromkeys([*names, self.scores])), self.feeds(self.batch))


def noise_pictures(manifest: Manifest, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a batch of noise in the range that the preprocessing gives; standard normal where that is not recorded."""
    entry = manifest["input"]
    dims = [d if isinstance(d, int) else None for d in entry["shape"]]
    shape = [dims[0] or samples] + [d or OPEN_SIDE for d in dims[1:]]
    layout = Layout.of(entry)
    if dims[layout.channels] is None:
        shape[layout.channels] = 3
    if entry["dtype"] == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if not entry.get("preprocess"):
        return np.asarray(rng.normal(size=shape).astype(entry["dtype"]))
    preprocess = image.resolve(entry["preprocess"], entry["shape"], layout=entry["layout"])
    mean, std = (np.asarray(values).reshape(layout.shape(1, -1, 1, 1)) for values in (preprocess.mean, preprocess.std))
    return np.asarray(((rng.uniform(0.0, preprocess.scale * 255, shape) - mean) / std).astype(entry["dtype"]))


def norms(a: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of each row."""
    return np.asarray(np.linalg.norm(a.reshape(len(a), -1).astype(np.float64), axis=1))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the parity metric of each row, |a - b| / max(|b|, 1e-12); what is not finite in one is infinitely far."""
    a, b = without_masked(a, b)
    with np.errstate(invalid="ignore", over="ignore"):
        far = norms(a.astype(np.float64) - b) / np.maximum(norms(b), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the parity metric of the worst row."""
    return float(distances(a, b).max())
