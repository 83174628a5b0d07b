"""Resizing, cropping and scaling, against Pillow, torchvision, timm and OpenCV."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxcam.errors import PreprocessError
from onnxcam.image import PRESETS, Preprocess, candidates, from_hf, from_timm, preset, resolve
from onnxcam.image.resample import resize
from tests.image.pictures import noise, smooth
from tests.support.examples import examples
from tests.support.torchvision_stub import import_torchvision

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [(375, 500), (500, 375), (28, 28), (33, 517), (224, 224), (223, 225), (1, 1), (300, 7)]


def pillow(pixels, size, how):
    """Pillow's resize, the width first as every Pillow before 13 does; 13 takes the height first for some shapes."""
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size[1], image.height), FILTERS[how]).resize(size[::-1], FILTERS[how]))


@examples(60)
@given(
    st.tuples(*[st.integers(1, 200)] * 4),
    st.sampled_from(sorted(FILTERS)),
    st.integers(0, 9),
)
def test_resize_is_pillows_bit_for_bit(sizes, how, seed):
    pixels = noise(*sizes[:2], seed=seed)
    np.testing.assert_array_equal(resize(pixels, sizes[2:], how), pillow(pixels, sizes[2:], how))


@examples(60)
@given(st.tuples(*[st.integers(1, 120)] * 4), st.sampled_from(sorted(FILTERS)), st.booleans(), st.data())
def test_a_window_is_cut_from_the_whole(sizes, how, antialias, data):
    pixels = noise(*sizes[:2])
    window = []
    for side in sizes[2:]:
        start = data.draw(st.integers(0, side - 1))
        window.append(slice(start, data.draw(st.integers(start + 1, side))))
    whole = resize(pixels, sizes[2:], how, antialias)
    np.testing.assert_array_equal(resize(pixels, sizes[2:], how, antialias, tuple(window)), whole[tuple(window)])


@pytest.mark.parametrize("how", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_one_call_of_pillow_where_proportions_are_kept(size, how):
    pixels = noise(*size)
    short = min(size)
    scaled = tuple(side * 224 // short for side in size) if short > 20 else (size[0] * 3, size[1] * 3)
    expected = np.asarray(Image.fromarray(pixels).resize(scaled[::-1], FILTERS[how]))
    np.testing.assert_array_equal(resize(pixels, scaled, how), expected)


@pytest.mark.parametrize(("how", "flag"), [("bilinear", 1), ("bicubic", 2), ("area", 3), ("lanczos", 4)])
def test_without_antialias_it_is_opencv(how, flag):
    import cv2

    pixels = noise(53, 91)
    expected = cv2.resize(pixels, (64, 40), interpolation=flag)
    np.testing.assert_array_equal(resize(pixels, (40, 64), how, antialias=False), expected)
    gray = pixels[..., :1]
    assert resize(gray, (40, 64), how, antialias=False).shape == (40, 64, 1)


def _torchvision(side: int, crop, how: str = "bilinear"):
    transforms = import_torchvision().transforms.v2
    import torch

    return transforms.Compose(
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode(how), antialias=True),
            transforms.CenterCrop(crop),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_imagenet_is_torchvisions(size, how):
    pixels = noise(*size)
    spec = preset("imagenet", (224, 224)).to_dict()
    spec["resize"]["interpolation"] = how
    tensor, geometry = Preprocess.from_dict(spec).apply(pixels)
    expected = _torchvision(256, 224, how)(Image.fromarray(pixels)).numpy()
    assert geometry.input_size == (224, 224)
    np.testing.assert_allclose(tensor[0], expected, rtol=0, atol=2e-6)


def test_torchvision_on_tensors_within_one_level():
    import torch

    pixels = smooth(375, 500)
    tensor, _ = preset("imagenet", (224, 224)).apply(pixels)
    expected = _torchvision(256, 224)(torch.from_numpy(pixels).permute(2, 0, 1)).numpy()
    assert np.abs(tensor[0] - expected).max() <= 1 / 255 / 0.224 + 1e-6


@pytest.mark.parametrize("picture", [(256, 256), (255, 257), (100, 301), (224, 230), (10, 500)])
@pytest.mark.parametrize("crop", [(224, 224), (225, 223), (64, 400)])
def test_center_crop_and_its_padding_are_torchvisions(picture, crop):
    transforms = import_torchvision().transforms.v2
    pixels = noise(*picture)
    transformed, _ = Preprocess.from_dict({"crop": {"size": list(crop)}}).transform(pixels)
    np.testing.assert_array_equal(transformed, np.asarray(transforms.CenterCrop(crop)(Image.fromarray(pixels))))


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
        {
            "input_size": [3, 160, 224],
            "interpolation": "bilinear",
            "crop_pct": 0.95,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "border"},
        {"input_size": [3, 299, 299]},
    ],
)
@pytest.mark.parametrize("size", [(375, 500), (301, 200), (100, 90)])
def test_timm(config, size):
    import_torchvision()
    pytest.importorskip("timm")
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    pixels = smooth(*size)
    expected = create_transform(**resolve_data_config(pretrained_cfg=config))(Image.fromarray(pixels)).numpy()
    tensor, _ = from_timm(config).apply(pixels)
    # squash changes the proportions, where Pillow 13 swaps its passes: one grey level
    level = 1 / 255 / min(config.get("std", [0.224])) + 1e-5 if config.get("crop_mode") == "squash" else 3e-6
    np.testing.assert_allclose(tensor[0], expected, rtol=0, atol=level)
    assert resolve({"pretrained_cfg": config}, ["N", *config["input_size"]]) == from_timm(config)


