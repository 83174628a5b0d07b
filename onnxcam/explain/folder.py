"""Explains pictures a few at a time on every core, and one failure never loses the others.

Each thread takes a few pictures from file to files: it reads, runs the model and writes. The model computes on one
thread (or its share of the cores) for each of them, so no core waits for another in the middle of a picture.
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from onnxcam import image
from onnxcam.cam.methods import GRAPH, find
from onnxcam.errors import OnnxcamError, OutputError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.explanation import Explanation
from onnxcam.explain.features import Progress
from onnxcam.explain.pictures import Item
from onnxcam.image.header import HeaderError, read_header

_CHUNK = 4  # pictures per run: what large linear layers read is shared, and memory stays flat
_CHUNK_PIXELS = 12_000_000  # large pictures go in smaller numbers
_PIXELS = 48_000_000  # in memory at any time, all threads together; a larger picture goes alone
_THREADS = 4

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> int:
    """Threads that explain pictures, side by side."""
    return min(_THREADS, cores())


@dataclass(frozen=True)
class Request:
    """What is asked about every picture; the fields are those of `Explainer.explain` and `Explanation.save`."""

    target: Any = None
    method: str | list[str] = "gradcam"
    layer: str | list[str] | None = None
    top: int | None = None
    normalize: str = "minmax"
    alpha: float = 0.5
    colormap: str = "jet"
    side_by_side: bool = False
    compress: bool = True
    fusion: str = "mean"
    smooth: tuple[str, ...] = ()
    seed: int = 1234
    progress: Progress | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """The methods, the first one first."""
        return [self.method] if isinstance(self.method, str) else self.method

    @property
    def alone(self) -> bool:
        """Whether each picture has a run of its own, so that random numbers do not depend on the others."""
        return bool(self.smooth) or any(find(name).kind != GRAPH for name in self.methods)


@dataclass(frozen=True)
class Outcome:
    """What became of a picture: its explanation's record and files (relative to its folder), or an error."""

    item: Item
    record: dict[str, Any] | None = None
    files: dict[str, str] | None = None
    error: Exception | None = None


