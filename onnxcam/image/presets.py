"""Preprocessing by preset, by JSON file, and from the configurations of timm and Hugging Face."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcam import files
from onnxcam.errors import PreprocessError, listing, nearest
from onnxcam.image.geometry import Size
from onnxcam.image.preprocess import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Preset = Callable[[Size, int], dict[str, Any]]
PRESETS: dict[str, Preset] = {}
# presets for networks of 224 x 224, their size for a model of dynamic input size
_DEFAULT_SIZES = {"imagenet": (224, 224), "caffe": (224, 224), "torch": (224, 224)}
_LARGEST = 8 << 20  # bytes of a file: a config.json names the classes too
_HELP = "give a preset, a JSON file, timm:FILE or hf:FILE"


def _preset(name: str) -> Callable[[Preset], Preset]:
    def register(build: Preset) -> Preset:
        PRESETS[name] = build
        return build

    return register


def _stretch(size: Size) -> dict[str, Any]:
    return {"mode": "stretch", "size": list(size), "interpolation": "bilinear", "antialias": False}


def _colors(channels: int) -> dict[str, Any]:
    if channels in (1, 3):
        return {"color": "RGB" if channels == 3 else "L"}
    return {"color": "bands", "channels": channels}


def _require_colour(name: str, channels: int, other: str) -> None:
    if channels != 3:
        raise PreprocessError(
            f"preset {name!r} is for 3 channels and the model takes {channels}; use {other!r} or a JSON file"
        )


@_preset("imagenet")
def _imagenet(size: Size, channels: int) -> dict[str, Any]:
    """torchvision: shorter side to 256/224 of the input, centre crop, ImageNet mean and std, RGB."""
    _require_colour("imagenet", channels, "0..1")
    larger = [round(side * 256 / 224) for side in size]
    return {
        "scale": 1 / 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "resize": {"mode": "shortest", "size": larger[0] if size[0] == size[1] else larger},
        "crop": {"size": list(size)},
    }


@_preset("caffe")
def _caffe(size: Size, channels: int) -> dict[str, Any]:
    """Keras' VGG and ResNet (v1): stretched, BGR, ImageNet's mean pixel subtracted, 0 to 255."""
    _require_colour("caffe", channels, "raw")
    return {"color": "BGR", "mean": [103.939, 116.779, 123.68], "resize": _stretch(size)}


@_preset("torch")
def _torch(size: Size, channels: int) -> dict[str, Any]:
    """Keras' mode "torch" (DenseNet): stretched, ImageNet mean and std, RGB; `imagenet` crops instead."""
    _require_colour("torch", channels, "0..1")
    return {"scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resize": _stretch(size)}


@_preset("0..1")
def _zero_one(size: Size, channels: int) -> dict[str, Any]:
    """Stretched, divided by 255: 0 to 1."""
    return {**_colors(channels), "scale": 1 / 255, "resize": _stretch(size)}


@_preset("-1..1")
def _minus_one_one(size: Size, channels: int) -> dict[str, Any]:
    """Stretched, divided by 127.5, minus 1: -1 to 1 (Keras' MobileNet, Inception, ResNet v2)."""
    return {**_colors(channels), "scale": 1 / 127.5, "mean": 1.0, "resize": _stretch(size)}


PRESETS["tf"] = _minus_one_one  # Keras' own name for it


@_preset("raw")
def _raw(size: Size, channels: int) -> dict[str, Any]:
    """Stretched, 0 to 255 unchanged (for models that scale inside, such as Keras' EfficientNet)."""
    return {**_colors(channels), "resize": _stretch(size)}


def candidates() -> list[str]:
    """The values of `--preprocess`, for help texts and messages."""
    return [*PRESETS, "timm", "hf", "FILE.json"]


def preset(name: str, input_size: Size, channels: int = 3) -> Preprocess:
    """Return a preset for a model's input size (height, width) and number of channels; other than 1 or 3 are bands.

    Raises:
        PreprocessError: no such preset, or one for a different number of channels.
    """
    if name not in PRESETS:
        raise PreprocessError(
            f"there is no preset {name!r}; did you mean {nearest(name, PRESETS, 1)[0]!r}? {_options()}"
        )
    return Preprocess.from_dict(PRESETS[name](input_size, channels))


