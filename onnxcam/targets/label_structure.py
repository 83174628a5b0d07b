"""Class names in JSON and in Python literals: lists, objects by index or by name, lists of objects."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from onnxcam import documents
from onnxcam.errors import LabelsError
from onnxcam.targets.label_order import is_index, name_in, ordered

_LARGEST_LITERAL = 1 << 20  # characters
_MOST_LITERAL = 50_000  # values: Python's parser takes hundreds of bytes for one
# keys that hold the names in a larger structure: Hugging Face, timm, Keras, COCO, Ultralytics, and what people write
_NESTED = (
    *("id2label", "label_names", "class_indices", "class_to_idx", "categories", "names", "class_names", "classes"),
    *("labels", "class_labels", "label_map"),
)
_IDS = ("id", "index", "idx", "class_id", "class_index", "class_idx", "classid", "label_id", "category_id", "value")
_NAMES = ("name", "class_name", "classname", "label", "label_name", "class", "display_name", "title", "category")


class Pairs(list[tuple[Any, Any]]):
    """An object with its repeated keys: two classes may share a name."""

    def get(self, key: str) -> Any:
        """The first value of a key, None if there is none."""
        return next((value for name, value in self if name == key), None)


def parse(text: str) -> Any:
    """Parse JSON, one JSON object a line, or a Python literal, as Ultralytics and a widely copied ImageNet file use.

    Returns:
        lists, `Pairs` for objects, and plain values.

    Raises:
        ValueError: the text is none of them, or too deep or too large; the message is a clause about it.
    """
    try:
        return documents.parse_json(text, pairs=Pairs)
    except ValueError as error:
        reason = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
        try:
            documents.check_json(text.encode("utf-8", "surrogatepass"))
            return [documents.parse_json(line, pairs=Pairs) for line in lines]
        except ValueError:
            pass  # it may still be a literal
    if len(text) > _LARGEST_LITERAL or sum(map(text.count, ",:[{(")) > _MOST_LITERAL:
        raise ValueError(reason)
    try:
        return _paired(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(reason) from None


def _paired(node: ast.expr) -> Any:
    """A literal's value, a dict as `Pairs`: `ast.literal_eval` drops repeated keys.

    Raises:
        ValueError: it is more than a literal.
    """
    if isinstance(node, ast.Dict):
        if None in node.keys:  # {**other}
            raise ValueError("not a literal")
        keys = (ast.literal_eval(key) for key in node.keys if key is not None)
        return Pairs(zip(keys, map(_paired, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_paired(item) for item in node.elts]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OrderedDict" and len(node.args) == 1:
        return _paired(node.args[0])
    return ast.literal_eval(node)


def names_in(structure: Any) -> list[str]:
    """Class names by index from a structure of `parse`.

    A list of names, of `[index, name]` pairs or of objects with a name and mostly an id (COCO's `categories`);
    `{index: name}` (Keras' `{index: [WordNet id, name]}` too) or `{name: index}`, alone or under a usual key.

    Raises:
        LabelsError: another structure, or indices that are not 0, 1, 2, ....
    """
    if isinstance(structure, Pairs):
        return _from_object(structure)
    if isinstance(structure, (list, tuple)) and structure:
        return _from_list(structure)
    raise LabelsError("its JSON holds no class names; expected a list, {index: name} or {name: index}")


def _from_object(pairs: Pairs) -> list[str]:
    inner = next((value for key in _NESTED if isinstance(value := pairs.get(key), (list, tuple)) and value), None)
    if inner is not None:
        return names_in(inner)
    if pairs and all(is_index(key) for key, _ in pairs) and not all(type(value) is int for _, value in pairs):
        return ordered([(int(key), _named(value, f"class {key}")) for key, value in pairs])
    indices = [_id(value) if isinstance(value, Pairs) else value for _, value in pairs]
    if pairs and all(map(is_index, indices)):
        return ordered([(int(index), str(key)) for index, (key, _) in zip(indices, pairs, strict=True)])
    raise LabelsError("its JSON object is neither {index: name} nor {name: index}; give one of these or a list")


def _from_list(entries: list[Any] | tuple[Any, ...]) -> list[str]:
    if len(entries) == 1 and isinstance(entries[0], Pairs) and all(is_index(key) for key, _ in entries[0]):
        return names_in(entries[0])  # one dict for each output of the model
    if all(isinstance(entry, Pairs) for entry in entries):
        names = [_named(entry, f"entry {position}") for position, entry in enumerate(entries)]
        ids = [_id(entry) for entry in entries]
        if all(value is None for value in ids):
            return names
        if not all(map(is_index, ids)):
            raise LabelsError("some of its objects have no id that is a whole number from 0; number each class")
        return ordered(
            zip(map(int, ids), names, strict=True), ", or give a list of the names in the order of the model's outputs"
        )
    pairs = [_pair(entry) for entry in entries]
    complete = [pair for pair in pairs if pair is not None]
    if len(complete) == len(entries):
        return ordered(complete)
    return [name_in(value, f"entry {position}") for position, value in enumerate(entries)]


def _pair(entry: Any) -> tuple[int, str] | None:
    """Index and name from `[0, "cat"]` or `["cat", 0]`; None of any other entry."""
    if isinstance(entry, (list, tuple)) and not isinstance(entry, Pairs) and len(entry) == 2:
        first, second = entry
        if type(first) is int and first >= 0 and isinstance(second, str):
            return first, name_in(second, f"class {first}")
        if type(second) is int and second >= 0 and isinstance(first, str):
            return second, name_in(first, f"class {second}")
    return None


def _named(value: Any, where: str) -> str:
    """The name in an entry: itself, the last of a list (Keras stores a WordNet id before it), or an object's."""
    if isinstance(value, Pairs):
        fields = _fields(value)
        name = next((fields[key] for key in _NAMES if key in fields), None)
        if name is None:
            raise LabelsError(f"{where} is an object with the keys {', '.join(fields)}; expected one called 'name'")
        return name_in(name, where)
    return name_in(value[-1] if isinstance(value, (list, tuple)) and value else value, where)


def _id(value: Pairs) -> Any:
    fields = _fields(value)
    return next((fields[key] for key in _IDS if key in fields), None)


def _fields(value: Pairs) -> Mapping[str, Any]:
    return {str(key).casefold(): item for key, item in value}
