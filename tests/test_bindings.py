"""The programs of docs/bindings give Python's numbers without onnxcam, and the page quotes them as they are."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import onnxcam
from onnxcam import image, models

if sys.platform != "win32":
    import fcntl

ROOT = Path(__file__).parent.parent
BINDINGS = ROOT / "docs" / "bindings"
SCRIPTS = ("explain.mjs", "boxes.mjs", "preprocess.mjs", "pixels.mjs", "package.json")
EXPLAIN = """
import { explain, readPng } from "./explain.mjs";
import { readFile } from "node:fs/promises";
for (const [model, picture, target, method] of JSON.parse(process.argv[2])) {
  const found = await explain(await readFile(model), await readPng(picture), target, method);
  console.log(JSON.stringify({ ...found, heatmap: [...found.heatmap] }));
}
"""
BOXES = """
import { readPng } from "./explain.mjs";
import { explainBox } from "./boxes.mjs";
import { readFile } from "node:fs/promises";
const [model, picture, ...boxes] = process.argv.slice(2);
for (const box of boxes) {
  const found = await explainBox(await readFile(model), await readPng(picture), Number(box));
  console.log(JSON.stringify({ heatmap: [...found.heatmap], height: found.height, width: found.width }));
}
"""
RAW = """
import * as ort from "onnxruntime-web";
import { readFile } from "node:fs/promises";
const [batch, target, ...models] = process.argv.slice(2);
const { data, shape } = JSON.parse(await readFile(batch, "utf8"));
const feeds = {
  input: new ort.Tensor("float32", Float32Array.from(data), shape),
  target: new ort.Tensor("int64", BigInt64Array.from(JSON.parse(target), BigInt), [JSON.parse(target).length]),
};
for (const model of models) {
  const session = await ort.InferenceSession.create(await readFile(model));
  const found = await session.run(feeds);
  const output = (name) => [name, { data: [...found[name].data].map(Number), dims: found[name].dims }];
  console.log(JSON.stringify(Object.fromEntries(session.outputNames.map(output))));
}
"""
PIXELS = """
import { explain, rgb } from "./pixels.mjs";
import { readFile } from "node:fs/promises";
const [file, size, raw, target] = process.argv.slice(2);
const [height, width] = JSON.parse(size);
const pixels = new Uint8Array(await readFile(raw));
const found = await explain(await readFile(file), { pixels, height, width }, target);
const output = (name) => [name, { data: [...found[name].data].map(Number), dims: found[name].dims }];
const names = ["predictions", "target_class", "picture_heatmap", "overlay"];
console.log(JSON.stringify(Object.fromEntries(names.map(output))));
"""
GOLDEN = """
import { preprocess } from "./preprocess.mjs";
const { height, width, spec } = JSON.parse(process.argv[2]);
const pixels = Uint8Array.from({ length: height * width * 3 }, (_, i) => {
  const [y, x, c] = [Math.floor(i / 3 / width), Math.floor(i / 3) % width, i % 3];
  return (7 * y + 13 * x + 29 * c) % 256;
});
const { data, shape } = preprocess({ pixels, height, width, channels: 3 }, spec, "NCHW");
console.log(JSON.stringify({ data: [...data], shape }));
"""


@pytest.mark.parametrize("name", ["explain.mjs", "boxes.mjs", "Explain.cs", "pixels.mjs", "Pixels.cs"])
def test_the_page_quotes_the_program_as_it_is(name: str) -> None:
    page = (ROOT / "docs" / "how-to" / "bindings.md").read_text("utf-8")
    program = (BINDINGS / name).read_text("utf-8")
    assert f"\n{program}```\n" in page, f"copy docs/bindings/{name} into docs/how-to/bindings.md"


@pytest.fixture(scope="module")
def node() -> Path:
    """A folder with the programs and what they need from npm, kept between runs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is not installed")
    folder = ROOT / "build" / "bindings"
    folder.mkdir(parents=True, exist_ok=True)
    programs = {name: (BINDINGS / name).read_text("utf-8") for name in SCRIPTS}
    programs |= {
        "explain_json.mjs": EXPLAIN,
        "boxes_json.mjs": BOXES,
        "raw_json.mjs": RAW,
        "golden.mjs": GOLDEN,
        "pixels_json.mjs": PIXELS,
    }
    expected = json.loads(programs["package.json"])["dependencies"]
    with alone(folder):  # several test processes may come here
        for name, text in programs.items():
            if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text:
                (folder / name).write_text(text, "utf-8")
        if any(installed(folder, name) != version for name, version in expected.items()):
            call("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder)
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, where the system has such locks."""
    with (folder / ".lock").open("w") as handle:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def installed(folder: Path, name: str) -> str | None:
    file = folder / "node_modules" / name / "package.json"
    return json.loads(file.read_text("utf-8"))["version"] if file.is_file() else None


def call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def required(source: Any, path: Path, **options: Any) -> Path:
    from onnxcam.graph.load import save

    save(onnxcam.augment(source, target="required", **options), path)
    return path


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled ImageNet model, as JavaScript needs it."""
    return required(models.path(models.MODEL), tmp_path_factory.mktemp("bindings") / "required.onnx")


def golden() -> list[Any]:
    """The golden vectors of preprocessing.md: picture size, specification, values by index, shape and sum."""
    text = (ROOT / "docs" / "reference" / "preprocessing.md").read_text("utf-8")
    result = []
    for section in text.split("\n### ")[1:]:
        height, width = map(int, re.findall(r"height (\d+), width (\d+)", section)[0])
        spec = json.loads(re.findall(r"```json\n(.*?)\n```", section, re.DOTALL)[0])
        rows = re.findall(r"\| \[(\d+), (\d+), (\d+)\] \| (-?[\d.]+) \|", section)
        shape = json.loads(re.findall(r"\| shape \| (\[.*?\]) \|", section)[0])
        total = float(re.findall(r"\| sum \| (-?[\d.]+) \|", section)[0])
        result.append(
            pytest.param(
                (height, width), spec, [(tuple(map(int, r[:3])), float(r[3])) for r in rows], shape, total,
                id=section.splitlines()[0],
            )
        )  # fmt: skip
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("size", "spec", "values", "shape", "total"), golden())
def test_javascript_prepares_pictures_as_the_golden_vectors_say(
    node: Path, size: tuple[int, int], spec: dict[str, Any], values: list[Any], shape: list[int], total: float
) -> None:
    complete = image.resolve(spec).to_dict()
    case = {"height": size[0], "width": size[1], "spec": complete}
    actual = json.loads(call("node", "golden.mjs", json.dumps(case), cwd=node))
    tensor = np.asarray(actual["data"], np.float32).reshape(actual["shape"])[0]
    assert list(tensor.shape) == shape and len(values) == 6
    for index, value in values:
        assert tensor[index] == pytest.approx(value, abs=1e-5)
    assert float(tensor.sum(dtype=np.float64)) == pytest.approx(total, abs=1e-2)


