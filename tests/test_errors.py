"""The names that messages suggest."""

from __future__ import annotations

import difflib
import random

import pytest

from onnxcam import errors
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


def test_similar_names_are_those_of_difflib_for_fewer_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)

    def word(letters: str, longest: int) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randrange(longest + 1)))

    for _ in range(200):
        letters, count, cutoff = rng.choice(("abc", "abcdefgh_ ")), rng.randrange(1, 9), rng.choice((0.4, 0.6, 0.75))
        pool = tuple(dict.fromkeys(word(letters, 8) for _ in range(60)))
        text = word(letters, 8)
        expected = difflib.get_close_matches(text, pool, count, cutoff)
        names = errors._names(pool)
        assert [name for _, name in errors._similar(text, names, pool, count, cutoff)] == expected

    compared, ratio = [], difflib.SequenceMatcher.ratio

    def counting(matcher: difflib.SequenceMatcher[str]) -> float:
        compared.append(matcher)
        return ratio(matcher)

    pool = tuple(dict.fromkeys(word("abcdefghijklmnopqrstuvwxyz ", 12) for _ in range(2000)))
    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", counting)
    assert len(nearest("unicorn", pool, 20)) == 20
    assert 20 <= len(compared) < len(pool) / 5
