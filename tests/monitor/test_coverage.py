"""The coverage of prediction sets on feedback: false alarms, power, and what it says of traffic."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from onnxcam.errors import InputError, LabelsError
from onnxcam.monitor import coverage, feedback, reading
from onnxcam.monitor.coverage import check
from tests.monitor import synthetic


def missed(generator: np.random.Generator, count: int, alpha: float, n: int, more: float = 0.0) -> np.ndarray:
    """Misses of sets that were calibrated on n pictures, `more` of them than there were then."""
    short = math.floor((n + 1) * alpha + 1e-9)
    return generator.random(count) < generator.beta(short, n + 1 - short) + more


@pytest.mark.slow
def test_looked_at_after_every_picture_it_alarms_as_rarely_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_BAND", 0)
    generator = np.random.default_rng(5)
    alarms = [check(missed(generator, 400, 0.1, 500), 0.1, 500, 0.05).alarm for _ in range(1000)]
    count = sum(alarm is not None for alarm in alarms)
    assert count <= stats.binom.ppf(0.999, 1000, 0.05)
    assert count >= 5  # the bound is no vacuous one


@pytest.mark.slow
def test_a_drop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_BAND", 0)
    generator = np.random.default_rng(6)
    tests = [check(missed(generator, 800, 0.1, 1000, more=0.1), 0.1, 1000) for _ in range(60)]
    assert sum(test.alarm == "below" for test in tests) >= 57
    assert np.median([test.since or 800 for test in tests]) <= 300
    larger = check(missed(generator, 1500, 0.1, 1000, more=-0.07), 0.1, 1000)
    assert larger.alarm == "above"
    assert "sets are larger than they need to be" in larger.sentence()


def test_evidence_is_the_likelihood_ratio_of_its_docstring() -> None:
    alpha, n, count = 0.2, 49, 40
    misses = np.random.default_rng(0).random(count) < 0.4
    short = 10
    steps = (np.arange(24) + 0.5) / 24
    ratios = []
    for t in range(1, count + 1):
        m = int(misses[:t].sum())
        usual = special.betaln(short + m, n + 1 - short + t - m) - special.betaln(short, n + 1 - short)
        shares = 0.2 + 0.8 * steps**2
        ratios.append(np.mean(shares**m * (1 - shares) ** (t - m)) / np.exp(usual))
    actual = check(misses, alpha, n)
    assert actual.evidence[0] == pytest.approx(max(ratios), rel=1e-9)
    assert actual.covered == count - misses.sum()
    assert actual.band is not None
    low, high = actual.band
    inside = stats.betabinom(count, n + 1 - short, short)
    assert inside.cdf(low * count - 1) <= 0.025 <= inside.cdf(low * count)
    assert inside.sf(high * count) <= 0.025 <= inside.sf(high * count - 1)


def test_it_can_go_on_from_any_number_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    misses = np.random.default_rng(1).random(300) < 0.25
    whole = check(misses, 0.1, 200)
    monkeypatch.setattr(coverage, "_CHUNK", 7)
    parts = check(misses, 0.1, 200)
    assert (parts.alarm, parts.since) == (whole.alarm, whole.since)
    assert parts.evidence == pytest.approx(whole.evidence)
    assert whole.since is not None
    assert check(misses[: whole.since - 1], 0.1, 200).alarm is None
    assert check(misses[: whole.since], 0.1, 200).alarm == "below"
    nothing = check(np.array([], bool), 0.1, 200)
    assert (nothing.coverage, nothing.sentence()) == (None, "coverage: no feedback yet")


def with_set(number: int, classes: Sequence[int], reason: str = "condition", sample: float = 1.0) -> dict[str, Any]:
    record = synthetic.record(number, request=f"r{number}")
    record["trigger"] |= {"reason": reason, "sample": sample}
    record["prediction"] |= {
        "calibrated": 0.5, "set_size": len(classes), "set": {"classes": list(classes), "alpha": 0.1, "n": 500}
    }  # fmt: skip
    return record


def outcomes(folder: Path, records: list[dict[str, Any]]) -> feedback.Outcomes:
    synthetic.write(folder, records)
    joined = feedback.Outcomes(feedback.read(folder))
    for record in reading.records(folder):
        joined.add(record)
    return joined


def test_feedback_meets_records_by_their_id_or_request(tmp_path: Path) -> None:
    records = [with_set(k, [0, 1]) for k in range(6)]
    pairs = [("r0", 1), ("r1", 2), (records[2]["id"], 0), ("nobody", 0), ("r1", 0)]
    assert feedback.append(tmp_path, pairs, 1_790_000_000.0) == 5
    with (tmp_path / "feedback" / "2026-09-21.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"id":"r3","tru')  # killed in the middle
    feedback.append(tmp_path, [("r4", 4)], 1_790_000_000.0)
    joined = outcomes(tmp_path, records)
    assert joined.matched == 4
    tested, notes = joined.coverage()
    assert tested is not None
    assert (tested.pictures, tested.covered) == (4, 3)  # r1 was corrected; r4 is not in its set
    assert any("1 lines are not feedback" in note for note in notes)
    assert any("1 of 5 ids with feedback have no record" in note for note in notes)
    top = [record["prediction"]["top"][0]["index"] for record in records]
    assert joined.right == (top[0] == 1) + (top[1] == 0) + (top[2] == 0)
    assert "4 with a record" in joined.lines(tested)[0]
    assert json.loads(json.dumps(joined.describe(tested)))["coverage"]["coverage"] == 0.75


def test_uncertain_records_alone_are_no_fair_sample(tmp_path: Path) -> None:
    feedback.append(tmp_path, [("r0", 0), ("r1", 0)], 1.79e9)
    joined = outcomes(tmp_path, [with_set(k, [0]) for k in range(3)])
    assert joined.coverage({"confident": 0})[0] is not None
    tested, notes = joined.coverage({"confident": 100})
    assert tested is None
    assert "set `baseline_sample` above 0" in notes[-1]


@pytest.mark.slow
def test_predictions_are_made_equally_likely_to_be_in(tmp_path: Path) -> None:
    # sets of uncertain predictions miss in 30 %, of the others in 2 %; a quarter is uncertain: 9 % in traffic
    generator = np.random.default_rng(4)
    records, pairs = [], []
    for number in range(2600):
        unsure = generator.random() < 0.25
        if not unsure and generator.random() > 0.5:
            continue
        miss = generator.random() < (0.30 if unsure else 0.02)
        records.append(with_set(number, [0], *(("condition", 1.0) if unsure else ("baseline", 0.5))))
        if generator.random() < (0.8 if unsure else 0.9):
            pairs.append((f"r{number}", 1 if miss else 0))
    feedback.append(tmp_path, pairs, 1.79e9)
    tested, notes = outcomes(tmp_path, records).coverage({"confident": 1500})
    assert tested is not None
    assert tested.pictures > 600
    assert tested.coverage == pytest.approx(0.91, abs=4 * math.sqrt(0.09 * 0.91 / tested.pictures))
    raw = 1 - np.mean([truth for _, truth in pairs])
    assert raw < 0.88  # what the records themselves would say
    assert any("drawn so that all predictions are equally likely" in note for note in notes)


def test_feedback_on_one_kind_only_is_refused(tmp_path: Path) -> None:
    records = [with_set(0, [0]), with_set(1, [0], "baseline", 0.5)]
    feedback.append(tmp_path, [("r0", 0)], 1.79e9)
    tested, notes = outcomes(tmp_path, records).coverage()
    assert tested is None
    assert "no record of the baseline's sample has feedback" in notes[-1]


def test_a_request_of_several_rows_is_left_out(tmp_path: Path) -> None:
    records = [with_set(0, [0]), with_set(1, [0]), with_set(2, [0])]
    records[1]["request"] = "r0"
    feedback.append(tmp_path, [("r0", 0), ("r2", 0)], 1.79e9)
    joined = outcomes(tmp_path, records)
    tested, notes = joined.coverage()
    assert tested is not None
    assert tested.pictures == 1
    assert joined.repeated == 1
    assert joined.matched == 1
    assert any("ids are of several records" in note for note in notes)
    # the other row of a request is no less ambiguous where one has feedback of its own
    feedback.append(tmp_path, [(records[1]["id"], 0)], 1.79e9)
    again = feedback.Outcomes(feedback.read(tmp_path))
    for record in records:
        again.add(record)
    assert (again.matched, again.repeated) == (2, 1)


def test_right_and_matched_count_records_without_sets_once(tmp_path: Path) -> None:
    records = [synthetic.record(number, request="r" if number < 3 else f"r{number}") for number in range(5)]
    top = records[3]["prediction"]["top"][0]["index"]
    feedback.append(tmp_path, [("r", top), ("r3", top), ("nobody", 0)], 1.79e9)
    joined = outcomes(tmp_path, records)
    assert (joined.matched, joined.right, joined.repeated) == (1, 1, 1)
    assert not joined.calibrated
    tested, notes = joined.coverage()
    assert tested is None
    assert "1 of 3 ids with feedback have no record" in notes


def brief(number: float, miss: bool, reason: str, sample: float) -> dict[str, Any]:
    """What is read of a record with a set."""
    sets = {"classes": [1] if miss else [0], "alpha": 0.1, "n": 500}
    return {
        "id": f"r{number}-{reason}",
        "ts": f"{number:09.1f}",
        "model": {"sha256": "m"},
        "trigger": {"reason": reason, "sample": sample},
        "prediction": {"top": [{"index": 0}], "set_size": 1, "set": sets},
    }


def all_right(records: list[dict[str, Any]]) -> feedback.Outcomes:
    """Records all of whose true classes are 0."""
    joined = feedback.Outcomes(feedback.Truths({record["id"]: 0 for record in records}))
    for record in records:
        joined.add(record)
    return joined


def test_what_limits_dropped_is_no_fair_sample() -> None:
    # 20,000 predictions, a fifth uncertain, of whose sets 42 % miss, of the others 2 %: 10 % in traffic
    generator = np.random.default_rng(0)
    unsure = [brief(k, generator.random() < 0.42, "condition", 1.0) for k in range(4000)]
    others = [brief(k * 2.5, generator.random() < 0.02, "baseline", 0.1) for k in range(1600)]
    counts = {"confident": 14_400, "explained": 5600, "dropped": {"rate": 0}}
    tested, _ = all_right([*unsure, *others]).coverage(counts)
    # although all uncertain ones became known first
    assert tested is not None and tested.coverage == pytest.approx(0.9, abs=0.02) and tested.alarm is None
    some = all_right([*unsure[::10], *others])
    wrong, _ = some.coverage(counts)
    assert wrong is not None and wrong.alarm == "above"
    tested, notes = some.coverage({"confident": 14_400, "explained": 2000, "dropped": {"rate": 3600}})
    assert tested is None
    assert "rate, budget or queue dropped 64.3 %" in notes[-1] and "raise `rate`" in notes[-1]


@pytest.mark.parametrize(("dropped", "is_tested"), [(0, True), (10, True), (11, True), (30, False)])
def test_a_few_rows_may_be_dropped(dropped: int, is_tested: bool, tmp_path: Path) -> None:
    feedback.append(tmp_path, [("r0", 0)], 1.79e9)
    joined = outcomes(tmp_path, [with_set(0, [0])])
    assert (joined.coverage({"dropped": {"budget": dropped}, "explained": 1000})[0] is not None) is is_tested
    assert (joined.coverage({"dropped": {"duplicate": 500}, "explained": 1000})[0]) is not None


def test_each_record_is_thinned_by_its_own_sample() -> None:
    generator = np.random.default_rng(8)
    records, misses = [], 0
    for number in range(4000):
        unsure = generator.random() < 0.2
        miss = generator.random() < (0.4 if unsure else 0.02)
        misses += miss
        records.append(brief(number, bool(miss), "condition" if unsure else "baseline", 1.0))
    tested, _ = all_right([*records, brief(9999, False, "baseline", 0.1)]).coverage()  # the settings were changed
    assert tested is not None and 300 < tested.pictures < 500
    share = 1 - misses / 4000
    assert tested.coverage == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / tested.pictures))


def test_kinds_without_feedback_and_other_conditions(tmp_path: Path) -> None:
    records = [with_set(k, [0], "baseline", 0.5) for k in range(4)] + [with_set(4, [0], "baseline", 0.01)]
    feedback.append(tmp_path, [(f"r{k}", 0) for k in range(4)], 1.79e9)
    tested, notes = outcomes(tmp_path, records).coverage()
    assert tested is None
    assert "baseline's sample and was sampled at 0.01 has feedback" in notes[-1]
    records[4]["trigger"] |= {"sample": 0.5, "when": "confidence < 0.9"}
    joined = feedback.Outcomes(feedback.Truths({f"r{k}": 0 for k in range(5)}))
    for record in records:
        joined.add(record)
    tested, notes = joined.coverage()
    assert tested is not None and tested.pictures == 1
    assert "4 pictures with feedback are of another model, condition or calibration" in notes[-1]


def test_sets_that_are_never_empty_may_cover_more(tmp_path: Path) -> None:
    records = [with_set(k, [0]) for k in range(400)]
    truths = feedback.Truths({f"r{k}": 0 for k in range(400)})
    for empty, alarm in (("allowed", "above"), ("top", None)):
        joined = feedback.Outcomes(truths)
        for record in records:
            record["prediction"]["set"]["empty"] = empty
            joined.add(record)
        tested, _ = joined.coverage()
        assert tested is not None and tested.alarm == alarm
    assert tested is not None and tested.band is not None and tested.band[1] == 1.0
    assert "calibrated for at least 90 %" in tested.sentence()
    worse = np.random.default_rng(0).random(500) < 0.25
    assert check(worse, 0.1, 400, at_least=True).alarm == "below"


@pytest.mark.parametrize(("alpha", "n"), [(0.1, 100), (0.1, 1000), (0.01, 400), (0.3, 50)])
def test_fewer_misses_are_never_evidence_of_more(alpha: float, n: int) -> None:
    """So the rate of false alarms holds for sets that cover more than calibrated."""
    short = math.floor((n + 1) * alpha + 1e-9)
    shares = short / (n + 1) + (1 - short / (n + 1)) * ((np.arange(24) + 0.5) / 24) ** 2
    for count in (1, 3, 10, 40, 200, 1000):
        m = np.arange(count + 1)[:, None]
        usual = special.betaln(short + m[:, 0], n + 1 - short + count - m[:, 0]) - special.betaln(short, n + 1 - short)
        ratio = special.logsumexp(m * np.log(shares) + (count - m) * np.log1p(-shares), axis=1) - math.log(24) - usual
        beyond = ratio >= math.log(200)
        assert (np.diff(beyond.astype(int)) >= 0).all()


@pytest.mark.parametrize("pair", [("", 0), ("x" * 300, 0), ("a", -1), ("a", True), ("a", "cat"), (1, 0)])
def test_what_is_no_feedback_is_refused_and_nothing_written(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    with pytest.raises(InputError):
        feedback.append(tmp_path, [("good", 1), pair], 1.79e9)
    assert not (tmp_path / "feedback").exists()


def test_damaged_files_are_read_in_bounded_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "feedback"
    folder.mkdir()
    lines = [b"x" * 5_000_000, b"[" * 1000]
    lines += [
        json.dumps({"schema": 1, "id": "a", "truth": 0, **change}).encode()
        for change in ({"schema": 2}, {"id": 1}, {"truth": 1.5}, {"truth": math.nan}, {"truth": 3})
    ]
    (folder / "2026-01-01.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "notes.txt").write_text("no day")
    truths = feedback.read(tmp_path)
    assert truths.by_id == {"a": 3}
    assert truths.damaged == 6
    assert feedback.prune(tmp_path, 86400.0, 1_790_000_000.0) == 1
    assert feedback.read(tmp_path).by_id == {}


def test_classes_are_read_as_labels_first(tmp_path: Path) -> None:
    table = tmp_path / "truths.csv"
    table.write_text("a,1\nb,10\nc,3\n")
    assert feedback.read_table(table, [str(k) for k in range(1, 11)]) == [("a", 0), ("b", 9), ("c", 2)]
    assert feedback.read_table(table, None) == [("a", 1), ("b", 10), ("c", 3)]
    for text in ("-1", "99999999999", "11", "cat"):
        table.write_text(f"a,{text}\n")
        with pytest.raises(LabelsError, match="is no class"):
            feedback.read_table(table, [str(k) for k in range(1, 11)])
