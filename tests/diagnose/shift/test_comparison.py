"""Two models on the same pictures: distances against the explainer's own maps, whatever the layouts and sizes are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam import Explainer, image
from onnxcam.diagnose.shift import compare
from onnxcam.diagnose.shift.distance import distances, shares
from onnxcam.diagnose.shift.null import Seeds
from onnxcam.errors import InputError, PictureError, SettingError
from tests.cli.conftest import RAW
from tests.support.batches import picture
from tests.support.models import tiny_cnn

CPU = ["CPUExecutionProvider"]
# of different colours, so that the models have several favourites
TINTS = np.random.default_rng(5).uniform(0, 1, (11, 3))
PICTURES = [np.uint8(picture(40 + 3 * k, 56 - k, seed=k) * tint) for k, tint in enumerate(TINTS)]


def explainer(preprocess: Any = RAW, labels: Any = None, **options: Any) -> Explainer:
    return Explainer(tiny_cnn(**options), preprocess=preprocess, labels=labels, providers=CPU)


def retrained(noise: float = 1.0, **options: Any) -> Explainer:
    """The same model with other weights in its last layer."""
    model = tiny_cnn(**options)
    for weights in model.graph.initializer:
        if weights.name == "w3":
            values = np.frombuffer(weights.raw_data, np.float32)
            values = values + noise * np.random.default_rng(3).normal(size=values.shape).astype(np.float32)
            weights.raw_data = values.tobytes()
    return Explainer(model, preprocess=RAW, providers=CPU)


def far(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of two maps at layer resolution, which tests/diagnose/shift/test_distance.py holds to SciPy's."""
    return float(distances(shares(a[None]), shares(b[None]))[0])


def test_distances_are_those_of_the_maps_of_the_class_that_old_predicts() -> None:
    old, new = explainer(), retrained()
    shift = compare(old, new, PICTURES)
    assert len(shift.pictures) == len(PICTURES) and shift.target == "old"
    for source, one in zip(PICTURES, shift.pictures, strict=True):
        first = old.explain(source, method="hirescam")
        second = new.explain(source, first.target, method="hirescam")
        assert one.target == first.target == one.old.index == first.predictions[0][0]
        assert one.new.index == second.predictions[0][0]
        assert one.new.probability == pytest.approx(second.predictions[0][2], rel=1e-5)
        assert one.distance == pytest.approx(far(first.raw_map, second.raw_map), abs=1e-5)
        assert one.flipped == (first.predictions[0][0] != second.predictions[0][0])
    assert 0 < len(shift.flipped) < len(PICTURES) and shift.flipped_share == len(shift.flipped) / len(PICTURES)
    order = [one.distance for one in shift.stayed]
    assert order == sorted(order, reverse=True)


def test_a_model_is_no_distance_from_itself_plain_or_explainable_nchw_or_nhwc() -> None:
    old = explainer()
    explainable = Explainer(onnxcam.augment(tiny_cnn(), preprocess=RAW), providers=CPU)
    for new in (old, explainable, explainer(nhwc=True)):
        shift = compare(old, new, PICTURES, method="gradcam")
        assert shift.distance < 1e-5 and not shift.flipped
        assert {one.empty for one in shift.pictures} <= {(False, False), (True, True)}


def test_maps_of_other_sizes_are_compared_on_the_picture() -> None:
    """The same weights on an input of twice the size, and on the middle of the picture: the maps lie elsewhere."""
    old = explainer(size=None)
    resize = {"mode": "stretch", "size": [64, 64]}
    larger = compare(old, explainer({**RAW, "resize": resize}, size=None), PICTURES)
    crop = {**RAW, "resize": {"mode": "stretch", "size": [64, 64]}, "crop": {"size": [32, 32], "anchor": "center"}}
    cropped = compare(old, explainer(crop, size=None), PICTURES)
    assert 0.001 < larger.distance < 0.05 < cropped.distance


def test_maps_without_energy_have_distances_that_are_numbers() -> None:
    old, black = explainer(), tiny_cnn()
    for weights in black.graph.initializer:
        if weights.name == "w3":
            weights.raw_data = np.zeros_like(np.frombuffer(weights.raw_data, np.float32)).tobytes()
    new = Explainer(black, preprocess=RAW, providers=CPU)
    shift = compare(old, new, PICTURES)
    assert all(one.empty[1] and (one.distance > 0) is not one.empty[0] for one in shift.pictures)
    assert compare(new, new, PICTURES).distance == 0


def test_the_true_class_is_explained_where_it_is_known() -> None:
    truth = [3, None, 1, *[0] * 8]
    shift = compare(explainer(), retrained(), PICTURES, truth=truth)
    assert [one.target for one in shift.pictures[:3]] == [3, shift.pictures[1].old.index, 1]
    assert shift.target == "truth" and shift.accuracy is not None
    hits = [
        (one.old.index == t, one.new.index == t) for one, t in zip(shift.pictures, truth, strict=True) if t is not None
    ]
    assert shift.accuracy == tuple(np.mean(hits, axis=0))
    by_class = {one.index: one for one in shift.classes}
    extra = shift.pictures[1].old.index  # counted where OLD puts it
    assert by_class[0].pictures == 8 + (extra == 0) and by_class[1].pictures == 1 + (extra == 1)
    assert sum(one.flipped for one in shift.classes) == len(shift.flipped)


