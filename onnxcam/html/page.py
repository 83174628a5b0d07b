"""HTML pages, and the elements that several reports share."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from onnxcam import __version__


def page(heading: str, body: Sequence[str], *, style: str | Sequence[str] = "", script: str = "") -> str:
    """Build a complete, self-contained page; its content security policy allows only what is embedded in it.

    Arguments:
        heading: the page's title.
        body: the content, as HTML.
        style, script: names of files of this package to embed, beside `page.css`; several styles in their order. See
            `shell`.
    """
    head, tail = shell(heading, style=style, script=script)
    return f"{head}{''.join(body)}{tail}"


def shell(heading: str, *, style: str | Sequence[str] = "", script: str = "") -> tuple[str, str]:
    """Build what comes before and after the content of a page, for pages that are written piece by piece.

    Arguments:
        heading: the page's title.
        style, script: names of files of this package to embed, beside `page.css`. A page must say everything without
            its script, which may only help to find it.
    """
    names = [style] if isinstance(style, str) else style
    styles = "".join(_embedded(name) for name in ("page.css", *names) if name)
    code = _embedded(script) if script else ""
    # by its digest, so that no other script can run, wherever the text of the page comes from
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{digest}'" if code else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'{allowed}\">"
        f"<title>{escape(heading)}</title><style>{styles}</style></head><body>"
        '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><pattern id="hatch" width="5" '
        'height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" '
        'fill="#fff"/><path d="M0 0V5" stroke="#5a606b" stroke-width="2"/></pattern></defs></svg>'
        "<main>",
        f"</main>{f'<script>{code}</script>' if code else ''}</body></html>\n",
    )


def _embedded(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


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
