"""What explaining costs on this machine: every call against the model's plain forward pass, in one run.

Rounds go through all contestants in turn, forwards and backwards, so that a machine that slows down slows all of them;
ratios are taken within a round, and their median is what is told.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from onnxcam import runtime
from onnxcam.errors import InputError
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.large_model import Serialized
from onnxcam.network.opening import read_source

SIDE = 224  # of random pictures, where the model leaves its input's size open
TOP = 5
_MOST = 1000  # calls per block
FORWARD, PREDICT, FILE = "forward", "predict", "file"


@dataclass
class Case:
    """One contestant.

    Attributes:
        name: what is called: `forward` (the plain model in ONNX Runtime), `predict` (probabilities through the
            explainer), `file` (an explainable file with all its maps), a method's name, `METHOD top-5`, or
            `explain METHOD` (a picture file to its explanation).
        batch: rows per call.
        p50_ms, p99_ms: latency of a call.
        per_second: pictures per second at the median latency.
        ratio: latency against the forward pass at the same batch size, median over rounds.
        calls: how many were timed.
        peak_mib: the most memory the process had taken until this one had run, those before it included.
        fired: of a gated file, the part of the rows whose maps were computed.
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

    def to_dict(self) -> dict[str, Any]:
        """Its figures."""
        return {key: value for key, value in asdict(self).items() if key != "call"}


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        cases: in the order of measuring.
        rounds: how many were finished.
        seconds: how long they took.
        load_ms: making the sessions of the plain model and of the explainer.
        providers: the execution providers really in use.
        about: the machine, the versions, the input.
    """

    cases: list[Case]
    rounds: int
    seconds: float
    load_ms: dict[str, float]
    providers: list[str]
    about: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "providers": self.providers,
            **self.about,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "load_ms": self.load_ms,
            "cases": [case.to_dict() for case in self.cases],
        }


def bench(
    source: str | os.PathLike[str],
    methods: Sequence[str] = ("gradcam",),
    *,
    pictures: Sequence[Any] = (),
    batches: Sequence[int] = (),
    rounds: int = 10,
    seconds: float = 30.0,
    layer: str | None = None,
    preprocess: Any = None,
    providers: Sequence[runtime.Provider] | None = None,
    threads: int | None = None,
    allow_fallback: bool = False,
    seed: int = 1234,
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Measure a model.

    Arguments:
        source: any classifier `.onnx`, explainable or not.
        methods: those to measure.
        pictures: prepared as the model wants them, and explained from file to map; random numbers if none are given.
        batches: rows per call; those that the model does not take are left out. 1 and 8, or what the model fixes, if
            none are given.
        rounds: at most; those that have begun are finished.
        seconds: after which no new round begins.
        layer: to explain at, the default one if None.
        threads: of the runtime, its own choice if None.
        preprocess, providers, allow_fallback: as for `Explainer`.
        seed: of random input.
        progress: called with (done, total) as blocks are measured.

    Raises:
        ModelError, LayerError, MethodError, PreprocessError, PictureError, RuntimeUnavailable: as their names say.
        InputError: the model takes none of the batch sizes.
    """

    def options() -> Any:
        return runtime.options.serving(threads or 0)

    start = time.perf_counter()
    plain = runtime.open_session(_plain(source), providers, options(), allow_fallback=allow_fallback)
    middle = time.perf_counter()
    explainer = Explainer(
        source,
        preprocess=preprocess,
        layers=None if layer is None else [layer],
        methods=methods,
        providers=providers,
        session_options=options(),
        allow_fallback=allow_fallback,
    )
    load = {"forward": 1e3 * (middle - start), "explainer": 1e3 * (time.perf_counter() - middle)}
    fixed = explainer.manifest["input"]["shape"][0]
    wanted = batches or ((fixed,) if isinstance(fixed, int) else (1, 8))
    sizes = [size for size in dict.fromkeys(wanted) if not isinstance(fixed, int) or size == fixed]
    if not sizes:
        raise InputError(f"the model takes {fixed} rows per run and none of the batch sizes {list(batches)}")
    whole = _input(explainer, pictures, max(sizes), seed)
    cases = []
    for size in sizes:
        cases += _cases(explainer, plain, source, np.ascontiguousarray(whole[:size]), methods, layer, options)
    for method in methods if pictures else ():
        cases.append(Case(f"explain {method}", 1, _explaining(explainer, pictures, method, layer)))
    return _measure(cases, explainer, load, whole.shape, rounds, seconds, progress, threads)


