"""Bodies of requests: read within limits, and taken apart into one picture and its options.

Nothing is decoded here but JSON, base64 and multipart: a picture stays encoded, and its header is all that is read of
it. URLs are refused, never fetched.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Receive

from onnxcam import image
from onnxcam.server.refusals import ClientLeft, Refusal
from onnxcam.server.scheduler import Scheduler

JSON, MULTIPART, FORM = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
_RAW = ("application/octet-stream", "binary/octet-stream", "")
_PARTS = 64  # of a multipart body
_LONGEST_OPTION = 100_000  # bytes of a form's field that is no picture
_PICTURE_FIELDS = ("image", "file", "picture")
_INLINE = 256 << 10  # bytes up to which a body is taken apart in the event loop
_DISCARDED = 64 << 20  # bytes that are read of a body above the limit, so that the client reads the answer
_PATIENCE = 2.0  # seconds for that


class Submission(NamedTuple):
    """One picture and its options.

    Attributes:
        picture: encoded.
        options: by name; texts where they come from a form or a query.
        textual: whether they do.
        header: of the picture; None where it cannot be read, of which `onnxcam.image.load` reports the reason.
    """

    picture: bytes
    options: dict[str, Any]
    textual: bool = False
    header: image.Header | None = None


async def read(request: Request, limit: int, timeout: float) -> bytes:
    """Read a body within limits of bytes and seconds.

    Raises:
        Refusal: 400, 408, 413 or 429. ClientLeft: the client closed its connection.
    """
    length = request.headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise Refusal(400, f"Content-Length is {length[:50]!r}; expected a number")
    if length is not None and int(length) > limit:
        if request.headers.get("expect", "").lower() != "100-continue":
            await discard(request.receive)
        raise _too_large(f"{int(length):,} bytes", limit)
    scheduler: Scheduler = request.app.state.onnxcam.scheduler
    chunks: list[bytes] = []
    total, more = 0, True
    try:
        with scheduler.arriving() as add:
            async with asyncio.timeout(timeout):
                while more and total <= limit:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    chunks.append(message.get("body", b""))
                    total += len(chunks[-1])
                    more = message.get("more_body", False)
                    add(len(chunks[-1]))
    except TimeoutError:
        raise Refusal(
            408, f"the body did not arrive within {timeout:g} s; send it faster", {"Connection": "close"}
        ) from None
    if total > limit:
        chunks.clear()
        if more:
            await discard(request.receive)
        raise _too_large(f"more than {limit:,} bytes", limit)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def discard(receive: Receive) -> bool:
    """Read some more of a body that is refused: a client that still sends would not read the answer.

    Returns:
        whether the whole body was read, so that the connection can be used again.
    """
    total, until = 0, time.monotonic() + _PATIENCE
    try:
        async with asyncio.timeout(_PATIENCE):
            while total < _DISCARDED and time.monotonic() < until:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return True
                total += len(message.get("body", b""))
    except TimeoutError:
        return False
    return False


def _too_large(size: str, limit: int) -> Refusal:
    return Refusal(
        413,
        f"the body has {size}, and the server takes at most {limit:,}; send a smaller picture (the model scales it "
        "down anyway), or raise --max-body",
        {"Connection": "close"},
    )


def is_small(body: bytes) -> bool:
    """Whether taking a body apart is too short a task to leave the event loop for."""
    return len(body) <= _INLINE


def take_apart(body: bytes, content_type: str, query: Mapping[str, str], limit: int) -> Submission:
    """The picture and the options in a body and its URL's query.

    Arguments:
        body: JSON, multipart, or the encoded picture itself.
        content_type: the header, empty for none.
        query: of the URL; gives options.
        limit: pixels of a picture.

    Raises:
        Refusal: 400, 413, 415 or 422.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM or not kind:  # as curl names whatever it sends
        kind = JSON if body[:64].lstrip()[:1] == b"{" else ""
    if kind == JSON or kind.endswith("+json"):
        submission = _from_json(body)
    elif kind == MULTIPART:
        submission = _from_multipart(body, content_type)
    elif kind in _RAW or kind.startswith("image/"):
        if not body:
            raise Refusal(422, _NO_PICTURE)
        submission = Submission(body, {}, True)
    else:
        raise Refusal(
            415,
            f"the body is {kind[:100]!r}; expected {JSON}, {MULTIPART}, or the encoded picture as image/png, "
            "image/jpeg, ... or application/octet-stream",
        )
    submission = submission._replace(header=check_picture(submission.picture, limit))
    if not query:
        return submission
    twice = [name for name in query if name in submission.options]
    if twice:
        raise Refusal(422, f'"{twice[0][:100]}" is in the URL and in the body; leave one of them out')
    return submission._replace(options=submission.options | dict(query))


_NO_PICTURE = (
    'the request has no picture; send JSON {"image": base64 or data URL}, multipart with a file called image, or the '
    "encoded picture as body"
)


