"""What the commands say where a file leaves the picture's size open, and `--input-size`."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcam.graph import load
from tests.cli.conftest import Run
from tests.graph.transformers import MEAN, PATCHES, block, model

ASSUMED = "Warning: the model leaves the picture's size open, and its layers of tokens need one: 224 x 224 was assumed"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.onnx"
    load.save(model(PATCHES, block("p", "1"), MEAN.format("b1"), picture="N,3,H,W"), path)
    return path


def test_an_assumed_size_is_said_by_every_command(run: Run, tokens: Path, photo: Path, tmp_path: Path) -> None:
    listed = run("layers", tokens)
    assert listed.code == 0 and ASSUMED in listed.err and "56 x 56" in listed.out
    assert ASSUMED.removeprefix("Warning: ") in run("layers", tokens, "--json").json()["warnings"][0]
    out = tmp_path / "out.onnx"
    exported = run("export", tokens, "-o", out)
    assert exported.code == 0 and ASSUMED in exported.err
    assert ASSUMED in run("layers", out).err
    explained = run("explain", out, photo, "-o", tmp_path / "maps", "--preprocess", "0..1")
    assert explained.code == 0 and ASSUMED in explained.err


def test_a_named_size_is_taken_without_a_word(run: Run, tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    exported = run("export", tokens, "-o", out, "--input-size", "32x48", "--preprocess", "0..1", "--json")
    assert exported.code == 0 and exported.err == ""
    written = exported.json()["manifest"]
    assert written["input"]["shape"] == ["N", 3, 32, 48] and written["layers"][0]["grid"] == [8, 12]
    assert written["input"]["preprocess"]["resize"]["size"] == [32, 48]
    again = run("export", out, "-o", tmp_path / "again.onnx", "--input-size", "64")
    assert again.code == 3 and "takes 32 x 48 pictures and was asked for 64 x 64" in again.sentence
    assert not (tmp_path / "again.onnx").exists()
