"""Run the drift story: someone puts a watermark on every picture, and the model looks at it.

    python benchmarks/drift_story.py [--records 600] [--output build/drift_story]

The bundled EfficientNet-Lite0 predicts crops of natural photographs (those of this project, of scikit-image and of
scikit-learn) while a Monitor watches. First come the pictures that make the baseline, then new crops of the same
photographs (drift should be silent), then new crops with a sticker in a corner as a watermark, then new crops with a
frame. What drift says after each is printed as JSON, and the reports are left in the output folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import onnxcam
from onnxcam import image, models
from onnxcam.monitor import baseline, drift, page, reading
from onnxcam.monitor.report import Report

ROOT = Path(__file__).resolve().parent.parent
BEGIN = 1_793_577_600.0  # 2026-11-02 00:00 UTC
STEP = 60.0  # seconds between predictions: the story takes days, the run minutes
WHEN, SAMPLE = "confidence < 0.5", 0.5
SIDE = 256
STICKER = 40  # pixels, its radius


class StoryClock:
    """A minute for every prediction."""

    def __init__(self) -> None:
        self.now = BEGIN

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=600, help="records in each window, at least 500")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "drift_story")
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    start = time.perf_counter()
    story = tell(arguments.output, arguments.records, arguments.seed)
    print(json.dumps(story | {"seconds": round(time.perf_counter() - start)}, indent=2))


def verdict(assessment: drift.Verdict, report: Report) -> dict[str, Any]:
    """What is printed of a window."""
    moved = [s for s in assessment.statistics if s.drifted]
    return {
        "verdict": assessment.verdict,
        "records": assessment.records,
        "score": assessment.score,
        "threshold": assessment.threshold,
        "low_confidence": round(report.low_rate, 3),
        "moved": {
            s.name: {"from": s.baseline, "to": s.window, "distance": s.distance, "score": s.score} for s in moved
        },
    }


def watch(
    folder: Path,
    photographs: list[np.ndarray],
    rng: np.random.Generator,
    clock: StoryClock,
    records: int,
    change: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """Predict changed crops under a monitor until it has N records; return its counters."""
    explainer = onnxcam.Explainer(models.path(models.MODEL), providers=["CPUExecutionProvider"])
    monitor = onnxcam.Monitor(
        models.path(models.MODEL),
        sink=str(folder),
        sink_options={"sync": False, "min_free": 0},
        when=WHEN,
        baseline_sample=SAMPLE,
        rate=None,
        daily_budget=None,
        duplicates=None,
        redact="none",
        worker="inline",
        clock=clock,
        seed=int(rng.integers(2**31)),
    )
    with monitor:
        for pixels in crops(photographs, rng):
            picture = change(pixels)
            _, tensor, _ = explainer.prepare(picture)
            monitor.observe(explainer.predict(tensor), pictures=[picture])
            clock.now += STEP
            counts = monitor.stats()
            if counts["explained"] + counts["failed"] >= records:
                break
            print(f"\r{folder.name}: {counts['explained']} of {records}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return monitor.stats() | {"processes": 1}


def load() -> list[np.ndarray]:
    """The photographs, uint8 `[H, W, 3]` RGB: ours, and those that come with scikit-image and scikit-learn."""
    import skimage
    import sklearn

    ours = [models.path(name) for name in models.names() if name.endswith(".png") and "/" not in name]
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    theirs = [Path(skimage.__file__).parent / "data" / name for name in names]
    theirs += [Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
    return [image.load(path).pixels for path in (*ours, *theirs)]


def crops(photographs: list[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Without end: a random part of a random photograph, perhaps mirrored, brighter or darker."""
    while True:
        whole = photographs[rng.integers(len(photographs))]
        side = int(min(whole.shape[:2]) * rng.uniform(0.55, 1.0))
        top, left = (int(rng.integers(extent - side + 1)) for extent in whole.shape[:2])
        part = cv2.resize(whole[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            part = part[:, ::-1]
        light = rng.uniform(0.8, 1.2)
        yield np.ascontiguousarray(np.clip(part * light, 0, 255).astype(np.uint8))


def watermark(pixels: np.ndarray) -> np.ndarray:
    """A round sticker with a cup of coffee in the lower right corner, as a shop would stamp its pictures."""
    cup = image.load(models.path("coffee.png")).pixels
    side = min(cup.shape[:2])
    top, left = (cup.shape[0] - side) // 2, (cup.shape[1] - side) // 2
    sticker = cv2.resize(
        cup[top : top + side, left : left + side], (2 * STICKER, 2 * STICKER), interpolation=cv2.INTER_AREA
    )
    marked = pixels.copy()
    # inside the middle 224 pixels, which is what the model sees
    corner = marked[-2 * STICKER - 22 : -22, -2 * STICKER - 22 : -22]
    y, x = np.mgrid[: 2 * STICKER, : 2 * STICKER] - STICKER + 0.5
    radius = np.hypot(y, x)
    corner[radius < STICKER] = (255, 255, 255)
    corner[radius < STICKER - 3] = sticker[radius < STICKER - 3]
    return marked


def frame(pixels: np.ndarray) -> np.ndarray:
    """A striped frame, as of a passe-partout."""
    framed = pixels.copy()
    y, x = np.mgrid[:SIDE, :SIDE]
    edge = np.minimum.reduce([y, x, SIDE - 1 - y, SIDE - 1 - x]) < 36
    framed[edge] = np.where(((x + y) // 8 % 2)[edge, None], (240, 240, 240), (25, 25, 25))
    return framed


CHANGES = {"unchanged": lambda pixels: pixels, "watermark": watermark, "frame": frame}


def tell(output: Path, records: int = 600, seed: int = 1234, names: Sequence[str] = tuple(CHANGES)) -> dict[str, Any]:
    """Run the story: how many photographs, and the verdict on each window."""
    photographs = load()
    rng = np.random.default_rng(seed)
    verdicts: dict[str, Any] = {"photographs": len(photographs)}
    folder = output / "normal"
    clock = StoryClock()
    watch(folder, photographs, rng, clock, records + records // 3, lambda pixels: pixels)
    document, _ = baseline.build(reading.records(folder))
    path = output / "baseline.json"
    path.write_text(json.dumps(document))
    detector = drift.Detector(baseline.load(path))
    for name in names:
        folder = output / name
        counts = watch(folder, photographs, rng, clock, records, CHANGES[name])
        assessment = drift.assess(reading.records(folder), detector, records)
        report = Report.of(reading.records(folder), detector.baseline)
        title = f"EfficientNet-Lite0, {name}"
        (output / f"{name}.html").write_text(page.render(report, folder, assessment, counts, title=title))
        verdicts[name] = verdict(assessment.latest, report)
    return verdicts


if __name__ == "__main__":
    main()
