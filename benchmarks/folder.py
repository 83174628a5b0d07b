"""Measure explaining a folder: `onnxcam explain` against a bare loop that decodes the same files and runs the model.

    python benchmarks/folder.py [--pictures 200] [--models efficientnet_lite0 resnet50 vgg16] [--rounds 3]

Photographs are variations of the bundled ones, 640 x 480 to 1600 x 1200 pixels, JPEG quality 90, three of them corrupt.
The bare loop is what a user writes: decode, resize, crop, scale, run the plain model with ONNX Runtime's own options,
one picture after the other. There are two: one with OpenCV, which is faster and doesn't antialias as the models'
training did, and one with Pillow, whose pixels are those of `onnxcam explain`: the best classes must all be the same.
Explaining is measured with the flags of `CASES`: all files, all files compressed, as JPEG, and two files alone; and
without the package isal, by which pictures are written faster. All maps must be the same, bit by bit. All run as
processes of their own and take the time inside, from the first picture to the last, and the processor's time with it,
which other work on the machine changes less. Rounds alternate; ratios are medians of ratios within rounds, with the
least and the largest. What a round wrote is emptied, and deleted after the last one only: ext4 looks at each inode
deleted in the last minutes again whenever a file is made, which took as long as half of a picture's writing.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("efficientnet_lite0", "resnet50", "vgg16")
SIZES = {"640 x 480": (480, 640), "1024 x 768": (768, 1024), "1600 x 1200": (1200, 1600)}
CORRUPT = 3


class Case(NamedTuple):
    """One way to explain the folder.

    Attributes:
        flags: of the command.
        isal: whether the package may be used.
        throughput, disk: what is asked of EfficientNet-Lite0 on the two smaller sizes: at least this part of the OpenCV
            loop's throughput, at most this part of the bytes of `ALL`.
    """

    flags: tuple[str, ...] = ()
    isal: bool = True
    throughput: float | None = None
    disk: float | None = None


ALL = "all files"
CASES = {
    ALL: Case(),
    "all files, without isal": Case(isal=False),
    "all files, --compress": Case(("--compress",), throughput=0.75, disk=0.45),
    "all files, --format jpeg": Case(("--format", "jpeg"), throughput=0.9, disk=0.1),
    "--files overlay,json": Case(("--files", "overlay,json"), throughput=1.0),
}
Figures = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
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
            explainable, plain, preprocess = build(model, folder)
            for size in arguments.sizes:
                figures = measure(
                    explainable, plain, preprocess, photos[size], folder, arguments.rounds, arguments.cases
                )
                rows.append((model, size, figures))
                print(rows[-1], file=sys.stderr)
    text = table(rows, arguments)
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
        noisy = np.clip(large + grain, 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        (folder / f"{number:04}.jpg").write_bytes(data[: len(data) // 3] if number >= count - CORRUPT else data)
    return folder


def build(model: str, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The explainable file, the plain one, and how pictures become tensors."""
    from onnxcam import models

    explainable, plain = folder / f"{model}.cam.onnx", folder / f"{model}.onnx"
    if model == "efficientnet_lite0":
        shutil.copy(models.path(models.MODEL), explainable)
    else:
        # a process of its own: torch's memory and threads are gone before anything is timed
        subprocess.run([sys.executable, "-c", EXPORT, str(ROOT), model, str(explainable)], check=True)
    from onnxcam.graph import load
    from onnxcam.graph.normalize import prepare
    from onnxcam.network import manifest
    from onnxcam.network.split import head_of

    graph = prepare(load.load(explainable))
    header = manifest.read(graph.model)
    assert header is not None
    load.save(head_of(graph, header), plain)
    return explainable, plain, header["input"]["preprocess"]


EXPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from tests.support.torchvision_stub import import_torchvision
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
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
how = json.loads(sys.argv[5])
assert how["color"] == "RGB" and how["resize"]["mode"] == "shortest" and how["crop"]["size"] == [224, 224], how
mean, std, short_side = np.float32(how["mean"]), np.float32(how["std"]), how["resize"]["size"]
cubic = {"bilinear": False, "bicubic": True}[how["resize"]["interpolation"]]
session.run(None, {name: np.zeros((1, 3, 224, 224), np.float32)})
if sys.argv[3] == "pillow":
    from PIL import Image
    def read(path):
        try:
            picture = Image.open(path).convert("RGB")
        except OSError:
            return None
        width, height = picture.size
        short = min(width, height)
        size = (short_side * width // short, short_side * height // short)
        picture = picture.resize(size, Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR)
        left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
        return np.asarray(picture.crop((left, top, left + 224, top + 224)))
else:
    import cv2
    damaged = set(sorted(Path(sys.argv[2]).glob("*.jpg"))[-int(sys.argv[4]):])  # OpenCV fills what is missing
    def read(path):
        if path in damaged:
            return None
        picture = cv2.imread(str(path))
        height, width = picture.shape[:2]
        short = min(width, height)
        size = (short_side * width // short, short_side * height // short)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR)
        top, left = (picture.shape[0] - 224) // 2, (picture.shape[1] - 224) // 2
        return picture[top : top + 224, left : left + 224, ::-1]
classes, start, used = {}, time.perf_counter(), time.process_time()
for path in sorted(Path(sys.argv[2]).glob("*.jpg")):
    pixels = read(path)
    if pixels is None:
        continue
    tensor = np.ascontiguousarray(((pixels.astype(np.float32) * how["scale"] - mean) / std).transpose(2, 0, 1)[None])
    classes[path.name] = int(session.run(None, {name: tensor})[0].argmax())
seconds, used = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"done": len(classes), "classes": classes, "seconds": seconds, "processor": used}))
"""
READERS = ("opencv", "pillow")


def measure(
    explainable: Path,
    plain: Path,
    preprocess: dict[str, Any],
    photos: Path,
    folder: Path,
    rounds: int,
    cases: Sequence[str],
) -> Figures:
    """Pictures per second, ratios and processor time of all, in each round, and the memory that explaining holds."""
    figures: Figures = {}

    def add(key: str, value: float) -> None:
        figures.setdefault(key, []).append(value)

    maps: set[str] = set()
    for number in range(rounds):
        order = list(cases) if number % 2 == 0 else list(cases)[::-1]
        every = {case: explain(explainable, photos, folder, CASES[case]) for case in order}
        maps |= {one["maps"] for one in every.values() if one["maps"]}
        assert len(maps) <= 1, "the maps of two runs differ"
        for reader in READERS:
            command = [sys.executable, "-c", BARE, plain, photos, reader, str(CORRUPT), json.dumps(preprocess)]
            bare = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            add(reader, bare["done"] / bare["seconds"])
            add(f"{reader} processor", bare["processor"] / bare["done"] * 1e3)
            for case, one in every.items():
                assert bare["done"] == one["done"], (bare["done"], one["done"])
                same = sum(bare["classes"][name] == index for name, index in one["classes"].items()) / one["done"]
                assert reader == "opencv" or same == 1, f"{same:.3f} of the pictures have the same best class"
                add(f"{reader} same", same)
                add(f"{reader} ratio {case}", bare["seconds"] / one["seconds"])
        for case, one in every.items():
            add(f"explain {case}", one["done"] / one["seconds"])
            add(f"processor {case}", one["processor"] / one["done"] * 1e3)
            add(f"written {case}", one["written"] / one["done"])
            for part in PARTS:
                add(f"{part} {case}", one[part])
    return figures


def explain(model: Path, photos: Path, folder: Path, case: Case) -> dict[str, Any]:
    """One run of the command; its own summary says what the pictures are."""
    output = Path(tempfile.mkdtemp(dir=folder))
    way = "isal" if case.isal else "zlib"
    command = [sys.executable, "-c", CHILD, way, "explain", model, photos, "-o", output, *case.flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]  # 1: the corrupt ones, which are not among the first
    summary = json.loads((output / "analysis_summary.json").read_text())
    assert summary["counts"]["failed"] in (0, CORRUPT)
    report = json.loads(done.stdout.splitlines()[-1])
    pictures = [path for path in output.rglob("*") if path.is_file() and path.parent != output]
    written = sum(path.stat().st_size for path in pictures)
    maps = digest(sorted(path for path in pictures if path.name.endswith("_grayscale.png")))
    for path in pictures:
        os.truncate(path, 0)
    classes = {
        Path(picture["name"]).name: picture["predictions"][0]["index"]
        for picture in summary["pictures"]
        if picture["predictions"]
    }
    return {"done": summary["counts"]["explained"], "classes": classes, "written": written, "maps": maps, **report}


def digest(paths: list[Path]) -> str:
    """A digest of the grey maps' pixels; empty where there are none."""
    import cv2

    digest = hashlib.sha256()
    for path in paths:
        digest.update(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tobytes())
    return digest.hexdigest() if paths else ""


