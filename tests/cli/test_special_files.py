"""Folders with pipes, sockets, devices and links in them, folders that vanish, and output folders that are input."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from onnxcam import files
from tests.cli.conftest import Run, tree


@pytest.fixture
def special(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pictures a.png, a.jpg, sub/b.png, and what looks like pictures and is not."""
    os.mkfifo(photos / "pipe.png")
    (photos / "linked.png").symlink_to("pipe.png")
    (photos / "named.png").mkdir()
    monkeypatch.chdir(photos)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    (photos / "good.png").symlink_to("a.png")
    (photos / "broken.png").symlink_to("gone.png")
    return photos


@pytest.mark.slow
def test_explain_tells_what_is_no_regular_file(run: Run, ready: Path, special: Path, tmp_path: Path) -> None:
    result = run("explain", ready, special, "-o", tmp_path / "out", "--json")
    assert result.code == 1
    assert result.json()["counts"] == {"found": 8, "explained": 4, "failed": 4}
    for name, what in (("pipe.png", "a pipe (FIFO)"), ("linked.png", "a pipe (FIFO)"), ("socket.png", "a socket")):
        assert any(name in line and f"is {what}: only regular files" in line for line in result.err.splitlines())
    assert "broken.png' cannot be read (No such file or directory)" in result.err and result.err.count("Error") == 4
    pattern = run("explain", ready, special / "*.png", "-o", tmp_path / "second", "--json")
    assert pattern.code == 1 and pattern.json()["counts"]["explained"] == 2


def test_other_commands_tell_it_too(run: Run, ready: Path, special: Path) -> None:
    result = run("evaluate", ready, special, "--method", "gradcam", "--metric", "average_drop", "--json")
    assert result.code == 1 and result.json()["pictures"] == 4 and result.err.count("only regular files") == 3
    result = run("check", ready, "--pictures", special)
    assert result.code == 1 and result.err.count("only regular files") == 3


def test_a_folder_of_pipes_alone(run: Run, ready: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "x.png")
    for arguments in (
        ["explain", ready, tmp_path / "in", "-o", tmp_path / "out"],
        ["evaluate", ready, tmp_path / "in"],
    ):
        assert "is a pipe (FIFO)" in run(*arguments).sentence
    assert "is a pipe (FIFO)" in run("check", ready, "--pictures", tmp_path / "in").sentence


def test_a_model_that_is_a_pipe(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    for command in (
        ["explain", tmp_path / "model.onnx", photo, "-o", tmp_path / "out"], ["check", tmp_path / "model.onnx"],
        ["layers", tmp_path / "model.onnx"], ["export", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx"],
        ["evaluate", tmp_path / "model.onnx", photo],
    ):  # fmt: skip
        result = run(*command)
        assert result.code == 3 and "a model is read more than once; save it as a file" in result.sentence


def test_a_picture_that_is_named_may_be_a_pipe(
    run: Run, ready: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, photo.read_bytes())
    os.close(writing)
    assert run("explain", ready, f"/dev/fd/{reading}", "-o", tmp_path / "out").code == 0
    os.close(reading)
    os.mkfifo(tmp_path / "x.png")
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    assert "nobody writes to" in run("explain", ready, tmp_path / "x.png", "-o", tmp_path / "out").sentence


def test_the_output_folder_is_called_so(run: Run, ready: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    result = run("explain", ready, "photos", "-o", "photos")
    assert result.code == 1
    assert "'photos' is the output folder" in result.sentence and "no pictures" not in result.sentence
    result = run("explain", ready, "photos/*.png", "-o", "photos")
    assert "'photos/*.png' has pictures in the output folder" in result.sentence
    assert run("explain", ready, "photos/a.png", "-o", "photos").code == 0, "one that is named is explained"


def test_a_folder_that_cannot_be_searched_is_told(
    run: Run, ready: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = run("explain", ready, photos, "-o", tmp_path / "out")
    assert result.code == 1 and "cannot be searched (Permission denied), so its pictures are left out" in result.err


def test_pictures_that_vanish_and_an_output_folder_that_does(
    run: Run, ready: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from onnxcam.cli import summary as module

    explain_all = module.explain_all

    def disturbed(*arguments: object) -> object:
        (photos / "sub" / "b.png").unlink()
        yield from explain_all(*arguments)
        shutil.rmtree(tmp_path / "out")

    monkeypatch.setattr(module, "explain_all", disturbed)
    result = run("explain", ready, photos, "-o", tmp_path / "out")
    assert result.code == 1 and "b.png' does not exist" in result.err
    assert tree(tmp_path / "out") == {"analysis_summary.json"}
    counts = json.loads((tmp_path / "out" / "analysis_summary.json").read_text())["counts"]
    assert counts == {"found": 3, "explained": 2, "failed": 1}


def test_files_and_formats_on_the_command_line(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    result = run(
        "explain", ready, photos, "-o", tmp_path / "out", "--files", "overlay,json", "--format", "jpeg", "--json"
    )
    assert result.code == 0
    expected = {
        f"{place}/{name}"
        for place in ("a.png", "a.jpg", "sub/b")
        for name in ("gradcam_overlay.jpeg", "explanation.json")
    }
    assert tree(tmp_path / "out") == {*expected, "analysis_summary.json"}
    assert result.json()["options"]["files"] == ["overlay", "json"] and result.json()["options"]["format"] == "jpeg"
    assert {name for entry in result.json()["pictures"] for name in entry["files"].values()} == expected
    for arguments in (["--files", "overlays"], ["--files", ""], ["--format", "gif"]):
        result = run("explain", ready, photos, "-o", tmp_path / "second", *arguments)
        assert result.code == 2 and not (tmp_path / "second").exists()