SPECS = [
    {"color": "RGB", "resize": {"mode": "stretch", "size": [20, 30], "interpolation": "bilinear", "antialias": False}},
    {"color": "RGB", "resize": {"mode": "stretch", "size": [75, 77], "interpolation": "bilinear", "antialias": False}},
    {"color": "L", "resize": {"mode": "shortest", "size": [30, 40], "interpolation": "lanczos", "antialias": True}},
    {"color": "BGR", "resize": {"mode": "shortest", "size": 60, "interpolation": "area", "antialias": True},
     "crop": {"size": [70, 51], "anchor": "center_floor"}},
    {"color": "RGB", "resize": {"mode": "letterbox", "size": [33, 90], "interpolation": "nearest", "antialias": True,
                                "pad_value": [1, 2, 3]}, "crop": {"size": [32, 32], "anchor": "bottom_left"}},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=[s["resize"]["mode"] + "-" + s["resize"]["interpolation"] for s in SPECS])
def test_javascript_prepares_pictures_as_python_does(node: Path, spec: dict[str, Any]) -> None:
    prepare = image.resolve(spec)
    height, width = 40, 60
    y, x, c = np.mgrid[:height, :width, :3]
    want, _ = prepare.apply(((7 * y + 13 * x + 29 * c) % 256).astype(np.uint8))
    case = {"height": height, "width": width, "spec": prepare.to_dict()}
    actual = json.loads(call("node", "golden.mjs", json.dumps(case), cwd=node))
    np.testing.assert_allclose(np.asarray(actual["data"], np.float32).reshape(actual["shape"]), want, rtol=0, atol=1e-4)


def explained(node: Path, *cases: tuple[Path, Path, int, str]) -> list[dict[str, Any]]:
    """What the program says of each model, picture, target and method, in one process."""
    listed = json.dumps([[str(model), str(picture), target, method] for model, picture, target, method in cases])
    return [json.loads(line) for line in call("node", "explain_json.mjs", listed, cwd=node).splitlines()]


