"""Class names in a data.yaml: the plain forms of `names:`, read without a YAML library; any other form is refused.

names: [cat, 'guinea pig']        names: {0: cat, 1: dog}

names:                            names:
  - cat                             0: cat
  - guinea pig                      1: guinea pig
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from onnxcam.errors import LabelsError, listing
from onnxcam.targets.label_order import is_index, name_in, ordered

_KEYS = ("names", "class_names", "classes", "labels", "id2label", "label_names")
_KEY = re.compile(r"([A-Za-z_][\w.-]*):(?: (.*))?")
_LARGEST = 1 << 20  # characters; read one by one
# what a value of more than a plain scalar begins with: anchors, aliases, tags, block scalars, nested collections
_MORE = tuple("&*!|>%@`[{]}?")
_ADVICE = "give the names as a JSON list, or one per line"

Pair = tuple[str, str]


def is_yaml(text: str) -> bool:
    """Whether a text without a telling suffix reads like a data.yaml: a line `names:` among lines of other keys."""
    lines = [
        line.rstrip() for line in text.split("\n") if line.strip() and not line[0].isspace() and line[0] not in "#-"
    ]
    keys = [match[1] for line in lines if (match := _KEY.fullmatch(line))]
    return len(keys) == len(lines) and "names" in keys


def names_in(text: str) -> list[str]:
    """Class names by index.

    Raises:
        LabelsError: no `names`, another form than the plain ones, or indices that are not 0, 1, 2, ....
    """
    if len(text) > _LARGEST:
        raise LabelsError(f"it has more than {_LARGEST:,} characters; {_ADVICE}")
    sections = _sections(text)
    key = next((key for key in (*_KEYS, "") if key in sections), None)
    if key is None:
        raise LabelsError(f"its keys are {listing(sections)}; expected `names:` with the class names")
    names = _names(_value(sections[key], key or "the list"))
    declared = "".join(sections.get("nc", [])).strip()
    if declared.isdecimal() and declared != str(len(names)):
        raise LabelsError(f"it says nc: {declared[:9]} and names {len(names)} classes; mend the one or the other")
    return names


def _sections(text: str) -> dict[str, list[str]]:
    """The lines below each top-level key, its own value first; those of a document without keys under an empty one."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in re.split(r"\r\n|\r|\n", text):
        if line.lstrip().startswith("#") or line in ("---", "..."):
            continue
        match = _KEY.fullmatch(line.rstrip())
        if match is not None:
            if match[1] in sections:
                raise LabelsError(f"its key {match[1]!r} occurs twice; {_ADVICE}")
            current = sections.setdefault(match[1], [])
            line = match[2] or ""
        elif current is None and line.strip():
            current = sections.setdefault("", [])
        if current is not None and line.strip():
            current.append(line)
    return sections


def _value(raw: list[str], where: str) -> list[str] | list[Pair]:
    """The list or mapping in the lines of a section."""
    lines = [line for line in (_without_comment(line, where).rstrip() for line in raw) if line.strip()]
    text = " ".join(line.strip() for line in lines)
    if text[:1] in ("[", "{"):
        if text[-1] != {"[": "]", "{": "}"}[text[0]]:
            raise _refusal(where, text)
        items = [item.strip() for item in _split(text[1:-1], ",", where)]
        items = items[:-1] if items[-1] == "" else items
        if text[0] == "{":
            return [_pair(item, where) for item in items]
        return [_scalar(item, where) for item in items]
    indents = {len(line) - len(line.lstrip()) for line in lines}
    if len(indents) != 1:
        raise _refusal(where, text)
    if all(re.match(r"\s*-(\s|$)", line) for line in lines):
        return [_scalar(line.strip()[1:].strip(), where) for line in lines]
    return [_pair(line.strip(), where) for line in lines]


def _bare(text: str, where: str) -> Iterator[tuple[int, str]]:
    """Place and character of all that is outside quotes."""
    place, before = 0, " "
    while place < len(text):
        character = text[place]
        if character in "\"'" and (before.isspace() or before in "[{,:"):
            start, place = place, place + 1
            while text[place : place + 1] != character or (character == "'" and text[place : place + 2] == "''"):
                if place >= len(text):
                    raise _refusal(where, text[start:])
                escaped = text[place] == "\\" and character == '"'
                place += 2 if escaped or text[place] == character else 1
        else:
            yield place, character
        before = text[place]
        place += 1


def _without_comment(line: str, where: str) -> str:
    for place, character in _bare(line, where):
        if character == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def _split(text: str, mark: str, where: str) -> list[str]:
    """The parts between marks that are outside quotes."""
    places = [place for place, character in _bare(text, where) if character == mark]
    return [text[start + 1 : stop] for start, stop in zip([-1, *places], [*places, len(text)], strict=True)]


def _pair(text: str, where: str) -> Pair:
    """Key and value of `0: cat`."""
    colon = next((p for p, c in _bare(text, where) if c == ":" and text[p + 1 : p + 2] in ("", " ")), None)
    if colon is None:
        raise _refusal(where, text)
    return _scalar(text[:colon].strip(), where), _scalar(text[colon + 1 :].strip(), where)


def _scalar(text: str, where: str) -> str:
    """The text of a scalar; whether YAML takes it for text, a number or a truth value does not matter to a name."""
    if text[:1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            raise _refusal(where, text) from None
    if text[:1] == "'":
        if not re.fullmatch(r"'(?:[^']|'')*'", text):
            raise _refusal(where, text)
        return text[1:-1].replace("''", "'")
    if text.startswith((*_MORE, "- ")) or ": " in text or text.endswith(":"):
        raise _refusal(where, text)
    return text


def _names(value: list[str] | list[Pair]) -> list[str]:
    if not value:
        raise LabelsError("it names no classes; give one name per class")
    pairs = [entry for entry in value if isinstance(entry, tuple)]
    if not pairs:
        return [name_in(name, f"entry {position}") for position, name in enumerate(value)]
    if all(is_index(key) for key, _ in pairs):
        return ordered((int(key), name_in(name, f"class {key}")) for key, name in pairs)
    if all(is_index(number) for _, number in pairs):
        return ordered((int(number), name_in(name, f"class {number}")) for name, number in pairs)
    raise LabelsError("its names are neither {index: name} nor {name: index}; give one of these or a list")


def _refusal(where: str, text: str) -> LabelsError:
    return LabelsError(f"`{where}` is written in a form that is not read here ({text.strip()[:40]!r}); {_ADVICE}")
