"""What explaining costs on this machine: every call against the model's plain forward pass, in one run.

Rounds go through all cases in turn, alternately forwards and backwards, so that a machine that slows down slows all of
them. Ratios are taken within a round; the median over rounds is reported.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from onnxcam import runtime
from onnxcam.cam.registry import default_method
from onnxcam.diagnose.report import Report
from onnxcam.errors import InputError, PictureError
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.large_model import Serialized
from onnxcam.network.layout import Layout
from onnxcam.network.opening import read_source

_MOST_PICTURES = 64  # that are read before anything is measured
SIDE = 224  # of random pictures, where the model leaves its input's size open
TOP = 5
_MOST = 1000  # calls per block
FORWARD, PREDICT, FILE = "forward", "predict", "file"


@dataclass
class Case:
    """One measured call.

    Attributes:
        name: `forward` (the plain model in ONNX Runtime), `predict` (probabilities through the explainer), `file` (an
            explainable file with all its maps), a method's name, `METHOD top-5`, or `explain METHOD` (a picture file to
            its explanation).
        batch: rows per call.
        p50_ms, p99_ms: latency of a call.
        per_second: pictures per second at the median latency.
        ratio: latency relative to the forward pass at the same batch size, median over rounds.
        calls: the number of timed calls.
        peak_mib: peak memory of the process up to and including this case's first call.
        fired: of a gated file, the share of rows whose maps were computed.
        windows: of occlusion that computes what each window changes, how many there are.
        possible: and how many times less than with whole runs that is to compute, in multiplications.
    """

    name: str
    batch: int
    call: Callable[[], Any] = field(repr=False)
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")
    per_second: float = float("nan")
    ratio: float = float("nan")
    calls: int = 0
    peak_mib: float | None = None
    fired: float | None = None
    windows: int | None = None
    possible: float | None = None

    @property
    def reached(self) -> float | None:
        """How many times less than a forward pass for each window it took."""
        return None if self.windows is None or math.isnan(self.ratio) else self.windows / self.ratio

    def to_dict(self) -> dict[str, Any]:
        """Return the figures ready for JSON."""
        figures = {key: value for key, value in asdict(self).items() if key != "call"}
        return figures | {"reached": self.reached}

    def _note(self) -> str:
        if self.reached is not None:
            return f"{self.windows} windows at {self.reached:.2f} x less than whole runs, of {self.possible:.2f} x"
        return "" if self.fired is None else f"{self.fired:.0%} fired"

    def row(self) -> list[str]:
        """Return the cells of the table."""
        return [
            str(self.batch),
            self.name,
            f"{self.p50_ms:.2f}",
            f"{self.p99_ms:.2f}",
            f"{self.per_second:.1f}",
            "" if math.isnan(self.ratio) else f"{self.ratio:.3f}",
            "?" if self.peak_mib is None else f"{self.peak_mib:.0f}",
            self._note(),
        ]


@dataclass(frozen=True)
class Bench(Report):
    """Measurements; nothing to pass or fail, so no findings.

    Attributes:
        model: path of the model.
        cases: in the order of measuring.
        rounds: the number of finished rounds.
        seconds: their duration.
        load_ms: time to open the plain model (`forward`) and the explainer.
        providers: the execution providers in use.
        about: the machine, the versions, the input.
    """

    model: str
    cases: list[Case]
    rounds: int
    seconds: float
    load_ms: dict[str, float]
    providers: list[str]
    about: dict[str, Any]
    failures: list[PictureError] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return a table of the cases."""
        about, shape = self.about, "x".join(str(size) for size in self.about["input"]["shape"][1:])
        rows = [["batch", "call", "p50 ms", "p99 ms", "per second", "ratio", "peak MiB", ""]]
        rows += [case.row() for case in self.cases]
        widths = [max(len(row[column]) for row in rows) for column in range(7)]
        return [
            f"{self.model} on {self.providers[0]}, onnxruntime {about['onnxruntime']}, {about['cores']} cores, "
            f"{about['machine']}; input {shape} {about['input']['dtype']}",
            f"loaded in {self.load_ms['forward']:.0f} ms, the explainer in another {self.load_ms['explainer']:.0f} ms",
            "",
            *(
                "  ".join(
                    [row[0].rjust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:7], widths[2:]), row[7]]
                ).rstrip()
                for row in rows
            ),
            "",
            f"{self.rounds} rounds in {self.seconds:.1f} s; ratio: to forward at the same batch size",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        return {
            "model": self.model,
            "providers": self.providers,
            **self.about,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "load_ms": self.load_ms,
            "cases": [case.to_dict() for case in self.cases],
        }


