"""A call of every command of the command line, on files whose names and labels would control a terminal."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import cli, image
from onnxcam.cli.inside import COMMANDS as INSIDE
from onnxcam.cli.monitor import COMMANDS as MONITOR
from onnxcam.graph import edit
from onnxcam.network import manifest as manifests
from onnxcam.server import web_runtime
from tests.monitor import synthetic
from tests.support import models

ESC, OSC, CR, C1, BIDI, HALF = "\x1b[31m", "\x1b]0;title\x07", "\rforged", "\x9b2J", "\u202egnp", "\ud83d"
HOSTILE = f"a{ESC}{OSC}{CR}{C1}{BIDI}\nforged"
GROUPS = {"monitor": MONITOR, "inside": INSIDE}
EVERY = [name for name in cli.main.places if name not in GROUPS]  # type: ignore[attr-defined]
EVERY += [f"{group} {name}" for group, names in GROUPS.items() for name in names]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its plain file, labels, pictures and records, all with hostile names."""
    from tests.cli.conftest import RAW, noise  # which makes these fixtures known

    folder = tmp_path_factory.mktemp("workshop")
    plain = models.tiny_cnn()
    edit.rename(plain, {"relu2": f"relu{HOSTILE}", "relu1": f"first{HOSTILE}"})
    onnx.save(plain, folder / "plain.onnx")
    names = [f"{HOSTILE} {index}{HALF}" for index in range(5)]
    (folder / "labels.json").write_text(json.dumps(names))
    model = onnxcam.augment(plain, labels=["a", "b", "c", "d", "e"], preprocess=RAW)
    stored = manifests.read(model)
    assert stored is not None
    manifests.write(model, None)
    model.metadata_props.add(key=manifests.KEY, value=json.dumps({**stored, "labels": names}))
    onnx.save(model, folder / "ready.onnx")
    pictures = folder / "pictures"
    pictures.mkdir()
    image.write_png(pictures / f"{HOSTILE}.png", noise(np.random.default_rng(1)))
    image.write_png(pictures / os.fsdecode(b"half\xff\x9b.png"), noise(np.random.default_rng(2)))
    (pictures / f"broken{HOSTILE}.png").write_bytes(b"no picture")
    for name in ("0", "1"):
        (folder / "labelled" / name).mkdir(parents=True)
        for index in range(4):
            picture = noise(np.random.default_rng(index))
            image.write_png(folder / "labelled" / name / f"{HOSTILE}{index}.png", picture)
        (folder / "labelled" / name / f"broken{HOSTILE}.png").write_bytes(b"no picture")
    label = {"label": f"{HOSTILE}{HALF}", "index": 1, "probability": 0.5}
    records = [synthetic.record(n, request=HOSTILE) for n in range(700)]
    for record in records:
        record["prediction"]["target"] = record["prediction"]["target"] | {"label": label["label"]}
        record["prediction"]["top"][0]["label"] = label["label"]
    (folder / "runtime").mkdir()
    for name in web_runtime.DIGESTS:
        (folder / "runtime" / name).write_bytes(b"")
    (folder / "records").mkdir()
    synthetic.write(folder / "records", records[:640])
    synthetic.write(folder / "records", records[640:], pid=9)
    return folder


@pytest.fixture
def servers_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """End a server as soon as it has started, as a signal would."""
    from onnxcam.server.run import Server

    startup = Server.startup

    async def start_and_end(self: Any, sockets: Any = None) -> None:
        await startup(self, sockets)
        self.should_exit = True

    monkeypatch.setattr(Server, "startup", start_and_end)


def arguments(command: str, workshop: Path, out: Path) -> list[str]:
    """A call of a command that prints names from files.

    What is not listed here is `call(workshop, out)` of the command's own test file.
    """
    ready, pictures, records = workshop / "ready.onnx", workshop / "pictures", workshop / "records"
    rest: dict[str, list[Any]] = {
        "batch": [ready, pictures, "-o", out / HOSTILE.replace("/", "-")],
        "bench": [ready, "--batch", 1, "--rounds", 1, "--seconds", 0, "--layer", f"relu{HOSTILE}"],
        "calibrate": [ready, workshop / "labelled", "--truth", "by-folder", "--alpha", 0.5, "-o", out / "c.onnx"],
        "check": [ready, "--samples", 1],
        "demo": ["-o", out / HOSTILE],
        "doctor": [],
        "explain": [ready, pictures, "-o", out, "--top", 2, "--method", "gradcam", "--method", "hirescam"],
        "export": [workshop / "plain.onnx", "-o", out / "o.onnx", "--labels", workshop / "labels.json", "--no-verify"],
        "layers": [ready],
        "inside features": [ready, pictures, "-o", out, "--layer", f"relu{HOSTILE}"],
        "inside filters": [ready, "-o", out, "--layer", f"relu{HOSTILE}", "--pictures", pictures],
        "inside dead": [ready, pictures, "--layer", f"relu{HOSTILE}"],
        "inside perturb": [ready, sorted(pictures.iterdir())[0], "-o", out, "--cover", "2,2,20,20"],
        "inside fields": [ready, "--layer", f"relu{HOSTILE}"],
        "inside maximize": [ready, "-o", out, "--class", "1", "--steps", 2, "--pictures", pictures],
        "methods": [],
        "serve": [ready, "--port", 0, "--drain", 0, "--layer", f"relu{HOSTILE}"],
        "page": [ready, "-o", out / HOSTILE, "--runtime", workshop / "runtime", "--pictures", pictures],
        "triton": [ready, "-o", out / HOSTILE.replace("/", "-"), "--name", "model"],
        "monitor tail": [records],
        "monitor query": [records, "--limit", 2],
        "monitor stats": [records],
        "monitor feedback": [records],
        "monitor prune": [records, "--max-records", 10**6],
        "monitor baseline": [records, "-o", out / "baseline.json"],
        "monitor drift": [records, "--baseline", out / "baseline.json", "--since", "1000d"],
        "monitor report": [records, "-o", out / f"{HOSTILE}.html".replace("/", "-")],
        "monitor schema": [],
    }
    if command not in rest:
        rest[command] = import_module(f"tests.cli.test_{command.replace(' ', '_')}").call(workshop, out)
    return [*command.split(), *map(str, rest[command])]
