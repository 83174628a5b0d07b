"""`onnxcam evaluate`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam.cli.evaluate import evaluate
from onnxcam.cli.progress import Bar
from onnxcam.evaluation import judge
from onnxcam.evaluation.sampling import TOLERANCE
from onnxcam.image import write_png
from tests.cli.conftest import Run, noise, tree

QUICK = ("--metric", "average_drop", "--metric", "deletion")


def call(workshop: Path, _: Path) -> list[object]:
    """For `tests.cli.calls`."""
    return [workshop / "ready.onnx", workshop / "pictures", "--method", "gradcam", "--metric", "average_drop"]


def test_a_table_on_the_terminal(run: Run, ready: Path, photos: Path) -> None:
    result = run("evaluate", ready, photos, "--method", "gradcam", "--method", "hirescam", *QUICK)
    assert (result.code, result.err) == (0, "")
    about, head, *rows = result.out.splitlines()
    assert about.startswith("3 pictures (the model's top-1 explained)")
    assert head.split() == ["method", "drop", "↓", "deletion", "↓"]
    assert [row.split()[0] for row in rows] == ["gradcam", "hirescam"]


def test_json(run: Run, ready: Path, photos: Path) -> None:
    record = run("evaluate", ready, photos, "--method", "gradcam", *QUICK, "--json").json()
    assert record["pictures"] == 3 and record["failed"] == [] and record["seed"] == 1234
    assert set(record["methods"]["gradcam"]) == {"average_drop", "deletion"}
    assert len(record["curves"]["gradcam"]["deletion"]) == 33 and len(record["each"]) == 3
    assert record["each"][0]["picture"].endswith("a.jpg")


def test_files(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("evaluate", ready, photos, "--method", "gradcam", *QUICK, "-o", out).code == 0
    assert tree(out) == {"evaluation.json", "evaluation.csv", "report.html"}
    rows = list(csv.DictReader(io.StringIO((out / "evaluation.csv").read_text())))
    assert len(rows) == 4 and rows[-1]["picture"] == "mean"
    assert json.loads((out / "evaluation.json").read_text())["pictures"] == 3
    page = (out / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("data:image/jpeg") == 6
    other = tmp_path / "deep" / "r.html"
    assert (
        run("evaluate", ready, photos / "a.png", "--method", "gradcam", *QUICK, "--report", other, "--show", 0).code
        == 0
    )
    assert tree(other.parent) == {"r.html"} and "data:image/jpeg" not in other.read_text()
    again = run("evaluate", ready, photos, "--method", "gradcam", *QUICK, "--csv", tmp_path / "again.csv")
    assert again.code == 0
    assert (tmp_path / "again.csv").read_text() == (out / "evaluation.csv").read_text()


def test_boxes_folders_and_limit(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("picture,x0,y0,x1,y1\na.png,0,0,60,40\n")
    result = run(
        "evaluate", ready, photos, "--method", "gradcam", "--metric", "energy_in_box", "--boxes", boxes, "--json"
    )
    each = result.json()["each"]
    values = {Path(one["picture"]).name: one["values"]["gradcam"]["energy_in_box"] for one in each}
    assert values["a.png"] == pytest.approx(1) and values["b.png"] is None
    sorted_by_class = tmp_path / "classes"
    for name in ("cat", "3"):
        (sorted_by_class / name).mkdir(parents=True)
        shutil.copy(photos / "a.png", sorted_by_class / name)
        shutil.copy(photos / "sub" / "b.png", sorted_by_class / name)
    record = run("evaluate", ready, sorted_by_class, "--by-folder", "--method", "gradcam", *QUICK, "--json").json()
    assert record["labelled"] and [one["class"] for one in record["each"]] == [3, 3, 0, 0]
    table = tmp_path / "truth.csv"
    names = [path.relative_to(tmp_path) for path in sorted_by_class.rglob("*.png")]
    table.write_text("picture,class\n" + "".join(f"{name},1\n" for name in names))
    record = run("evaluate", ready, sorted_by_class, "--truth", table, "--method", "gradcam", *QUICK, "--json").json()
    assert record["labelled"] and [one["class"] for one in record["each"]] == [1] * 4
    record = run("evaluate", ready, sorted_by_class, "--by-folder", "--limit", 1, *QUICK, "--json").json()
    assert record["pictures"] == 1


def test_pictures_that_fail_do_not_stop_the_rest(run: Run, ready: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    result = run("evaluate", ready, photos, photos / "none.png", "--method", "gradcam", *QUICK)
    assert result.code == 1 and result.out.startswith("3 pictures")
    assert "broken.png" in result.err and "none.png" in result.err and "Traceback" not in result.err
    assert result.err.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "gardcam"], 2, "no method 'gardcam'"),
        (["--metric", "insertoin"], 2, "no metric 'insertoin'"),
        (["--metric", "pointing_game"], 2, "needs to know where the objects are"),
        (["--boxes", "none.csv"], 2, "boxes file 'none.csv' cannot be read"),
        (["--layer", "conv9"], 2, "conv9"),
        (["--preprocess", "imagnet"], 2, "imagnet"),
        (["--provider", "nonsense"], 4, "nonsense"),
        (["--report", "."], 1, "is a folder"),
        (["--by-folder"], 2, "name no class of the model"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Run, ready: Path, photos: Path, arguments: list[str], code: int, words: str
) -> None:
    (photos / "sub2").mkdir()
    for name in ("a.png", "a.jpg"):
        (photos / name).rename(photos / "sub2" / name)
    result = run("evaluate", ready, photos, *arguments)
    assert result.code == code and words in result.sentence and result.out == ""


def test_usage(run: Run, ready: Path, plain: Path, photo: Path, tmp_path: Path) -> None:
    assert run("evaluate", ready).code == 2
    assert run("evaluate", ready, photo, "--by-folder").code == 2
    assert run("evaluate", plain, photo).code == 2
    assert run("evaluate", tmp_path / "none.onnx", photo).code == 3
    assert run("evaluate", ready, tmp_path / "none.png").code == 1


def test_the_bar_is_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        tty = True

        def isatty(self) -> bool:
            return self.tty

    written = Terminal()
    monkeypatch.setattr("sys.stderr", written)
    with Bar() as bar:
        for done in (0, 1, 1, 2):
            bar.to(done, 2)
    assert "50 %" in written.getvalue() and "left" in written.getvalue() and written.getvalue().endswith("\r\x1b[2K")
    assert written.getvalue().count("50 %") == 1
    silent = Terminal()
    silent.tty = False
    monkeypatch.setattr("sys.stderr", silent)
    with Bar() as bar:
        bar.to(1, 2)
    assert silent.getvalue() == ""


def test_interrupted(run: Run, ready: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Bar, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "to", stop)
    result = run("evaluate", ready, photos, "--method", "gradcam", *QUICK)
    assert result.code == 130 and result.err == "Interrupted.\n" and result.out == ""


def test_estimates_and_tables_so_far(
    run: Run, ready: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    for number in range(37):
        write_png(photos / f"more{number:02}.png", noise(rng, 32, 32))
    monkeypatch.setattr("onnxcam.cli.evaluate._TABLE", 0.0)
    arguments = ["evaluate", ready, photos, "--method", "gradcam", *QUICK]
    result = run(*arguments)
    assert result.code == 0 and "deletion from" in result.out and "95% certainty" in result.out
    head = [line for line in result.err.splitlines() if line.startswith("After")]
    assert head == [f"After {count} of 40 pictures:" for count in (8, 16, 24, 32)]
    so_far = [line for line in result.err.splitlines() if line.startswith("gradcam")]
    assert len(so_far) == 4 and all("±" in line for line in so_far)
    record = run(*arguments, "--json").json()
    assert record["metrics"]["deletion"]["computed"] < 33
    assert 0 < record["methods"]["gradcam"]["deletion"]["bound"] < 0.05
    full = run(*arguments, "--json", "--tolerance", 0).json()
    assert full["methods"]["gradcam"]["deletion"]["bound"] == 0 and "computed" not in full["metrics"]["deletion"]
    assert record["forward_passes"]["changed"] < full["forward_passes"]["changed"]
    assert run(*arguments, "--tolerance", 2).code == 2
    (option,) = [one for one in evaluate.params if one.name == "tolerance"]
    assert option.default == TOLERANCE

    real, calls = judge._trial, []

    def interrupted(*of_trial: Any) -> Any:
        calls.append(of_trial)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*of_trial)

    monkeypatch.setattr(judge, "_trial", interrupted)
    part = run(*arguments, "--json")
    assert part.code == 130 and part.json()["interrupted"] is True and part.json()["left"] == 16
    so_far_bound = part.json()["methods"]["gradcam"]["deletion"]["bound"]
    assert so_far_bound > record["methods"]["gradcam"]["deletion"]["bound"]
