"""Detectors, segmentations, embeddings and values on the command line: what is printed, written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcam import Explainer, image, models
from onnxcam.targets import Box, Value
from tests.cli.conftest import Run
from tests.support import detectors

FORMS = ("yolov8", "segment", "embed", "embed-free", "regress-two", "classifier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each form, and two pictures four times as large as their input."""
    folder = tmp_path_factory.mktemp("forms")
    for name in FORMS:
        onnx.save(detectors.build(name), folder / f"{name}.onnx")
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    image.write_png(folder / "street.png", pixels)
    image.write_png(folder / "other.png", np.ascontiguousarray(pixels[:, ::-1]))
    np.save(folder / "vector.npy", np.arange(detectors.DIMENSIONS, dtype=np.float32))
    np.save(folder / "table.npy", np.ones((3, detectors.DIMENSIONS), np.float32))
    return folder


@pytest.mark.slow
def test_several_boxes_each_have_a_map_a_file_and_a_line(run: Run, folder: Path, tmp_path: Path) -> None:
    picture, out = folder / "street.png", tmp_path / "out"
    boxes = Explainer(folder / "yolov8.onnx", preprocess="0..1").boxes(picture)
    first, second = boxes[0], boxes[-1]
    at = f"at:{(second.box[0] + second.box[2]) / 2},{second.box[3] - 1}"
    named = ("--preprocess", "0..1", "--box", first.index, "--box", at)
    result = run("explain", folder / "yolov8.onnx", picture, "-o", out, *named)
    assert result.code == 0, result.err
    record = json.loads((out / "explanation.json").read_text())
    assert record["task"] == "detect"
    assert [one["index"] for one in record["boxes"]] == [one.index for one in boxes]
    assert record["boxes"][0]["box"] == pytest.approx(first.box, abs=1e-3)
    explained = [one["box"]["index"] for one in record["maps"]]
    assert explained[0] == first.index and len(explained) == 2
    x, y = (second.box[0] + second.box[2]) / 2, second.box[3] - 1
    x0, y0, x1, y1 = record["maps"][1]["box"]["box"]
    assert x0 <= x <= x1 and y0 <= y <= y1
    lines = result.out.splitlines()
    assert lines[1].startswith(f"  * box {first.index}: {first.label} {100 * first.score:.1f} % at ")
    assert sum(line.startswith("  * box") for line in lines) == len(set(explained))
    names = record["files"]
    assert {"boxes", f"box{first.index}"} <= names.keys()
    assert all((out / name).is_file() for name in names.values())
    # the outline lies on the overlay, not on the input
    drawn, plain = (image.load(out / names[key]).pixels for key in ("overlay", "input"))
    left, top, right = (round(edge) for edge in first.box[:3])
    row = min(max(top, 0), drawn.shape[0] - 1)
    assert (drawn[row, max(left, 0) + 3 : right - 3] == 255).all()
    assert not (plain[row, max(left, 0) + 3 : right - 3] == 255).all()
    summary = json.loads((out / "analysis_summary.json").read_text())
    (entry,) = summary["pictures"]
    assert entry["task"] == "detect" and len(entry["boxes"]) == len(boxes) and len(entry["top"]) == 2
    assert summary["options"]["target"] == [{"box": {"index": first.index}}, {"box": {"at": [x, y]}}]


@pytest.mark.slow
def test_the_best_boxes_and_a_difference_of_two(run: Run, folder: Path, tmp_path: Path) -> None:
    model, picture = folder / "yolov8.onnx", folder / "street.png"
    result = run("explain", model, picture, "-o", tmp_path / "top", "--preprocess", "0..1", "--top", 3, "--json")
    assert result.code == 0
    (entry,) = json.loads(result.out)["pictures"]
    assert [one["box"]["index"] for one in entry["top"]] == [one["index"] for one in entry["boxes"][:3]]
    named = ("--box", "rank:0", "--contrast", "rank:1", "--files", "json,panel")
    result = run("explain", model, picture, "-o", tmp_path / "minus", "--preprocess", "0..1", *named)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "minus" / "explanation.json").read_text())
    assert record["objective"]["kind"] == "difference"
    assert [part["box"]["index"] for part in record["maps"][0]["scalar"]["minus"]] == [
        one["index"] for one in record["boxes"][:2]
    ]


