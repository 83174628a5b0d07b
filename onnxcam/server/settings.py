"""Settings of a server, checked once before anything is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnxcam.errors import SettingError
from onnxcam.explain.conditional import ALWAYS, NEVER
from onnxcam.explain.question import SEED
from onnxcam.image import MAX_PIXELS
from onnxcam.monitor.units import parse_bytes, parse_seconds
from onnxcam.targets import conditions

AUTO = "auto"
_PIXELS = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(MP)?\s*", re.IGNORECASE)
_SHORTEST_TOKEN = 16  # characters: fewer can be guessed
_ORIGIN = re.compile(r"https?://[^/\s,*?#@]+")


@dataclass(frozen=True)
class Settings:
    """What `create_app` is set to; made by `Settings.of`, which checks it.

    Attributes:
        when: which predictions are explained: `always`, `never` or a condition.
        max_body: bytes of a request's body.
        max_pixels: pixels of a picture, by its header.
        queue: requests that wait for a worker at most.
        queue_bytes: bytes of the bodies of all requests that wait or are worked on.
        timeout: seconds from the end of a body to its answer; the body has as long to arrive.
        tokens: bearer tokens, one of which a request needs; empty for none.
        cors: origins whose pages may read answers; `*` for all.
        metrics: whether `GET /metrics` answers.
        threads: worker threads; None for one per core, and one more that reads or draws pictures meanwhile.
        rows: the most rows of several requests in one run of the model; `auto` to measure what pays.
        compress: whether the colours of overlays are compressed.
        connections: open ones at most, idle ones included.
        seed: of methods that draw random numbers.
        drain: seconds for which new requests are answered 503 after SIGTERM, before connections are closed.
    """

    when: str = ALWAYS
    max_body: int = 20 << 20
    max_pixels: int = MAX_PIXELS
    queue: int = 64
    queue_bytes: int = 256 << 20
    timeout: float = 30.0
    tokens: frozenset[str] = frozenset()
    cors: tuple[str, ...] = ()
    metrics: bool = False
    threads: int | None = None
    rows: int | str = AUTO
    compress: bool = True
    connections: int = 1024
    seed: int = SEED
    drain: float = 0.5

    @classmethod
    def of(
        cls,
        *,
        when: str = ALWAYS,
        max_body: int | str = "20MiB",
        max_pixels: int | str = "50MP",
        queue: int = 64,
        queue_bytes: int | str = "256MiB",
        timeout: float | str = 30.0,
        tokens: str | Iterable[str] | None = None,
        cors: str | Iterable[str] = (),
        metrics: bool = False,
        threads: int | None = None,
        rows: int | str = AUTO,
        compress: bool = True,
        connections: int = 1024,
        seed: int = SEED,
        drain: float | str = 0.5,
    ) -> Settings:
        """Check settings, with their units as text or as numbers.

        Raises:
            SettingError: one that cannot be used.
        """
        check_when(when)
        settings = cls(
            when,
            _positive(parse_bytes(max_body, "max_body"), "max_body", max_body),
            _positive(parse_pixels(max_pixels), "max_pixels", max_pixels),
            _whole(queue, "queue"),
            _positive(parse_bytes(queue_bytes, "queue_bytes"), "queue_bytes", queue_bytes),
            _positive(parse_seconds(timeout, "timeout"), "timeout", timeout),
            _tokens(tokens),
            _origins(cors),
            bool(metrics),
            None if threads is None else _whole(threads, "threads"),
            rows if rows == AUTO else _whole(rows, "rows"),
            bool(compress),
            _whole(connections, "connections"),
            seed,
            parse_seconds(drain, "drain"),
        )
        if settings.queue_bytes < settings.max_body:
            raise SettingError(
                f"queue_bytes={queue_bytes!r} is less than max_body={max_body!r}, so the largest body would always be "
                "refused; raise the one or lower the other"
            )
        return settings


def check_when(text: Any) -> None:
    """Refuse what is not `always`, `never` or a condition; labels are looked up where the model is known.

    Raises:
        SettingError: something else.
    """
    if text not in (ALWAYS, NEVER):
        try:
            conditions.parse(text)
        except SettingError as error:
            raise SettingError(f"{error}; or 'always', or 'never'") from None


def parse_pixels(size: int | str) -> int:
    """Pixels, as a number or as `50MP` (million).

    Raises:
        SettingError: something else.
    """
    match = _PIXELS.fullmatch(size) if isinstance(size, str) else None
    if match is not None:
        return round(float(match[1]) * (1_000_000 if match[2] else 1))
    if isinstance(size, bool) or not isinstance(size, int):
        raise SettingError(f"max_pixels={size!r}; expected pixels, as a number or as in '50MP'")
    return size


def read_tokens(path: str | os.PathLike[str]) -> list[str]:
    """The tokens in a file, one a line; empty lines and those that begin with `#` are left out.

    Raises:
        SettingError: it cannot be read, or has none.
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            lines = [line.strip() for line in file.read(1 << 20).splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingError(f"the token file {os.fspath(path)!r} cannot be read: {reason}") from None
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise SettingError(f"the token file {os.fspath(path)!r} has no token in it; write one a line")
    return tokens


def _tokens(tokens: str | Iterable[str] | None) -> frozenset[str]:
    values = [] if tokens is None else [tokens] if isinstance(tokens, str) else list(tokens)
    for token in values:
        # a message must not say the token itself: it would be logged
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingError("a token has characters that cannot stand in a header; use letters, digits and -._~+/")
        if len(token) < _SHORTEST_TOKEN:
            raise SettingError(
                f"a token has {len(token)} characters, and so few can be guessed; use at least {_SHORTEST_TOKEN}, as "
                "`openssl rand -hex 32` makes them"
            )
    return frozenset(values)


def _origins(cors: str | Iterable[str]) -> tuple[str, ...]:
    origins = [cors] if isinstance(cors, str) else list(cors)
    for origin in origins:
        if origin != "*" and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
            raise SettingError(
                f"cors={origin!r}; expected an origin such as 'https://example.org' (no path, no slash at its end), or "
                "'*' for any"
            )
    return tuple(dict.fromkeys(origins))


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name}={value!r}; expected a whole number from 1")
    return value


def _positive(value: Any, name: str, text: Any) -> Any:
    if not value > 0:
        raise SettingError(f"{name}={text!r}; expected more than 0")
    return value
