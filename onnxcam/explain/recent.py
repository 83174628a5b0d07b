"""The last question that was asked, for callers that ask the same about batch after batch: its checks count, next to
a small model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxcam.explain.question import Question
from onnxcam.network.manifest import Manifest

if TYPE_CHECKING:
    from onnxcam.explain.file import FileSession

_PLAIN = (str, int, bool, type(None))  # types of values that cannot change after they were compared


class _Entry(NamedTuple):
    key: tuple[Any, ...]
    labels: Any
    question: Question


class Recent:
    """The last question and whether the file answered it. Thread-safe: an entry is replaced whole."""

    def __init__(self) -> None:
        self._entry: _Entry | None = None
        self._answer: tuple[Question, Manifest, int, bool] | None = None

    def question(self, make: Callable[..., Question], labels: Any, **keywords: Any) -> Question:
        """The question that these keywords ask, as `make` checks it.

        Arguments:
            make: called with the keywords, of which the last one are options, where they are others than the last
                time.
            labels: the class names in use.
        """
        values = tuple(keywords.values())
        if values[-1] or isinstance(keywords.get("target"), str) or not all(map(_plain, values[:-1])):
            return make(**keywords)  # a label's index may change with the labels
        key = (*map(type, values), *values[:-1])  # True is equal to 1
        entry = self._entry
        if entry is not None and entry.labels is labels and entry.key == key:
            return entry.question
        question = make(**keywords)
        self._entry = _Entry(key, labels, question)
        return question

    def in_file(self, question: Question, file: FileSession, rows: int) -> bool:
        """Whether the file itself computes the maps that a question about this many rows asks for."""
        answer, manifest = self._answer, file.manifest
        if answer is not None and answer[0] is question and answer[1] is manifest and answer[2] == rows:
            return answer[3]
        inside = question.plain and file.holds(question.layers, question.methods[0].name, question.classes(rows))
        self._answer = question, manifest, rows, inside
        return inside


def _plain(value: Any) -> bool:
    """Whether a value, or each item of a tuple, is of a plain type."""
    return type(value) in _PLAIN or (type(value) is tuple and all(type(item) in (str, int) for item in value))
