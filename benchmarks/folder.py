"""What explaining a folder costs: `onnxcam explain` against a bare loop that decodes the same files and runs the model.

    python benchmarks/folder.py [--pictures 200] [--models efficientnet_lite0 resnet50 vgg16] [--rounds 3]

Photographs are variations of the bundled ones, 640 x 480 to 1600 x 1200 pixels, JPEG quality 90, three of them corrupt.
The bare loop is what a user writes: Pillow decodes and resizes, numpy scales, ONNX Runtime runs the plain model, one
picture after the other. Both run as processes of their own and take the time inside, from the first picture to the
last. Rounds alternate; ratios are medians of ratios within rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("efficientnet_lite0", "resnet50", "vgg16")
SIZES = {"640 x 480": (480, 640), "1024 x 768": (768, 1024), "1600 x 1200": (1200, 1600)}
CORRUPT = 3
Loop = Callable[[list[Path]], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compress", action="store_true", help="write compressed pictures")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "folder.md")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = {
            size: photographs(folder / size.replace(" ", ""), SIZES[size], arguments.pictures)
            for size in arguments.sizes
        }
        for model in arguments.models:
            explainable, plain = build(model, folder)
            for size in arguments.sizes:
                rows.append(
                    (
                        model,
                        size,
                        measure(explainable, plain, photos[size], folder, arguments.rounds, arguments.compress),
                    )
                )
                print(rows[-1], file=sys.stderr)
    text = table(rows, arguments.pictures, arguments.compress)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def photographs(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Parts of the bundled photographs, enlarged and with grain, as a camera's files; the last ones are damaged."""
    import cv2
    import numpy as np

    from onnxcam import image, models

    folder.mkdir(parents=True)
    sources = [image.load(models.path(name)).pixels for name in ("cat.png", "coffee.png")]
    rng = np.random.default_rng(1234)
    for number in range(count):
        pixels = sources[number % len(sources)]
        part = (np.array(pixels.shape[:2]) * rng.uniform(0.6, 1.0)).astype(int)
        y, x = rng.integers(0, pixels.shape[0] - part[0] + 1), rng.integers(0, pixels.shape[1] - part[1] + 1)
        large = cv2.resize(pixels[y : y + part[0], x : x + part[1]], size[::-1], interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 4, (*size, 1)).astype(np.float32)
        shown = np.clip(large + grain, 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", shown[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        (folder / f"{number:04}.jpg").write_bytes(data[: len(data) // 3] if number >= count - CORRUPT else data)
    return folder


def build(model: str, folder: Path) -> tuple[Path, Path]:
    """The explainable file and the plain one."""
    from onnxcam import models

    explainable, plain = folder / f"{model}.cam.onnx", folder / f"{model}.onnx"
    if model == "efficientnet_lite0":
        shutil.copy(models.path(models.MODEL), explainable)
    else:
        # a process of its own: torch's memory and threads are gone before anything is timed
        subprocess.run([sys.executable, "-c", EXPORT, str(ROOT), model, str(explainable)], check=True)
    from onnxcam.graph import load, manifest
    from onnxcam.graph.normalize import prepare
    from onnxcam.graph.split import head_of

    graph = prepare(load.load(explainable))
    held = manifest.read(graph.model)
    assert held is not None
    load.save(head_of(graph, held), plain)
    return explainable, plain


EXPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from tests.torchvision_stub import import_torchvision
from onnxcam.exporters import pytorch
torch.manual_seed(1234)
net = import_torchvision().models.get_model(sys.argv[2], weights=None).eval()
pytorch.export(net, torch.randn(1, 3, 224, 224), sys.argv[3], preprocess="imagenet", verify=False)
"""

# A process of its own for each contestant, timed inside, from the first picture to the last: start-up is not counted.
BARE = """
import sys, time, json
from pathlib import Path
import numpy as np, onnxruntime as ort
from PIL import Image
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
session.run(None, {name: np.zeros((1, 3, 224, 224), np.float32)})
done, start = 0, time.perf_counter()
for path in sorted(Path(sys.argv[2]).glob("*.jpg")):
    try:
        picture = Image.open(path).convert("RGB")
    except OSError:
        continue
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((256 * width // short, 256 * height // short), Image.Resampling.BILINEAR)
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32) / 255
    tensor = np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])
    session.run(None, {name: tensor})[0].argmax()
    done += 1
