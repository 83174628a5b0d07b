"""One picture through `onnxcam explain`: everything about it is found out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcam.cam import registry
from onnxcam.explain.explanation import Explanation
from onnxcam.explain.question import Question
from onnxcam.image import picture as pictures
from onnxcam.targets import objectives
from tests.cli.conftest import Run


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counter: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            counter[name] += 1
            return function(*arguments, **keywords)

        return call

    class Lookups(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            counter["method"] += 1
            return super().__getitem__(name)

    monkeypatch.setattr(registry, "_methods", Lookups(registry._methods))
    monkeypatch.setattr(Question, "__init__", counted("question", Question.__init__))
    monkeypatch.setattr(Explanation, "to_dict", counted("record", Explanation.to_dict))
    monkeypatch.setattr(pictures, "read_header", counted("header", pictures.read_header))
    monkeypatch.setattr(objectives, "by_index", counted("target", objectives.by_index))
    return counter


@pytest.mark.parametrize("target", [(), ("--target", "hen"), ("--target", "-1"), ("--target", "2")])
def test_one_picture(run: Run, ready: Path, photo: Path, tmp_path: Path, counts: Counter[str], target: Any) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "out", *target, "--method", "gradcam")
    assert result.code == 0, result.err
    assert counts == {"question": 1, "target": 1, "method": 1, "header": 1, "record": 1}


def test_several_pictures(run: Run, ready: Path, photos: Path, tmp_path: Path, counts: Counter[str]) -> None:
    result = run("explain", ready, photos, "-o", tmp_path / "out", "--target", "hen")
    assert result.code == 0, result.err
    assert counts == {"question": 1, "target": 1, "method": 1, "header": 3, "record": 3}
