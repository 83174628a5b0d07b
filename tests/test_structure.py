"""The shape of the import graph: no circles, short chains, and lazy public names that no submodule hides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import onnxcam
from tests.test_layers import imports

ROOT = Path(__file__).parent.parent
LONGEST_CHAIN = 10
PACKAGES = {"onnxcam": "onnxcam", "onnxcam.exporters": "exporters", "benchmarks": "benchmarks", "tools": "tools"}

Graph = dict[str, set[str]]  # a module or package, and those that it imports


def modules() -> dict[str, Path]:
    """The source file of every module, by its dotted name."""
    paths = {"onnxcam.models": ROOT / "models" / "__init__.py"}  # what else is there are scripts
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            paths[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return paths


MODULES = modules()


@cache
def imports_of(name: str) -> list[tuple[str, bool]]:
    """The modules that a module imports, and whether each is imported when the module itself is."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    entries = imports(path.read_text("utf-8"), package, typed=False)
    return [(defining(entry.module), entry.at_top) for entry in entries]


def import_graph(*, late: bool) -> Graph:
    """Which modules each module imports when it is imported; with `late` also inside its functions.

    The package `onnxcam` itself is left out: it is the lazy table of public names, which point upwards.
    """
    return {
        name: {target for target, at_top in imports_of(name) if at_top or late} - {name, "onnxcam", ""}
        for name in MODULES
        if name != "onnxcam"
    }


def defining(dotted: str) -> str:
    """The module that defines a dotted name, empty if it is none of ours."""
    while dotted and dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return dotted


def condensed(edges: Graph) -> Graph:
    """The graph of the top-level packages and modules of onnxcam: a package with all its modules is one node."""
    units: Graph = {}
    for name, targets in edges.items():
        if name.startswith("onnxcam."):
            unit = name.split(".")[1]
            below = {target.split(".")[1] for target in targets if target.startswith("onnxcam.")}
            units.setdefault(unit, set()).update(below - {unit})
    return units


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """One import circle, empty if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def longest_chain(edges: Graph) -> list[str]:
    """The longest chain of imports, each imported by the one before it."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(edges).static_order():
        chains[name] = [name, *max((chains[target] for target in edges.get(name, ())), key=len, default=[])]
    return max(chains.values(), key=len)


@pytest.mark.parametrize("late", [False, True], ids=["at import", "anywhere"])
def test_no_module_imports_itself_in_a_circle(late: bool) -> None:
    assert circle(import_graph(late=late)) == []


def test_no_package_imports_itself_in_a_circle() -> None:
    assert circle(condensed(import_graph(late=True))) == []


def test_import_chains_are_short() -> None:
    chain = longest_chain(condensed(import_graph(late=False)))
    assert len(chain) <= LONGEST_CHAIN, " imports ".join(chain)


def test_lazy_public_names_are_not_submodules() -> None:
    """`import onnxcam.gradient` would set the attribute `gradient` of the package to the submodule."""
    submodules = {name.split(".")[1] for name in MODULES if name.startswith("onnxcam.")}
    assert submodules & set(onnxcam._LAZY) == set()


def test_the_checks_themselves() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert longest_chain({"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}) == ["a", "b", "c", "d"]
    edges = {"onnxcam.x.a": {"onnxcam.x.b", "onnxcam.y"}, "onnxcam.x.b": {"onnxcam.z.c"}, "tools.t": {"onnxcam.x.a"}}
    assert condensed(edges) == {"x": {"y", "z"}}


def test_imports_are_read_as_they_run() -> None:
    edges, late = import_graph(late=False), import_graph(late=True)
    assert "onnxcam.errors" in edges["onnxcam.runtime.library"]
    assert "onnxcam.runtime.options" in edges["onnxcam.runtime"], "relative to the package"
    assert "onnxcam.diagnose.cost" in late["onnxcam.cli.bench"] - edges["onnxcam.cli.bench"]
    assert "onnxcam.diagnose.report" not in late["onnxcam.cli.report"], "for the type checker alone"
    assert {"benchmarks.rows", "tools.coverage"} <= edges["benchmarks.matrix"]
