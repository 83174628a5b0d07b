"""The only place that imports OpenCV: on first use, with a remedy for each way in which the import fails."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from onnxcam.errors import DependencyError

_REMEDIES = (
    "On Debian or Ubuntu run `apt-get install --no-install-recommends libgl1 libglib2.0-0`, or use the wheel that "
    "needs no system library: `pip uninstall -y opencv-python && pip install opencv-python-headless`."
)
# a second limit besides the header check; OpenCV reads it once, at import
_PIXEL_LIMIT = str(2**28)


def import_cv2() -> Any:
    """Import and return the `cv2` module.

    Raises:
        DependencyError: OpenCV is missing, or a system library that it links to is (libxcb.so.1, libGL.so.1).
    """
    loaded = sys.modules.get("cv2")
    if loaded is not None and hasattr(loaded, "imdecode"):
        return loaded
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", _PIXEL_LIMIT)
    try:
        return importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"OpenCV is not installed ({error}), but reading and drawing pictures needs it: run "
            f"`pip install opencv-python-headless`, or `pip install opencv-python`. {_REMEDIES}"
        ) from error
    except ImportError as error:
        raise DependencyError(
            f"OpenCV is installed but cannot be loaded ({error}): a system library is missing. {_REMEDIES}"
        ) from error
