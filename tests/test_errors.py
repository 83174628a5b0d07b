"""The names that messages suggest."""

from __future__ import annotations

import pytest

from onnxcam.errors import TargetError, nearest
from onnxcam.targets.classes import find_label

ANIMALS = ["bullfrog", "cockatoo", "catamaran", "tiger cat", "bobcat", "tabby, tabby cat", "Egyptian cat", "dog"]


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("cat", ANIMALS, ["tiger cat", "Egyptian cat", "tabby, tabby cat", "catamaran", "bobcat"]),
        ("CAT", ["concat", "scat", "cat_1"], ["cat_1", "concat", "scat"]),
        ("conv2", ["layer1.conv1", "layer1.conv2", "conv20", "relu"], ["layer1.conv2", "conv20", "layer1.conv1"]),
        ("tigre", ["tire", "hen", "Bengal tiger"], ["tire", "Bengal tiger"]),
        ("hirescm", ["gradcam", "hirescam", "eigencam"], ["hirescam"]),
        ("zzz", ["ant", "bee", "cat"], ["ant", "bee", "cat"]),
        ("", ["ant", "bee"], ["ant", "bee"]),
    ],
)
def test_whole_words_come_first(name: str, candidates: list[str], expected: list[str]) -> None:
    assert nearest(name, candidates)[: len(expected)] == expected


def test_a_class_is_suggested_once_and_by_its_whole_words() -> None:
    with pytest.raises(TargetError) as caught:
        find_label("cat", ANIMALS)
    message = str(caught.value)
    places = [message.index(f"({index})") for index in (3, 5, 6, 2, 4)]
    assert places == sorted(places) and message.count("(5)") == 1 and "bullfrog" not in message
