"""Archives of torch.export (`.pt2`): mostly data, but the format has room for code.

`torch.export.load` unpickles some entries without `weights_only`, loads compiled libraries, and evaluates symbolic
expressions as Python. An archive that uses none of that is loaded; any other needs trust.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from onnxcam import documents
from onnxcam.documents import DocumentError
from onnxcam.errors import ModelError, TrustError

# functions in torch's printed symbolic shapes, all of them arithmetic
_FUNCTIONS = {
    "Abs", "Add", "And", "BitwiseFn_bitwise_and", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float",
    "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "IntTrueDiv", "Integer",
    "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise",
    "Pow", "PowByNatural", "PythonMod", "RShift", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan",
    "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where", "ceiling", "floor",
    "sqrt",
}  # fmt: skip
_LARGEST = 32 << 20  # bytes of an entry that is JSON, or compressed
_MEMORY = 256 << 20  # bytes of a parsed one: graphs of thousands of nodes
_OBJECTS = ("custom_obj", "opaque_obj")
_ARITHMETIC = re.compile(r"[\w\s+\-*/%(),.<>=!&|~]*")


def check_archive(path: Path) -> None:
    """Refuse an archive that loading would run code from.

    Raises:
        TrustError: it holds pickled objects, compiled code, or expressions that are more than arithmetic.
        ModelError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # torch finds entries without regard to case, and the first of two alike
            if len({name.lower() for name in names}) != len(names):
                _refuse(path, "two entries of one name")
            for name in names:
                _check_entry(path, name, archive)
    except DocumentError as error:
        raise ModelError(f"{path} has an entry that {error}; is it an archive of torch.export?") from error
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise ModelError(f"{path} is damaged ({error}); was the copy cut off?") from error


def _check_entry(path: Path, name: str, archive: zipfile.ZipFile) -> None:
    place = name.lower()
    inside = place.partition("/")[2]
    if inside.startswith("data/aotinductor/") or place.endswith((".so", ".dll", ".dylib", ".pyd")):
        _refuse(path, f"compiled code ({name})")
    if inside.startswith(tuple(f"data/constants/{kind}" for kind in _OBJECTS)):
        _refuse(path, f"a pickled object ({name})")
    _require_size(name, archive)
    if place.endswith(".json"):
        data = archive.read(name)
        documents.check_json(data, memory=_MEMORY)
        for part in _mappings(json.loads(data)):
            if part.get("use_pickle") or str(part.get("path_name", "")).startswith(_OBJECTS):
                _refuse(path, f"pickled objects ({name})")
            text = part.get("expr_str")
            if isinstance(text, str) and not _is_arithmetic(text):
                _refuse(path, f"an expression that is more than arithmetic ({text[:60]!r})")
    elif _is_pickle(name, archive):
        try:
            torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
        except Exception:
            _refuse(path, f"pickled objects other than tensors ({name})")


def _require_size(name: str, archive: zipfile.ZipFile) -> None:
    """Refuse an entry that inflates to more than is read: torch stores entries as they are.

    Raises:
        DocumentError: it is compressed, or JSON, and large.
    """
    entry = archive.getinfo(name)
    limited = entry.compress_type != zipfile.ZIP_STORED or name.lower().endswith(".json")
    if limited and entry.file_size > _LARGEST:
        raise DocumentError(f"has {entry.file_size:,} bytes ({name[:60]!r}); at most {_LARGEST:,} are read")


def _is_pickle(name: str, archive: zipfile.ZipFile) -> bool:
    """Whether torch would unpickle an entry: those called .pt, and in the older layout the serialized_* ones."""
    kind = name.lower().endswith((".pt", ".pkl")) or Path(name.lower()).name.startswith("serialized_")
    return kind and archive.getinfo(name).file_size > 0


def _is_arithmetic(text: str) -> bool:
    text = re.sub(r"\b(Symbol|Float)\('[\w.+-]+'", r"\1(0", text)
    if not _ARITHMETIC.fullmatch(text) or "__" in text or re.search(r"\.\s*[A-Za-z_]", text):
        return False
    return set(re.findall(r"([A-Za-z_]\w*)\s*\(", text)) <= _FUNCTIONS


def _mappings(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict):
        yield content
        for value in content.values():
            yield from _mappings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _mappings(value)


def _refuse(path: Path, what: str) -> None:
    raise TrustError(
        f"{path} holds {what}: loading it may run code. If you trust it, say so with --trust-model (trust=True)"
    )
