"""`onnxcam.server`: explanations over HTTP.

    from onnxcam.server import create_app

    app = create_app("model.cam.onnx", when="confidence < 0.6")     # any ASGI server runs it: uvicorn module:app

`onnxcam serve` runs it with workers, signals and limits on connections; FastAPI and Starlette mount it under a path.
`create_app` needs starlette, orjson and python-multipart: `pip install "onnxcam[serve]"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxcam.errors import DependencyError

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["create_app"]


def create_app(models: Any, *, monitor: Any = None, **settings: Any) -> Starlette:
    """Make the ASGI app that answers requests about these models.

    Arguments:
        models: a path of an explainable model or any classifier `.onnx`, also as `NAME=PATH`; an `Explainer`; a list of
            these; or a mapping from names to paths or explainers. The first one answers requests that name no model.
        monitor: a folder, in which an `onnxcam.Monitor` of each model records the predictions that meet `when`.
        settings: `when` (which predictions are explained: `always`, `never` or a condition such as `confidence < 0.6`),
            `max_body`, `max_pixels`, `queue` (requests), `queue_bytes`, `timeout` (seconds), `tokens`, `cors`
            (origins), `metrics`, `threads`, `rows` (rows of several requests in one run of a model: a number, or `auto`
            to measure what pays), `compress` (the colours of overlays), `drain` (seconds); see
            `onnxcam.server.settings.Settings`.

    Returns:
        a Starlette app. Worker threads start with its first request, and end with its lifespan where the server has
        one.

    Raises:
        SettingError: a setting that cannot be used, or two models of one name.
        ModelError, LayerError, PreprocessError, RuntimeUnavailable: a model cannot be used.
        DependencyError: a library of the server is missing.
    """
    try:
        import orjson  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
    except ImportError as error:
        raise missing(error) from error
    from onnxcam.server.app import build
    from onnxcam.server.settings import Settings

    return build(models, Settings.of(**settings), monitor)


def missing(error: ImportError) -> DependencyError:
    """The error for a library of the server that is not installed."""
    return DependencyError(f'the server needs {error.name} ({error}); install it: pip install "onnxcam[serve]"')
