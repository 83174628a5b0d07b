"""Measure the facts of many architectures at their usual input size, and write benchmarks/probe.md.

    python benchmarks/probe.py                     # what is missing or failed last time, then the page
    python benchmarks/probe.py resnet18 vgg11      # these anew
    python benchmarks/probe.py --jax build/jax     # those of JAX too, see benchmarks/jax_network.py

The architectures are those of the coverage matrix, the onnx package's light models and two networks of JAX, with random
weights (`benchmarks.plain_files`). What counts is the default layer: whether the place map settles it, and that it
raises no alarm, for all of these networks are right. Each runs in a process of its own, those first that took
`make matrix` the least time; rows are kept as JSON in benchmarks/probe.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import plain_files  # noqa: E402
from benchmarks import rows as coverage  # noqa: E402
from benchmarks.plain_files import JAX, LIGHT, MATRIX  # noqa: E402

FOLDER, PAGE = (
    Path(os.environ.get("ONNXCAM_PROBE_ROWS") or ROOT / "benchmarks" / "probe"),
    ROOT / "benchmarks" / "probe.md",
)
EVERY = (*MATRIX, *LIGHT, *JAX)
LIMIT_S = 1200
Row = dict[str, Any]


def measure(name: str, jax: Path | None = None) -> Row:
    """The facts of one architecture."""
    import onnxcam

    with tempfile.TemporaryDirectory() as folder:
        facts = onnxcam.probe(plain_files.plain_file(name, Path(folder), jax))
    (layer,) = facts.layers
    return {
        "name": name, "layer": layer.name, "shape": list(layer.shape or ()), "verdict": layer.place.verdict,
        "misplaced": layer.place.misplaced, "correlation": layer.place.correlation, "reason": layer.place.reason,
        "covers": layer.covers, "rows": facts.rows, "deterministic": facts.deterministic, "loads": facts.loads,
        "passes": facts.passes, "unmeasured": dict(facts.unmeasured), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def work(name: str, jax: Path | None) -> None:
    """Measure one architecture in this process and store its row."""
    began = time.perf_counter()
    try:
        row = measure(name, jax)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        row = {"name": name, "failed": f"{type(error).__name__}: {first}"}
    write({**row, "seconds": round(time.perf_counter() - began, 1)})


def write(row: Row) -> None:
    """Store a row."""
    part = FOLDER / f"{row['name']}.part"
    part.write_text(json.dumps(row), "utf-8")
    part.replace(part.with_suffix(".json"))


def read(name: str) -> Row | None:
    """The stored row of an architecture, None where it was not measured."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def spawn(name: str, jax: Path | None, limit: float) -> Row:
    """Measure in a process of its own and return the row; a crash or a timeout becomes the reason."""
    (FOLDER / f"{name}.json").unlink(missing_ok=True)
    forks = sys.platform == "linux"  # from this process, which has imported the libraries and computed nothing
    if forks:
        plain_files.load_libraries(name)
    process = multiprocessing.get_context("fork" if forks else "spawn").Process(target=work, args=(name, jax))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        write({"name": name, "failed": f"not done after {limit:g} s"})
    row = read(name)
    if row is None:
        write(row := {"name": name, "failed": f"the process ended with {process.exitcode}"})
    return row


def effort(name: str) -> float:
    """Seconds that `make matrix` took on it; 0 where that is not known."""
    record = coverage.read(f"{plain_files.family(name)}:{name.removeprefix('keras_').removeprefix('light_')}")
    return 0.0 if record is None else float(record["seconds"])


def page() -> str:
    """The page, from the rows stored so far."""
    rows = {name: row for name in EVERY if (row := read(name)) is not None}
    measured = {name: row for name, row in rows.items() if "failed" not in row}
    settled = {name for name, row in measured.items() if row["verdict"] == "direct"}
    alarms = {name for name, row in measured.items() if row["misplaced"]}
    unsettled = {name: row for name, row in measured.items() if name not in settled | alarms}
    matrix, others = (set(MATRIX) & measured.keys(), measured.keys() - set(MATRIX))

    def counts(names: set[str]) -> str:
        doubtful = f"{len(unsettled.keys() & names)} unsettled, {len(alarms & names)} false alarms"
        return f"{len(settled & names)} direct, {doubtful}"

    lines = [
        "# Facts of many architectures, measured",
        "",
        "Written by `python benchmarks/probe.py`: `onnxcam.probe` on networks with random weights, at 224 pixels a "
        "side unless they take another. All of them are right, so that any verdict but *direct* and *unsettled* "
        "would be a false alarm.",
        "",
        f"Of the {len(MATRIX)} architectures of the coverage matrix {len(matrix)} are measured: "
        f"**{counts(matrix)}**. Of {len(LIGHT) + len(JAX)} more, the onnx package's light models and networks of JAX, "
        f"{len(others)}: {counts(others)}.",
        "",
        "Of the 54 plain files of `python tools/graphs.py sources` (2026-11-30), most of them at 64 pixels a side, "
        "where the last map has 2 x 2 cells: 44 direct, 10 unsettled, 0 false alarms. Unsettled: six whose map of "
        "2 x 2 or 3 x 3 cells hardly depends on the place, three whose default layer no change of the picture moves, "
        "or every place alike, and one that does not run (EfficientNetB0 by tf2onnx has inputs without values).",
        "",
        "| architecture | default layer | shape | verdict | correlation | rows | passes |",
        "|---|---|---|---|---:|---|---:|",
    ]
    for name, row in measured.items():
        shape = "[" + ", ".join(map(str, row["shape"])) + "]"
        lines.append(
            f"| {name} | `{row['layer']}` | {shape} | {row['verdict']} | {row['correlation']:.2f} | "
            f"{row['rows'] or 'not measured'} | {row['passes']} |"
        )
    reasons = [f"- {name}: {row['reason']}" for name, row in unsettled.items()]
    failed = [f"- {name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    for title, entries in (("Unsettled:", reasons), ("Not measured:", failed)):
        lines += ["", title, "", *entries] if entries else []
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page; 1 where a right network raises an alarm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures, measured anew (default: those missing or failed)")
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows stored so far")
    parser.add_argument(
        "--jax", type=Path, help="an environment for benchmarks/jax_network.py; without it JAX is left out"
    )
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="seconds for each")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EVERY]
    if unknown:
        parser.error(f"no architecture called {', '.join(unknown)}; there are {', '.join(EVERY)}")
    FOLDER.mkdir(exist_ok=True)
    if hasattr(os, "nice"):
        os.nice(10)
    missing = [name for name in EVERY if "failed" in (read(name) or {"failed": None})]
    if options.jax is None:
        missing = [name for name in missing if name not in JAX]
    for name in [] if options.page_only else options.names or sorted(missing, key=effort):
        print(json.dumps(spawn(name, options.jax, options.limit)), flush=True)
    PAGE.write_text(page(), "utf-8")
    return int(any((read(name) or {}).get("misplaced") for name in EVERY))


if __name__ == "__main__":
    raise SystemExit(main())