PICTURES = [("cat.png", -1), ("coffee.png", 967), ("cat_and_coffee.png", 282)]


@pytest.fixture(scope="module")
def answers(node: Path, bundled: Path) -> dict[str, Any]:
    cases = [(bundled, models.path(picture), target, "gradcam") for picture, target in PICTURES]
    return dict(zip([picture for picture, _ in PICTURES], explained(node, *cases), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("picture", "target"), PICTURES)
def test_javascript_gives_pythons_numbers(answers: dict[str, Any], bundled: Path, picture: str, target: int) -> None:
    file, actual = models.path(picture), answers[picture]
    want = onnxcam.Explainer(bundled).explain(file, target=target)
    heatmap = np.asarray(actual["heatmap"], np.float32).reshape(actual["height"], actual["width"])
    assert want.heatmap.max() > 0.9
    np.testing.assert_allclose(heatmap, want.heatmap, rtol=0, atol=1e-4)
    for mine, (index, label, probability) in zip(actual["predictions"], want.predictions, strict=False):
        assert (mine["index"], mine["label"]) == (index, label)
        assert mine["probability"] == pytest.approx(probability, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_javascript_takes_grey_pictures_channels_last_and_other_methods(
    node: Path, tmp_path: Path, method: str
) -> None:
    methods = ("gradcam", "hirescam")
    model = required(models.path("classroom/fashion_mnist.onnx"), tmp_path / "clothes.onnx", methods=methods)
    file = models.path("classroom/fashion_mnist/right_pullover.png")
    [actual] = explained(node, (model, file, 6, method))
    want = onnxcam.Explainer(model).explain(file, target="Shirt", method=method)
    assert actual["predictions"][0]["label"] == "Pullover"
    heatmap = np.asarray(actual["heatmap"], np.float32).reshape(28, 28)
    np.testing.assert_allclose(heatmap, want.heatmap, rtol=0, atol=1e-4)
    assert heatmap.max() > 0.9


@pytest.mark.slow
def test_the_javascript_program_writes_an_overlay(node: Path, bundled: Path, tmp_path: Path) -> None:
    output = tmp_path / "overlay.png"
    printed = call("node", "explain.mjs", bundled, models.path("coffee.png"), output, cwd=node)
    assert printed.splitlines()[0].endswith("espresso") and len(printed.splitlines()) == 5
    drawn, picture = image.load(output).pixels.astype(int), image.load(models.path("coffee.png")).pixels
    assert drawn.shape == picture.shape
    # five colours of viridis, between which it is nearly straight, and Python's opacity
    e = onnxcam.Explainer(bundled).explain(models.path("coffee.png"))
    (box,) = e.visible
    inside = np.s_[box.y0 : box.y1, box.x0 : box.x1]
    off = np.abs(drawn - e.overlay())[inside]
    assert off.max() <= 20 and off.mean() < 3
    # and outside the crop stripes over the pale picture
    outside = np.ones(picture.shape[:2], bool)
    outside[inside] = False
    greys = np.rint((drawn - 0.3 * picture)[outside] / 0.7)
    assert outside.any() and np.isin(greys, [89, 90, 91, 159, 160, 161]).all() and 0.2 < (greys < 100).mean() < 0.3


@pytest.mark.slow
def test_javascript_says_what_an_optional_target_needs(node: Path) -> None:
    model, picture = models.path(models.MODEL), models.path("coffee.png")
    [answer] = explained(node, (model, picture, -1, "gradcam"))
    assert answer["predictions"][0]["label"] == "espresso"
    with pytest.raises(AssertionError, match="export it with --target required"):
        explained(node, (model, picture, 3, "gradcam"))


@pytest.mark.slow
def test_javascript_explains_boxes(node: Path, tmp_path: Path) -> None:
    source, scene = models.path("scenes/detector.onnx"), models.path("scenes/scene0.png")
    model = required(source, tmp_path / "boxes.onnx", preprocess="0..1", probe=False)
    explainer = onnxcam.Explainer(source, preprocess="0..1", probe=False)
    reported = explainer.boxes(scene)
    boxes = [-1, *(one.index for one in reported)]
    lines = call("node", "boxes_json.mjs", model, scene, *map(str, boxes), cwd=node).splitlines()
    layers = set()
    for box, line in zip(boxes, lines, strict=True):
        actual = json.loads(line)
        want = explainer.explain(scene, target=None if box < 0 else onnxcam.targets.Box(box))
        layers.add(want.layer)
        heatmap = np.asarray(actual["heatmap"], np.float32).reshape(actual["height"], actual["width"])
        assert want.heatmap.max() > 0.9
        if box < 0:  # on the finest grid
            assert np.corrcoef(heatmap.ravel(), want.heatmap.ravel())[0, 1] > 0.9
        else:
            np.testing.assert_allclose(heatmap, want.heatmap, rtol=0, atol=1e-4)
    assert len(layers) == 2, "boxes of both levels are among them"
    with pytest.raises(AssertionError, match=r"boxes\.mjs of detectors"):
        call("node", "explain.mjs", model, scene, tmp_path / "overlay.png", cwd=node)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "bicubic", "letterbox", "nearest"])
