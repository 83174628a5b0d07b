"""Whatever is wrong with the input: one clear sentence, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import files, image
from onnxcam.errors import TargetError
from onnxcam.explain.explainer import Explainer
from onnxcam.graph import load
from tests.cli.conftest import Run, noise, tree
from tests.image.pictures import encode
from tests.support import models


@functools.cache
def bomb(side: int = 20_000) -> bytes:
    """A valid grey PNG of side x side zeros, about 48 KB at 20,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    body = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


JPEG = encode(noise(np.random.default_rng(0)), "JPEG")
PICTURES = {
    "text.jpg": (b"this is no picture at all", "not a picture"),
    "empty.png": (b"", "empty (0 bytes)"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "cut.jpg"),
    "head.jpg": (JPEG[:20], "head.jpg"),
    "bomb.png": (bomb, "400,000,000 pixels"),
    "page.png": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture(run: Run, ready: Path, tmp_path: Path, name: str) -> None:
    data, words = PICTURES[name]
    (tmp_path / name).write_bytes(data() if callable(data) else data)
    result = run("explain", ready, tmp_path / name, "-o", tmp_path / "out")
    assert result.code == 1
    assert name in result.sentence and words in result.sentence
    assert tree(tmp_path / "out") == {"analysis_summary.json"}


def test_a_bad_picture_on_standard_input(run: Run, ready: Path, tmp_path: Path) -> None:
    for data in (b"", b"nonsense"):
        result = run("explain", ready, "-", "-o", tmp_path / "out", stdin=data)
        assert result.code == 1 and "stdin" in result.sentence


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_picture_bomb_costs_nothing(ready: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb())
    assert (tmp_path / "bomb.png").stat().st_size < 60_000
    code = (
        f"import resource\nfrom onnxcam.cli import main\ndef peak(picture):\n    main(['explain', {str(ready)!r}, "
        f"picture, '-o', {str(tmp_path / 'out')!r}], standalone_mode=False)\n    return "
        f"resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nprint(-peak({str(photo)!r}) + "
        f"peak({str(tmp_path / 'bomb.png')!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "400,000,000 pixels" in done.stderr
    # decoded it would be 1.2 GB
    assert int(done.stdout.splitlines()[-1]) < 20 * 1024


def test_missing_pictures(run: Run, ready: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("explain", ready, tmp_path / "gone.png", "-o", out)
    assert result.code == 1 and "gone.png" in result.sentence and "does not exist" in result.sentence
    result = run("explain", ready, "https://example.com/cat.jpg", "-o", out)
    assert result.code == 1 and "download it first" in result.sentence
    for named, words in ((tmp_path / "*.bmp", "no picture matches"), (tmp_path / "hollow", "no pictures in it")):
        (tmp_path / "hollow").mkdir(exist_ok=True)
        result = run("explain", ready, named, "-o", tmp_path / "second")
        assert result.code == 1 and words in result.sentence and str(named) in result.sentence
        assert not (tmp_path / "second").exists()
    result = run("explain", ready, "--files-from", tmp_path / "gone.txt", "-o", tmp_path / "second")
    assert result.code == 1 and "gone.txt" in result.sentence


def test_no_pictures_named(run: Run, ready: Path, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n\n")
    for named in ([], ["--files-from", tmp_path / "none.txt"]):
        result = run("explain", ready, *named, "-o", tmp_path / "out")
        assert result.code == 2 and "no PICTURE" in result.err
    assert run("explain", ready, "-", "--files-from", "-", "-o", tmp_path / "out", stdin=b"x").code == 2
    assert not (tmp_path / "out").exists()


def model_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no usable model, and what must be said of each."""
    graphs = {
        "mlp.onnx": (models.mlp(), "no spatial layer"),
        "tabular.onnx": (models.tabular(), "[N, 10]"),
        "two.onnx": (models.two_inputs(), "2 inputs"),
        "spectrum.onnx": (models.without_rule(), "operator DFT"),
        "custom.onnx": (models.custom_domain(), "com.example::Warp"),
    }
    raw = {
        "empty.onnx": (b"", "empty (0 bytes)"),
        "text.onnx": (b"just some text, saved under the wrong name\n", "text file"),
        "page.onnx": (b"<!DOCTYPE html><html>404</html>", "HTML"),
        "pointer.onnx": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "picture.onnx": (JPEG, "JPEG"),
        "zip.onnx": (b"PK\x03\x04" + bytes(100), "zip"),
        "cut.onnx": (models.tiny_cnn().SerializeToString()[:500], "cut off"),
        "zeros.onnx": (bytes(1000), "not an ONNX model"),
    }
    files = {"gone.onnx": (folder / "gone.onnx", "no such file"), "folder.onnx": (folder / "folder.onnx", "a folder")}
    (folder / "folder.onnx").mkdir()
    for name, (model, words) in graphs.items():
        (folder / name).write_bytes(model.SerializeToString())
        files[name] = (folder / name, words)
    for name, (data, words) in raw.items():
        (folder / name).write_bytes(data)
        files[name] = (folder / name, words)
    return files


MODELS = [
    "mlp.onnx", "tabular.onnx", "two.onnx", "spectrum.onnx", "custom.onnx", "empty.onnx", "text.onnx", "page.onnx",
    "pointer.onnx", "picture.onnx", "zip.onnx", "cut.onnx", "zeros.onnx", "gone.onnx", "folder.onnx",
]  # fmt: skip


@pytest.fixture(scope="module")
def bad_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return model_files(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("command", ["explain", "export", "check", "layers"])
def test_a_bad_model(
    run: Run, photo: Path, tmp_path: Path, bad_models: dict[str, tuple[Path, str]], command: str, name: str
) -> None:
    path, words = bad_models[name]
    out = tmp_path / "out"
    arguments = {
        "explain": [photo, "-o", out, "--preprocess", "0..1"], "export": ["-o", tmp_path / "out.onnx"], "check": [],
        "layers": [],
    }[command]  # fmt: skip
    result = run(command, path, *arguments)
    if command == "layers" and name in ("spectrum.onnx", "custom.onnx"):
        assert result.code == 0  # other layers of it may still be explained
        return
    assert result.code == 3, (result.err, result.out)
    assert words in result.sentence
    assert not out.exists() and not (tmp_path / "out.onnx").exists()


def test_bad_models_are_listed_completely(bad_models: dict[str, tuple[Path, str]]) -> None:
    assert set(bad_models) == set(MODELS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "relu9"], ["'relu9'", "relu1", "relu2"]),
        (["--layer", "pooled"], ["'pooled'", "spatial"]),
        (["--target", "9"], ["9", "0 to 4"]),
        (["--target", "-2"], ["-2", "0 to 4"]),
        (["--target", "hem"], ["'hem'", "hen (3)"]),
        (["--target", "crane"], ["ambiguous", "2 (crane)", "4 (crane)"]),
        (["--method", "gradcan"], ["'gradcan'", "gradcam"]),
        (["--top", "6"], ["6", "1 to 5"]),
        (["--preprocess", "imagnet"], ["'imagnet'", "imagenet"]),
        (["--preprocess", "gone.json"], ["gone.json"]),
        (["--preprocess", "imagenet", "--top", "9"], ["9"]),
        (["--labels", "gone.txt"], ["gone.txt"]),
    ],
)
def test_unknown_names(
    run: Run, ready: Path, photo: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "out", *options)
    assert result.code == 2
    assert all(word in result.sentence for word in words), result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--target", "1", "--top", "2"],
        ["--normalize", "l2"],
        ["--colormap", "rainbow"],
        ["--alpha", "1.5"],
        ["--top", "0"],
        ["--seed", "-1"],
        ["--nonsense"],
    ],
)
def test_wrong_usage(run: Run, ready: Path, photo: Path, tmp_path: Path, options: list[str]) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "out", *options)
    assert result.code == 2 and "Error: " in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "relu9"], ["'relu9'", "relu1"]),
        (["--target", "9"], ["9", "0 to 4"]),
        (["--target", "hen"], ["no labels"]),
        (["--target", "-1"], ["0 to 4", "optional"]),
        (["--method", "gradcan"], ["gradcam"]),
        (["--preprocess", "imagnet"], ["imagenet"]),
    ],
)
def test_unknown_names_at_export(run: Run, plain: Path, tmp_path: Path, options: list[str], words: list[str]) -> None:
    result = run("export", plain, "-o", tmp_path / "out.onnx", *options)
    assert result.code == 2
    assert all(word in result.sentence for word in words), result.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_sources(run: Run, tmp_path: Path) -> None:
    for source, code in (("nonsense", 2), ("gone.pt2", 3), ("gone.h5", 3), ("gone.onnx", 3)):
        result = run("export", source, "-o", tmp_path / "out.onnx")
        assert result.code == code and source in result.err and "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_that_nobody_tells(run: Run, plain: Path, photo: Path, tmp_path: Path) -> None:
    result = run("explain", plain, photo, "-o", tmp_path / "out")
    assert result.code == 2
    assert all(name in result.sentence for name in ("--preprocess", *image.candidates()))
    assert not (tmp_path / "out").exists()


def test_preprocessing_that_does_not_fit(run: Run, photo: Path, tmp_path: Path) -> None:
    load.save(models.tiny_cnn(channels=1), tmp_path / "grey.onnx")
    result = run("explain", tmp_path / "grey.onnx", photo, "-o", tmp_path / "out", "--preprocess", "caffe")
    assert result.code == 2 and "channels" in result.sentence


@pytest.mark.parametrize(
    ("text", "words"), [("a\nb\nc\nd", "4 names"), ("0 a\n1 b\n3 c\n4 d\n5 e", "gaps"), ("a\n\nc\nd\ne", "blank")]
)
@pytest.mark.parametrize("command", ["explain", "export"])
def test_labels_that_do_not_fit(
    run: Run, ready: Path, photo: Path, tmp_path: Path, command: str, text: str, words: str
) -> None:
    (tmp_path / "labels.txt").write_text(text)
    where = [photo, "-o", tmp_path / "out"] if command == "explain" else ["-o", tmp_path / "out.onnx"]
    result = run(command, ready, *where, "--labels", tmp_path / "labels.txt")
    assert result.code == 2 and "labels.txt" in result.sentence
    assert words.replace(" names", "") in result.sentence
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("provider", ["cdua", "NoSuchExecutionProvider", "cuda:one"])
@pytest.mark.parametrize("command", ["explain", "check"])
def test_unknown_providers(run: Run, ready: Path, photo: Path, tmp_path: Path, command: str, provider: str) -> None:
    where = [photo, "-o", tmp_path / "out"] if command == "explain" else []
    result = run(command, ready, *where, "--provider", provider)
    assert result.code == 4 and provider in result.sentence
    assert not (tmp_path / "out").exists()


def test_a_provider_that_is_not_in_use(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    arguments = ("explain", ready, photo, "-o", tmp_path / "out", "--provider", "rocm")
    assert run(*arguments).code == 4
    result = run(*arguments, "--allow-fallback")
    assert result.code == 0 and "CPUExecutionProvider" in result.err


def test_an_output_folder_that_cannot_be_made(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = run("explain", ready, photo, "-o", out)
        assert result.code == 1 and "is a file" in result.sentence
    (tmp_path / "out" / "analysis_summary.json").mkdir(parents=True)
    result = run("explain", ready, photo, "-o", tmp_path / "out")
    assert result.code == 1 and "in the way" in result.sentence


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_a_read_only_output_folder(run: Run, ready: Path, photo: Path) -> None:
    for out in ("/proc", "/proc/out"):
        result = run("explain", ready, photo, "-o", out)
        assert result.code == 1 and "/proc" in result.sentence


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_disk_that_is_full_fails_each_picture(
    run: Run, ready: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(part: Path, target: Path) -> None:
        if target.suffix == ".png" and "sub" not in str(target):
            raise OSError(28, "No space left on device", str(part))
        replace(part, target)

    monkeypatch.setattr(os, "replace", full)
    result = run("explain", ready, photos, "-o", tmp_path / "out")
    assert result.code == 1 and result.err.count("No space left") == 2
    left = tree(tmp_path / "out")
    assert "sub/b/panel.png" in left and not any(name.endswith((".part", ".tmp")) for name in left)


def test_a_picture_is_never_overwritten_by_its_own_explanation(run: Run, ready: Path, tmp_path: Path) -> None:
    image.write_png(tmp_path / "input.png", noise(np.random.default_rng(0)))
    before = (tmp_path / "input.png").read_bytes()
    result = run("explain", ready, tmp_path / "input.png", "-o", tmp_path)
    assert result.code == 1 and "overwritten" in result.sentence
    assert (tmp_path / "input.png").read_bytes() == before


def test_a_damaged_manifest(run: Run, photo: Path, tmp_path: Path) -> None:
    for text, words in (("{", "not JSON"), ('{"format": 99}', "format 99"), ('{"format": 1}', "lacks")):
        model = models.tiny_cnn()
        model.metadata_props.add(key="onnxcam", value=text)
        onnx.save(model, tmp_path / "m.onnx")
        for command, where in (("explain", [photo, "-o", tmp_path / "out"]), ("layers", []), ("check", [])):
            result = run(command, tmp_path / "m.onnx", *where)
            assert result.code == 3 and words in result.sentence, (command, text)


def test_target_lists_of_the_wrong_length(photo: Path) -> None:
    explainer = Explainer(models.tiny_cnn(), preprocess="0..1")
    with pytest.raises(TargetError, match="2 targets for 3 pictures"):
        explainer.explain([photo] * 3, target=[0, 1])


def test_a_layer_without_a_rule_behind_it_fails_before_any_picture(run: Run, photo: Path, tmp_path: Path) -> None:
    model = models.tiny_cnn()
    model.graph.node[2].input[0] = "spun"
    model.graph.node.insert(2, onnx.helper.make_node("Unique", ["relu1"], ["single"], name="single"))
    model.graph.node.insert(3, onnx.helper.make_node("ReduceMax", ["single"], ["top"], name="top", keepdims=0))
    model.graph.node.insert(4, onnx.helper.make_node("Add", ["relu1", "top"], ["spun"], name="spin"))
    with pytest.warns(UserWarning, match="depend on the others in its batch"):  # the largest of them all
        load.save(onnxcam.augment(model, preprocess={"scale": 1 / 255}), tmp_path / "m.onnx")
    assert run("explain", tmp_path / "m.onnx", photo, "-o", tmp_path / "good").code == 0
    result = run("explain", tmp_path / "m.onnx", photo, "-o", tmp_path / "out", "--layer", "relu1")
    assert result.code == 3 and "operator Unique" in result.sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="the file system has no such names")
def test_names_that_are_no_text(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(photo.read_bytes())
    result = run("explain", ready, odd, photo, "-o", tmp_path / "out", "--json")
    assert result.code == 0 and len(result.json()["pictures"]) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--option", "nonsense=1"], ["nonsense", "gradcam has none"]),
        (["--method", "occlusion", "--option", "size"], ["size"]),
        (["--target", "cat", "--contrast", "cat"], ["--contrast 'cat'", "itself"]),
        (["--contrast", " "], ["--contrast", "blank"]),
        (["--contrast", "1", "--probability"], ["--contrast", "--probability"]),
        (["--contrast", "1", "--top", "2"], ["--contrast", "--top"]),
        (["--contrast", "horse", "--labels", "{labels}"], ["horse", "'hen (1)'"]),
        (["--target", "horse", "--labels", "{labels}"], ["horse", "nearest"]),
    ],
)
def test_wrong_questions_are_reported_before_the_model_is_opened(
    run: Run, photo: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    """So that the exit code is that of wrong usage, also with a model that cannot be used."""
    (tmp_path / "labels.txt").write_text("cat\nhen\n")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    flags = [flag.format(labels=tmp_path / "labels.txt") for flag in flags]
    result = run("explain", tmp_path / "broken.onnx", photo, "-o", tmp_path / "out", *flags)
    assert result.code == 2 and all(word in result.err for word in words), result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_is_read_as_often_as_any_other_file(tmp_path: Path, run: Run) -> None:
    """As `--labels <(sort names)` is: what was written once is read wherever a command looks."""
    contents = {
        "labels": json.dumps([f"name {k}" for k in range(5)]),
        "preprocess": json.dumps({"scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1]}),
    }
    model, picture = tmp_path / "model.onnx", tmp_path / "a.jpg"
    model.write_bytes(models.tiny_cnn(size=16).SerializeToString())
    picture.write_bytes(JPEG)
    predictions = []
    for kind in ("files", "pipes"):
        options: list[str | Path] = []
        for name, content in contents.items():
            path = tmp_path / f"{name}-{kind}.json"
            options += [f"--{name}", path]
            if kind == "files":
                path.write_text(content)
            else:
                os.mkfifo(path)
                threading.Thread(target=path.write_text, args=(content,), daemon=True).start()
        result = run("explain", model, picture, "-o", tmp_path / kind, *options)
        assert result.code == 0, result.stderr
        predictions.append(json.loads((tmp_path / kind / "explanation.json").read_text())["predictions"])
    assert predictions[0] == predictions[1] and "name " in str(predictions[0])
    assert files.pipes is None, "outside commands a pipe is read anew"
