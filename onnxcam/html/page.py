"""HTML pages, and the elements that several reports share."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from onnxcam import __version__


def page(heading: str, body: Sequence[str]) -> str:
    """Build a complete, self-contained page; its content security policy allows embedded pictures and styles only.

    Arguments:
        heading: the page's title.
        body: the content, as HTML.
    """
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(heading)}</title><style>{style}</style></head><body>"
        '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><pattern id="hatch" width="5" '
        'height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" '
        'fill="#fff"/><path d="M0 0V5" stroke="#5a606b" stroke-width="2"/></pattern></defs></svg>'
        f"<main>{''.join(body)}</main></body></html>\n"
    )


def foot(notes: Sequence[str] = ()) -> str:
    """Build the footer: version and time, then notes, one per line."""
    lines = "".join(f"<br>{escape(note)}" for note in notes)
    time = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return f"<footer>Made by onnxcam {__version__} on {time} UTC.{lines}</footer>"


def figure(caption: str, drawn: str) -> str:
    """Build a chart with a caption above it."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def picture(data: bytes, alt: str) -> str:
    """Embed an encoded picture, PNG or JPEG, in the page."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
