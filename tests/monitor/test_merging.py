"""Baselines of parts, merged in any order, against the baseline of all records at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcam.errors import InputError
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor.drift import Detector
from onnxcam.monitor.sketch import Part, Sketch, key_of, union
from onnxcam.monitor.table import Rows
from tests.monitor import synthetic
from tests.support.examples import examples


def records(first: int, count: int, **changes: Any) -> list[dict[str, Any]]:
    return [synthetic.record(n, **changes) for n in range(first, first + count)]


NORMAL = records(0, 1400)
LATER = records(5000, 520)


def content(document: dict[str, Any]) -> dict[str, Any]:
    """All of a baseline but the time at which it was made."""
    return {name: value for name, value in document.items() if name != "made"}


def parts(number: int, rng: np.random.Generator, rows: int = 600) -> list[dict[str, Any]]:
    """Baselines of the normal records, dealt out at random."""
    of = rng.integers(number, size=len(NORMAL))
    split = [[record for record, place in zip(NORMAL, of, strict=True) if place == part] for part in range(number)]
    return [baselines.build(some, rows=rows, fewest=1)[0] for some in split if some]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [600, 4000])
def test_eight_parts_give_the_verdict_of_one_process_to_the_last_bit(rows: int) -> None:
    rng = np.random.default_rng(3)
    whole = baselines.build(NORMAL, rows=rows)[0]
    split = parts(8, rng, rows)
    rng.shuffle(split)  # type: ignore[arg-type]
    merged, notes = baselines.merge(split)
    assert (content(merged), notes) == (content(whole), [])
    pair = baselines.merge(split[:3], fewest=1)[0], baselines.merge(split[3:], fewest=1)[0]
    assert content(baselines.merge(pair)[0]) == content(whole), "merging twice is merging once"
    one, two = (Detector(baselines.parse(document), replicates=400) for document in (whole, merged))
    window = Rows.of(LATER, one.baseline.grid)
    assert one.assess(window) == two.assess(window)
    other = Detector(baselines.parse(baselines.build(NORMAL, rows=rows, seed=7)[0]), replicates=400)
    assert rows > len(NORMAL) or other.assess(window) != one.assess(window), "another sample gives other numbers"


@examples(60)
@given(st.lists(st.lists(st.integers(0, 400), max_size=60), min_size=1, max_size=6), st.integers(1, 40), st.randoms())
def test_the_union_of_sketches_is_the_sketch_of_the_union(numbers: list[list[int]], size: int, random: Any) -> None:
    def sketch(values: list[int]) -> Sketch[int]:
        result: Sketch[int] = Sketch(size)
        for value in values:
            result.add(key_of(str(value), 5), lambda value=value: value)  # type: ignore[misc]
        return result

    everything = [value for some in numbers for value in some]
    random.shuffle(everything)
    whole = sketch(everything)
    every = sorted({key_of(str(value), 5): value for value in everything}.items())
    assert sorted(whole.values.items()) == every[:size], "the smallest keys of all"
    pieces = [sketch(some) for some in numbers]
    keys = [np.array(list(piece.values), np.uint64) for piece in pieces]
    places, repeated = union([Part(some, size) for some in keys], size)
    merged = np.concatenate(keys)[places].tolist()
    assert merged == sorted(whole.values)
    assert repeated == sum(len(some) for some in keys) - len(set(np.concatenate(keys).tolist()))


def test_parts_of_different_sizes_stay_a_uniform_sample() -> None:
    """What a small sample lacks must not be had from the other alone."""
    first = baselines.build(NORMAL[:700], rows=500)[0]
    second = baselines.build(NORMAL[700:], rows=700)[0]
    merged = baselines.merge([first, second])[0]
    keys = {key_of(record["id"], baselines.SEED): record for record in NORMAL}
    limit = sorted(key_of(record["id"], baselines.SEED) for record in NORMAL[:700])[499]
    expected = [keys[key]["prediction"]["confidence"] for key in sorted(keys) if key <= limit][:700]
    baseline = baselines.parse(merged).rows.values[:, 0]
    np.testing.assert_allclose(sorted(baseline), sorted(expected), rtol=1e-5)
    assert len(baseline) > 700 - 150


@pytest.mark.slow
def test_maps_of_several_shapes_survive_in_the_parts() -> None:
    """Most maps of one part have a shape that is rare in all: the other part's are not lost by then."""
    small = {"shape": [3, 4], "values": list(range(12))}
    odd = [record | {"map": small} for record in records(2000, 300)] + records(2300, 100)
    whole, notes = baselines.build([*odd, *NORMAL[:600]])
    assert notes == ["300 records have no map of the shape [7, 7]"]
    assert [one["shape"] for one in whole["rows"]["more_maps"]] == [[3, 4]]
    merged, more = baselines.merge([baselines.build(some, fewest=1)[0] for some in (NORMAL[:600], odd)])
    assert (content(merged), more) == (content(whole), notes)


@pytest.mark.slow
def test_labels_and_names_are_those_of_one_process() -> None:
    one = records(0, 600)
    two = [dict(record, model={"name": "renamed", "sha256": record["model"]["sha256"]}) for record in records(600, 600)]
    for record in two:
        label = {"index": record["prediction"]["target"]["index"], "label": "again"}
        record["prediction"] = record["prediction"] | {"target": label, "top": [label | {"probability": 0.5}]}
    whole = baselines.build([*one, *two])[0]
    assert len(set(whole["labels"].values()) - {"again"}) < 3 or "again" not in whole["labels"].values()
    for order in ((one, two), (two, one)):
        assert content(baselines.merge([baselines.build(some)[0] for some in order])[0]) == content(whole)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "hirescam"}, "method 'gradcam' instead of 'hirescam'"),
        ({"when": "margin < 0.5"}, "when 'confidence < 0.6' instead of 'margin < 0.5'"),
        ({"sample": None}, "was made by an older release"),
        ({"seed": 7}, "seed 1234 instead of 7"),
    ],
)
def test_what_cannot_be_merged(change: dict[str, Any], message: str) -> None:
    one, two = (baselines.build(records(first, 500))[0] for first in (0, 500))
    if "seed" in change:
        two["sample"]["seed"] = change["seed"]
    else:
        two |= change
    if two["sample"] is None:
        del two["sample"]
        assert baselines.parse(two).records == 500, "it still loads"
    with pytest.raises(InputError, match=message):
        baselines.merge([one, two])


@pytest.mark.slow
def test_overlapping_parts_count_each_record_once() -> None:
    merged, notes = baselines.merge([baselines.build(NORMAL[:900])[0], baselines.build(NORMAL[600:])[0]])
    assert notes == ["300 sampled records are in several of the baselines: their parts overlap"]
    assert merged["rows"] == baselines.build(NORMAL)[0]["rows"]
