"""Two models on the same pictures: distances against the explainer's own maps, whatever the layouts and sizes are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import Explainer, image
from onnxcam.diagnose.shift import compare
from onnxcam.diagnose.shift.conditions import Condition
from onnxcam.diagnose.shift.distance import distances, shares
from onnxcam.diagnose.shift.null import Seeds
from onnxcam.diagnose.shift.text import lines
from onnxcam.errors import InputError, ModelError, PictureError, SettingError
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


@pytest.mark.slow
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


def weighted(change: Any, **options: Any) -> Explainer:
    """The model with other weights in its last layer."""
    model = tiny_cnn(**options)
    (weights,) = (one for one in model.graph.initializer if one.name == "w3")
    values = np.frombuffer(weights.raw_data, np.float32).reshape(weights.dims)
    weights.raw_data = np.ascontiguousarray(change(values), np.float32).tobytes()
    return Explainer(model, preprocess=RAW, providers=CPU)


@pytest.mark.slow
def test_scores_that_are_not_finite_are_refused() -> None:
    broken = weighted(lambda values: values * np.nan)
    with pytest.raises(ModelError, match="NEW gives scores that are not finite for the picture 'a'"):
        compare(explainer(), broken, PICTURES[:2], names=["a", "b"])
    with pytest.raises(ModelError, match="OLD gives scores that are not finite"):
        compare(broken, broken, PICTURES[:2])
    seeds = [retrained(noise=0.01 * k) for k in range(1, 6)]
    with pytest.raises(ModelError, match="training 6 of the null gives scores"):
        compare(explainer(), retrained(), PICTURES[:2], null=Seeds([*seeds, broken]))


@pytest.mark.slow
def test_maps_most_of_which_are_empty_give_no_verdict() -> None:
    blank = weighted(np.zeros_like)
    seeds = [weighted(np.zeros_like, seed=k) for k in range(1, 6)]
    for old, new in ((blank, blank), (explainer(), blank)):
        for null in ("augment:4", Seeds(seeds)):
            shift = compare(old, new, PICTURES, null=null)
            assert shift.verdict is None and "of 11 in NEW (layer" in shift.undecided
            assert "name another layer or method" in shift.undecided and shift.to_dict()["undecided"]
            outcome = Condition.parse("attention").decide(shift)
            assert outcome.failed is None and outcome.sentence == shift.undecided


@pytest.mark.slow
def test_copies_are_no_other_trainings() -> None:
    """OLD, NEW and a training in another form among the trainings are left out; four are too few."""
    old, new = explainer(), retrained()
    seeds = [retrained(noise=0.01 * k) for k in range(1, 6)]
    plain = compare(old, new, PICTURES, null=Seeds(seeds))
    shift = compare(old, new, PICTURES, null=Seeds([explainer(nhwc=True), *seeds, retrained(), retrained(noise=0.02)]))
    assert plain.verdict is not None and shift.verdict is not None and shift.verdict.size == 5
    assert shift.verdict.p == pytest.approx(plain.verdict.p, rel=1e-3)
    assert [one.p for one in shift.pictures] == [one.p for one in plain.pictures]
    assert [note.partition(", so")[0] for note in shift.notes] == [
        f"training {number} of the null is left out of the null: its maps and scores are those of {other}"
        for number, other in ((1, "OLD"), (7, "NEW"), (8, "training 3 of the null"))
    ]
    few = compare(old, new, PICTURES, null=Seeds([*seeds[:4], seeds[0], explainer(nhwc=True)]))
    assert (
        few.verdict is None
        and "has 4 other trainings of OLD" in few.undecided
        and "its maps and scores are" in few.undecided
    )


@pytest.mark.slow
def test_what_the_caller_says_of_old_holds_for_its_other_trainings(tmp_path: Path) -> None:
    halved: dict[str, Any] = {**RAW, "scale": 1 / 510}
    files, plain = [], []
    for seed in range(11, 16):
        files.append(str(tmp_path / f"{seed}.onnx"))
        onnx.save(onnxcam.augment(tiny_cnn(seed=seed), preprocess=RAW), files[-1])
        plain.append(Explainer(tiny_cnn(seed=seed), preprocess=halved, providers=CPU))
    old, new = explainer(halved), Explainer(tiny_cnn(seed=16), preprocess=halved, providers=CPU)
    results = [compare(old, new, PICTURES, null=Seeds(some)) for some in (files, plain)]
    verdicts = [result.verdict for result in results]
    assert [result.undecided for result in results] == ["", ""]
    assert verdicts[0] is not None and verdicts[1] is not None
    assert verdicts[0].p == pytest.approx(verdicts[1].p, rel=1e-4) and results[0].notes == results[1].notes == []
    mixed = compare(old, new, PICTURES, null=Seeds([explainer(seed=9), *plain]))
    assert "1 of 6 other trainings prepare pictures differently from OLD ('training 1" in mixed.notes[0]


def test_a_file_that_does_not_say_how_pictures_are_prepared_takes_those_of_old() -> None:
    shift = compare(explainer(), tiny_cnn(seed=7).SerializeToString(), PICTURES)
    assert "NEW does not say how pictures become tensors: they are prepared as for OLD" in shift.notes[0]
    assert shift.distance == pytest.approx(compare(explainer(), explainer(seed=7), PICTURES).distance)


@pytest.mark.parametrize("index", ["0", 0.5, -1, 5, True])
def test_a_truth_that_is_no_class_is_refused(index: Any) -> None:
    with pytest.raises(InputError, match=r"truth\[1\] is .*; expected the index of a class, an integer from 0 to 4"):
        compare(explainer(), explainer(), PICTURES[:2], truth=[None, index])


def test_numbers_say_over_which_pictures_they_are() -> None:
    shift = compare(explainer(), retrained(), PICTURES, truth=[0, 1, *[None] * 9])
    assert "the true class is known of 2 of 11 pictures" in shift.notes[-1] and shift.truths == 2
    assert any("(of 2 of 11 pictures, whose class is known)" in line for line in lines(shift))
    assert "on 2 of 11 pictures" in Condition.parse("accuracy").decide(shift).sentence
    shift = compare(explainer(), explainer(), [*PICTURES[:3], PICTURES[1].copy()], names=["a", "b", "c", "d"])
    assert "1 pictures are copies of others, as 'd' of 'b'" in shift.notes[0]


def test_a_map_that_lost_all_energy_has_none_in_its_region() -> None:
    names = [f"{k}.jpg" for k in range(len(PICTURES))]
    boxes = {name: [[0, 0, 20, 30]] for name in names[:4]} | {"4.jpg": [[900, 900, 950, 950]]}
    shift = compare(explainer(), weighted(np.zeros_like), PICTURES, names=names, regions=boxes)
    (region,) = shift.regions
    old = [one.regions[""][0] for one in shift.pictures[:4]]
    energy = [share for share in old if share is not None]
    assert (
        energy and (region.pictures, region.new) == (len(energy), 0.0) and region.old == pytest.approx(np.mean(energy))
    )
    outcome = Condition.parse("region > 10%").decide(shift)
    assert outcome.failed and f"on {len(energy)} of 11 pictures" in outcome.sentence
    assert any("lies outside of 1 pictures" in note for note in shift.notes)
    assert any(f"on {len(energy)} pictures NEW's map has no energy" in note for note in shift.notes)


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


@pytest.mark.slow
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
