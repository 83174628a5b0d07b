"""Pictures of many bands, and tensors of the model's own input, from file to map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcam
from onnxcam import Explainer
from onnxcam.errors import PictureError, PreprocessError
from tests.support import models, runtime

FOUR = Path(__file__).parent.parent / "cases" / "four_channels.onnx"


def drawn(shape: tuple[int, ...], high: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, high, shape)


def scores(tensor: np.ndarray) -> np.ndarray:
    """The plain file's own, by ONNX Runtime."""
    return runtime.run(FOUR, tensor.astype(np.float32))["24"]


def expected_map(tensor: np.ndarray) -> np.ndarray:
    return Explainer(FOUR).attribute(tensor.astype(np.float32))[0]


def test_prepared_tensors_are_taken_as_they_are(tmp_path: Path) -> None:
    tensor = drawn((1, 4, 64, 64)).astype(np.float32)
    np.save(tmp_path / "batch.npy", tensor)
    np.save(tmp_path / "one.npy", tensor[0].astype(np.float64))
    explainer = Explainer(FOUR)
    for source in (tmp_path / "batch.npy", tmp_path / "one.npy", tensor, tensor[0]):
        loaded, batch, geometry = explainer.prepare(source)
        np.testing.assert_array_equal(batch, tensor)
        assert batch.dtype == np.float32 and geometry.picture_size == (64, 64)
        explanation = explainer.explain(source)
        np.testing.assert_allclose(explanation.heatmap, expected_map(tensor), atol=1e-6)
        assert explanation.target == scores(tensor)[0].argmax()
        assert loaded.pixels.shape == (64, 64, 3) and explanation.overlay().shape == (64, 64, 3)


def test_pictures_of_four_bands_are_scaled_by_the_range(tmp_path: Path) -> None:
    reflectance = drawn((80, 96, 4), 9000).astype(np.uint16)
    explainer = Explainer(FOUR, preprocess="0..1", value_range=(0, 10000), bands=(2, 1, 0))
    resized = explainer.preparation.preprocess.resize  # type: ignore[union-attr]
    assert resized is not None
    small = drawn((64, 64, 4), 9000).astype(np.uint16)  # needs no resizing: the tensor is known
    np.save(tmp_path / "small.npy", small)
    for source in (tmp_path / "small.npy", small, np.moveaxis(small, 2, 0)):
        _, batch, _ = explainer.prepare(source)
        np.testing.assert_allclose(batch[0], np.moveaxis(small / 10000, 2, 0), atol=1e-6)
    explanation = explainer.explain(reflectance)
    assert explanation.heatmap.shape == (80, 96) and explanation.warnings == []
    beyond = explainer.explain(small * 2)
    assert "beyond the stated range 0 to 10000" in beyond.warnings[0]


def test_multi_band_tiff_gives_the_map_of_its_array(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = drawn((64, 64, 4), 60000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "bands.tif", array, planarconfig="contig", photometric="minisblack")
    floats = (array / 65535).astype(np.float32)
    tifffile.imwrite(tmp_path / "float.tif", floats, planarconfig="contig", photometric="minisblack")
    tensor = np.moveaxis(array / 65535, 2, 0)[None]
    whole = Explainer(FOUR, preprocess="0..1").explain(tmp_path / "bands.tif")
    stated = Explainer(FOUR, preprocess="0..1", value_range=(0, 1)).explain(tmp_path / "float.tif")
    for explanation in (whole, stated):
        np.testing.assert_allclose(explanation.heatmap, expected_map(tensor), atol=1e-4)
    with pytest.raises(PictureError, match=r"float\.tif.*float32 values.*--range"):
        Explainer(FOUR, preprocess="0..1").explain(tmp_path / "float.tif")


@pytest.mark.slow
def test_nothing_is_guessed() -> None:
    one = drawn((4, 64, 64)).astype(np.float32)
    with pytest.raises(PictureError, match=r"prepared input or a picture.*array\[None\].*--range"):
        Explainer(FOUR, preprocess="0..1").explain(one)
    with pytest.raises(PreprocessError, match=r"name it.*model's own input, float32 \[N, 4, 64, 64\]"):
        Explainer(FOUR).explain(np.zeros((64, 64, 4), np.uint8))
    with pytest.raises(PreprocessError, match="name it"):
        Explainer(FOUR, value_range=(0, 1))
    with pytest.raises(PictureError, match="holds 2 rows"):
        Explainer(FOUR).explain(drawn((2, 4, 64, 64)))
    with pytest.raises(PictureError, match="not finite"):
        Explainer(FOUR).explain(np.full((1, 4, 64, 64), np.nan, np.float32))
    with pytest.raises(PictureError, match=r"3 bands|has 3 channels"):
        Explainer(FOUR, preprocess="0..1").explain(np.zeros((64, 64, 3), np.uint8))
    for bad in ((0, 0), (0,), "wide", (0, float("nan"))):
        with pytest.raises(PictureError, match="range is"):
            Explainer(FOUR, preprocess="0..1", value_range=bad)  # type: ignore[arg-type]
    for bands in ((0, 1), (-1,), (0.5, 1, 2), ()):
        with pytest.raises(PictureError, match="bands are"):
            Explainer(FOUR, preprocess="0..1", bands=bands)  # type: ignore[arg-type]


@pytest.mark.parametrize("nhwc", [False, True])
def test_the_range_is_stored_in_the_file(nhwc: bool) -> None:
    spec = {"color": "bands", "channels": 2, "scale": 1 / 255, "range": [0, 4095]}
    model = onnxcam.augment(models.tiny_cnn(channels=2, size=16, nhwc=nhwc), preprocess=spec)
    explainer = Explainer(model)
    array = drawn((16, 16, 2), 4095).astype(np.uint16)
    _, batch, _ = explainer.prepare(array)
    tensor = array / 4095
    np.testing.assert_allclose(batch[0], tensor if nhwc else np.moveaxis(tensor, 2, 0), atol=1e-6)
    assert explainer.explain(array).heatmap.shape == (16, 16)


def test_grey_of_12_bits_reaches_a_colour_model_with_all_its_levels() -> None:
    explainer = Explainer(models.tiny_cnn(size=64), preprocess="0..1", value_range=(0, 4095))
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    _, batch, _ = explainer.prepare(levels)
    for channel in range(3):
        np.testing.assert_allclose(batch[0, channel], levels / 4095, atol=1e-6)