@pytest.mark.slow
def test_regions_vectors_and_values(run: Run, folder: Path, tmp_path: Path) -> None:
    def explained(name: str, *rest: object) -> dict[str, object]:
        out = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        result = run(
            "explain", folder / f"{name}.onnx", folder / "street.png", "-o", out, "--preprocess", "0..1", *rest
        )
        assert result.code == 0, result.err
        record: dict[str, object] = json.loads((out / "explanation.json").read_text())
        return record

    region = explained("segment", "--target", 2, "--region", "100,50,300,200")
    assert region["task"] == "segment" and region["maps"][0]["scalar"]["region"] == [100, 50, 300, 200]  # type: ignore[index]
    assert explained("segment")["maps"][0]["scalar"]["region"] is None  # type: ignore[index]
    like = explained("embed", "--like", folder / "other.png")
    number = like["target"]["value"]  # type: ignore[index]
    explainer = Explainer(folder / "embed.onnx", preprocess="0..1")
    a, b = (explainer.batch_scores(explainer.prepare(folder / name)[1])[0] for name in ("street.png", "other.png"))
    assert number == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-5)
    stored = explained("embed", "--like", folder / "vector.npy")["target"]["value"]  # type: ignore[index]
    minus = explained("embed", "--like", folder / "other.png", "--contrast", folder / "vector.npy")
    assert minus["target"]["value"] == pytest.approx(number - stored, abs=1e-5)  # type: ignore[index]
    value = explained("regress-two", "--task", "regress", "--value", "value1[1]")
    assert value["target"]["label"] == "value1[1]" and value["target"]["probability"] is None  # type: ignore[index]


def test_an_embedding_that_is_not_normalised_is_one_where_the_user_says_so(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    """No number tells its vectors from logits; the cosine is that of its own vectors all the same."""
    arguments = ("explain", folder / "embed-free.onnx", folder / "street.png", "--preprocess", "0..1")
    result = run(*arguments, "-o", tmp_path / "a", "--task", "embed", "--like", folder / "other.png")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "a" / "explanation.json").read_text())
    assert record["task"] == "embed"
    explainer = Explainer(folder / "embed-free.onnx", preprocess="0..1", task="embed")
    a, b = (explainer.batch_scores(explainer.prepare(folder / name)[1])[0] for name in ("street.png", "other.png"))
    assert abs(np.linalg.norm(a) - 1) > 0.01
    assert record["target"]["value"] == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-5)
    assert run(*arguments, "-o", tmp_path / "b").code == 0, "a classifier, where nothing is said"


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("yolov8", ("--box", "3", "--region", "0,0,9,9"), ["--box and --region exclude each other"]),
        ("yolov8", ("--box", "3", "--target", "dog"), ["--target and --box", "label:cat"]),
        ("yolov8", ("--box", "3", "--top", "2"), ["--box and --top"]),
        ("yolov8", ("--box", "three"), ["'three'", "label:cat"]),
        ("yolov8", ("--box", "3000"), ["box 3000", "0 to 119"]),
        ("yolov8", ("--box", "at:5000,9"), ["outside the picture"]),
        ("yolov8", ("--box", "label:horse"), ["horse"]),
        ("yolov8", ("--value", "depth"), ["a detector", "--box"]),
        ("yolov8", ("--task", "segment"), ["output0"]),
        ("classifier", ("--box", "3"), ["a detector", "a classifier"]),
        ("classifier", ("--like", "other.png"), ["a classifier"]),
        ("embed-free", ("--like", "{folder}/other.png"), ["a classifier", "--task embed"]),
        ("embed-free", ("--task", "detect"), ["no output holds boxes", "--task embed"]),
        ("embed-free", ("--task", "segment"), ["no output holds a score per class and cell", "--task embed"]),
        ("segment", ("--box", "3"), ["segmentation", "--region"]),
        ("segment", ("--region", "500,0,600,9"), ["outside the picture"]),
        ("embed", (), ["--like"]),
        ("embed", ("--like", "{folder}/table.npy"), ["3 rows"]),
        ("embed", ("--like", "{folder}/missing.npy"), ["missing.npy"]),
        ("embed", ("--like", "{folder}/missing.png"), ["missing.png"]),
        ("regress-two", ("--task", "regress"), ["--value", "value1[1]"]),
        ("regress-two", ("--task", "regress", "--value", "value1"), ["value1", "[index]"]),
    ],
)  # fmt: skip
def test_wrong_combinations_are_one_sentence(
    name: str, flags: tuple[str, ...], words: list[str], run: Run, folder: Path, tmp_path: Path
) -> None:
    flags = tuple(one.format(folder=folder) for one in flags)
    result = run(
        "explain", folder / f"{name}.onnx", folder / "street.png", "-o", tmp_path / "o", "--preprocess", "0..1", *flags
    )
    assert result.code in (1, 2, 3), result.err
    error = next(line for line in result.err.splitlines() if line.startswith("Error: "))
    assert "Traceback" not in result.err and all(word in error for word in words), error