def check_picture(data: bytes, limit: int) -> image.Header | None:
    """Refuse a picture of more pixels than the limit, by its header alone; what is no picture fails when it is read.

    Returns:
        the header; None of what is no picture.

    Raises:
        Refusal: 413.
    """
    header = image.peek(data)
    if header is not None and header.pixels > limit:
        raise Refusal(
            413,
            f"the picture has {header.width}x{header.height} = {header.pixels:,} pixels, and the server takes at most "
            f"{limit:,}; scale it down, or raise --max-pixels",
        )
    return header


def parse_json(body: bytes) -> Any:
    """The JSON document in a body.

    Raises:
        Refusal: 400, it is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # the message of the library ends with a position and repeats nothing of the text
        raise Refusal(400, f"the body is not valid JSON ({error}); is it sent as it should be?") from None


def _from_json(body: bytes) -> Submission:
    values = parse_json(body)
    if not isinstance(values, dict):
        raise Refusal(422, f'the body is a JSON {_json_type(values)}; expected an object {{"image": ...}}')
    picture = values.pop("image", None)
    if picture is None:
        raise Refusal(422, _NO_PICTURE)
    return Submission(decode(picture), values)


def decode(text: Any, name: str = '"image"') -> bytes:
    """The bytes that a text stands for: base64, or a data URL.

    Raises:
        Refusal: 422, something else.
    """
    if not isinstance(text, str):
        raise Refusal(422, f"{name} is a {_json_type(text)}; expected a text: base64 or a data URL")
    if text[:5].lower() == "data:":
        head, separator, text = text.partition(",")
        if not separator:
            raise Refusal(422, f"{name} is a data URL without a comma; expected data:image/png;base64,...")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text)
    elif text[:8].lower().startswith(("http://", "https://", "file:", "ftp://", "s3://", "gs://", "blob:")):
        raise Refusal(422, f"{name} is a URL, and the server fetches nothing; send the picture itself as base64")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # line ends, the alphabet of URLs, or no padding
        data = _lenient(text, name)
    if not data:
        raise Refusal(422, f"{name} is empty; expected a picture as base64 or a data URL")
    return data


def _lenient(text: str, name: str) -> bytes:
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return binascii.a2b_base64(compact + "=" * (-len(compact) % 4), strict_mode=True)
    except ValueError as error:  # binascii.Error is one, as is text that is not ASCII
        reason = "it is not ASCII" if not compact.isascii() else str(error)
        raise Refusal(422, f"{name} is not valid base64 ({reason}); is it cut off, or is it a file's name?") from None


class _Part:
    """A part of a multipart body."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.data: list[bytes] = []


def _from_multipart(body: bytes, content_type: str) -> Submission:
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise Refusal(400, "the multipart body's Content-Type names no boundary; let the HTTP library set that header")
    picture: bytes | None = None
    options: dict[str, Any] = {}
    for part in _parts(body, boundary):
        _, disposition = parse_options_header(part.headers.get(b"content-disposition", b""))
        name = disposition.get(b"name", b"").decode("utf-8", "replace")
        data = part.data[0] if len(part.data) == 1 else b"".join(part.data)
        if b"filename" in disposition or name in _PICTURE_FIELDS:
            if picture is not None:
                raise Refusal(422, "the multipart body has two pictures; send one a request")
            is_text = b"filename" not in disposition and image.peek(data) is None
            picture = decode(data.decode("ascii", "replace"), f'"{name[:100]}"') if is_text else data
        elif not name:
            raise Refusal(422, "a part of the multipart body has no name; expected form-data with names")
        elif name in options:
            previous = options[name]
            options[name] = (
                [*previous, _text(name, data)] if isinstance(previous, list) else [previous, _text(name, data)]
            )
        else:
            options[name] = _text(name, data)
    if not picture:
        raise Refusal(422, _NO_PICTURE)
    return Submission(picture, options, True)


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []
    field, value = bytearray(), bytearray()
    ended = False

    def begin() -> None:
        if len(parts) == _PARTS:
            raise Refusal(413, f"the multipart body has more than {_PARTS} parts; send a picture and its options")
        parts.append(_Part())

    def end_of_header() -> None:
        parts[-1].headers[bytes(field).lower()] = bytes(value)
        field.clear()
        value.clear()

    def finish() -> None:
        nonlocal ended
        ended = True

    callbacks: Any = {
        "on_part_begin": begin,
        "on_part_data": lambda data, start, end: parts[-1].data.append(data[start:end]),
        "on_header_field": lambda data, start, end: field.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": end_of_header,
        "on_end": finish,
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal(400, f"the multipart body cannot be read ({type(error).__name__}); is it cut off?") from None
    if not ended:
        raise Refusal(400, "the multipart body is cut off; its last boundary is missing")
    return parts


def _text(name: str, data: bytes) -> str:
    if len(data) > _LONGEST_OPTION:
        raise Refusal(
            413, f'"{name[:100]}" has {len(data):,} bytes; an option is a short text, and a picture is a file'
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal(422, f'"{name[:100]}" is not UTF-8 text; is it a picture? then call it image') from None


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null")