def test_hugging_face_steps():
    """The documented steps of ViTImageProcessor and CLIPImageProcessor, done with PIL."""
    pixels = smooth(301, 402)
    vit = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}
    vit |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True, "do_normalize": True}
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)) / 255.0 * 2 - 1
    np.testing.assert_allclose(from_hf(vit).apply(pixels, layout="NHWC")[0][0], expected, atol=1e-6)

    clip = {"size": {"shortest_edge": 223}, "crop_size": {"height": 200, "width": 200}, "do_center_crop": True}
    clip |= {"resample": 3, "do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255}
    resized = np.asarray(Image.fromarray(pixels).resize((int(223 * 402 / 301), 223), Image.Resampling.BICUBIC))
    top, left = (223 - 200) // 2, (resized.shape[1] - 200) // 2
    expected = resized[top : top + 200, left : left + 200] / 255.0
    np.testing.assert_allclose(from_hf(clip).apply(pixels, layout="NHWC")[0][0], expected, atol=1e-6)

    flipped = from_hf(vit | {"do_flip_channel_order": True})
    np.testing.assert_array_equal(flipped.apply(pixels)[0], from_hf(vit).apply(pixels)[0][:, ::-1])
    convnext = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3}
    assert from_hf(convnext).to_dict()["resize"]["size"] == 256
    assert from_hf(convnext | {"size": 384}).to_dict()["crop"] is None
    for wrong in ({"resample": 5}, {"size": {"longest_edge": 3}}, {"rescale_offset": True}):
        with pytest.raises(PreprocessError):
            from_hf(vit | wrong)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("caffe", lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68])),
        ("0..1", lambda x: x / 255),
        ("-1..1", lambda x: x / 127.5 - 1),
        ("tf", lambda x: x / 127.5 - 1),
        ("torch", lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("raw", lambda x: x),
    ],
)
def test_keras_presets(name, expected):
    """Keras' formulas on a picture that needs no resizing; float32 and float16, both layouts."""
    pixels = noise(32, 48)
    value = expected(pixels.astype(np.float64))
    spec = preset(name, (32, 48))
    nhwc, _ = spec.apply(pixels, layout="NHWC")
    assert nhwc.dtype == np.float32 and nhwc.flags.c_contiguous
    np.testing.assert_allclose(nhwc[0], value, rtol=1e-6, atol=1e-6)
    nchw, _ = spec.apply(pixels, layout="NCHW", dtype="float16")
    assert nchw.dtype == np.float16 and nchw.shape == (1, 3, 32, 48)
    np.testing.assert_array_equal(nchw[0].transpose(1, 2, 0), value.astype(np.float16))


def test_uint8_input():
    pixels = noise(8, 9)
    np.testing.assert_array_equal(preset("raw", (8, 9)).apply(pixels, layout="NHWC", dtype="uint8")[0][0], pixels)
    for name in ("0..1", "imagenet", "-1..1", "caffe"):
        with pytest.raises(PreprocessError, match="takes uint8 but"):
            preset(name, (8, 9)).apply(pixels, dtype="uint8")


def test_gray_is_pils():
    pixels = noise(31, 17)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    tensor, _ = preset("raw", (31, 17), channels=1).apply(pixels)
    np.testing.assert_array_equal(tensor, expected[None, None])


def test_letterbox_places_and_pads():
    spec = {"color": "BGR", "resize": {"mode": "letterbox", "size": [64, 64], "pad_value": [1, 2, 3]}}
    pixels = noise(100, 37)
    tensor, geometry = Preprocess.from_dict(spec).apply(pixels, layout="NHWC")
    assert geometry.resized_size == (64, 24) and geometry.offset == (0, 20)
    np.testing.assert_array_equal(tensor[0, :, 20:44], pillow(pixels, (64, 24), "bilinear")[..., ::-1])
    for padding in (tensor[0, :, :20], tensor[0, :, 44:]):
        assert (padding == [1, 2, 3]).all()


