"""`--scores` and `--kind`: on every command that opens a plain file, and what is said of scores that are no logits."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest

from onnxcam import image
from onnxcam.cli import main
from tests.cli.conftest import Run, noise
from tests.support.runtime import run as run_file

CASES = Path(__file__).parent.parent / "cases"
PICTURES = Path(__file__).parents[2] / "models" / "classroom"
# commands that open a plain classifier, and what they need besides it
COMMANDS = {
    "layers": (),
    "check": ("--samples", "1"),
    "bench": ("--rounds", "1", "--seconds", "0"),
    "export": ("-o", "{out}.onnx", "--no-verify"),
    "batch": ("{photo}", "-o", "{out}", "--preprocess", "0..1"),
    "explain": ("{photo}", "-o", "{out}", "--preprocess", "0..1"),
    "evaluate": ("{photo}", "--method", "gradcam", "--metric", "average_drop", "--preprocess", "0..1"),
    "triton": ("-o", "{out}"),
    "compare": ("{model}", "{photo}", "--preprocess", "0..1"),
}
# the same of commands that stay, or need a file from elsewhere
STAYING = {
    "serve": ("--preprocess", "0..1", "--port", "0"),
    "page": ("-o", "{out}", "--preprocess", "0..1"),
    "calibrate": (str(PICTURES), "--by-folder", "-o", "{out}", "--preprocess", "0..1"),
}


@pytest.fixture
def square(tmp_path: Path) -> Path:
    path = tmp_path / "square.png"
    image.write_png(path, noise(np.random.default_rng(3), 64, 64))
    return path


def test_every_command_that_opens_a_plain_file_has_both_options() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        options = {option for parameter in command.params for option in parameter.opts}
        assert ({"--scores", "--kind"} <= options) is (name in COMMANDS or name in STAYING), name


@pytest.mark.parametrize("command", COMMANDS)
def test_several_candidates_are_refused_with_an_option_that_the_command_has(
    command: str, run: Run, square: Path, tmp_path: Path
) -> None:
    model = CASES / "logits_and_embedding.onnx"
    rest = [part.format(out=tmp_path / "out", photo=square, model=model) for part in COMMANDS[command]]
    result = run(command, model, *rest)
    assert result.code == 3 and "--scores NAME" in result.sentence
    assert run(command, model, *rest, "--scores", "logits").code == 0
    result = run(command, model, *rest, "--scores", "logits", "--kind", "probabilities")
    assert result.code == 3 and "contradicts the file" in result.sentence
    assert run(command, model, *rest, "--kind", "guess").code == 2


@pytest.mark.parametrize("command", STAYING)
def test_they_are_refused_before_a_page_is_written_or_served(command: str, run: Run, tmp_path: Path) -> None:
    rest = [part.format(out=tmp_path / "out") for part in STAYING[command]]
    model = CASES / "logits_and_embedding.onnx"
    result = run(command, model, *rest)
    assert result.code == 3 and "--scores NAME" in result.sentence
    result = run(command, model, *rest, "--scores", "logits", "--kind", "probabilities")
    assert result.code == 3 and "contradicts the file" in result.sentence
    assert not (tmp_path / "out").exists()


def test_a_quantity_is_shown_as_its_value(run: Run, square: Path, tmp_path: Path) -> None:
    model = CASES / "regression.onnx"
    result = run("explain", model, square, "-o", tmp_path / "binary", "--preprocess", "0..1")
    assert result.code == 0 and "--kind regression" in result.err
    result = run("explain", model, square, "-o", tmp_path / "out", "--preprocess", "0..1", "--kind", "regression")
    pixels = image.load(square).pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
    (value,) = run_file(str(model), pixels)["age"][0]
    assert (result.code, result.err) == (0, "")
    assert f"{value:.3g}" in result.out and "age" in result.out and "%" not in result.out
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert record["scores"]["kind"] == "regression" and record["objective"]["kind"] == "value"
    assert record["target"]["value"] == pytest.approx(value, rel=1e-4) and record["target"]["probability"] is None


def test_where_no_logit_exists_the_record_and_the_panel_say_so(run: Run, square: Path, tmp_path: Path) -> None:
    model = CASES / "vote.onnx"
    result = run("export", model, "-o", tmp_path / "vote.onnx", "--preprocess", "0..1")
    assert result.code == 0 and "log p of 5 classes" in result.out
    assert run("explain", tmp_path / "vote.onnx", square, "-o", tmp_path / "out").code == 0
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert record["scores"]["kind"] == "probabilities" and record["objective"]["kind"] == "log_probability"
    pixels = image.load(square).pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
    output = run_file(str(model), pixels)["53"][0]
    best = record["predictions"][0]
    assert best["index"] == output.argmax() and best["probability"] == pytest.approx(output.max(), abs=1e-6)


def test_labels_of_the_graph_are_printed(run: Run, square: Path, tmp_path: Path) -> None:
    result = run("explain", CASES / "zipmap_only.onnx", square, "-o", tmp_path / "out", "--preprocess", "0..1")
    assert result.code == 0
    assert {line.split()[-1] for line in result.out.splitlines()[1:]} == set("abcde")