print(json.dumps({"done": done, "seconds": time.perf_counter() - start}))
"""


def measure(
    explainable: Path, plain: Path, photos: Path, folder: Path, rounds: int, compress: bool
) -> dict[str, float]:
    """Pictures per second of both, their ratio, and the memory that explaining takes for few and for all."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        bare = json.loads(
            subprocess.run([sys.executable, "-c", BARE, plain, photos], check=True, capture_output=True).stdout
        )
        all_of_them = explain(explainable, photos, folder, compress)
        assert bare["done"] == all_of_them["done"], (bare, all_of_them)
        found.setdefault("bare", []).append(bare["done"] / bare["seconds"])
        found.setdefault("explain", []).append(all_of_them["done"] / all_of_them["seconds"])
        found.setdefault("ratio", []).append(bare["seconds"] / all_of_them["seconds"])
        found.setdefault("peak", []).append(all_of_them["peak"])
        found.setdefault("written", []).append(all_of_them["written"] / all_of_them["done"])
    few = folder / "few"
    few.mkdir()
    for path in sorted(photos.glob("*.jpg"))[: max(16, len(list(photos.glob("*.jpg"))) // 4)]:
        (few / path.name).write_bytes(path.read_bytes())
    found["few"] = [explain(explainable, few, folder, compress)["peak"]]
    shutil.rmtree(few)
    return {key: statistics.median(held) for key, held in found.items()}


def explain(model: Path, photos: Path, folder: Path, compress: bool) -> dict[str, float]:
    """One run of the command, all files written; its own summary says how long the pictures took."""
    output = folder / "out"
    command = [
        sys.executable,
        "-c",
        CHILD,
        "explain",
        model,
        photos,
        "-o",
        output,
        *(["--compress"] if compress else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]  # 1: the corrupt ones, which are not among the first
    summary = json.loads((output / "analysis_summary.json").read_text())
    assert summary["counts"]["failed"] in (0, CORRUPT)
    held = json.loads(done.stdout.splitlines()[-1])
    written = sum(path.stat().st_size for path in output.rglob("*.png"))
    shutil.rmtree(output)
    return {
        "done": summary["counts"]["explained"],
        "seconds": held["seconds"],
        "peak": held["peak"],
        "written": written,
    }


CHILD = """
import json, resource, sys, time
from onnxcam.cli import main
from onnxcam.cli import explain as command
import onnxcam.cli.explain
module = sys.modules["onnxcam.cli.explain"]
real, took = module.explain_all, []
def timed(*arguments):
    start = time.perf_counter()
    yield from real(*arguments)
    took.append(time.perf_counter() - start)
module.explain_all = timed
code = 0
try:
    main(sys.argv[1:], standalone_mode=True)
except SystemExit as stop:
    code = stop.code
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": took[0], "peak": peak}))
sys.exit(code)
"""


def table(rows: list[tuple[str, str, dict[str, float]]], pictures: int, compress: bool) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxcam", "onnxruntime", "opencv-python", "pillow"))
    lines = [
        "# A folder of photographs",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/folder.py{' --compress' if compress else ''}` on "
        f"{os.cpu_count()} CPU cores ({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        f"{pictures} JPEG photographs, {CORRUPT} of them corrupt, which are named while the others are explained.",
        "*bare*: a loop in which Pillow decodes and resizes and ONNX Runtime runs the plain model. *explain*: `onnxcam",
        "explain` over the same files, with maps and all pictures written. Both from the first picture to the last,",
        "without start-up. *memory*: the peak of the process over a quarter of the pictures, and over all.",
        "",
        "| model | photographs | bare (pictures/s) | explain (pictures/s) | explain / bare "
        "| memory (a quarter, all; MB) | written (MB each) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model, size, row in rows:
        lines.append(
            f"| {model} | {size} | {row['bare']:.1f} | {row['explain']:.1f} | {row['ratio']:.2f} | "
            f"{row['few']:.0f}, {row['peak']:.0f} | {row['written'] / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