@pytest.mark.slow
def test_the_exported_detector_takes_a_box(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.onnx"
    result = run("export", folder / "yolov8.onnx", "-o", path, "--preprocess", "0..1", "--target", "required")
    assert result.code == 0 and "box      required" in result.out and "boxes (3 classes)" in result.out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.type) for value in session.get_inputs()][1] == ("box", "tensor(int64)")
    out = tmp_path / "o"
    result = run("explain", path, folder / "street.png", "-o", out, "--box", 100)
    assert result.code == 0 and json.loads((out / "explanation.json").read_text())["maps"][0]["box"]["index"] == 100
    for wrong, word in (
        (("--target", "3"), "bound"),
        (("--gate", "confidence < 0.5"), "detection"),
        (("--pixels",), "detect"),
    ):
        result = run("export", folder / "yolov8.onnx", "-o", tmp_path / "no.onnx", "--preprocess", "0..1", *wrong)
        assert result.code and word in result.sentence
        assert not (tmp_path / "no.onnx").exists()


@pytest.mark.slow
def test_layers_and_check_of_a_detector(run: Run, folder: Path) -> None:
    result = run("layers", folder / "yolov8.onnx", "--json")
    assert [layer["name"] for layer in result.json()["layers"] if layer["default"]] == ["v7_0"]
    result = run("check", folder / "yolov8.onnx", "--samples", 1)
    assert result.code == 0 and "-1 means each row's best box" in result.out
    assert run("check", folder / "regress-two.onnx", "--samples", 1, "--task", "regress").code == 0


