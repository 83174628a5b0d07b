"""What the commands say where a file leaves the picture's size open, and `--input-size`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxcam
from onnxcam import Explainer
from onnxcam.graph import load
from tests.cli.conftest import Run
from tests.graph.transformers import MEAN, PATCHES, block, model
from tests.support import models

ASSUMED = "Warning: the model leaves the picture's size open, and its layers of tokens need one: 224 x 224 was assumed"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.onnx"
    load.save(model(PATCHES, block("p", "1"), MEAN.format("b1"), picture="N,3,H,W"), path)
    return path


@pytest.mark.slow
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


@pytest.fixture
def fixed_inside(tmp_path: Path) -> Path:
    """A file that declares height and width open, and runs at 32 x 32 only."""
    net = models.tiny_cnn(size=32, pool="Flatten")
    for dim, name in zip(net.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    path = tmp_path / "fixed_inside.onnx"
    load.save(net, path)
    return path


@pytest.mark.slow
def test_every_command_takes_the_size_of_a_plain_file(
    run: Run, fixed_inside: Path, photo: Path, tmp_path: Path
) -> None:
    size = ("--input-size", "32")
    assert run("explain", fixed_inside, photo, "-o", tmp_path / "maps", "--preprocess", "0..1", *size).code == 0
    assert run("check", fixed_inside, *size).code == 0
    assert run("layers", fixed_inside, *size, "--json").json()["layers"][-1]["shape"] == ["N", 16, 16, 16]
    assert run("bench", fixed_inside, "--rounds", 1, "--seconds", 0, *size).code == 0
    judged = run(
        "evaluate",
        fixed_inside,
        photo,
        "--preprocess",
        "0..1",
        "--method",
        "gradcam",
        "--metric",
        "average_drop",
        *size,
    )
    assert judged.code == 0
    # and gives the numbers of the file that declares it
    with_size = Explainer(fixed_inside, preprocess="0..1", input_size=(32, 32)).explain(photo)
    declared = Explainer(models.tiny_cnn(size=32, pool="Flatten"), preprocess="0..1").explain(photo)
    np.testing.assert_allclose(with_size.heatmap, declared.heatmap, atol=1e-6)


def test_the_option_is_named_where_the_size_is_missing(
    run: Run, fixed_inside: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    explain = ("explain", fixed_inside, photo, "-o", tmp_path / "maps", "--preprocess")
    export = ("export", fixed_inside, "-o", tmp_path / "out.onnx", "--preprocess", "imagenet")
    for command, code in (
        ((*explain, "0..1"), 2),
        ((*explain, "imagenet"), 1),
        (export, 3),
        (("check", fixed_inside), 3),
    ):
        result = run(*command)
        *warnings, error = result.err.splitlines()
        assert result.code == code and error.startswith("Error: ") and "--input-size" in error
        assert "Gemm" not in result.err and all("nothing could be measured" in warning for warning in warnings)
    assert capfd.readouterr().err == ""  # ONNX Runtime prints nothing of its own


@pytest.mark.parametrize("size", ["64", "3x32x32", "wide", "0"])
def test_a_size_that_cannot_be(run: Run, ready: Path, photo: Path, tmp_path: Path, size: str) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "maps", "--input-size", size)
    expected = (3, "takes 32 x 32 pictures and was asked for 64 x 64") if size == "64" else (2, "--input-size")
    assert result.code == expected[0] and expected[1] in result.err


def test_an_explainable_file_of_open_size_takes_one_too(run: Run, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(size=None)), path)
    result = run(
        "explain", path, photo, "-o", tmp_path / "maps", "--preprocess", "0..1", "--input-size", "40x48", "--json"
    )
    assert result.code == 0
    assert result.json()["options"]["preprocess"]["resize"]["size"] == [40, 48]
