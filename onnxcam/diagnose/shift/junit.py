"""A comparison as JUnit XML, as Jenkins, GitLab and GitHub's test reporters read it: a test case for each condition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

# what XML 1.0 cannot hold, not even escaped; the Unicode Consortium's non-characters among them
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST = 20_000  # characters of a text


class Condition(NamedTuple):
    """What a comparison was to show.

    Attributes:
        name: such as `attention` or `predictions`.
        failed: whether it is met, so that the comparison fails; None where that was not decided.
        sentence: the result in words.
        detail: more lines, for a failure.
    """

    name: str
    failed: bool | None
    sentence: str
    detail: str = ""


def junit(
    name: str,
    conditions: Sequence[Condition],
    *,
    errors: Sequence[str] = (),
    stopped: str | None = None,
    properties: Mapping[str, str] | None = None,
    seconds: float = 0.0,
    timestamp: str | None = None,
) -> str:
    """Write a test suite as XML.

    Arguments:
        name: of the suite, such as the two files that were compared.
        conditions: a test case each: passed, failed, or skipped where it was not decided.
        errors: sentences about pictures that could not be read: a test case of its own, an error if there are any.
        stopped: the error that ended the comparison: a test case of its own.
        properties: further facts by name.
        seconds: that the comparison took.
        timestamp: when it began, ISO 8601 without a time zone; None to leave it out.
    """
    failures = sum(condition.failed is True for condition in conditions)
    skipped = sum(condition.failed is None for condition in conditions)
    extra, wrong = 1 + (stopped is not None), bool(errors) + (stopped is not None)
    counts = f'tests="{len(conditions) + extra}" failures="{failures}" errors="{wrong}"'
    time = f'time="{seconds:.3f}"'
    begun_at = "" if timestamp is None else f" timestamp={_quoted(timestamp)}"
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="onnxcam compare" {counts} {time}>',
        f'  <testsuite name={_quoted(name)} {counts} skipped="{skipped}" {time}{begun_at}>',
    ]
    if properties:
        lines.append("    <properties>")
        lines += [f"      <property name={_quoted(key)} value={_quoted(value)}/>" for key, value in properties.items()]
        lines.append("    </properties>")
    for condition in conditions:
        lines += _case(condition)
    lines += _pictures(errors)
    if stopped is not None:
        error = f'      <error message={_quoted(stopped)} type="comparison">{_text(stopped)}</error>'
        lines += ['    <testcase classname="onnxcam.compare" name="comparison" time="0.000">', error, "    </testcase>"]
    lines += ["  </testsuite>", "</testsuites>", ""]
    return "\n".join(lines)


def _case(condition: Condition) -> list[str]:
    start = f'    <testcase classname="onnxcam.compare" name={_quoted(condition.name)} time="0.000"'
    text = "\n".join(part for part in (condition.sentence, condition.detail) if part)
    message = _quoted(condition.sentence)
    if condition.failed:
        body = f"      <failure message={message} type={_quoted(condition.name)}>{_text(text)}</failure>"
    elif condition.failed is None:
        body = f"      <skipped message={message}/>"
    else:
        body = f"      <system-out>{_text(text)}</system-out>"
    return [f"{start}>", body, "    </testcase>"]


def _pictures(errors: Sequence[str]) -> list[str]:
    start = '    <testcase classname="onnxcam.compare" name="pictures" time="0.000"'
    if not errors:
        return [f"{start}/>"]
    message = f"{len(errors)} pictures could not be read" if len(errors) > 1 else "a picture could not be read"
    body = f'      <error message="{message}" type="picture">{_text(chr(10).join(errors))}</error>'
    return [f"{start}>", body, "    </testcase>"]


def _legal(text: str) -> str:
    text = _ILLEGAL.sub("�", text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _text(text: str) -> str:
    return escape(_legal(text))


def _quoted(text: str) -> str:
    # a parser would make spaces of these
    return quoteattr(_legal(text), {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"})