def test_output_beside_o_names_the_value(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ("explain", folder / "regress-two.onnx", folder / "street.png", "--preprocess", "0..1")
    assert run(*arguments, "-o", tmp_path / "a", "--task", "regress", "--output", "value1[1]").code == 0
    assert run(*arguments, "--output", tmp_path / "b", "--task", "regress", "--value", "value1[1]").code == 0
    records = [json.loads((tmp_path / name / "explanation.json").read_text()) for name in "ab"]
    assert records[0]["target"] == records[1]["target"] and records[0]["maps"] == records[1]["maps"]
    both = run(*arguments, "-o", tmp_path / "c", "--output", "value1[1]", "--value", "value1[1]")
    assert both.code == 2 and "give one of them" in both.err
    assert run(*arguments).code == 2


@pytest.mark.slow
def test_a_box_is_looked_for_on_the_picture_alone(run: Run, tmp_path: Path) -> None:
    """Ranks and points are not looked for on the grey picture on which the command tries the layer beforehand."""
    model, picture = models.path("scenes/detector.onnx"), models.path("scenes/scene1.png")
    boxes = Explainer(model, preprocess="0..1").boxes(picture)
    x0, y0, x1, y1 = boxes[1].box
    for box in ("rank:1", f"at:{(x0 + x1) / 2:.0f},{(y0 + y1) / 2:.0f}"):
        result = run("explain", model, picture, "-o", tmp_path / "out", "--preprocess", "0..1", "--box", box)
        assert result.code == 0, result.err
        record = json.loads((tmp_path / "out" / "explanation.json").read_text())
        assert [one["box"]["index"] for one in record["maps"]] == [boxes[1].index]


@pytest.mark.slow
def test_panels_and_pages_name_what_is_explained(run: Run, folder: Path, tmp_path: Path) -> None:
    street = folder / "street.png"
    flags = ("-o", tmp_path, "--preprocess", "0..1")
    done = run("explain", folder / "embed.onnx", street, *flags, "--like", folder / "other.png", "--page")
    assert done.code == 0, done.err
    assert "similarity" in (tmp_path / "index.html").read_text(encoding="utf-8")
    edge = run("explain", folder / "yolov8.onnx", street, *flags, "--part", "x0", "--contrast", "rank:1")
    assert edge.code == 0 and "x0 minus that of box" in edge.out
    detector = Explainer(folder / "yolov8.onnx", preprocess="0..1")
    first, second = detector.boxes(street)[:2]
    assert detector.explain(street, target=Box(first.index, part="x0")).title.endswith(f"(box {first.index}, edge x0)")
    title = detector.explain(street, target=Box(first.index) - Box(second.index)).title
    assert title == f"{first.label} (box {first.index}) minus {second.label} (box {second.index})"
    values = Explainer(folder / "regress-two.onnx", preprocess="0..1", task="regress")
    plain, lowered = (values.explain(street, target=Value("value0", sign=sign)) for sign in (1, -1))
    assert lowered.label == "-value0" and lowered.probability == -plain.probability
    assert run("explain", folder / "segment.onnx", street, *flags, "--top", 2).code == 0
    assert (tmp_path / "regions.png").is_file()


@pytest.mark.slow
def test_a_picture_without_a_box_among_others_is_no_failure(run: Run, folder: Path, tmp_path: Path) -> None:
    """An empty street is told; alone, it is an error: there is no result."""
    model, street, pictures = tmp_path / "sparse.onnx", folder / "street.png", tmp_path / "pictures"
    onnx.save(detectors.build("torchvision"), model)
    pictures.mkdir()
    (pictures / "street.png").write_bytes(street.read_bytes())
    image.write_png(pictures / "black.png", np.zeros((64, 64, 3), np.uint8))
    shared = ("--preprocess", "0..1", "--files", "json")
    result = run("explain", model, pictures, "-o", tmp_path / "all", *shared)
    assert result.code == 0, result.err
    (warning,) = [line for line in result.err.splitlines() if "black.png" in line]
    assert warning.startswith("Warning: ") and "no box" in warning
    assert "1 of 2 explained, 1 without what was to be explained, in " in result.err
    summary = json.loads((tmp_path / "all/analysis_summary.json").read_text())
    assert summary["counts"] == {"found": 2, "explained": 1, "failed": 0, "absent": 1}
    entries = {Path(one["name"]).name: one for one in summary["pictures"]}
    black = entries["black.png"]
    assert "no box" in black["absent"] and (black["error"], black["index"], black["files"]) == (None, None, {})
    assert "absent" not in entries["street.png"] and entries["street.png"]["boxes"]
    (pictures / "broken.png").write_bytes(b"none")
    assert run("explain", model, pictures, "-o", tmp_path / "broken", *shared).code == 1
    alone = run("explain", model, pictures / "black.png", "-o", tmp_path / "alone", *shared)
    assert alone.code == 1 and alone.err.startswith("Error: ") and "no box" in alone.err