def test_other_classes_are_refused_with_the_first_that_differs() -> None:
    names = ["ant", "bee", "cat", "dog", "emu"]
    old = explainer(labels=names)
    with pytest.raises(SettingError, match="OLD has 5 classes and NEW has 4"):
        compare(old, explainer(classes=4), PICTURES)
    with pytest.raises(SettingError, match=r"same labels in another order.*class 0 is 'ant' in OLD and 'emu' in NEW"):
        compare(old, explainer(labels=names[::-1]), PICTURES)
    with pytest.raises(SettingError, match="1 other labels: class 4 is 'emu' in OLD and 'fox'"):
        compare(old, explainer(labels=[*names[:4], "fox"]), PICTURES)
    assert compare(old, explainer(labels=[" Ant", *names[1:]]), PICTURES[:1]).notes == []
    assert "taken on trust" in compare(old, explainer(), PICTURES[:1]).notes[0]


def test_a_picture_that_cannot_be_read_is_listed_and_the_others_compared(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    shift = compare(explainer(), explainer(seed=7), [PICTURES[0], broken, PICTURES[1]], names=["a", "b", "c"])
    assert [one.name for one in shift.pictures] == ["a", "c"]
    ((name, error),) = shift.failures
    assert name == "b" and isinstance(error, PictureError)
    with pytest.raises(InputError, match="none of the 1 pictures can be read"):
        compare(explainer(), explainer(seed=7), [broken])
    with pytest.raises(InputError, match="no pictures"):
        compare(explainer(), explainer(seed=7), [])
    with pytest.raises(InputError, match="truth has 1 entries for 2 pictures"):
        compare(explainer(), retrained(), PICTURES[:2], truth=[0])


def test_the_batch_size_of_a_file_changes_nothing() -> None:
    free = compare(explainer(), retrained(), PICTURES)
    fixed = compare(explainer(batch=3), retrained(batch=1), PICTURES)
    assert [one.distance for one in fixed.pictures] == pytest.approx([one.distance for one in free.pictures], abs=1e-6)


def test_verdicts_are_given_against_a_null_alone() -> None:
    seeds = [retrained(noise=0.01 * k) for k in range(1, 7)]
    assert compare(explainer(), retrained(), PICTURES).verdict is None
    shift = compare(explainer(), retrained(), PICTURES, null=Seeds(seeds))
    assert shift.verdict is not None and shift.verdict.moved and shift.verdict.null == "seeds"
    assert all(one.p is not None and one.p >= 1 / 7 for one in shift.pictures)
    with pytest.raises(SettingError, match="at least 5"):
        compare(explainer(), retrained(), PICTURES, null=Seeds(seeds[:4]))
    shift = compare(explainer(), retrained(noise=0.002), PICTURES, null="augment:4")
    assert shift.verdict is not None and not shift.verdict.moved
    shift = compare(explainer(), retrained(), PICTURES, null="augment:4")
    assert shift.verdict is not None and shift.verdict.moved
    swapped = compare(explainer(), explainer({**RAW, "color": "BGR"}), PICTURES, null="augment:4")
    assert swapped.verdict is not None and swapped.verdict.moved
    assert "prepare pictures differently: color RGB in OLD and BGR in NEW" in swapped.notes[0]
    with pytest.raises(SettingError, match="the null 'augment:0' is none"):
        compare(explainer(), retrained(), PICTURES, null="augment:0")


def test_energy_in_regions_is_that_of_the_maps_in_the_picture(tmp_path: Path) -> None:
    names = [f"p/{k}.jpg" for k in range(len(PICTURES))]
    (tmp_path / "boxes.csv").write_text("picture,x0,y0,x1,y1,name\n0.jpg,3,4,20,30,beak\np/1.jpg,0,0,56,10,\n")
    old, new = explainer(), retrained()
    shift = compare(old, new, PICTURES, names=names, regions=tmp_path / "boxes.csv")
    (pair,) = shift.pictures[0].regions.items()
    for model, share in zip((old, new), pair[1], strict=True):
        heatmap = model.explain(PICTURES[0], shift.pictures[0].target, "hirescam", normalize="none").heatmap
        assert share == pytest.approx(heatmap[4:30, 3:20].sum() / heatmap.sum(), abs=1e-5)
    assert pair[0] == "beak" and list(shift.pictures[1].regions) == [""] and not shift.pictures[2].regions
    mask = np.zeros(PICTURES[0].shape[:2], np.uint8)
    mask[4:30, 3:20] = 1
    (tmp_path / "masks").mkdir()
    image.write_png(tmp_path / "masks" / "0.png", mask)
    masked = compare(old, new, PICTURES, names=names, regions=tmp_path / "masks")
    assert masked.pictures[0].regions[""] == pytest.approx(pair[1])
    assert masked.regions[0].pictures == 1 and masked.regions[0].old == pytest.approx(pair[1][0])
    with pytest.raises(InputError, match="none of the 11 pictures has a region"):
        compare(old, new, PICTURES, regions={"other.jpg": [[0, 0, 3, 3]]})
    image.write_png(tmp_path / "masks" / "0.png", mask[:9])
    with pytest.raises(SettingError, match="give masks of the pictures' size"):
        compare(old, new, PICTURES, names=names, regions=tmp_path / "masks")
