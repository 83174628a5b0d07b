"""Pictures: reading, preprocessing, mapping heatmaps back, drawing and writing.  OpenCV is imported on first use."""

from onnxcam.files import write_bytes, write_pieces
from onnxcam.image.colormap import COLORMAPS, blend, colorize, grayscale, paint, palette
from onnxcam.image.geometry import NORMALIZATIONS, Geometry, normalize, resize_map
from onnxcam.image.header import Header
from onnxcam.image.overlay import overlay
from onnxcam.image.panel import gallery, panel
from onnxcam.image.picture import MAX_PIXELS, Picture, load, peek, read_array
from onnxcam.image.png import encode_png, write_png
from onnxcam.image.preprocess import Crop, Preprocess, Resize
from onnxcam.image.presets import PRESETS, candidates, from_hf, from_timm, preset, resolve

__all__ = [
    "COLORMAPS",
    "MAX_PIXELS",
    "NORMALIZATIONS",
    "PRESETS",
    "Crop",
    "Geometry",
    "Header",
    "Picture",
    "Preprocess",
    "Resize",
    "blend",
    "candidates",
    "colorize",
    "encode_png",
    "from_hf",
    "from_timm",
    "gallery",
    "grayscale",
    "load",
    "normalize",
    "overlay",
    "paint",
    "palette",
    "panel",
    "peek",
    "preset",
    "read_array",
    "resize_map",
    "resolve",
    "write_bytes",
    "write_pieces",
    "write_png",
]
