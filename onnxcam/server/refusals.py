"""Answers to requests that cannot be carried out: a status and one sentence, as JSON `{"error": sentence}`."""

from __future__ import annotations

from collections.abc import Mapping

from onnxcam.errors import (
    LayerError,
    ModelError,
    OnnxcamError,
    RuntimeUnavailable,
    UnsupportedOperator,
)


class Refusal(Exception):
    """The answer to a request that is not carried out.

    Arguments:
        status: of HTTP: 400 a body that is no JSON or multipart, 401 no token, 404 no such route or model, 405 another
            method of HTTP, 408 a body that does not arrive, 413 a body or picture above the limit, 415 another type of
            body, 422 a body that is understood and cannot be used, 429 the queue is full, 503 the server stops, 504 the
            time is spent.
        sentence: what was got, what was expected, what to do.
        headers: further headers of the response.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})


class ClientLeft(Exception):
    """The client closed its connection before it was answered: nobody is there to read an answer."""


UNEXPECTED = "the server failed unexpectedly; its log says why, under this request's X-Request-Id"


def refusal_of(error: BaseException) -> Refusal:
    """The answer to a request at which an error was raised; 500 for those that no request should be able to cause."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RuntimeUnavailable):
        return Refusal(503, str(error))
    if isinstance(error, (LayerError, UnsupportedOperator)):
        return Refusal(422, str(error))
    if isinstance(error, OnnxcamError) and not isinstance(error, ModelError):
        return Refusal(422, str(error))
    if isinstance(error, ModelError):
        return Refusal(500, str(error))
    return Refusal(500, UNEXPECTED)
