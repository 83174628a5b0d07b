"""What explainable files compute in runtimes other than ONNX Runtime for Python.

    make runtimes [ARGS='--page docs/reference/runtimes.md']

Small networks of random weights, of every kind of `tests/support/runtimes.py`, in four forms, at batches of one and
three.
A result is right within 2e-2 of ONNX Runtime's on a CPU, by the distance that `parity` uses; a runtime that says no is
counted as refusing. The script ends with 1 if any result is silently wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import runtimes  # noqa: E402
from tests.support.runtimes import Case  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "runtimes.md"
START, END = "<!-- measured: runtimes -->", "<!-- end: runtimes -->"
WHAT = {
    "required": "`--target required`",
    "constant": "`--target CLASS`",
    "optional": "the default",
    "portable": "`--target required --portable`",
    runtimes.GRADIENT: "`onnxcam.gradient()`",
}


def columns(node: Callable[[str, Sequence[Case]], list[Any]] | None) -> dict[str, Callable[[list[Case]], list[Any]]]:
    """The runtimes at hand, by the name and version that head their column."""
    at_hand: dict[str, Callable[[list[Case]], list[Any]]] = {}
    for package in ("openvino", "tract"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        run = getattr(runtimes, package)
        at_hand[f"{package} {version}"] = lambda some, run=run: [run(case) for case in some]  # type: ignore[misc]
    if node is not None:
        for package, version in runtimes.VERSIONS.items():
            at_hand[f"{package} {version}"] = lambda some, name=package: node(name, some)  # type: ignore[misc]
    return at_hand


def cell(verdicts: Sequence[str]) -> str:
    """A summary of verdicts: all right, all refused, or counts."""
    counts = Counter(verdict.partition(":")[0] for verdict in verdicts)
    if len(counts) == 1:
        return next(iter(counts)) if "wrong" not in counts else "**wrong**"
    return ", ".join(f"{'**wrong**' if word == 'wrong' else word} {count}" for word, count in sorted(counts.items()))


def main() -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose table is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxcam-") as folder:
        cases = list(runtimes.cases(Path(folder)))
        results = {
            name: [case.verdict(output) for case, output in zip(cases, run(cases), strict=True)]
            for name, run in columns(runtimes.node(ROOT / "build" / "runtimes")).items()
        }
    lines = [f"| file | form | {' | '.join(results)} |", f"|---|---|{'---|' * len(results)}"]
    wrong = []
    rows = [(kind, form) for kind in runtimes.KINDS for form in runtimes.FORMS]
    for kind, form in [*rows, (runtimes.GRADIENT, runtimes.GRADIENT)]:
        places = [place for place, case in enumerate(cases) if (case.kind, case.form) == (kind, form)]
        cells = [cell([verdicts[place] for place in places]) for verdicts in results.values()]
        lines.append(f"| {kind} | {WHAT[form]} | {' | '.join(cells)} |")
        for name, verdicts in results.items():
            wrong += [(name, cases[k], verdicts[k]) for k in places if verdicts[k].startswith("wrong")]
    for name, case, verdict in wrong:
        print(f"{name}: {case.kind}, {case.network}, {case.form}: {verdict}", file=sys.stderr)
    text = arguments.page.read_text("utf-8")
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    arguments.page.write_text(f"{before}\n\n" + "\n".join(lines) + f"\n\n{after}", "utf-8")
    print("\n".join(lines))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
