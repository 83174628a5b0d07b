"""Every error onnxcam raises on purpose::

    OnnxcamError
    ├── ModelError                 the model file is not usable as it is
    │   ├── UnsupportedOperator    a node on the differentiated path has no gradient rule
    │   ├── LayerError             no such target layer, or an ambiguous or non-spatial one
    │   ├── VerificationError      numbers differ from the reference by more than the tolerance
    │   └── TrustError             loading it would run code the user has not agreed to run
    ├── TargetError                no such class, or an ambiguous one, or a list of the wrong length
    │   └── TargetAbsent           the picture has no such box, or no cell of the class
    ├── LabelsError                class names that cannot be read, or do not fit the model
    ├── InputError                 a tensor of the wrong shape, layout or dtype
    ├── PictureError               a picture that cannot be read
    ├── PreprocessError            an unknown or contradictory preprocessing
    ├── MethodError                no such CAM method, or one that does not apply here
    ├── OutputError                a result that could not be written
    ├── RecordError                a monitoring record that does not fit its schema
    ├── SerializationError         an object that cannot be pickled; also a TypeError
    ├── SettingError               a condition or a setting of the monitor that cannot be used
    └── RuntimeUnavailable         no usable ONNX Runtime or execution provider
        └── DependencyError        a library is missing or broken

Each message says what was got, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple


class OnnxcamError(Exception):
    """Base of every error raised on purpose by onnxcam."""


class ModelError(OnnxcamError):
    """The model cannot be used as it is."""


class UnsupportedOperator(ModelError):
    """A node between the target layer and the scores has no gradient rule."""


class LayerError(ModelError):
    """The target layer does not exist, is ambiguous, or has no spatial extent."""


class VerificationError(ModelError):
    """Numbers differ from the reference by more than the tolerance."""


class TrustError(ModelError):
    """Loading the model would run code the user has not agreed to run."""


class TargetError(OnnxcamError):
    """The class to explain does not exist, is ambiguous, or the list has the wrong length."""


class TargetAbsent(TargetError):
    """The model reports no such box on this picture, or no cell of the class."""


class LabelsError(OnnxcamError):
    """Class names cannot be read, or do not fit the model."""


class InputError(OnnxcamError):
    """A tensor has the wrong shape, layout or dtype."""


class PictureError(OnnxcamError):
    """A picture cannot be read."""


class PreprocessError(OnnxcamError):
    """The preprocessing is unknown or contradictory."""


class MethodError(OnnxcamError):
    """The CAM method does not exist or does not apply to this model."""


class OutputError(OnnxcamError):
    """A result could not be written."""


class RecordError(OnnxcamError):
    """A monitoring record does not fit its schema."""


class SerializationError(OnnxcamError, TypeError):
    """An object belongs to this process and cannot be pickled."""


class SettingError(OnnxcamError):
    """A condition or a setting of the monitor cannot be used."""


class RuntimeUnavailable(OnnxcamError):
    """No usable ONNX Runtime or execution provider."""


class DependencyError(RuntimeUnavailable):
    """A library is missing or broken."""


_LONGEST = 200  # characters of a name that are compared
_CLOSE = 0.75  # the ratio of what is hardly more than a slip


def nearest(name: str, candidates: Iterable[str], count: int = 5) -> list[str]:
    """Return up to `count` candidates most similar to `name`, best first; the first `count` if none is similar.

    Those with all of its words come first (`cat`: `tabby cat`, not `catamaran`), then those with a word that begins
    with it, those that contain it, those with a similar word, and those that are similar as a whole.
    """
    pool = list(dict.fromkeys(candidates))
    names, text = _names(tuple(pool)), name[:_LONGEST].strip().lower()
    query = set(_words(text))
    whole = [c for c in pool if query and query <= set(names.words[c])]
    ordered = sorted(whole, key=lambda c: len(names.words[c]))
    if text:
        containing = [c for c in pool if text in c.lower()]
        ordered += [c for c in containing if any(word.startswith(text) for word in names.words[c])]
        ordered += containing
    if len(set(ordered)) < count:
        similar = _similar(text, names, names.by_lower_case, count, 0.4)
        for ratio, match in similar:
            ordered += names.by_lower_case[match] if ratio >= _CLOSE else ()
        for _, match in _similar(text, names, names.by_word, count, _CLOSE):
            ordered += names.by_word[match]
        for _, match in similar:
            ordered += names.by_lower_case[match]
    return list(dict.fromkeys(ordered))[:count] or pool[:count]


def _words(text: str) -> list[str]:
    import re  # as difflib, needed for error messages only

    return re.findall(r"[^\W_]+", text)


class _Names(NamedTuple):
    """Names to choose from: their words; the names by their lower case and by word; of each of these its letters."""

    words: dict[str, list[str]]
    by_lower_case: dict[str, list[str]]
    by_word: dict[str, list[str]]
    letters: dict[str, int]  # as bits
    alphabet: dict[str, int]  # the bit of each letter


@lru_cache(4)  # those who ask a server for what it has not got ask the same lists
def _names(names: tuple[str, ...]) -> _Names:
    words = {name: _words(name.lower()) for name in names}
    by_lower_case: dict[str, list[str]] = {}
    by_word: dict[str, list[str]] = {}
    for name in names:
        by_lower_case.setdefault(name.lower(), []).append(name)
        for word in words[name]:
            by_word.setdefault(word, []).append(name)
    alphabet: dict[str, int] = {}
    letters = dict.fromkeys([*by_lower_case, *by_word], 0)
    for name in letters:
        for letter in set(name):
            letters[name] |= alphabet.setdefault(letter, 1 << len(alphabet))
    return _Names(words, by_lower_case, by_word, letters, alphabet)


def _similar(text: str, names: _Names, among: Iterable[str], count: int, cutoff: float) -> list[tuple[float, str]]:
    """The names of `difflib.get_close_matches` with their ratios, best first, in a fraction of its time.

    Letters in common bound the ratio from above, so names are compared in the order of their bounds, until none that is
    left can be among the best.
    """
    import difflib
    import heapq
    from collections import Counter

    query, repeated, size = 0, [], len(text)
    for letter, number in Counter(text).items():
        query |= names.alphabet.get(letter, 0)
        if number > 1:
            repeated.append((letter, number))
    bounds = []
    for name in among:
        length = size + len(name)
        if 2.0 * min(size, length - size) < cutoff * length:
            continue
        common = (query & names.letters[name]).bit_count()
        for letter, number in repeated:
            common += max(min(number, name.count(letter)) - 1, 0)
        bound = 2.0 * common / length if length else 1.0
        if bound >= cutoff:
            bounds.append((bound, name))
    bounds.sort(reverse=True)
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(text)
    best: list[tuple[float, str]] = []  # a heap, the least of them first
    for bound, name in bounds:
        if len(best) == count and bound < best[0][0]:
            break
        matcher.set_seq1(name)
        ratio = matcher.ratio()
        if ratio >= cutoff and len(best) < count:
            heapq.heappush(best, (ratio, name))
        elif ratio >= cutoff:
            heapq.heappushpop(best, (ratio, name))
    return sorted(best, reverse=True)


def listing(names: Iterable[str], limit: int = 10) -> str:
    """Format names for an error message: `'a', 'b', 'c' and 7 more`."""
    pool = [str(n) for n in names]
    text = ", ".join(repr(n) for n in pool[:limit])
    more = len(pool) - limit
    return text + (f" and {more} more" if more > 0 else "") if pool else "none"


# soft hyphen, marks and overrides of direction, line and paragraph separators, invisible operators, byte order mark
_INVISIBLE = frozenset(
    (0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
)


def escaped(text: str) -> str:
    """Escape what controls a terminal or cannot be encoded, as JSON does: ESC becomes `\\u001b`.

    These are control characters (of C0, line ends among them, and C1), characters that change the direction of text or
    are invisible, tags, and halves of surrogate pairs. What is valid JSON on one line stays so, with the same value.
    """
    if text.isprintable():
        return text
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    code = ord(character)
    if code >= 0xE0000:
        if code >= 0xE0080:
            return character
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    control = code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or 0xFFF0 <= code < 0xFFFC
    return f"\\u{code:04x}" if control or code in _INVISIBLE else character


def label_count(labels: int, classes: int) -> str:
    """The message for a number of labels that is not the number of classes."""
    hint = "; does the model have a background class in front? then name it too" if labels == classes - 1 else ""
    return f"got {labels} labels for a model with {classes} classes; expected one per class, in order{hint}"