def resolve(
    spec: Preprocess | Mapping[str, Any] | str | os.PathLike[str] | None,
    input_shape: Sequence[int | str | None] | None = None,
    *,
    layout: str = "NCHW",
    config: Mapping[str, Any] | None = None,
) -> Preprocess:
    """Resolve a user's SPEC to the preprocessing for a model.

    Args:
        spec: a Preprocess; a preset's name; a dict or JSON file in the manifest's form, in timm's (`pretrained_cfg`) or
            in Hugging Face's (`preprocessor_config.json`), recognised by its keys; "timm:FILE" or "hf:FILE", where FILE
            may also be the folder of the file; or "timm" or "hf" alone with `config`.
        input_shape: the model's input, four dimensions; strings and None are dynamic.
        layout: the layout of `input_shape`, "NCHW" or "NHWC".
        config: the dict for "timm" and "hf", from an exporter that has the source model.

    Raises:
        PreprocessError: unknown, unreadable, incomplete, or contradicting the model's input.
    """
    size, channels = _input(input_shape, layout)
    if isinstance(spec, Preprocess):
        preprocess = spec
    elif isinstance(spec, Mapping):
        preprocess = _from_mapping(spec, size, None)
    elif isinstance(spec, os.PathLike) or (isinstance(spec, str) and spec):
        preprocess = _from_text(os.fspath(spec), size, channels, config)
    elif spec is None or spec == "":
        raise PreprocessError(f"the model has no preprocessing in its metadata: {_options()}")
    else:
        raise PreprocessError(f"preprocess is a {type(spec).__name__}, expected a name, a dict or a file: {_options()}")
    output = preprocess.output_size
    if size is not None and output is not None and output != size:
        raise PreprocessError(
            f"the preprocessing gives {_format_size(output)} pixels (height x width) but the model takes "
            f"{_format_size(size)}; change its resize or crop size"
        )
    if channels is not None and preprocess.channels != channels:
        raise PreprocessError(
            f"the preprocessing gives {preprocess.channels} channels (color {preprocess.color!r}) but the model takes "
            f"{channels}; use color 'L' for 1 channel, 'RGB' or 'BGR' for 3, and 'bands' with its number of channels"
        )
    return preprocess


def _options() -> str:
    return f"{_HELP} (presets: {listing(PRESETS)})"


def _format_size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _input(shape: Sequence[int | str | None] | None, layout: str) -> tuple[Size | None, int | None]:
    """Height and width, and channels, of a model's input; None where they are dynamic."""
    if shape is None:
        return None, None
    if len(shape) != 4 or layout not in ("NCHW", "NHWC"):
        raise PreprocessError(f"the input is {layout} {list(shape)}, expected four dimensions in NCHW or NHWC")
    dims = [d if isinstance(d, int) and d > 0 else None for d in shape]
    channels, height, width = dims[1:] if layout == "NCHW" else (dims[3], dims[1], dims[2])
    return (height, width) if height is not None and width is not None else None, channels


def _from_text(text: str, size: Size | None, channels: int | None, config: Mapping[str, Any] | None) -> Preprocess:
    if text in PRESETS:
        size = size or _DEFAULT_SIZES.get(text)
        if size is None:
            raise PreprocessError(
                f"preset {text!r} stretches to the model's input, whose size is dynamic; name it with --input-size "
                "HEIGHTxWIDTH (input_size=), or give a JSON file with "
                '"resize": {"mode": "stretch", "size": [height, width]}'
            )
        return preset(text, size, 3 if channels is None else channels)
    kind, colon, file = text.partition(":")
    if kind in ("timm", "hf"):
        if colon and file:
            return _from_mapping(_read(Path(file), kind), size, kind)
        if config:
            return _from_mapping(config, size, kind)
        name = "config.json" if kind == "timm" else "preprocessor_config.json"
        raise PreprocessError(f"this model has no {kind} configuration: give its file, {kind}:path/to/{name}")
    path = Path(text)
    if path.exists() or path.suffix.lower() == ".json":
        return _from_mapping(_read(path), size, None)
    close = nearest(text, candidates(), 1)[0]
    raise PreprocessError(f"there is no preprocessing {text!r}; did you mean {close!r}? {_options()}")


def _read(path: Path, kind: str | None = None) -> Mapping[str, Any]:
    if path.is_dir():
        names = ("preprocessor_config.json", "config.json")[:: -1 if kind == "timm" else 1]
        path = next((path / name for name in names if (path / name).exists()), path / names[0])
    from onnxcam import documents  # an explanation without a preprocessing file needs neither

    try:
        data = files.read_bytes(path, _LARGEST)
        spec = documents.parse_json(data.removeprefix(b"\xef\xbb\xbf"))
    except files.FileError as error:
        raise PreprocessError(f"the preprocessing file {str(path)!r} {error}: {_options()}") from error
    except ValueError as error:
        raise PreprocessError(f"the preprocessing file {str(path)!r} {error}; {_HELP}") from error
    if not isinstance(spec, Mapping):
        raise PreprocessError(
            f"the preprocessing file {str(path)!r} contains a {type(spec).__name__}, expected a JSON object; {_HELP}"
        )
    return spec


def _from_mapping(spec: Mapping[str, Any], size: Size | None, kind: str | None) -> Preprocess:
    try:
        return _converted(spec, size, kind)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PreprocessError(
            f"the preprocessing has a value of another type than expected ({reason}): {_HELP}"
        ) from error


def _converted(spec: Mapping[str, Any], size: Size | None, kind: str | None) -> Preprocess:
    if not spec:
        raise PreprocessError(f"the preprocessing is empty: {_options()}")
    if kind is None:
        timm = {"pretrained_cfg", "input_size", "crop_pct", "crop_mode"}
        hf = {"image_mean", "do_normalize", "do_resize", "do_rescale", "image_processor_type", "feature_extractor_type"}
        kind = "timm" if timm & spec.keys() else "hf" if hf & spec.keys() else None
    if kind == "timm":
        return from_timm(spec)
    if kind == "hf":
        return from_hf(spec)
    return Preprocess.from_dict(spec, size)


