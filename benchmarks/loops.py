"""Measure whether an ascent that is one ONNX file arrives at the same value in other runtimes, written into loops.md.

    python -m benchmarks.loops [--networks mnist fashion_mnist efficientnet_lite0] [--steps 16 256]

The files are those of `onnxcam inside maximize --as-onnx`; ONNX Runtime for Python, its WebAssembly build in Node,
onnxruntime-node and OpenVINO get the same start and jitter. The value is what the plain file says of the picture that
comes out. Each file also runs in ONNX Runtime for Python with every number of the start moved by one unit in its last
place: what that changes, no runtime that rounds differently can be expected to keep. Needs Node with npm, and OpenVINO;
a runtime that is not there has no column.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.files import SEED

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_suffix(".md")
# of each network: what is maximised, as of `inside.maximize`
WHATS: dict[str, tuple[dict[str, Any], ...]] = {
    "mnist": ({"target": 3}, {"layer": "conv2", "channel": 3}),
    "fashion_mnist": ({"target": "sneaker"}, {"layer": "conv2", "channel": 3}),
    "efficientnet_lite0": ({"layer": "hardtanh_3", "channel": 5}, {"target": "tabby"}),
}
FILES = {"mnist": "classroom/mnist.onnx", "fashion_mnist": "classroom/fashion_mnist.onnx"}
BOUNDS = {16: 1e-3, 256: 2e-2}
MOVED = 3  # runs from a start that is moved


def cases(network: str, steps: list[int], folder: Path) -> list[tuple[str, str, int, Any, Any]]:
    """What, parametrization, steps, the file's case and the function from a picture to the plain file's value."""
    import onnx

    from onnxcam import Explainer, models
    from onnxcam.inside.loop_file import PARAMETRIZATIONS, loop_model
    from onnxcam.inside.maximization import DEVIATION, Settings, scalar_of
    from onnxcam.inside.parametrization import Canvas
    from onnxcam.inside.subject import Subject
    from tests.support.runtime import run
    from tests.support.runtimes import Case

    source = models.path(FILES.get(network, f"{network}.onnx"))
    subject = Subject(Explainer(source, providers=["CPUExecutionProvider"]))
    result = []
    for what in WHATS[network]:
        scalar = scalar_of(subject, what.get("layer"), what.get("channel"), None, what.get("target"), None)

        def value(picture: np.ndarray, scalar: Any = scalar) -> float:
            tensor = subject.batch(subject.tensor(subject.picture(picture.astype(np.uint8))))
            return float(scalar.of(subject.values([scalar.value])(tensor)[scalar.value]))

        for parametrization in PARAMETRIZATIONS:
            for count in steps:
                settings = Settings.of(subject.size, steps=count, parametrization=parametrization)
                path = folder / f"{network}_{scalar.stem}_{parametrization}_{count}.onnx"
                onnx.save(loop_model(subject, scalar, settings), path)
                rng = np.random.default_rng(SEED)
                canvas = Canvas(parametrization, subject.channels, *subject.size, colors=subject.colors)
                most = settings.transformation.jitter
                feeds = {
                    "start": canvas.noise(rng, DEVIATION),
                    "jitter": rng.integers(-most, most + 1, (count, 2)),
                }
                outputs = ("picture", "parameters", "history")
                case = Case("", "", network, path, feeds, outputs, run(str(path), feeds, outputs=["picture"]))
                result.append((scalar.title, parametrization, count, case, value))
    return result


def moved(case: Any, value: Any) -> float:
    """The largest change, as a share, of ONNX Runtime's value where the start is moved in its last place."""
    from tests.support.runtime import run

    expected, rng, largest = value(case.expected["picture"]), np.random.default_rng(SEED), 0.0
    for _ in range(MOVED):
        start = case.feeds["start"]
        toward = np.where(rng.random(start.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        feeds = case.feeds | {"start": np.nextafter(start, toward)}
        largest = max(largest, abs(value(run(str(case.path), feeds, outputs=["picture"])["picture"]) / expected - 1))
    return largest


def main() -> None:
    from tests.support import runtimes

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(WHATS), choices=WHATS)
    parser.add_argument("--steps", nargs="+", type=int, default=list(BOUNDS))
    parser.add_argument("--output", type=Path, default=PAGE)
    arguments = parser.parse_args()
    node = runtimes.node(ROOT / "build" / "runtimes")
    columns: dict[str, Any] = {}
    if node is not None:
        for package, version in runtimes.VERSIONS.items():
            columns[f"{package} {version}"] = lambda some, name=package: node(name, some)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("openvino")
        columns[f"OpenVINO {version}"] = lambda some: [runtimes.openvino(case) for case in some]
    present = arguments.output.read_text("utf-8").splitlines() if arguments.output.exists() else []
    rows = [line for line in present if line.startswith("| ")][1:]
    for network in arguments.networks:
        rows = [row for row in rows if row.split(" | ")[0] != f"| {network}"]
        with tempfile.TemporaryDirectory() as folder:
            every = cases(network, arguments.steps, Path(folder))
            results = {name: run([case for *_, case, _ in every]) for name, run in columns.items()}
            for place, (title, parametrization, count, case, value) in enumerate(every):
                expected, self_change = value(case.expected["picture"]), moved(case, value)
                cells = []
                for name in columns:
                    output = results[name][place]
                    if isinstance(output, str):
                        cells.append(f"refused: {output}")
                        continue
                    change = abs(value(output["picture"]) / expected - 1)
                    cells.append(f"{change:.1e}" + ("" if change <= BOUNDS.get(count, 2e-2) else " (!)"))
                rows.append(
                    f"| {network} | {title} | {parametrization} | {count} | {expected:.5g} | {self_change:.1e} | "
                    f"{' | '.join(cells)} |"
                )
                print(rows[-1], flush=True)
    doc = (__doc__ or "").split("\n\n")[-1].strip()
    lines = [
        "# The ascent as one file, in several runtimes",
        "",
        f"`python -m benchmarks.loops`, {datetime.date.today()}.",
        "",
        doc,
        "",
        "*Moved*: the largest change of the value, as a share, of three runs from a start that is moved so. Runtimes:",
        "the change against ONNX Runtime for Python; (!) above 1e-3 after 16 steps and 2 % after 256.",
        "",
        f"| network | what | parametrization | steps | value | moved | {' | '.join(columns)} |",
        "|---" * (6 + len(columns)) + "|",
        *rows,
    ]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
