"""A comparison as Markdown that fits into a comment on a pull request."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from onnxcam.diagnose.shift.blame import Blame, percent
from onnxcam.diagnose.shift.junit import Condition
from onnxcam.diagnose.shift.layers import LayerDifference
from onnxcam.diagnose.shift.result import Shift
from onnxcam.diagnose.shift.text import changed, number, titles
from onnxcam.targets.tasks import DETECT, SEGMENT

LISTED = 10  # pictures, classes and regions of each kind
LAYERS = 5
_LONGEST = 90  # characters of a name
_SENTENCE = 1000
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&@]|:(?=//)|(?<=www)\.)")
_SIGNS = {True: "❌", False: "✅", None: "❔"}


def markdown(shift: Shift, conditions: Sequence[Condition] = (), *, title: str = "onnxcam compare") -> str:
    """Write a comparison as Markdown: the verdict, a table, what moved most, the first layer blamed.

    Names and labels are put so that no markup in them works, nor mentions anyone; the text stays below 60,000
    characters, as comments of GitHub and GitLab have to.

    Arguments:
        shift: the comparison.
        conditions: that were to hold or not.
        title: the heading.
    """
    lines = [f"### {plain(title)}", ""]
    for condition in conditions:
        lines.append(f"- {_SIGNS[condition.failed]} **{plain(condition.name)}**: {plain(condition.sentence)}")
    verdict = getattr(shift, "verdict", None)
    if verdict is not None and not conditions:
        lines.append(f"**{plain(_capital(verdict.sentence))}**")
    lines += ["", *_numbers(shift)]
    lines += _regions(shift)
    stayed = [one for one in shift.changes(flipped=False) if one.distance]
    for heading, some in zip(titles(shift), (stayed, shift.changes(flipped=True)), strict=False):
        if some:
            rows = [
                [
                    code(one.picture.name),
                    _moved(one.distance),
                    *(
                        "–" if prediction is None else f"{code(prediction.label)} {number(shift, prediction)}"
                        for prediction in (one.old, one.new)
                    ),
                ]
                for one in some[:LISTED]
            ]
            lines += _folded(_capital(heading), ["picture", "moved", "old", "new"], rows, len(some))
    rows = []
    for of_class in shift.classes[:LISTED]:
        pair = of_class.accuracy if of_class.areas is None else of_class.areas
        change = "" if pair is None else f"{pair[0]:.1%} → {pair[1]:.1%}"
        numbers = [str(of_class.pictures), str(of_class.flipped), _moved(of_class.distance), change]
        rows.append([code(of_class.label), *numbers])
    if rows:
        what = "boxes" if shift.task == DETECT else "pictures"
        last = "area" if shift.task == SEGMENT else "accuracy"
        lines += _folded("By class", ["class", what, "flipped", "moved", last], rows, len(shift.classes))
    if isinstance(shift.blame, Blame):
        lines += _blame(shift.blame)
    lines += [f"> {plain(note)}" for note in shift.notes[:LISTED]]
    return "\n".join(lines) + "\n"


def stopped(title: str, error: str) -> str:
    """Write the Markdown of a comparison that an error ended."""
    return "\n".join([f"### {plain(title)}", "", f"❌ **The comparison could not be made**: {plain(error)}", ""])


def _numbers(shift: Shift) -> list[str]:
    rows = [
        ["pictures", str(len(shift.pictures))],
        _flips(shift),
        [f"distance of the maps ({plain(shift.statistic)})", f"{shift.distance:.1%}" if shift.mapped else "–"],
    ]
    if shift.accuracy is not None:
        rows.append(["accuracy", f"{shift.accuracy[0]:.1%} → {shift.accuracy[1]:.1%}"])
    if shift.failures:
        rows.append(["pictures that could not be read", str(len(shift.failures))])
    return _table(["", ""], rows)


def _flips(shift: Shift) -> list[str]:
    """A row about the predictions."""
    if shift.task is None or shift.task == SEGMENT:
        return [f"{titles(shift)[2]} flipped", f"{len(shift.flipped)} ({shift.flipped_share:.1%})"]
    return [titles(shift)[2], plain(changed(shift))]


def _moved(distance: float | None) -> str:
    return "–" if distance is None else f"{distance:.1%}"


def _regions(shift: Shift) -> list[str]:
    rows = [
        [code(one.name or "regions"), f"{one.old:.0%} → {one.new:.0%}", str(one.pictures)]
        for one in shift.regions[:LISTED]
    ]
    total = f" (the first {len(rows)} of {len(shift.regions)})" if len(shift.regions) > len(rows) else ""
    return ["", *_table([f"attention inside{total}", "old → new", "pictures"], rows)] if rows else []


def _blame(blame: Blame) -> list[str]:
    lines = ["", f"**Blame by depth**: {plain(blame.sentence)}"]
    if blame.first is not None and blame.largest is not None and blame.largest != blame.first:
        lines[-1] += f" The largest effect on the scores is that of {code(blame.largest.name)}."
    listed = list(blame.blamed[:LAYERS]) or sorted(blame.layers, key=lambda layer: -layer.local_error)[:LAYERS]
    rows = [
        [code(layer.name), plain(layer.part or "–"), percent(layer.local_error), percent(layer.error), _effect(layer)]
        for layer in listed
    ]
    if rows:
        head = ["layer", "to blame", "adds itself", "has accumulated", "changes the scores by"]
        lines += ["", *_table(head, rows)]
    return [*lines, "", *(f"> {plain(note)}" for note in blame.notes)]


def _effect(layer: LayerDifference) -> str:
    return "" if layer.score_effect is None else percent(layer.score_effect)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def _folded(heading: str, head: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> list[str]:
    more = f" (the first {len(rows)} of {total})" if total > len(rows) else ""
    return ["", f"<details><summary>{heading}{more}</summary>", "", *_table(head, rows), "", "</details>"]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _clean(text: str, longest: int) -> str:
    """A text on one line, without control characters and those that turn the direction of writing."""
    text = "".join(" " if c.isspace() else "�" if unicodedata.category(c)[0] == "C" else c for c in text).strip()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def plain(text: str) -> str:
    """A text in which no markup works, and which mentions no one."""
    escaped = _MARKUP.sub(r"\\\1", _clean(text, _SENTENCE))
    return re.sub(r"\\([@#])", r"\\\1<!-- -->", escaped)


def code(text: str) -> str:
    """A name as code in a cell of a table."""
    text = _clean(text, _LONGEST).replace("\\|", "|").replace("|", "\\|") or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}"
