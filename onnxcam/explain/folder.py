"""A bounded pool of pictures: explained a few at a time on every core, and one failure never loses the others.

Each thread takes a few pictures from file to files: it reads, runs the model and writes. The model computes on one
thread (or its share of the cores) for each of them, so no core waits for another in the middle of a picture.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnxcam import image
from onnxcam.errors import OnnxcamError, OutputError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.explanation import Explanation
from onnxcam.explain.features import Progress
from onnxcam.explain.pictures import Item
from onnxcam.explain.preparation import Preparation
from onnxcam.explain.question import Question
from onnxcam.explain.saving import Drawing, would_overwrite
from onnxcam.files import real_path

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from onnxcam.explain.gallery import Card, Judge

_CHUNK = 4  # pictures per run: large linear layers are read once for all of them, and memory stays flat
_CHUNK_PIXELS = 12_000_000  # large pictures go in smaller numbers
_PIXELS = 48_000_000  # in memory at any time, all threads together; a larger picture goes alone
_THREADS = 4
_MANY_CLASSES = 64  # of more of them, each picture has a run of its own

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> int:
    """Threads that explain pictures, side by side."""
    return min(_THREADS, cores())


@dataclass(frozen=True)
class Outcome:
    """The outcome for one picture: its explanation's record, files (relative to its folder) and card, or an error."""

    item: Item
    record: dict[str, Any] | None = None
    files: dict[str, str] | None = None
    error: Exception | None = None
    card: Card | None = None


