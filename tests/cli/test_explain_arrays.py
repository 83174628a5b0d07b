"""`onnxcam explain` with arrays: tensors of the model's own input, and pictures of many bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.cli.conftest import Run
from tests.support import runtime

FOUR = Path(__file__).parent.parent / "cases" / "four_channels.onnx"


def drawn(shape: tuple[int, ...], high: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, high, shape)


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    tensor = drawn((1, 4, 64, 64)).astype(np.float32)
    for number in range(3):
        np.save(folder / f"{number}.npy", drawn((1, 4, 64, 64), seed=number).astype(np.float32))
    result = run("explain", FOUR, folder, "-o", tmp_path / "out", "--bands", "2,1,0", "--method", "layercam", "--json")
    assert result.code == 0, result.err
    document = result.json()
    assert document["counts"] == {"found": 3, "explained": 3, "failed": 0}
    assert document["pictures"][0]["index"] == runtime.run(FOUR, tensor)["24"][0].argmax()
    assert (tmp_path / "out" / "0" / "panel.png").is_file()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    np.save(pictures / "a.npy", drawn((70, 60, 4), 4095).astype(np.uint16))
    refused = run("explain", FOUR, pictures / "a.npy", "-o", tmp_path / "out2")
    assert refused.code == 2 and "--preprocess" in refused.sentence and "[N, 4, 64, 64]" in refused.sentence
    low = run("explain", FOUR, pictures / "a.npy", "-o", tmp_path / "out2", "--preprocess", "0..1")
    assert low.code == 1 and "--range 0,4095" in low.sentence
    done = run(
        "explain", FOUR, pictures, "-o", tmp_path / "out2", "--preprocess", "0..1", "--range", "0,4095", "--json"
    )
    assert done.code == 0, done.err
    assert done.json()["options"]["preprocess"]["range"] == [0, 4095]
    for flags in (["--range", "5"], ["--range", "1,1"], ["--bands", "a,b,c"], ["--bands", "0,1"], ["--bands=-1,0,1"]):
        wrong = run("explain", FOUR, pictures, "-o", tmp_path / "out3", "--preprocess", "0..1", *flags)
        assert wrong.code == 2 and flags[0].partition("=")[0] in wrong.err


def test_arrays_next_to_pictures_are_left_alone(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    np.save(photos / "labels.npy", np.zeros((4, 4)))
    result = run("explain", ready, photos, "-o", tmp_path / "out", "--json")
    assert result.code == 0 and all(not entry["name"].endswith(".npy") for entry in result.json()["pictures"])