def from_timm(config: Mapping[str, Any]) -> Preprocess:
    """Build timm's evaluation transform from a `pretrained_cfg`, alone or inside a model's config.json.

    With `crop_mode` "border" and a `crop_pct` below 1 the offset may differ from timm's by one pixel.
    """
    config = config.get("pretrained_cfg") or config
    shape = config.get("input_size", (3, 224, 224))
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise PreprocessError(f"timm's input_size is {shape!r}, expected [channels, height, width]")
    channels, size = shape[0], list(shape[1:])
    mean = list(config.get("mean", IMAGENET_MEAN))
    pct = config.get("crop_pct") or 0.875
    scaled = [math.floor(side / pct) for side in size]
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash", "border"):
        raise PreprocessError(f"timm's crop_mode is {mode!r}, expected 'center', 'squash' or 'border'")
    interpolation = config.get("interpolation") or "bicubic"
    resize: dict[str, Any] = {
        "mode": {"center": "shortest", "squash": "stretch", "border": "letterbox"}[mode],
        "size": scaled[0] if mode == "center" and scaled[0] == scaled[1] else scaled,
        "interpolation": {"random": "bilinear", "box": "area", "lanczos3": "lanczos"}.get(interpolation, interpolation),
    }
    if mode == "border":
        resize["pad_value"] = [round(255 * value) for value in mean]
    return Preprocess.from_dict(
        {
            "color": "L" if channels == 1 else "RGB",
            "scale": 1 / 255,
            "mean": mean,
            "std": list(config.get("std", IMAGENET_STD)),
            "resize": resize,
            "crop": {"size": size},
        }
    )


# PIL's resampling filters by number; 5 (Hamming) is not the default of any image processor
_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}


def from_hf(config: Mapping[str, Any]) -> Preprocess:
    """Build a Hugging Face image processor's steps from preprocessor_config.json: resize, crop, rescale, normalise."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    resample = config.get("resample", 2)
    if resample not in _PIL_FILTERS:
        raise PreprocessError(f"resample is {resample!r}, expected one of {sorted(_PIL_FILTERS)} (PIL's filters)")
    crop = _hf_size(config.get("crop_size"), "crop_size") if config.get("do_center_crop") else None
    resize: dict[str, Any] | None = None
    if config.get("do_resize", True):
        size = config.get("size", {"height": 224, "width": 224})
        if kind.startswith("ConvNext"):
            resize, crop = _convnext(config, size)
        elif isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
            resize = {"mode": "shortest", "size": _shorter(kind, config, size["shortest_edge"])}
        elif isinstance(size, int) and crop is not None:
            # old files: a number with a centre crop is the shorter side
            resize = {"mode": "shortest", "size": _shorter(kind, config, size)}
        else:
            resize = {"mode": "stretch", "size": _hf_size(size, "size")}
        resize["interpolation"] = _PIL_FILTERS[resample]
    # MobileViT's processor has no such step
    normalize = config.get("do_normalize", not kind.startswith("MobileViT"))
    mean, std = config.get("image_mean", IMAGENET_MEAN), config.get("image_std", IMAGENET_STD)
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if config.get("rescale_offset"):
        raise PreprocessError("rescale_offset is not supported: write scale, mean and std into a JSON file instead")
    if not normalize:
        mean, std = 0.0, 1.0
    elif config.get("include_top") and kind.startswith("EfficientNet"):
        # EfficientNet's processor divides by std a second time for inference
        std = [value * value for value in std]
    return Preprocess.from_dict(
        {
            "color": "BGR" if config.get("do_flip_channel_order") else "RGB",
            "scale": scale,
            "mean": mean,
            "std": std,
            "resize": resize,
            "crop": crop and {"size": crop, "anchor": "center_floor"},
        }
    )


def _shorter(kind: str, config: Mapping[str, Any], side: Any) -> Any:
    """The shorter side before the crop, which two processors make larger than configured."""
    if kind.startswith("Levit"):
        return int(256 / 224 * side)
    if kind.startswith("PoolFormer") and config.get("crop_pct"):
        return int(side / config["crop_pct"])
    return side


def _convnext(config: Mapping[str, Any], size: Any) -> tuple[dict[str, Any], list[int] | None]:
    """ConvNeXt: below 384 the shorter side is enlarged by 1/crop_pct and cropped; from 384 on, stretched."""
    side = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(side, int):
        raise PreprocessError(f"size is {size!r}, expected {{'shortest_edge': n}}")
    if side >= 384:
        return {"mode": "stretch", "size": [side, side]}, None
    return {"mode": "shortest", "size": int(side / config.get("crop_pct", 224 / 256))}, [side, side]


def _hf_size(size: Any, what: str) -> list[int]:
    if isinstance(size, int):
        return [size, size]
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return [size["height"], size["width"]]
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return [size["shortest_edge"], size["shortest_edge"]]
    raise PreprocessError(f"{what} is {size!r}, expected {{'height': h, 'width': w}} or {{'shortest_edge': n}}")