def explain_all(
    explainer: Explainer,
    items: Sequence[Item],
    question: Question,
    output: Path,
    style: Drawing | None = None,
    progress: Progress | None = None,
    late: Callable[[Outcome], None] | None = None,
    judge: Judge | None = None,
) -> Iterator[Outcome]:
    """Explain and write every picture, in order; at most a few are in memory at any time.

    A caller that stops iterating, or is interrupted, stops long methods too: their pictures are left without files.

    Arguments:
        items: the pictures, each with its folder below `output`.
        question: with one target for all of them.
        style: how their files are drawn.
        progress: called with (done, total) as long methods go, from any thread.
        late: called after an interruption with the outcomes that were not yielded, and with the one yielded last.
        judge: makes the card of each picture for a page.
    """
    threads = workers()
    alone = question.alone or (question.top or 1) > _MANY_CLASSES
    size = 1 if alone else max(1, min(_CHUNK, -(-len(items) // threads)))
    stopped = threading.Event()

    def report(done: int, total: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt  # past the handlers that would count it as the picture's own failure
        if progress is not None:
            progress(done, total)

    work = _Work(explainer, question, output, style or Drawing(), report, PixelBudget(_PIXELS), stopped, judge)
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    outcomes: deque[list[Outcome]] = deque([] for _ in chunks)
    pool: ThreadPoolExecutor | None = None
    try:
        if len(chunks) == 1:  # a thread of its own would begin with fresh memory, which costs as much as the writing
            runs: Iterable[Any] = (work.finish(chunks[0], outcomes[0]) for _ in chunks)
        else:
            from concurrent.futures import ThreadPoolExecutor  # a single picture does without

            pool = ThreadPoolExecutor(threads, thread_name_prefix="onnxcam")
            runs = ahead(pool, lambda pair: work.finish(*pair), zip(chunks, list(outcomes), strict=True), threads)
        for _ in runs:
            while outcomes[0]:
                yield outcomes[0][0]
                outcomes[0].pop(0)
            outcomes.popleft()
    finally:
        stopped.set()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        if late is not None:
            for written in outcomes:
                for outcome in written:
                    late(outcome)


def ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], values: Iterable[T], depth: int) -> Iterator[R]:
    """`map(work, values)` in order, on the pool, at most `depth` values ahead of the caller."""
    futures: deque[Future[R]] = deque()
    for value in values:
        futures.append(pool.submit(work, value))
        while len(futures) > depth:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


class PixelBudget:
    """A number of pixels that may be in memory at any time, shared by all threads; a larger picture goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserved = 0
        self._changed = threading.Condition()

    def reserve(self, pixels: int, wait: bool) -> bool:
        """Reserve `pixels`; return whether it succeeded.

        Only a thread without a reservation may pass `wait=True`: otherwise two threads could deadlock.
        """
        with self._changed:
            fits = self._changed.wait_for(lambda: self._fits(pixels)) if wait else self._fits(pixels)
            self._reserved += pixels if fits else 0
            return fits

    def release(self, pixels: int) -> None:
        """Give back what was reserved."""
        with self._changed:
            self._reserved -= pixels
            self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self._reserved == 0 or self._reserved + pixels <= self._limit


class _Pending:
    """A picture that is not read yet; its header is read once."""

    def __init__(self, item: Item, preparation: Preparation | None = None) -> None:
        self.item = item
        self._preparation = preparation

    @cached_property
    def header(self) -> image.Header | None:
        """Format and size, None where only loading can tell."""
        return image.peek(self.item.source)

    @property
    def pixels(self) -> int:
        """How many the picture has; 0 where loading it will fail."""
        if self.header is not None:
            return self.header.pixels if self.header.pixels <= image.MAX_PIXELS else 0
        source = self.item.source
        pipe = isinstance(source, Path) and source.exists() and not source.is_file()  # can be read only once
        return _CHUNK_PIXELS if pipe else 0

    def load(self) -> image.Picture | Exception:
        """The decoded picture, or the reason why it cannot be read."""
        try:
            read = image.load if self._preparation is None else self._preparation.read
            picture = read(self.item.source, header=self.header)
        except Exception as error:
            return error
        return replace(picture, name=self.item.name) if isinstance(self.item.source, bytes) else picture


@dataclass(frozen=True)
class _Work:
    """The work on every picture of a run."""

    explainer: Explainer
    question: Question
    output: Path
    style: Drawing
    progress: Progress
    budget: PixelBudget
    stopped: threading.Event = field(default_factory=threading.Event)
    judge: Judge | None = None

    def finish(self, items: Sequence[Item], outcomes: list[Outcome] | None = None) -> list[Outcome]:
        """Read, explain and write some pictures, as many at a time as fit into the budget.

        Arguments:
            outcomes: gets the outcome of each picture as soon as it is written; returned too.
        """
        queue = deque(_Pending(item, self.explainer.preparation) for item in items)
        outcomes = [] if outcomes is None else outcomes
        while queue and not self.stopped.is_set():
            some, pixels = self._reserve(queue)
            try:
                self._finish(some, outcomes)
            finally:
                self.budget.release(pixels)
        return outcomes

    def _reserve(self, queue: deque[_Pending]) -> tuple[list[_Pending], int]:
        """The next pictures that fit into the budget, at least one, and the pixels reserved for them."""
        some: list[_Pending] = []
        total = 0
        while queue and len(some) < _CHUNK and total < _CHUNK_PIXELS:
            pixels = queue[0].pixels
            if not self.budget.reserve(pixels, wait=not some):
                break
            some.append(queue.popleft())
            total += pixels
        return some, total

    def _finish(self, some: Sequence[_Pending], outcomes: list[Outcome]) -> None:
        loaded = [(pending.item, pending.load()) for pending in some]
        pictures = [picture for _, picture in loaded if isinstance(picture, image.Picture)]
        explanations = self._explain(pictures)
        for item, picture in loaded:
            if self.stopped.is_set():
                return
            if isinstance(picture, image.Picture):
                outcome = self.write(item, result := next(explanations), picture)
                outcomes.append(self._judge(picture, outcome, result))
            else:
                outcomes.append(self.write(item, picture))

    def _judge(self, picture: image.Picture, outcome: Outcome, result: Explanation | Exception) -> Outcome:
        """Add the card of a picture that was written."""
        if self.judge is None or outcome.error is not None or isinstance(result, Exception):
            return outcome
        card = self.judge.card(outcome.item.name, picture, result)
        return replace(outcome, card=replace(card, name=outcome.item.short_name))

    def _explain(self, pictures: list[image.Picture]) -> Iterator[Explanation | Exception]:
        """An explanation or an error per picture; after a failure those that are left are explained one by one."""
        done = 0
        try:
            for explanation in self.explainer.answer(self.question, pictures, progress=self.progress):
                done += 1
                yield explanation
        except Exception as error:
            if len(pictures) == 1 and not done:
                yield error
                return
            for picture in pictures[done:]:
                yield from self._explain([picture])

    def write(self, item: Item, result: Explanation | Exception, picture: image.Picture | None = None) -> Outcome:
        """Write an explanation into the picture's folder."""
        if isinstance(result, Exception):
            return Outcome(item, error=result)
        folder = self.output / item.folder
        try:
            _refuse_overwriting(item, folder, result, self.style)
            encoded = picture.encoded if picture is not None and picture.pixels is result.picture else None
            return Outcome(item, *result.write(folder, self.style, encoded=encoded))
        except Exception as error:
            return Outcome(item, error=error)


def _refuse_overwriting(item: Item, folder: Path, result: Explanation, style: Drawing) -> None:
    """Refuse to write a result over the picture it explains.

    Raises:
        OutputError: one of its files has the picture's name and folder.
    """
    if isinstance(item.source, bytes):
        return
    source = real_path(item.source) if item.source.is_symlink() else item.source
    methods = [one.method for one in result.per_method] or [result.method]
    if would_overwrite(source.name, methods, style) and real_path(source).parent == real_path(folder):
        raise OutputError(f"{item.name!r} would be overwritten by its own explanation; choose another output folder")


def sentence(outcome: Outcome) -> str:
    """The error of a picture in one sentence that names it."""
    text, name = reason(outcome.error), outcome.item.name
    return text if name in text else f"{name!r}: {text}"


def reason(error: Exception | None) -> str:
    """An error in one sentence."""
    if isinstance(error, OnnxcamError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for it; scale it down"
    return f"{type(error).__name__}: {str(error).strip()} (unexpected: ONNXCAM_DEBUG=1 shows where)"
