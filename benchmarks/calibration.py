"""What the nodes of a calibration cost: a calibrated file against the same file without, median of ratios.

    python benchmarks/calibration.py [--rounds 60] [--model models/efficientnet_lite0.onnx]

Both are the classifier alone, without gradients, so that the share is that of the forward pass. Runs alternate; each
round is a ratio of two runs that follow each other, and the median of these ratios and its 95 % interval are printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx

import onnxcam
from onnxcam import runtime
from onnxcam.graph import edit
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration.conformal import PENALTIES
from onnxcam.network.calibration.fit import fit
from onnxcam.network.calibration.nodes import attach
from onnxcam.targets.readout import Readout

ROOT = Path(__file__).resolve().parent.parent


def without_maps(model: onnx.ModelProto, names: set[str]) -> bytes:
    """The model with these outputs alone."""
    outputs = [output for output in model.graph.output if output.name in names]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    edit.prune(model)
    return bytes(model.SerializeToString())


def files(path: Path, score: str, set_temperature: float) -> tuple[bytes, bytes, str, tuple[int, ...]]:
    """The classifier without and with a calibration that was fitted to drawn scores; its input and shape."""
    model = onnxcam.augment(str(path), probe=False)
    manifest = manifests.read(model)
    assert manifest is not None
    readout = Readout.from_manifest(manifest["scores"])
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=3, size=(500, readout.columns))
    truth = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    options = {"penalty": PENALTIES[2], "k": 5} if score == "raps" else {}
    attach(model, manifest, fit(scores, truth, readout, score=score, set_temperature=set_temperature, **options))
    shape = tuple(size if isinstance(size, int) else 1 for size in manifest["input"]["shape"])
    outputs = {readout.value}
    return (
        without_maps(plain, outputs),
        without_maps(model, outputs | {"calibrated", "prediction_set"}),
        manifest["input"]["name"],
        shape,
    )


def ratios(plain: bytes, calibrated: bytes, name: str, shape: tuple[int, ...], rounds: int) -> np.ndarray:
    """The time of the calibrated file over that of the plain one, `[rounds]`; and as a control plain over plain."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    sessions = [runtime.open_session(source, ["CPUExecutionProvider"]) for source in (plain, calibrated, plain)]
    times = np.zeros((rounds, 3))
    for row in range(-5, rounds):
        order = np.random.default_rng(row + 5).permutation(3)
        for place in order:
            start = time.perf_counter()
            for _ in range(3):
                sessions[place].run(None, {name: x})
            if row >= 0:
                times[row, place] = time.perf_counter() - start
    return times[:, 1:] / times[:, :1]


def main() -> None:
    """Print a line for each score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "efficientnet_lite0.onnx")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    for score, temperature in (("lac", 1.0), ("aps", 1.0), ("raps", 1.5)):
        plain, calibrated, name, shape = files(arguments.model, score, temperature)
        values = np.median(ratios(plain, calibrated, name, shape, arguments.rounds), axis=0)
        spread = ratios(plain, calibrated, name, shape, max(10, arguments.rounds // 3))
        low, high = np.quantile(spread[:, 0], [0.025, 0.975])
        print(
            f"{score}: {values[0]:.4f} x the forward pass (control, the same file twice: {values[1]:.4f}; single "
            f"rounds {low:.3f} to {high:.3f}); promised 1.01"
        )


if __name__ == "__main__":
    main()
