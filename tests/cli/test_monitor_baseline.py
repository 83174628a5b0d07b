"""`onnxcam monitor baseline` over folders, tables and baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxcam.cli.baseline import _check_question
from onnxcam.errors import InputError
from onnxcam.monitor import baseline as baselines
from tests.cli.conftest import Run
from tests.monitor import synthetic
from tests.monitor.test_merging import NORMAL, content


@pytest.mark.slow
def test_the_command_merges_files_and_folders(run: Run, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "a", NORMAL[:450])
    synthetic.write(tmp_path / "b", NORMAL[450:])
    refused = run("monitor", "baseline", tmp_path / "a", "-o", tmp_path / "a.json")
    assert refused.code == 1 and "there are 450 records" in refused.err
    result = run("monitor", "baseline", tmp_path / "a", "-o", tmp_path / "a.json", "--part")
    assert result.code == 0, result.err
    with pytest.raises(InputError, match="is not a baseline"):
        baselines.load(tmp_path / "a.json")
    merged = run("monitor", "baseline", tmp_path / "a.json", tmp_path / "b", "-o", tmp_path / "all.json", "--json")
    assert merged.code == 0, merged.err
    assert (merged.json()["records"], merged.json()["notes"]) == (1400, [])
    assert content(json.loads((tmp_path / "all.json").read_bytes())) == content(baselines.build(NORMAL)[0])
    twice = run("monitor", "baseline", tmp_path / "a.json", tmp_path / "a.json", "-o", tmp_path / "all.json")
    assert twice.code == 2 and "name it once" in twice.err
    since = run("monitor", "baseline", tmp_path / "all.json", "--since", "1d", "-o", tmp_path / "x.json")
    assert since.code == 2 and "select records" in since.err
    (tmp_path / "bad.json").write_text('{"format": 1}')
    bad = run("monitor", "baseline", tmp_path / "bad.json", tmp_path / "b", "-o", tmp_path / "x.json")
    assert bad.code == 1 and "bad.json' is not a baseline" in bad.err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 5}, "another target than the predicted class (5)"),
        ({"smooth": ["noise"]}, "smoothing (noise)"),
        ({"method": "scorecam", "option": {"scorecam": {"batch": 1}}}, "option batch=1"),
    ],
)
def test_a_table_of_another_question_is_no_baseline(change: dict[str, Any], message: str) -> None:
    plain = {"target": None, "smooth": [], "option": {"gradcam": {}}}
    _check_question(Path("t"), plain)
    _check_question(Path("t"), {})
    with pytest.raises(InputError) as error:
        _check_question(Path("t"), plain | change)
    assert message in str(error.value) and "without --target" in str(error.value)
