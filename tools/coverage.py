"""The page docs/explanation/coverage.md, from the rows that `make matrix` measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.architectures import KERAS, TORCH
from benchmarks.files import SAMPLES
from benchmarks.judgement import DRAWS, PLACES, QUANTITIES, ROUNDING, SLACK, TOLERANCE
from benchmarks.rows import Row

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "coverage.md"


def page() -> str:
    """The page, from the rows stored so far; missing ones are marked as not measured."""
    records = {task: rows.read(task) for task in rows.tasks()}
    measured = [record for record in records.values() if record is not None]
    dates = sorted({record["date"] for record in measured})
    names = dict.fromkeys([*rows.PACKAGES, *rows.KERAS_PACKAGES])
    versions = {
        name: sorted({record["versions"][name] for record in measured if name in record["versions"]}) for name in names
    }
    torch_rows: dict[tuple[str, str], Row | None] = {}
    keras_rows: dict[tuple[str, str], Row | None] = {}
    light_rows: dict[str, Row | None] = {}
    for task, record in records.items():
        family, _, name = task.partition(":")
        if family == "light":
            light_rows[name] = record and record["rows"]["light"]
        else:
            family_rows = keras_rows if family == "keras" else torch_rows
            for kind in ("default", "middle"):
                family_rows[name, kind] = record and record["rows"][kind]
    passed = sum(row is not None and _passes(row) for row in torch_rows.values())
    noisy = [row for row in torch_rows.values() if row is not None and _passes(row) and _noise(row, "floor")]
    kinked = sum(_noise(row, "beside") is not None for row in noisy)
    light = sum(row is not None and _passes(row) for row in light_rows.values())
    lines = [
        "# Coverage",
        "",
        "Written by `make matrix` (`benchmarks/matrix.py`); do not edit.",
        "",
        f"Measured {' to '.join(dict.fromkeys([dates[0], dates[-1]])) if dates else 'never'} with "
        + ", ".join(f"{name} {' and '.join(several)}" for name, several in versions.items() if several)
        + f", Python {platform.python_version()}, on the CPU.",
        "",
        "## torchvision architectures",
        "",
        f"{len(TORCH)} architectures, each at the default layer (the last spatial one) and at a layer in the "
        f"middle: **{passed} of {len(torch_rows)} rows pass**: {passed - len(noisy)} within {TOLERANCE:g}, "
        f"{len(noisy) - kinked} by the noise floor, {kinked} next to the picture.",
        "",
        "Seeded random weights, perturbed batch-norm statistics and affine parameters. Exported from a one-row example "
        f"with `onnxcam.exporters.pytorch.export`, run in ONNX Runtime on a batch of {SAMPLES} random pictures, one "
        "row at its own top-1 class and two at a fixed class. Scores, activations and gradients of the score "
        "are compared with torch autograd through plain forward hooks: per sample ‖a−b‖ / ‖b‖, the worst sample shown.",
        "",
        f"Tolerance: {TOLERANCE:g}, or {SLACK:g} × torch's own float32 against float64 difference on that sample where "
        "that is larger: the **noise floor**, shown wherever it was needed. Gradients jump where a ReLU's input is "
        "close to 0; when torch happens to fall on the right side of it and ONNX Runtime does not, torch agrees with "
        "itself and the floor tells nothing. Then both are evaluated again **nearby**, at the picture moved by "
        f"{ROUNDING:g} of itself, up to {DRAWS} times: each sample must agree within {TOLERANCE:g} at one of these "
        "places, which a wrong gradient would not; the remaining error is shown. Where the ReLUs are so numerous that "
        f"every place is near a jump, the floor is measured at {PLACES} places, and the **median** error has to be "
        f"below {SLACK:g} times the median floor.",
        "",
        "A gradient error of 0 is expected at a last layer that only a global average pooling and one linear layer "
        "follow: the gradient is then a weight divided by an area. Rows marked † have a layer that no module returns "
        "(a functional ReLU): they are compared with the program that torch.export captured.",
        "",
        "| Architecture | Input | Layer | Shape | Scores | Activations | Gradients | Exporter | Export | Result |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(name, kind, row) for (name, kind), row in torch_rows.items()),
        "",
        "`Export` is the whole export with its verification, in seconds, on two busy cores.",
        "",
        *_keras_section(keras_rows),
        "## Light models of the onnx package",
        "",
        "Old files (opset 3 to 9) as other tools wrote them, with seeded random weights: "
        f"**{light} of {len(light_rows)} pass**. Augmented, "
        "run in ONNX Runtime, predictions compared with the file as it came (tolerance 1e-5), gradients compared with "
        "finite differences by `onnxcam check`. `unsure` means that the finite differences disagree among themselves.",
        "",
        "| Model | Opset | Default layer | Shape | Predictions | Gradients (along, halves, anywhere) | Time | Result |",
        "|---|---|---|---|---|---|---|---|",
        *(_light_line(name, row) for name, row in light_rows.items()),
        "",
    ]
    return "\n".join(lines)


def _passes(row: Row) -> bool:
    return bool(row["passed"]) and not row.get("refused")


def _noise(row: Row, kind: str) -> float | None:
    """The largest `floor` or `beside` that a quantity of the row needed."""
    needed = [figure[kind] for figure in row.get("figures", {}).values() if figure.get(kind) is not None]
    return max(needed) if needed else None


def result(row: Row) -> str:
    if not _passes(row):
        reason = row.get("reason") or row.get("refused") or "; ".join(row.get("findings", ())) or "above tolerance"
        return "**fails**: " + reason.replace("|", "\\|")
    floor, nearby, median = (_noise(row, kind) for kind in ("floor", "beside", "median_error"))
    if median is not None:
        return f"passes, median {median:.1e} of floor {_noise(row, 'median_floor'):.1e}"
    if nearby is not None:
        return f"passes, floor {floor:.1e}, nearby {nearby:.1e}"
    return "passes" if floor is None else f"passes, floor {floor:.1e}"


def _shape(shape: Sequence[object]) -> str:
    return "×".join(str(dim) for dim in shape[1:])


def _line(name: str, kind: str, row: Row | None) -> str:
    size = TORCH[name].size
    if row is None or "figures" not in row:
        layer = "default" if kind == "default" else f"`{TORCH[name].middle}`"
        return f"| {name} | {size} | {layer} | | | | | | | {result(row) if row else 'not measured'} |"
    mark = "" if row["oracle"] == "hooks" else " †"
    label = f"`{row['layer']}`{mark}" + (" (default)" if kind == "default" else "")
    figures = " | ".join(f"{row['figures'][quantity]['error']:.1e}" for quantity in QUANTITIES)
    return (
        f"| {name} | {size} | {label} | {_shape(row['shape'])} | {figures} | {row['exporter']} | "
        f"{row['export_s']:.0f} s | {result(row)} |"
    )


def _light_line(name: str, row: Row | None) -> str:
    if row is None or "layer" not in row:
        return f"| {name} | | | | | | | {result(row) if row else 'not measured'} |"
    figures = ", ".join(f"{value:.1e}" for value in row["differences"].values()) or row["detail"]
    unsure = " (unsure)" if row["gradients"] == "unsure" else ""
    return (
        f"| {name} | {row['opset']} | `{row['layer']}` | {_shape(row['shape'])} | {row['predictions']:.1e} | "
        f"{figures}{unsure} | {row['augment_s']:.1f} s | {result(row)} |"
    )


def _keras_section(rows: dict[tuple[str, str], Row | None]) -> list[str]:
    """The part of the page about Keras."""
    passed = sum(row is not None and _passes(row) for row in rows.values())
    return [
        "## Keras Applications",
        "",
        f"{len(KERAS)} architectures, each at the default layer and at a layer in the middle: "
        f"**{passed} of {len(rows)} rows pass**.",
        "",
        "Seeded random weights, perturbed batch-norm statistics and affine parameters. Exported with "
        f"`onnxcam.exporters.keras.export`, run in ONNX Runtime on {SAMPLES} random pictures, one at its own "
        "top-1 class and two at a fixed class, and compared with GradientTape the way a Keras Grad-CAM script "
        "computes it: one functional model that returns the layer's output and the scores, on a second network with "
        "the same weights and no softmax. Tolerance, noise floor and nearby places as above, the floor from a third "
        "network in float64.",
        "",
        "| Architecture | Input | Layer | Shape | Scores | Activations | Gradients | Export | Result |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_keras_line(name, kind, row) for (name, kind), row in rows.items()),
        "",
    ]


def _keras_line(name: str, kind: str, row: Row | None) -> str:
    entry = KERAS[name]
    if row is None or "figures" not in row:
        layer = "default" if kind == "default" else f"`{entry.middle}`"
        return f"| {entry.build} | {entry.size} | {layer} | | | | | | {result(row) if row else 'not measured'} |"
    label = f"`{row['layer']}`" + (" (default)" if kind == "default" else "")
    figures = " | ".join(f"{row['figures'][quantity]['error']:.1e}" for quantity in QUANTITIES)
    return (
        f"| {entry.build} | {entry.size} | {label} | {_shape(row['shape'])} | {figures} | "
        f"{row['export_s']:.0f} s | {result(row)} |"
    )
