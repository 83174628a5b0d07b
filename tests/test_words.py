"""Names say what they hold: no bare past participle of a general verb names a variable, an argument or a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "onnxcam").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")])
# each says that something happened to a thing and not which thing: name the thing (`manifest`, `session`, `layer`)
WORDS = frozenset(
    {
        "asked", "begun", "brought", "chosen", "fed", "found", "given", "gone", "got", "held", "kept", "known", "lent",
        "made", "meant", "own", "put", "said", "seen", "shown", "taken", "told", "took", "tried", "used", "wanted",
    }
)  # fmt: skip


def bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a source file gives a name to."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(name=name, asname=alias):
                yield node.lineno, alias or name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def vague(source: str) -> list[str]:
    """The lines at which a source file binds one of the words."""
    names = sorted(set(bound(ast.parse(source))))
    return [f"line {line}: {name}" for line, name in names if name.strip("_").lower() in WORDS]


def test_names_are_nouns() -> None:
    names = {str(path.relative_to(ROOT)): vague(path.read_text("utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in names.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "held = 1",
        "for found in x: pass",
        "def told(): pass",
        "def f(given): pass",
        "self._known = 1",
        "[own for own in x]",
        "if (got := f()): pass",
        "with f() as made: pass",
        "from a import chosen",
        "from a import b as kept",
        "class Asked: pass",
        "try: pass\nexcept E as seen: pass",
        "match x:\n    case [*taken]: pass",
        "x: int\nwanted: int = 1",
        "lambda used: 1",
    ],
)
def test_the_check_itself(source: str) -> None:
    assert len(vague(source)) == 1


@pytest.mark.parametrize("source", ["layer = 1", "known_layers = 1", "f(held=1)", "x.found", "print(found)"])
def test_what_the_check_leaves_alone(source: str) -> None:
    assert vague(source) == []