def bench(
    source: str | os.PathLike[str],
    methods: Sequence[str] = (),
    *,
    pictures: Sequence[Any] = (),
    batches: Sequence[int] = (),
    rounds: int = 10,
    seconds: float = 30.0,
    layer: str | None = None,
    preprocess: Any = None,
    input_size: Sequence[int] | None = None,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
    providers: Sequence[runtime.Provider] | None = None,
    threads: int | None = None,
    allow_fallback: bool = False,
    seed: int = 1234,
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Measure a model.

    Arguments:
        source: any classifier `.onnx`, or a model of another task, explainable or not.
        methods: the methods to measure; by default the one that explains such a model when none is named.
        pictures: the input, prepared for the model, and explained from file to map; without any the input is random.
            Those that cannot be read are left out and named in the result; of many the first 64 are used.
        batches: rows per call; sizes that the model does not accept are skipped. By default 1 and 8, or the model's
            fixed batch size.
        rounds: at most; a round that has begun is finished.
        seconds: no new round begins after this time.
        layer: the target layer; None for the default.
        threads: ONNX Runtime's threads; None for its default.
        preprocess, input_size, scores, kind, task, boxes_output, providers, allow_fallback: as for `Explainer`.
        seed: seed of the random input.
        progress: called with (done, total) after each block.

    Raises:
        ModelError, LayerError, MethodError, PreprocessError, RuntimeUnavailable: as their names say.
        PictureError: no picture can be read. InputError: the model accepts none of the batch sizes.
    """

    def options() -> Any:
        return runtime.options.serving(threads or 0)

    start = time.perf_counter()
    plain = runtime.open_session(_plain(source), providers, options(), allow_fallback=allow_fallback)
    middle = time.perf_counter()
    explainer = Explainer(
        source,
        preprocess=preprocess,
        input_size=input_size,
        scores=scores,
        kind=kind,
        task=task,
        boxes_output=boxes_output,
        layers=None if layer is None else [layer],
        methods=methods,
        providers=providers,
        # without a number of threads those that users get: sessions that run in turn stop spinning, and do not fight
        session_options=None if threads is None else options(),
        allow_fallback=allow_fallback,
    )
    methods = methods or (default_method(explainer.terms.readout),)
    load = {"forward": 1e3 * (middle - start), "explainer": 1e3 * (time.perf_counter() - middle)}
    fixed = explainer.manifest["input"]["shape"][0]
    candidates = batches or ((fixed,) if isinstance(fixed, int) else (1, 8))
    sizes = [size for size in dict.fromkeys(candidates) if not isinstance(fixed, int) or size == fixed]
    if not sizes:
        raise InputError(f"the model takes {fixed} rows per run and none of the batch sizes {list(batches)}")
    pictures, failures = _readable(explainer, pictures)
    whole = _input(explainer, pictures, max(sizes), seed)
    cases = []
    for size in sizes:
        rows = np.ascontiguousarray(whole[:size])
        cases += _cases(explainer, plain, source, rows, methods, layer, options, providers)
    for method in methods if pictures else ():
        cases.append(Case(f"explain {method}", 1, _explaining(explainer, pictures, method, layer)))
    measured = _measure(cases, rounds, seconds, progress)
    _add_windows(explainer, cases)
    about = {
        "input": {"shape": list(whole.shape), "dtype": explainer.manifest["input"]["dtype"]},
        "threads": threads,
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": str(runtime.import_onnxruntime().__version__),
    }
    return Bench(os.fspath(source), cases, *measured, load, explainer.providers, about, failures)


def _plain(source: str | os.PathLike[str]) -> str | Serialized:
    """Return the plain classifier: the file itself, or an explainable file without its added outputs."""
    where, manifest = read_source(source)
    if manifest is None:
        return where
    from onnxcam.graph.load import serialize
    from onnxcam.network.network import prepare
    from onnxcam.network.split import head_of

    return serialize(head_of(prepare(source), manifest))


def _readable(explainer: Explainer, pictures: Sequence[Any]) -> tuple[list[Any], list[PictureError]]:
    """The first pictures that can be read, and the errors of those before them that cannot: none ends a measurement.

    Raises:
        PictureError: none can be read.
    """
    readable: list[Any] = []
    failures: list[PictureError] = []
    for picture in pictures:
        try:
            explainer.prepare(picture)
        except PictureError as error:
            failures.append(error)
        else:
            readable.append(picture)
        if len(readable) == _MOST_PICTURES:
            break
    if failures and not readable:
        raise failures[0]
    return readable, failures


def _input(explainer: Explainer, pictures: Sequence[Any], rows: int, seed: int) -> np.ndarray:
    entry = explainer.manifest["input"]
    if pictures:
        prepared = [explainer.prepare(picture)[1] for picture in pictures[:rows]]
        if len({part.shape for part in prepared}) > 1:
            prepared = prepared[:1]  # the pictures differ in size: one of them fills the batch
        return np.concatenate([prepared[place % len(prepared)] for place in range(rows)])
    layout = Layout.of(entry)
    prepared_size = explainer.preprocess.output_size if explainer.preprocess is not None else None
    open_size = dict(zip((layout.height, layout.width), prepared_size or (SIDE, SIDE), strict=True))
    shape = [dim if isinstance(dim, int) else open_size.get(axis, 1) for axis, dim in enumerate(entry["shape"])]
    random = np.random.default_rng(seed)
    kind = np.dtype(entry["dtype"])
    if kind.kind in "iu":
        return random.integers(0, 256, (rows, *shape[1:])).astype(kind)
    return random.normal(size=(rows, *shape[1:])).astype(kind)


def _cases(
    explainer: Explainer,
    plain: Any,
    source: str | os.PathLike[str],
    batch: np.ndarray,
    methods: Sequence[str],
    layer: str | None,
    options: Callable[[], Any],
    providers: Sequence[runtime.Provider] | None,
) -> list[Case]:
    rows = len(batch)
    feed = {explainer.manifest["input"]["name"]: batch}
    outputs = [output.name for output in plain.get_outputs()]
    cases = [
        Case(FORWARD, rows, lambda: plain.run(outputs, feed)),
        Case(PREDICT, rows, lambda: explainer.predict(batch)),
    ]
    where, manifest = read_source(source)
    if manifest is not None and manifest.get("pixels"):  # it takes a picture, the other cases a prepared tensor
        where, manifest = explainer.source, explainer.manifest
    if manifest is not None:
        cases.append(_whole_file(where, manifest, batch, options, providers or explainer.providers))
    for method in methods:
        cases.append(
            Case(method, rows, lambda method=method: explainer.attribute(batch, None, method, layer))  # type: ignore[misc]
        )
        if explainer.terms.readout.task is None and explainer.classes > TOP:
            cases.append(Case(f"{method} top-{TOP}", rows, _best(explainer, batch, method, layer)))
    return cases


def _whole_file(
    where: str | Serialized,
    manifest: dict[str, Any],
    batch: np.ndarray,
    options: Callable[[], Any],
    providers: Sequence[runtime.Provider],
) -> Case:
    """Run the explainable file as any other client does, with all its maps."""
    session = runtime.open_session(where, providers, options(), allow_fallback=True)
    names = [manifest["scores"]["name"], *(name for entry in manifest["layers"] for name in entry["heatmaps"].values())]
    gate = (manifest.get("gate") or {}).get("output")
    names += [gate] if gate else []
    feed = {manifest["input"]["name"]: batch}
    if manifest["target"]["mode"] != "constant":
        feed[manifest["target"]["name"]] = np.asarray([-1], np.int64)
    case = Case(FILE, len(batch), lambda: session.run(names, feed))
    if gate:
        case.fired = float(np.mean(session.run([gate], feed)[0]))
    return case


def _best(explainer: Explainer, batch: np.ndarray, method: str, layer: str | None) -> Callable[[], Any]:
    name = layer or explainer.layers[-1]

    def call() -> Any:
        examined = explainer.examine(batch, name)
        return examined.class_maps(
            examined.question(method=method, layer=name), examined.readout.best(examined.scores, TOP)
        )

    return call


def _explaining(explainer: Explainer, pictures: Sequence[Any], method: str, layer: str | None) -> Callable[[], Any]:
    turn = iter(range(sys.maxsize))
    return lambda: explainer.explain(pictures[next(turn) % len(pictures)], None, method, layer)


def _measure(
    cases: Sequence[Case], rounds: int, seconds: float, progress: Callable[[int, int], None] | None
) -> tuple[int, float]:
    """Fill in the figures of all cases; return the number of rounds and their duration in seconds."""
    start = time.perf_counter()
    for case in cases:  # a first call opens sessions and takes memory: not timed
        case.call()
        case.peak_mib = peak_memory()
    budget = max(seconds - (time.perf_counter() - start), 0.0) / max(rounds * len(cases), 1)
    times: list[list[list[float]]] = [[] for _ in cases]
    done = 0
    start = time.perf_counter()
    while done < max(rounds, 1) and (not done or time.perf_counter() - start < seconds):
        order = range(len(cases)) if done % 2 == 0 else range(len(cases))[::-1]
        for count, place in enumerate(order):
            times[place].append(_block(cases[place].call, budget))
            if progress is not None:
                progress(done * len(cases) + count + 1, max(rounds, 1) * len(cases))
        done += 1
    forward = {case.batch: blocks for case, blocks in zip(cases, times, strict=True) if case.name == FORWARD}
    for case, blocks in zip(cases, times, strict=True):
        _summarise(case, blocks, forward.get(case.batch))
    return done, time.perf_counter() - start


def _add_windows(explainer: Explainer, cases: Sequence[Case]) -> None:
    """Fill in what occlusion could save."""
    patches = explainer.sessions.latest_patches
    for case in cases:
        if case.name == "occlusion" and patches is not None:
            case.windows, case.possible = patches.count, 1 / patches.plan.share


def _summarise(case: Case, blocks: list[list[float]], forward: list[list[float]] | None) -> None:
    """Fill in a case's figures from the seconds of its calls, one list per round."""
    calls = np.concatenate([np.asarray(block) for block in blocks])
    case.p50_ms, case.p99_ms = (float(value) for value in 1e3 * np.percentile(calls, (50, 99)))
    case.per_second = 1e3 * case.batch / case.p50_ms
    case.calls = len(calls)
    if forward is not None:
        ratios = [np.median(block) / np.median(plain) for block, plain in zip(blocks, forward, strict=True)]
        case.ratio = float(np.median(ratios))


def _block(call: Callable[[], Any], budget: float) -> list[float]:
    """Time calls for `budget` seconds; return the seconds of each.

    The first call meets cold caches and is dropped, unless it is the only one.
    """
    times: list[float] = []
    block_start = time.perf_counter()
    while len(times) < _MOST:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if time.perf_counter() - block_start >= budget and (len(times) > 1 or times[0] > budget):
            break
    return times[1:] or times


def peak_memory() -> float | None:
    """Return the peak memory of this process in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
