"""`onnxcam explain` with several methods, their options, and targets that are more than a class."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import image
from onnxcam.cam import registry
from onnxcam.cam.view import View
from onnxcam.cli import question
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.texts import typed
from tests.cli.conftest import Run, tree
from tests.support import models

BOTH = ("--method", "gradcam", "--method", "hirescam")


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of the test's own: one of a layer, random and long, with options of every type; one of the input."""
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))

    @registry.layer_method("dice", gradient=False, long=True)
    def dice(
        view: View,
        samples: int = 4,
        scale: float = 0.5,
        even: bool = False,
        sides: tuple[int, ...] = (1, 6),
        form: str = "plain",
        cap: int | None = None,
    ) -> np.ndarray:
        """scale U, one draw per cell.

        Asks for variants that it makes nothing of.
        """
        rows = np.repeat(np.arange(len(view.scores)), samples)
        view.values(len(rows), lambda start, stop: (view.activations[rows[start:stop]], rows[start:stop]))
        shape = (len(view.scores), *view.activations.shape[2:])
        return np.asarray(view.rng.uniform(size=shape) * scale + even, np.float32)

    @registry.attribution("product")
    def product(view: View, scale: float = 1.0) -> np.ndarray:
        """x dx."""
        return view.input.activations * view.input.gradients * np.float32(scale)


