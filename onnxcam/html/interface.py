"""The page that explains pictures in a browser: files for a server or a folder, which add a `backend.js` of their own.

The interface is `viewer/`: no framework, no build step, and nothing that is loaded from elsewhere. What `backend.js`
exports stands at the beginning of `viewer/page.js`.
"""

from __future__ import annotations

from importlib.resources import files

INDEX = "index.html"
# what every copy of the page consists of, beside its backend
FILES = (
    INDEX, "page.css", "page.js", "view.js", "drawing.js", "colormaps.js", "pictures.js", "texts.js", "errors.js",
    "icon.svg",
)  # fmt: skip
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# everything but what is listed is refused by the browser: other origins, inline code, forms, plug-ins
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
}


def read(name: str) -> bytes:
    """The content of a file of the interface, or of a backend beside it."""
    return (files("onnxcam.html") / "viewer" / name).read_bytes()


def policy(**more: str) -> str:
    """The Content-Security-Policy of the page.

    Arguments:
        more: sources to add to a directive, or further directives, with `_` for `-`: `script_src="'wasm-unsafe-eval'"`.
    """
    directives = dict(POLICY)
    for name, sources in more.items():
        directive = name.replace("_", "-")
        directives[directive] = f"{directives[directive]} {sources}" if directive in directives else sources
    return "; ".join(f"{directive} {sources}" for directive, sources in directives.items())