PARTS = ("a quarter", "half", "all")
CHILD = """
import json, resource, sys, time
from pathlib import Path
if sys.argv[1] == "zlib":
    sys.modules["isal"] = None
else:
    import isal
from onnxcam.cli import main
from onnxcam.cli import summary as module
real, found = module.explain_all, {}
def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
def timed(explainer, items, *arguments):
    start, used = time.perf_counter(), time.process_time()
    for number, outcome in enumerate(real(explainer, items, *arguments), start=1):
        if number in (len(items) // 4, len(items) // 2):
            found["a quarter" if number == len(items) // 4 else "half"] = memory()
        yield outcome
    found["seconds"] = time.perf_counter() - start
    found["processor"] = time.process_time() - used
    found["all"] = memory()
module.explain_all = timed
code = 0
try:
    main(sys.argv[2:], standalone_mode=True)
except SystemExit as stop:
    code = stop.code
print(json.dumps(found))
sys.exit(code)
"""


def table(rows: list[tuple[str, str, Figures]], arguments: argparse.Namespace) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    versions = ", ".join(
        f"{name} {version(name)}" for name in ("onnxcam", "onnxruntime", "opencv-python", "pillow", "isal")
    )
    lines = [
        "# A folder of photographs",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/folder.py` on "
        f"{os.cpu_count()} CPU cores ({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        f"{arguments.pictures} JPEG photographs, {CORRUPT} of them corrupt, which are named while the others are "
        f"explained, {arguments.rounds} rounds.",
        "*bare*: a loop that decodes, resizes and runs the plain model, with OpenCV (not antialiased) or Pillow",
        "(antialiased, as in explaining). *explain*: `onnxcam explain` over the same files with the flags named; *all",
        "files* is as without flags. All from the first picture to the last, without start-up; medians, and of ratios",
        "the least and the largest of a round. *processor*: milliseconds of all cores together for a picture. *disk*:",
        "of the bytes of *all files*. *memory*: what explaining holds after a quarter, half and all. The maps of all",
        "runs are the same, bit by bit.",
    ]
    for model, size, figures in rows:
        middle = {key: statistics.median(values) for key, values in figures.items()}
        lines += [
            "",
            f"## {model}, {size}",
            "",
            "| | pictures/s | of the OpenCV loop | asked | of the Pillow loop | processor, ms | MB each | disk | asked "
            "| memory, MB |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for reader in READERS:
            lines.append(
                f"| bare: {reader} | {middle[reader]:.1f} | | | | {middle[f'{reader} processor']:.0f} | | | | |"
            )
        bounded = model == MODELS[0] and size in list(SIZES)[:2]
        for case in arguments.cases:
            limit = CASES[case] if bounded else Case()
            opencv, pillow = (spread(figures[f"{reader} ratio {case}"]) for reader in READERS)
            written = middle[f"written {case}"]
            memory = ", ".join(f"{middle[part + ' ' + case]:.0f}" for part in PARTS)
            disk = written / middle[f"written {ALL}"] if f"written {ALL}" in middle else None
            lines.append(
                f"| explain: {case} | {middle[f'explain {case}']:.1f} | {opencv} | {_bound('≥', limit.throughput)} | "
                f"{pillow} | {middle[f'processor {case}']:.0f} | {written / 1e6:.2f} | "
                f"{'' if disk is None else f'{disk:.3f}'} | {_bound('≤', limit.disk)} | {memory} |"
            )
        same = middle["opencv same"]
        lines += ["", f"Same best class as the OpenCV loop's: {same:.2f} of the pictures."]
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """The median with the least and the largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _bound(sign: str, value: float | None) -> str:
    return "" if value is None else f"{sign} {value:g}"


if __name__ == "__main__":
    main()