def document(folder: Path, name: str = "analysis_summary") -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_several_methods_lie_flat_and_side_by_side(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("explain", ready, photo, "-o", out, *BOTH, "--method", "gradcam", "--target", "hen", "--json")
    assert (result.code, result.err) == (0, "")
    assert tree(out) == {
        *("input.png", "panel.png", "methods.png", "explanation.json", "analysis_summary.json"),
        *(f"{method}_{kind}.png" for method in BOTH[1::2] for kind in ("grayscale", "heatmap", "overlay")),
    }
    explainer = Explainer(ready)
    e = explainer.explain(photo, target=3, method=["gradcam", "hirescam"])
    for method in ("gradcam", "hirescam"):
        drawn = cv2.imread(str(out / f"{method}_overlay.png"))[..., ::-1]
        alone = explainer.explain(photo, target=3, method=method)
        # computed in the file, or outside it
        assert np.abs(drawn.astype(int) - alone.overlay()).max() <= 1
    np.testing.assert_array_equal(image.load(out / "methods.png").pixels, e.methods_panel())
    np.testing.assert_array_equal(image.load(out / "panel.png").pixels, e.panel())
    record = document(out, "explanation")
    assert set(record["files"].values()) == tree(out) - {"explanation.json", "analysis_summary.json"}
    assert record["files"]["hirescam/overlay"] == "hirescam_overlay.png" and record["method"] == "gradcam"
    methods = result.json()["pictures"][0]["methods"]
    assert methods == record["methods"] and [entry["method"] for entry in methods] == ["gradcam", "hirescam"]
    assert [entry["attention"] for entry in methods] == [one.statistics for one in e.per_method]
    assert result.json()["options"]["methods"] == {"gradcam": {}, "hirescam": {}}


def test_several_methods_and_classes(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    assert run("explain", ready, photo, "-o", tmp_path, *BOTH, "--top", 2).code == 0
    drawn = {name for name in tree(tmp_path) if name.startswith("top_predictions/")}
    assert len(drawn) == 4 and {name.split("/")[1].split("_")[0] for name in drawn} == {"gradcam", "hirescam"}
    methods = document(tmp_path, "explanation")["methods"]
    assert [len(entry["maps"]) for entry in methods] == [2, 2]


def test_a_notebook_shows_all_methods(ready: Path, photo: Path) -> None:
    explainer = Explainer(ready)
    e = explainer.explain(photo, method=["gradcam", "hirescam"])
    assert e._repr_png_() == image.encode_png(e.methods_panel())
    one = explainer.explain(photo)
    assert one._repr_png_() == image.encode_png(one.panel())
    with pytest.raises(onnxcam.OnnxcamError, match=r"method=\[\.\.\.\]"):
        one.methods_panel()
    assert one.to_dict()["methods"] == []


def test_why_one_class_and_not_another(run: Run, ready: Path, plain: Path, photo: Path, tmp_path: Path) -> None:
    """The head is pooling and linear: the map is the layer's output weighted by the difference of two columns."""
    arguments = ("explain", ready, photo, "-o", tmp_path / "out", "--normalize", "none", "--json")
    result = run(*arguments, "--target", "hen", "--contrast", "cat")
    assert result.code == 0, result.err
    explainer = Explainer(ready)
    a = explainer.run(explainer.prepare(photo)[1]).activations[0]
    w3 = next(onnx.numpy_helper.to_array(t) for t in models.tiny_cnn().graph.initializer if t.name == "w3")
    weights = w3[:, 3] - w3[:, 0]
    expected = np.maximum(np.tensordot(weights, a, 1), 0) / a[0].size
    e = explainer.explain(photo, target=onnxcam.Contrast("hen", "cat"))
    np.testing.assert_allclose(e.raw_map, expected, rtol=1e-4, atol=1e-6)
    assert e.kind == "contrast" and e.other == (0, "cat") and e.title == "hen rather than cat"
    entry = result.json()["pictures"][0]
    assert entry["objective"] == {"kind": "contrast", "other": {"index": 0, "label": "cat"}}
    assert entry["target"]["label"] == "hen"
    assert result.json()["options"]["target"] == {"kind": "contrast", "target": 3, "other": 0}
    gray = cv2.imread(str(tmp_path / "out" / "gradcam_grayscale.png"), cv2.IMREAD_UNCHANGED)
    drawn = explainer.explain(photo, target=onnxcam.Contrast(3, 0), normalize="none").heatmap
    np.testing.assert_allclose(
        gray, np.clip(drawn, 0, 1) * 255 if drawn.max() <= 1 else drawn / drawn.max() * 255, atol=1
    )


def test_runner_up_is_the_next_best(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    entry = run("explain", ready, photo, "-o", tmp_path, "--contrast", "runner-up", "--json").json()["pictures"][0]
    first, second = entry["predictions"][:2]
    assert entry["target"]["index"] == first["index"]
    assert entry["objective"]["other"] == {"index": second["index"], "label": second["label"]}


def test_probability_instead_of_the_score(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    result = run("explain", ready, photo, "-o", tmp_path, "--target", "1", "--probability", "--json").json()
    entry = result["pictures"][0]
    assert entry["objective"] == {"kind": "probability", "other": None} and entry["target"]["index"] == 1
    e = Explainer(ready).explain(photo, target=onnxcam.Probability(1))
    assert e.kind == "probability" and entry["attention"] == e.statistics
    assert run("explain", ready, photo, "-o", tmp_path, "--json").json()["pictures"][0]["objective"]["kind"] == "logit"


def test_fusion_reaches_the_map(run: Run, plain: Path, photo: Path, tmp_path: Path) -> None:
    arguments = ("--preprocess", "0..1", "--layer", "relu1", "--layer", "relu2", "--json")
    for fusion in ("mean", "max", "product"):
        result = run("explain", plain, photo, "-o", tmp_path, *arguments, "--fusion", fusion)
        e = Explainer(plain, preprocess="0..1", layers=["relu1", "relu2"]).explain(
            photo, layer=["relu1", "relu2"], fusion=fusion
        )
        entry = result.json()["pictures"][0]
        for key, value in e.statistics.items():
            np.testing.assert_allclose(entry["attention"][key], value, rtol=1e-4, err_msg=key)
        assert result.json()["options"]["fusion"] == fusion


@pytest.mark.parametrize("smooth", [("eigen",), ("augment",), ("eigen", "augment")])
def test_smoothing_reaches_the_map(run: Run, ready: Path, photo: Path, tmp_path: Path, smooth: tuple[str, ...]) -> None:
    arguments = [word for name in smooth for word in ("--smooth", name)]
    document = run("explain", ready, photo, "-o", tmp_path, *arguments, "--json").json()
    e = Explainer(ready).explain(photo, smooth=smooth)
    assert document["pictures"][0]["attention"] == e.statistics != Explainer(ready).explain(photo).statistics
    assert document["options"]["smooth"] == list(smooth)


@pytest.mark.slow
def test_every_method_there_is(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    """Each has its files and numbers; two of the same seed are the same."""
    of_transformers = {"rollout", "legrad"}  # which a convolutional network has no attention for
    names = [name for name in registry.methods() if name not in of_transformers]
    arguments = [word for name in names for word in ("--method", name)]
    listing = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        result = run("explain", ready, photo, "-o", folder, *arguments, "--json")
        assert result.code == 0, result.err
        entry = result.json()["pictures"][0]
        assert [method["method"] for method in entry["methods"]] == names
        listing.append(entry["methods"])
        for name in names:
            assert {f"{name}_grayscale.png", f"{name}_heatmap.png", f"{name}_overlay.png"} <= tree(folder)
    assert listing[0] == listing[1]
    zero = [method["method"] for method in listing[0] if method["attention"]["zero"]]
    assert len(zero) < len(names) / 3, zero


def test_options_and_seed_reach_the_method(run: Run, extra: None, ready: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ("explain", ready, photos / "a.png", "--method", "dice", "--json")
    settings = ("--option", "samples=3", "--option", "even=yes", "--option", "sides=2,4", "--option", "cap=7")
    documents = [
        run(*arguments, "-o", tmp_path / str(n), *settings, "--seed", seed).json() for n, seed in enumerate((1, 1, 2))
    ]
    first, again, other = (entry["pictures"][0]["attention"] for entry in documents)
    assert first == again and first != other
    assert documents[0]["options"]["seed"] == 1
    assert documents[0]["options"]["methods"] == {
        "dice": {"samples": 3, "scale": 0.5, "even": True, "sides": [2, 4], "form": "plain", "cap": 7}
    }
    # a picture's random numbers do not depend on those explained along with it
    many = run("explain", ready, photos, "-o", tmp_path / "many", "--method", "dice", *settings, "--seed", 1, "--json")
    alone = {entry["name"]: entry["attention"] for entry in many.json()["pictures"]}
    assert alone[str(photos / "a.png")] == first and alone[str(photos / "a.jpg")] == first


def test_attributions_of_the_input(run: Run, extra: None, ready: Path, photo: Path, tmp_path: Path) -> None:
    result = run(
        "explain", ready, photo, "-o", tmp_path, "--method", "product", "--method", "gradcam", "--option", "scale=2"
    )
    assert result.code == 0, result.err
    assert {"product_overlay.png", "gradcam_overlay.png", "methods.png"} < tree(tmp_path)
    explainer = Explainer(ready)
    e = explainer.explain(photo, method=["product", "gradcam"], scale=2.0)
    signed = explainer.attribution(explainer.prepare(photo)[1], method="product", scale=2.0)
    np.testing.assert_allclose(e.raw_map, np.abs(signed[0]).sum(axis=0), rtol=1e-5)
    gray = cv2.imread(str(tmp_path / "product_grayscale.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(gray, e.heatmap * 255, atol=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "gradcma"], ["no method 'gradcma'", "'gradcam'"]),
        (["--option", "samples=3"], ["no option 'samples'", "gradcam has none"]),
        (["--method", "dice", "--option", "sample=3"], ["no option 'sample'", "samples=4", "sides=1,6", "even=no"]),
        (["--method", "dice", "--option", "samples"], ["KEY=VALUE", "samples=4"]),
        (["--method", "dice", "--option", "samples=many"], ["a whole number", "samples=4"]),
        (["--method", "dice", "--option", "scale=x"], ["a number", "scale=0.5"]),
        (["--method", "dice", "--option", "even=perhaps"], ["yes or no"]),
        (["--contrast", "lynx"], ["no class is called 'lynx'"]),
        (["--target", "hen", "--contrast", "3"], ["is the target itself"]),
        (["--top", "2", "--contrast", "hen"], ["--contrast and --top"]),
        (["--top", "2", "--probability"], ["--probability and --top"]),
        (["--contrast", "hen", "--probability"], ["exclude each other"]),
        (["--top", "2", "--smooth", "augment"], ["one map of one class"]),
        (["--method", "dice", "--layer", "nowhere"], ["nowhere"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_asked(
    run: Run, extra: None, ready: Path, photo: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "out", *arguments)
    assert result.code == 2, result.err
    assert all(word in result.err for word in words), result.err
    assert not (tmp_path / "out").exists() and "Traceback" not in result.err


def test_a_contrast_that_says_nothing_is_the_pictures_failure(
    run: Run, ready: Path, photo: Path, tmp_path: Path
) -> None:
    best = Explainer(ready).explain(photo).predictions[0][0]
    result = run("explain", ready, photo, "-o", tmp_path / "out", "--contrast", best)
    assert result.code == 1 and "with itself" in result.sentence
    assert tree(tmp_path / "out") == {"analysis_summary.json"}


def test_a_picture_named_as_a_result_is_spared(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    for name in ("hirescam_overlay.png", "methods.png"):
        data = photo.read_bytes()
        (tmp_path / name).write_bytes(data)
        result = run("explain", ready, tmp_path / name, "-o", tmp_path, *BOTH)
        assert result.code == 1 and "overwritten" in result.err and (tmp_path / name).read_bytes() == data


def test_a_picture_is_spared_through_a_link_and_next_to_layers(
    run: Run, ready: Path, photo: Path, tmp_path: Path
) -> None:
    data = photo.read_bytes()
    for name in ("input.png", "layers.png"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.png").symlink_to(tmp_path / "input.png")
    layers = ("--layer", "relu1", "--layer", "relu2", "--side-by-side")
    for source, options in (("link.png", ()), ("layers.png", layers)):
        result = run("explain", ready, tmp_path / source, "-o", tmp_path, *options)
        assert result.code == 1 and "overwritten" in result.err
        assert all((tmp_path / name).read_bytes() == data for name in ("input.png", "layers.png"))


def test_a_file_holds_several_methods(run: Run, extra: None, plain: Path, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.onnx"
    result = run("export", plain, "-o", path, *BOTH, "--preprocess", "0..1", "--no-verify", "--json")
    assert result.code == 0, result.err
    assert result.json()["manifest"]["layers"][0]["heatmaps"] == {
        "gradcam": "heatmap/gradcam",
        "hirescam": "heatmap/hirescam",
    }
    explainer = Explainer(path)
    inside = explainer.explain(photo, method="hirescam").raw_map
    beside = explainer.explain(photo, method=["gradcam", "hirescam"]).per_method[1].raw_map
    np.testing.assert_allclose(inside, beside, rtol=1e-5, atol=1e-7)
    refused = run("export", plain, "-o", tmp_path / "none.onnx", "--method", "dice")
    assert (
        refused.code == 2 and "cannot be stored in an ONNX file" in refused.err and "gradcam, hirescam, " in refused.err
    )
    assert not (tmp_path / "none.onnx").exists()
    near = run("export", plain, "-o", tmp_path / "none.onnx", "--method", "hirescan")
    assert near.code == 2 and "'hirescam'" in near.sentence


def test_methods_are_listed(run: Run, extra: None) -> None:
    listed = run("methods")
    assert listed.code == 0 and all(name in listed.out for name in registry.methods())
    entries = {entry["name"]: entry for entry in run("methods", "--json").json()["methods"]}
    assert list(entries) == registry.methods()
    assert entries["dice"] == {
        "name": "dice",
        "kind": "layer",
        "cost": "many runs of the whole model",
        "gradient": False,
        "long": True,
        "options": {"samples": 4, "scale": 0.5, "even": False, "sides": [1, 6], "form": "plain", "cap": None},
        "formula": "scale U, one draw per cell.",
    }
    assert entries["gradcam"]["kind"] == "graph" and "1610.02391" in entries["gradcam"]["formula"]
    assert run("methods", "dice").out.splitlines()[0] == (
        "dice samples=4 scale=0.5 even=no sides=1,6 form=plain cap=none"
    )
    assert run("methods", "nonsense").code == 2


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("5", 3, 5),
        ("5", 0.5, 5.0),
        ("1e-3", 0.5, 1e-3),
        ("NO", True, False),
        ("on", False, True),
        ("4, 8", (1, 2), (4, 8)),
        ("0.5", (1.0,), (0.5,)),
        ("mean", "median", "mean"),
        ("12", None, 12),
        ("none", None, None),
        ("blur", None, "blur"),
        ("(1, 2)", None, (1, 2)),
    ],
)
def test_option_values_take_their_defaults_type(text: str, default: Any, value: Any) -> None:
    read = typed(text, default)
    assert read == value and type(read) is type(value)


def test_shells_complete_method_names() -> None:
    completions = question.MethodName().shell_complete(None, None, "hires")  # type: ignore[arg-type]
    assert [item.value for item in completions] == ["hirescam"]


SLOW = """
import signal, sys, time
import numpy as np
from onnxcam.cam import registry

@registry.layer_method("slow", long=True)
def slow(view):
    "Takes minutes."
    def make(start, stop):
        sys.stdout.write(f"at {{start}}\\n")  # at once, whichever thread
        sys.stdout.flush()
        time.sleep(0.05)
        return view.activations[:1].repeat(stop - start, 0), np.zeros(stop - start, np.int64)
    view.values(256 * 6000, make)
    return view.activations.mean(axis=1)

signal.signal(signal.SIGINT, signal.default_int_handler)
{terminal}
from onnxcam.cli import main
main(sys.argv[1:])
"""


def interrupted(arguments: list[object], terminal: str = "") -> tuple[int, str, float]:
    """A run that gets Ctrl-C in the middle of a long method: exit status, standard error, how long it lived on."""
    command = [sys.executable, "-c", SLOW.format(terminal=terminal), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(20)]
        if not lines[-1].startswith("at "):
            process.kill()
            raise AssertionError((lines, process.communicate()))
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, err = process.communicate(timeout=120)
        return process.returncode, err, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals end otherwise on Windows")
@pytest.mark.parametrize("many", [False, True])
def test_interrupting_a_long_method(ready: Path, photos: Path, tmp_path: Path, many: bool) -> None:
    pictures = photos if many else photos / "a.png"
    code, err, seconds = interrupted(["explain", ready, pictures, "-o", tmp_path / "out", "--method", "slow"])
    assert (code, err) == (130, "Interrupted.\n")
    assert tree(tmp_path / "out") == {"analysis_summary.json"}, "no picture has some of its files"
    count = 3 if many else 1
    assert document(tmp_path / "out")["counts"] == {"found": count, "explained": 0, "failed": 0, "left": count}
    assert seconds < 100, "the method would have gone on for five minutes"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals end otherwise on Windows")
def test_a_long_method_shows_its_progress_on_a_terminal(ready: Path, photo: Path, tmp_path: Path) -> None:
    arguments = ["explain", ready, photo, "-o", tmp_path / "out", "--method", "slow"]
    code, err, _ = interrupted(arguments, "sys.stderr.isatty = lambda: True")
    assert code == 130 and "Traceback" not in err
    assert re.search(r"\[#*-+\] \d+%, \d+:\d\d left", err)
    assert err.endswith("\x1b[2KInterrupted.\n"), "the bar is wiped out"