def test_javascript_needs_no_preprocessing_where_the_file_takes_pixels(node: Path, tmp_path: Path, name: str) -> None:
    from onnxcam.diagnose.pixels import smooth
    from tests.network.test_pixels import SPECS
    from tests.support.models import tiny_cnn

    model = required(tiny_cnn(seed=3), tmp_path / "pixels.onnx", preprocess=SPECS[name], pixels=True, probe=False)
    pixels = smooth((60, 83), np.random.default_rng(4))
    (tmp_path / "raw").write_bytes(pixels.tobytes())
    actual = json.loads(call("node", "pixels_json.mjs", model, "[60, 83]", tmp_path / "raw", "2", cwd=node))
    want = onnxcam.Explainer(model).explain(pixels, 2)
    assert actual["target_class"]["data"] == [2] and actual["overlay"]["dims"] == [60, 83, 3]
    assert actual["predictions"]["data"][2] == pytest.approx(want.probability, abs=1e-2)
    heatmap, drawn = (
        np.asarray(actual[key]["data"]).reshape(actual[key]["dims"]) for key in ("picture_heatmap", "overlay")
    )
    np.testing.assert_allclose(heatmap, want.heatmap, rtol=0, atol=1e-2)
    assert np.abs(drawn - want.overlay()).max() <= 5


SOME = "margin < 0.5 or not (entropy < 0.9 or label == 'frog')"


GATED = [
    ("logits", None),
    ("logits", "confidence <= 1"),
    ("logits", "confidence < 0"),
    ("logits", SOME),
    ("binary_logit", SOME),
    ("multilabel", SOME),
]
TARGET = [-1, 0, 1, -1]


class Gated(NamedTuple):
    files: list[Path]
    x: np.ndarray
    answers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def gated(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Gated:
    """A file of each kind and gate, and what the runtime for JavaScript computes with them, in one process."""
    from tests.support.models import tiny_cnn

    folder, files = tmp_path_factory.mktemp("gated"), []
    for number, (kind, gate) in enumerate(GATED):
        source = tiny_cnn(
            classes=1 if kind == "binary_logit" else 5, ending={"logits": None}.get(kind, "Sigmoid"), seed=4
        )
        labels = ["hen", "frog"] if kind == "binary_logit" else ["hen", "frog", "cat", "dog", "cow"]
        file = folder / f"{number}.onnx"
        files.append(required(source, file, gate=gate, labels=labels, layers=["relu1", "relu2"]))
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4, 3, 32, 32)) + 3 * rng.normal(size=(4, 3, 1, 1))).astype(np.float32)
    (folder / "batch.json").write_text(json.dumps({"data": x.ravel().tolist(), "shape": x.shape}))
    lines = call("node", "raw_json.mjs", folder / "batch.json", json.dumps(TARGET), *files, cwd=node).splitlines()
    return Gated(files, x, [json.loads(line) for line in lines])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(GATED)), ids=[f"{kind}-{gate}" for kind, gate in GATED])
def test_javascript_runs_gated_files(gated: Gated, number: int) -> None:
    from onnxcam.runtime import open_session, run

    (_, gate), actual = GATED[number], gated.answers[number]
    session = open_session(str(gated.files[number]), ["CPUExecutionProvider"])
    want = run(session, list(actual), {"input": gated.x, "target": np.array(TARGET, np.int64)})
    assert list(actual) == [o.name for o in session.get_outputs()] and ("fired" in actual) == (gate is not None)
    for name, value in want.items():
        mine = np.asarray(actual[name]["data"], np.float64).reshape(actual[name]["dims"])
        np.testing.assert_allclose(mine, value.astype(np.float64), rtol=0, atol=1e-4, err_msg=name)
    assert want["heatmap/relu2"].any() == (gate != "confidence < 0")
