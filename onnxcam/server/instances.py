"""What requests for inference have in common in all protocols: bodies, batches, rows that are run in portions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.errors import InputError
from onnxcam.server import bodies
from onnxcam.server.refusals import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

    from onnxcam.explain.preparation import Prepared
    from onnxcam.explain.question import Question
    from onnxcam.server.models import Model, Prediction, Rows
    from onnxcam.server.scheduler import Attempt
    from onnxcam.server.state import State
    from onnxcam.targets.conditions import Condition

MOST_ROWS = 64  # of one request: a body of a few bytes a row would otherwise take any amount of memory
PORTION = 8  # rows in one run


async def body(state: State, request: Request) -> bytes:
    """The body of a request, read within the server's limits, if there is room for it.

    Raises:
        Refusal: 400, 408, 413, 429 or 503.
    """
    state.scheduler.check()
    return await bodies.read(request, state.settings.max_body, state.settings.timeout)


def check_encoding(request: Request) -> None:
    """Refuse a compressed body: unpacked, it could have any size.

    Raises:
        Refusal: 415.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(415, f"the body is compressed ({encoding[:50]!r}); send it as it is")


def check_count(rows: int) -> None:
    """Refuse a request without rows or of too many.

    Raises:
        InputError: none. Refusal: 413, too many.
    """
    if rows == 0:
        raise InputError("the request has no rows; send at least one")
    if rows > MOST_ROWS:
        raise Refusal(413, f"the request has {rows} rows, and the server takes at most {MOST_ROWS}; send several")


def check_batch(model: Model, batch: np.ndarray) -> np.ndarray:
    """The batch, if the model takes it and its rows.

    Raises:
        InputError: it does not. Refusal: 413, too many rows.
    """
    if batch.ndim:
        check_count(len(batch))
    return model.explainer.check_batch(batch)


def prepared(model: Model, pictures: Sequence[bytes], attempt: Attempt, max_pixels: int) -> list[Prepared]:
    """Encoded pictures, prepared for the model.

    Raises:
        PictureError: one cannot be read; the message says which. Refusal: 413.
    """
    results = []
    for picture in pictures:
        attempt.check()
        bodies.check_picture(picture, max_pixels)
        results.append(model.prepare(picture, max_pixels))
    return results


def joined(pictures: Sequence[Prepared]) -> list[np.ndarray]:
    """The tensors of pictures in order: one batch of all, or one each where they have different sizes."""
    batches = [tensor for _, tensor, _ in pictures]
    return [np.concatenate(batches)] if len({batch.shape for batch in batches}) == 1 else batches


def predicted(
    model: Model, question: Question | None, when: Condition | bool, batch: np.ndarray, attempt: Attempt
) -> Iterator[tuple[Prediction, np.ndarray]]:
    """Predictions and maps of a batch, and the rows that they are about, a portion at a time."""
    if question is not None:
        question.check_rows(len(batch))
    for start in range(0, len(batch), PORTION):
        attempt.check()
        stop = min(start + PORTION, len(batch))
        of_rows = None if question is None else question.of_rows(start, stop)
        rows = batch[start:stop]
        yield model.predict(of_rows, when, rows, attempt.check), rows


def raw_maps(rows: Rows) -> np.ndarray:
    """The maps of explained rows by the question's first layer, float32 `[n, h, w]`, not normalised."""
    maps: Any = rows.maps[0].maps[0]
    return np.asarray(maps[rows.start : rows.stop, 0], np.float32)