@pytest.mark.parametrize(
    ("anchor", "at"),
    [
        ("top_left", (0, 0)),
        ("top_right", (0, 3)),
        ("bottom_left", (5, 0)),
        ("bottom_right", (5, 3)),
        ("center", (2, 2)),
        ("center_floor", (2, 1)),
    ],
)
def test_crop_anchors(anchor, at):
    pixels = noise(10, 8)
    transformed, geometry = Preprocess.from_dict({"crop": {"size": [5, 5], "anchor": anchor}}).transform(pixels)
    np.testing.assert_array_equal(transformed, pixels[at[0] : at[0] + 5, at[1] : at[1] + 5])
    assert geometry.offset == (-at[0], -at[1])


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name):
    spec = preset(name, (96, 64))
    assert Preprocess.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.output_size == (96, 64)
    assert name in candidates()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"colour": "RGB"}, "no key 'colour'; did you mean 'color'"),
        ({"color": "rgb"}, "color is 'rgb'.*did you mean 'RGB'"),
        ({"mean": [1, 2]}, "mean has 2 values, expected 3"),
        ({"std": [1, 0, 1]}, "dividing by 0"),
        ({"scale": "1/255"}, "scale is '1/255', expected a number"),
        ({"scale": float("nan")}, "expected a number"),
        ({"resize": {"mode": "squash", "size": 3}}, "resize mode is 'squash'"),
        ({"resize": {"mode": "stretch"}}, "resize size is None"),
        ({"resize": {"mode": "stretch", "size": [3, 4, 5]}}, r"resize size is \[3, 4, 5\]"),
        ({"resize": {"mode": "stretch", "size": 0}}, "resize size is 0"),
        ({"resize": {"mode": "stretch", "size": 8, "interpolation": "cubic"}}, "did you mean 'bicubic'"),
        ({"resize": {"mode": "stretch", "size": 8, "antialias": 1}}, "antialias is 1, expected true or false"),
        ({"resize": {"mode": "stretch", "size": 8, "pad": 1}}, "did you mean 'pad_value'"),
        ({"resize": 224}, "resize is 224, expected"),
        ({"crop": {"size": 8, "anchor": "middle"}}, "crop anchor is 'middle'"),
        ({"crop": {"size": True}}, "crop size is True"),
        ({"crop": [3]}, "crop is"),
    ],
)
def test_wrong_specs_are_named(spec, message):
    with pytest.raises(PreprocessError, match=message):
        Preprocess.from_dict(spec)


def test_resolve(tmp_path):
    shape = ["N", 3, 224, 224]
    assert resolve("imagenet", shape) == preset("imagenet", (224, 224)) == resolve("imagenet", ["N", 3, "h", "w"])
    assert resolve("0..1", ["N", 32, 48, 1], layout="NHWC") == preset("0..1", (32, 48), 1)
    spec = preset("caffe", (224, 224))
    assert resolve(spec, shape) is spec
    assert resolve({"scale": 1 / 255}, shape).output_size == (224, 224), "an unmentioned resize stretches to the input"
    assert resolve({"scale": 1 / 255, "resize": None}, shape).output_size is None
    file = tmp_path / "prep.json"
    file.write_text(json.dumps(spec.to_dict()))
    assert resolve(file, shape) == resolve(str(file), shape) == spec
    config = {"input_size": [3, 224, 224], "crop_pct": 1.0}
    assert resolve("timm", shape, config=config) == from_timm(config)
    file.write_text(json.dumps(config))
    assert resolve(f"timm:{file}", shape) == resolve(file, shape) == from_timm(config)
    processor = {"do_resize": True, "size": {"height": 224, "width": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert resolve(f"hf:{tmp_path}", shape) == from_hf(processor)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (
            None,
            None,
            "has no preprocessing in its metadata.*'imagenet', 'caffe', 'torch', '0..1', '-1..1', 'tf', 'raw'",
        ),
        ({}, None, "is empty"),
        ("imagnet", None, "no preprocessing 'imagnet'; did you mean 'imagenet'"),
        ("missing.json", None, "cannot be read"),
        ("timm", None, "has no timm configuration"),
        ("0..1", ["N", 3, "h", "w"], "size is dynamic"),
        ("imagenet", ["N", 1, 28, 28], "for 3 channels and the model takes 1"),
        ("imagenet", ["N", 4, 28, 28], "for 3 channels and the model takes 4"),
        ({"color": "RGB"}, ["N", 4, 9, 9], "'bands' with its number of channels"),
        ({"resize": {"size": 224}}, ["N", 3, 299, 299], "gives 224x224 pixels .* takes 299x299"),
        ({"color": "L"}, ["N", 3, 9, 9], "gives 1 channels"),
        ("raw", ["N", 10], "four dimensions"),
        (7, None, "is a int"),
    ],
)
def test_resolve_errors(spec, shape, message):
    with pytest.raises(PreprocessError, match=message):
        resolve(spec, shape)


def test_broken_files(tmp_path):
    for text, message in (("{", "is not JSON"), ("[1]", "contains a list")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(PreprocessError, match=message):
            resolve(tmp_path / "x.json")


def test_unknown_layout_and_dtype():
    spec = preset("raw", (4, 4))
    with pytest.raises(PreprocessError, match="layout is 'NCWH'"):
        spec.apply(noise(4, 4), layout="NCWH")
    with pytest.raises(PreprocessError, match="dtype is 'int8'"):
        spec.apply(noise(4, 4), dtype="int8")