def explain_all(explainer: Explainer, items: Sequence[Item], request: Request, output: Path) -> Iterator[Outcome]:
    """Explain and write every picture, in order. At most a few are in memory at any time.

    Whoever stops asking, or is interrupted, stops long methods too: their pictures are left without files.
    """
    threads = workers()
    size = 1 if request.alone else max(1, min(_CHUNK, -(-len(items) // threads)))
    stopped = threading.Event()

    def told(done: int, total: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt  # past the handlers that would count it as the picture's own failure
        if request.progress is not None:
            request.progress(done, total)

    asked = replace(request, progress=told)
    room = Room(_PIXELS)
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if len(chunks) == 1:  # a thread of its own would begin with fresh memory, which costs as much as the writing
        yield from _finish(explainer, chunks[0], request, output, room)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="onnxcam")
    try:
        for outcomes in ahead(pool, lambda chunk: _finish(explainer, chunk, asked, output, room), chunks, threads):
            yield from outcomes
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], values: Iterable[T], depth: int) -> Iterator[R]:
    """`map(work, values)` in order, on the pool, at most `depth` values ahead of the caller."""
    begun: deque[Future[R]] = deque()
    for value in values:
        begun.append(pool.submit(work, value))
        while len(begun) > depth:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class Room:
    """Pixels that may be in memory at any time, shared by all threads; where nothing else is, any number may."""

    def __init__(self, pixels: int) -> None:
        self._most = pixels
        self._held = 0
        self._changed = threading.Condition()

    def enter(self, pixels: int, wait: bool) -> bool:
        """Take room for so many, and whether there was; only who holds none may wait, so that none waits in a ring."""
        with self._changed:
            fits = self._changed.wait_for(lambda: self._fits(pixels)) if wait else self._fits(pixels)
            self._held += pixels if fits else 0
            return fits

    def leave(self, pixels: int) -> None:
        """Give room back."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self._held == 0 or self._held + pixels <= self._most


def _finish(explainer: Explainer, items: Sequence[Item], request: Request, output: Path, room: Room) -> list[Outcome]:
    left, outcomes = deque(items), []
    while left:
        some, pixels = _enter(left, room)
        try:
            outcomes += _explained(explainer, some, request, output)
        finally:
            room.leave(pixels)
    return outcomes


def _enter(left: deque[Item], room: Room) -> tuple[list[Item], int]:
    """The next pictures for which there is room, at least one, and their pixels."""
    some: list[Item] = []
    total = 0
    while left and len(some) < _CHUNK and total < _CHUNK_PIXELS:
        pixels = _pixels(left[0])
        if not room.enter(pixels, wait=not some):
            break
        some.append(left.popleft())
        total += pixels
    return some, total


def _pixels(item: Item) -> int:
    """How many a picture has, by its header; 0 where reading it will fail."""
    try:
        if isinstance(item.source, bytes):
            found = read_header(io.BytesIO(item.source)).pixels
        elif not item.source.is_file():  # a pipe can be read only once
            return _CHUNK_PIXELS if item.source.exists() else 0
        else:
            with item.source.open("rb") as file:
                found = read_header(file).pixels
    except (OSError, ValueError, HeaderError):
        return 0
    return found if found <= image.MAX_PIXELS else 0


def _explained(explainer: Explainer, items: Sequence[Item], request: Request, output: Path) -> list[Outcome]:
    read = [_read(item) for item in items]
    return [_write(item, result, request, output) for item, result in _explain(explainer, read, request)]


def _read(item: Item) -> tuple[Item, image.Picture | Exception]:
    try:
        picture = image.load(item.source)
    except Exception as error:
        return item, error
    return item, replace(picture, name=item.name if isinstance(item.source, bytes) else picture.name)


def _explain(
    explainer: Explainer, read: Sequence[tuple[Item, image.Picture | Exception]], request: Request
) -> Iterator[tuple[Item, Explanation | Exception]]:
    pictures = [picture for _, picture in read if isinstance(picture, image.Picture)]
    explanations = _stream(explainer, pictures, request)
    for item, picture in read:
        yield item, (next(explanations) if isinstance(picture, image.Picture) else picture)


def _stream(explainer: Explainer, pictures: list[image.Picture], request: Request) -> Iterator[Explanation | Exception]:
    """An explanation or an error per picture; after a failure those that are left are explained one by one."""
    asked: dict[str, Any] = {
        "target": request.target,
        "method": request.method,
        "layer": request.layer,
        "top": request.top,
        "normalize": request.normalize,
        "side_by_side": request.side_by_side,
        "fusion": request.fusion,
        "smooth": request.smooth,
        "seed": request.seed,
        "progress": request.progress,
    }
    done = 0
    try:
        for explanation in explainer.stream(pictures, **asked, **request.options):
            done += 1
            yield explanation
    except Exception as error:
        if len(pictures) == 1 and not done:
            yield error
            return
        for picture in pictures[done:]:
            yield from _stream(explainer, [picture], request)


def _write(item: Item, result: Explanation | Exception, request: Request, output: Path) -> Outcome:
    if isinstance(result, Exception):
        return Outcome(item, error=result)
    folder = output / item.folder
    try:
        _spare(item, folder, result)
        files = result.save(folder, alpha=request.alpha, colormap=request.colormap, compress=request.compress)
        return Outcome(item, result.to_dict(), files)
    except Exception as error:
        return Outcome(item, error=error)


def _spare(item: Item, folder: Path, result: Explanation) -> None:
    """Refuse to write a result over the picture it explains."""
    if isinstance(item.source, bytes):
        return
    source = item.source.resolve() if item.source.is_symlink() else item.source
    name = source.name.lower()
    made = [held.method for held in result.per_method] or [result.method]
    written = ["input.png", "panel.png", "methods.png", *(["layers.png"] if result.per_layer else [])]
    like = name in written or name.startswith(tuple(f"{method}_" for method in made))
    if like and source.resolve().parent == folder.resolve():
        raise OutputError(f"{item.name!r} would be overwritten by its own explanation; choose another output folder")


def sentence(outcome: Outcome) -> str:
    """What went wrong with a picture, naming it."""
    error = outcome.error
    if isinstance(error, OnnxcamError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "there is not enough memory for it; scale it down"
    else:
        text = f"{type(error).__name__}: {str(error).strip()} (unexpected: ONNXCAM_DEBUG=1 shows where)"
    name = outcome.item.name
    return text if name in text else f"{name!r}: {text}"