def _plain(source: str | os.PathLike[str]) -> str | Serialized:
    """The classifier alone: the file itself, or an explainable one without what was added to it."""
    where, stored = read_source(source)
    if stored is None:
        return where
    from onnxcam.graph.load import serialize
    from onnxcam.network.network import prepare
    from onnxcam.network.split import head_of

    return serialize(head_of(prepare(source), stored))


def _input(explainer: Explainer, pictures: Sequence[Any], rows: int, seed: int) -> np.ndarray:
    entry = explainer.manifest["input"]
    if pictures:
        prepared = [explainer.prepare(picture)[1] for picture in pictures[:rows]]
        if len({part.shape for part in prepared}) > 1:
            prepared = prepared[:1]  # each picture has a size of its own: one of them fills the batch
        return np.concatenate([prepared[place % len(prepared)] for place in range(rows)])
    axes = (2, 3) if entry["layout"] == "NCHW" else (1, 2)
    own = explainer.preprocess.output_size if explainer.preprocess is not None else None
    open_size = dict(zip(axes, own or (SIDE, SIDE), strict=True))
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
) -> list[Case]:
    rows, held = len(batch), explainer.manifest
    feed = {held["input"]["name"]: batch}
    outputs = [output.name for output in plain.get_outputs()]
    cases = [
        Case(FORWARD, rows, lambda: plain.run(outputs, feed)),
        Case(PREDICT, rows, lambda: explainer.predict(batch)),
    ]
    where, own = read_source(source)
    if own is not None:
        cases.append(_whole_file(where, own, explainer, batch, options))
    for method in methods:
        cases.append(
            Case(method, rows, lambda method=method: explainer.attribute(batch, None, method, layer))  # type: ignore[misc]
        )
        if explainer.classes > TOP:
            cases.append(Case(f"{method} top-{TOP}", rows, _best(explainer, batch, method, layer)))
    return cases


def _whole_file(
    where: str | Serialized, held: dict[str, Any], explainer: Explainer, batch: np.ndarray, options: Callable[[], Any]
) -> Case:
    """The explainable file as any other client runs it, with all its maps."""
    session = runtime.open_session(where, explainer.providers, options(), allow_fallback=True)
    names = [held["scores"]["name"], *(name for entry in held["layers"] for name in entry["heatmaps"].values())]
    gate = (held.get("gate") or {}).get("output")
    names += [gate] if gate else []
    feed = {held["input"]["name"]: batch}
    if held["target"]["mode"] != "constant":
        feed[held["target"]["name"]] = np.asarray([-1], np.int64)
    case = Case(FILE, len(batch), lambda: session.run(names, feed))
    if gate:
        case.fired = float(np.mean(session.run([gate], feed)[0]))
    return case


def _best(explainer: Explainer, batch: np.ndarray, method: str, layer: str | None) -> Callable[[], Any]:
    name = layer or explainer.layers[-1]

    def call() -> Any:
        examined = explainer.examine(batch, name)
        return examined.classes_map(examined.readout.best(examined.scores, TOP), [method], [name], {})

    return call


def _explaining(explainer: Explainer, pictures: Sequence[Any], method: str, layer: str | None) -> Callable[[], Any]:
    turn = iter(range(sys.maxsize))
    return lambda: explainer.explain(pictures[next(turn) % len(pictures)], None, method, layer)


def _measure(
    cases: list[Case],
    explainer: Explainer,
    load: dict[str, float],
    shape: tuple[int, ...],
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
    threads: int | None,
) -> Bench:
    start = time.perf_counter()
    for case in cases:  # sessions are made, memory is taken: none of that is timed
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
    forward = {case.batch: held for case, held in zip(cases, times, strict=True) if case.name == FORWARD}
    for case, held in zip(cases, times, strict=True):
        every = np.concatenate([np.asarray(one) for one in held])
        case.p50_ms, case.p99_ms = (float(value) for value in 1e3 * np.percentile(every, (50, 99)))
        case.per_second = 1e3 * case.batch / case.p50_ms
        case.calls = len(every)
        against = forward.get(case.batch)
        if against is not None:
            case.ratio = float(
                np.median([np.median(one) / np.median(other) for one, other in zip(held, against, strict=True)])
            )
    about = {
        "input": {"shape": list(shape), "dtype": explainer.manifest["input"]["dtype"]},
        "threads": threads,
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": str(runtime.import_onnxruntime().__version__),
    }
    return Bench(cases, done, time.perf_counter() - start, load, explainer.providers, about)


def _block(call: Callable[[], Any], budget: float) -> list[float]:
    """Seconds of each call of a block; the first one, which meets cold caches, only where it is all there is."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < _MOST:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begun >= budget and (len(times) > 1 or times[0] > budget):
            break
    return times[1:] or times


def peak_memory() -> float | None:
    """The most memory that this process has taken, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
