"""Pictures: reading, preprocessing, mapping heatmaps back, drawing and writing.  OpenCV is imported on first use."""

from onnxcam.files import write_bytes, write_pieces
from onnxcam.image.colormap import COLORMAPS, blend, colorize, grayscale, lay, paint, palette
from onnxcam.image.colormap import DEFAULT as DEFAULT_COLORMAP
from onnxcam.image.geometry import NORMALIZATIONS, Geometry, normalize, resize_map
from onnxcam.image.header import Header
from onnxcam.image.outlines import Outline, outline
from onnxcam.image.overlay import draw, overlay
from onnxcam.image.panel import gallery, panel, percentage
from onnxcam.image.picture import MAX_PIXELS, Picture, load, peek, read_array
from onnxcam.image.png import encode_png, write_png
from onnxcam.image.preprocess import Crop, Preprocess, Resize
from onnxcam.image.presets import PRESETS, candidates, from_hf, from_timm, preset, resolve
from onnxcam.image.visible import Marks, Rectangle, hidden, marked, whole

__all__ = [
    "COLORMAPS",
    "DEFAULT_COLORMAP",
    "MAX_PIXELS",
    "NORMALIZATIONS",
    "PRESETS",
    "Crop",
    "Geometry",
    "Header",
    "Marks",
    "Outline",
    "Picture",
    "Preprocess",
    "Rectangle",
    "Resize",
    "blend",
    "candidates",
    "colorize",
    "draw",
    "encode_png",
    "from_hf",
    "from_timm",
    "gallery",
    "grayscale",
    "hidden",
    "lay",
    "load",
    "marked",
    "normalize",
    "outline",
    "overlay",
    "paint",
    "palette",
    "panel",
    "peek",
    "percentage",
    "preset",
    "read_array",
    "resize_map",
    "resolve",
    "whole",
    "write_bytes",
    "write_pieces",
    "write_png",
]
