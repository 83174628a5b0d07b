from __future__ import annotations

import argparse
import functools
import json
import logging
import pickle
import re
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxcam.errors import ModelError, TrustError  # noqa: E402
from onnxcam.exporters import torch_capture, torch_safetensors  # noqa: E402
from onnxcam.exporters.pytorch import main  # noqa: E402
from onnxcam.exporters.torch_source import load, unwrapped  # noqa: E402
from tests.exporters.torch_nets import Functional, make, seeded  # noqa: E402
from tests.support.torchvision_stub import import_torchvision  # noqa: E402

pytestmark = pytest.mark.torch
NETS = "tests.exporters.torch_nets"


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.stolen = True",)


@pytest.fixture(autouse=True)
def nothing_runs() -> Any:
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert not hasattr(sys, "stolen")
    assert sys.path == path
    assert "custom" not in set(sys.modules) - modules


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@functools.cache
def archive() -> bytes:
    """An archive of torch.export, as it is saved."""
    with torch_capture.quiet(), tempfile.TemporaryDirectory() as folder:
        free = torch.export.export(
            make().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
        torch.export.save(free, Path(folder) / "honest.pt2")
        return (Path(folder) / "honest.pt2").read_bytes()


def program(path: Path) -> Path:
    path.write_bytes(archive())
    return path


# -- callables --------------------------------------------------------------------------------------------------------


def test_a_callable_is_imported_and_called(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model, inputs, info = load(f"{NETS}:make")
    assert type(model) is Functional
    assert inputs.shape == (1, 3, 224, 224)
    assert "224 × 224 is assumed" in caplog.text
    assert (info.name, info.labels, info.preprocess) == ("make", None, None)


@pytest.mark.parametrize(("size", "shape"), [(8, (1, 3, 8, 8)), ((8, 9), (1, 3, 8, 9)), ((1, 8, 9), (1, 1, 8, 9))])
def test_the_input_size_can_be_given(size: Any, shape: tuple[int, ...]) -> None:
    assert load(f"{NETS}:make", input_size=size).example_inputs.shape == shape


def test_a_callable_may_bring_its_example_and_a_class_will_do() -> None:
    assert load(f"{NETS}:make_with_inputs").example_inputs.shape == (1, 1, 9, 9)
    assert type(load(f"{NETS}:Functional", input_size=8).model) is Functional
    assert load(f"{NETS}:Binary", input_size=8).example_inputs.shape == (1, 1, 8, 8)


def test_the_current_folder_is_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here_only.py").write_text("import torch\nmodel = torch.nn.Conv2d(5, 2, 1)\n")
    monkeypatch.chdir(tmp_path)
    model, inputs, info = load("here_only:model", input_size=4)
    assert isinstance(model, torch.nn.Conv2d)
    assert inputs.shape == (1, 5, 4, 4)
    assert info.name == "here_only"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_package.here:model", "cannot import 'no_such_package.here'"),
        (f"{NETS}:mak", "has no 'mak'; the nearest are 'make'"),
        (f"{NETS}:make_nothing", "returned a int; expected a torch.nn.Module"),
        (f"{NETS}:needs_argument", "cannot be called without arguments"),
        (f"{NETS}:__name__", "is a str; expected a callable"),
        ("nothing.pt2", "no such file"),
        ("torchvision:resnet51", "no classifier 'resnet51'; the nearest are 'resnet"),
    ],
)
def test_sources_that_are_none(source: str, message: str) -> None:
    if source.startswith("torchvision"):
        import_torchvision()
    with pytest.raises(ModelError, match=message):
        load(source)


# -- weights ----------------------------------------------------------------------------------------------------------


def state(scale: float = 2.0) -> dict[str, Any]:
    return {k: v * scale for k, v in make().state_dict().items()}


@pytest.mark.parametrize("form", ["plain", "wrapped", "parallel", "safetensors"])
def test_weights_from_a_file(form: str, tmp_path: Path) -> None:
    state_dict = state()
    if form == "safetensors":
        path = tmp_path / "w.safetensors"
        pytest.importorskip("safetensors.torch").save_file(state_dict, path)
    else:
        contents = {"plain": state_dict, "wrapped": {"epoch": 3, "state_dict": state_dict},
                "parallel": {f"module.{k}": v for k, v in state_dict.items()}}[form]  # fmt: skip
        path = save(tmp_path / "w.pt", contents)
    model = load(f"{NETS}:make", weights=str(path), input_size=8).model
    assert all(torch.equal(v, state_dict[k]) for k, v in model.state_dict().items())


def prefixed(prefix: str, more: bool = False) -> dict[str, Any]:
    extra = {"criterion.weight": torch.ones(3)} if more else {}
    return {f"{prefix}{name}": value for name, value in state().items()} | extra


def of_each_layer(middle: str) -> dict[str, Any]:
    return {name.replace(".", f".{middle}", 1): value for name, value in state().items()}


def averaged() -> dict[str, Any]:
    return {"epoch": 1, "model": make().state_dict(), "ema": {"decay": 0.9, "state_dict": state()}}


CHECKPOINTS: dict[str, tuple[str, Any, str | None]] = {
    "a trainer's checkpoint": (
        "model_best.pth.tar",
        {
            "epoch": 90, "arch": "resnet", "state_dict": prefixed("module."), "best_acc1": torch.tensor(76.1),
            "loss": np.float64(0.5), "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{}]},
            "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        },
        None,
    ),
    "compiled": ("w.pt", prefixed("_orig_mod."), None),
    "compiled layers": ("w.pt", of_each_layer("_orig_mod."), None),
    "parallel and compiled": ("w.pt", prefixed("module._orig_mod."), None),
    "Lightning": ("last.ckpt", {"state_dict": prefixed("model.", more=True), "hyper_parameters": {"lr": 0.1}}, None),
    "Lightning, another attribute": ("last.ckpt", {"state_dict": prefixed("net.backbone.")}, None),
    "only the average": ("w.pth", {"epoch": 3, "state_dict_ema": state()}, None),
    "the average named": ("w.pth", averaged(), "ema"),
    "an average beside the model, named": (
        "w.ckpt", {"state_dict": prefixed("ema_model.") | {f"model.{k}": v for k, v in make().state_dict().items()}},
        "ema_model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_in_a_checkpoint(name: str, tmp_path: Path) -> None:
    file, content, key = CHECKPOINTS[name]
    path = save(tmp_path / file, content)
    model = load(f"{NETS}:make", weights=str(path) + (f":{key}" if key else ""), input_size=8).model
    assert all(torch.equal(value, state()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        (averaged(), "", ["several state dicts", "'model', 'ema'", "w.pt:model"]),
        (averaged(), ":teacher", ["under 'teacher'", "'model', 'ema'"]),
        (
            {"state_dict": prefixed("ema.") | prefixed("model.")},
            "",
            ["several times", "'ema.', 'model.'", "FILE:ema"],
        ),
        (prefixed("model.") | {"model.three.bias": torch.zeros(1)}, "", ["unexpected", "three.bias"]),
    ],
)
def test_weights_that_could_be_several_are_asked_for(content: Any, key: str, words: list[str], tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", content)
    with pytest.raises(ModelError) as caught:
        load(f"{NETS}:make", weights=f"{path}{key}", input_size=8)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_safetensors_are_read_as_their_own_library_reads_them(kind: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(3, 4).mul(9).to(kind), "none": torch.zeros(0, 2).to(kind), "b": torch.ones(()).to(kind)}
    path = tmp_path / "w.safetensors"
    library.save_file(tensors, path, metadata={"format": "pt"})
    read, expected = torch_safetensors.read(path), library.load_file(path)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == kind for name, value in expected.items())


def safetensors_of(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "its header would have"),
        (b"\xff" * 20, "its header would have"),
        (safetensors_of(b"{nothing"), "not JSON"),
        (safetensors_of({}), "no tensors"),
        (safetensors_of({"a": 1}), "element type None"),
        (safetensors_of({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}), "'F4'"),
        (safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}), "'a'"),
        (safetensors_of({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "'a'"),
        (safetensors_of({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}), "'a'"),
        (safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)), "'a'"),
        (safetensors_of(b"[" * 100_000), "nested 100,000 levels deep"),
    ],
)
def test_damaged_safetensors(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(says)):
        torch_safetensors.read(path)


def test_weights_given_as_the_model_are_told_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}))
    with pytest.raises(ModelError, match=r"package\.module:callable --weights"):
        load(str(path))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(ModelError, match="timm:resnet18 --weights"):
        load(str(path))
    best = save(tmp_path / "model_best.pth.tar", {"epoch": 3, "state_dict": prefixed("module.")})
    with pytest.raises(ModelError, match="holds only weights"):
        load(str(best))


def test_wrapped_modules_are_unwrapped() -> None:
    plain = make()
    assert unwrapped(torch.nn.DataParallel(plain)) is plain
    assert unwrapped(torch.compile(plain, backend="eager")) is plain
    assert load(f"{NETS}:make", input_size=8).model is not plain


def test_a_checkpoint_with_the_whole_module(tmp_path: Path) -> None:
    one = save(tmp_path / "one.pt", {"epoch": 1, "model": make()})
    with pytest.raises(TrustError, match="--trust-model"):
        load(str(one))
    assert type(load(str(one), trust=True, input_size=8).model) is Functional
    two = save(tmp_path / "two.pt", {"model": make(), "ema": make()})
    with pytest.raises(ModelError, match="several modules: 'model', 'ema'"):
        load(str(two), trust=True)


def test_weights_that_do_not_fit_are_told_by_their_keys(tmp_path: Path) -> None:
    state_dict = state()
    del state_dict["one.bias"]
    state_dict["three.bias"] = torch.zeros(1)
    state_dict["head.weight"] = torch.zeros(9, 4)
    path = save(tmp_path / "w.pt", state_dict)
    with pytest.raises(ModelError) as caught:
        load(f"{NETS}:make", weights=str(path), input_size=8)
    for part in ("1 missing: 'one.bias'", "1 unexpected: 'three.bias'", r"head.weight is [9, 4] instead of [3, 4]"):
        assert part in str(caught.value)


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"state_dict": Payload()})
    for trust in (False, True):
        with pytest.raises(TrustError, match="holds more than weights"):
            load(f"{NETS}:make", weights=str(path), trust=trust, input_size=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text", "not a saved state dict"),
        (b"", "not a saved state dict"),
        (b"\x80\x02cut", "more than weights .or is damaged"),
    ],
)
def test_files_that_are_no_weights(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises((ModelError, TrustError), match=message):
        load(f"{NETS}:make", weights=str(tmp_path / "w.pt"), input_size=8)


def test_imagenet_weights_are_for_zoos_only() -> None:
    with pytest.raises(ModelError, match="for torchvision:NAME and timm:NAME"):
        load(f"{NETS}:make", weights="imagenet", input_size=8)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", make())
    with pytest.raises(TrustError, match=r"runs whatever code it contains.*--trust-model"):
        load(str(path))
    model, inputs, info = load(str(path), trust=True, input_size=8)
    assert type(model) is Functional
    assert (inputs.shape, info.name) == ((1, 3, 8, 8), "m")
    with pytest.raises(TrustError):
        load(str(save(tmp_path / "bad.pt", Payload())))


def test_a_state_dict_as_the_source_says_how_to_use_it(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", state())
    with pytest.raises(ModelError, match=r"only weights.*package\.module:callable --weights .*w\.pt"):
        load(str(path))


def test_classes_can_come_from_a_file_that_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "custom.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Conv2d):\n    pass\n\n\nnet = Net(3, 2, 1)\n"
    )
    code = (tmp_path / "custom.py").read_text()
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(code, space)  # the class as a training script would have it, in __main__
    main_module = sys.modules["__main__"]
    main_module.Net = space["Net"]  # type: ignore[attr-defined]
    try:
        path = save(tmp_path / "m.pt", space["net"])
    finally:
        del main_module.Net  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="needs code that is not importable"):
        load(str(path), trust=True)
    with pytest.raises(TrustError, match="would be run"):
        load(str(path), import_file=str(tmp_path / "custom.py"))
    model = load(str(path), trust=True, import_file=str(tmp_path / "custom.py"), input_size=4).model
    assert type(model).__name__ == "Net"
    assert not hasattr(main_module, "Net")


def test_torchscript_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with torch_capture.quiet():
        torch.jit.trace(make(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"TorchScript archive.*package\.module:callable"):
        load(str(tmp_path / "m.pt"), trust=True)


def test_a_program_archive_is_loaded_with_its_example(tmp_path: Path) -> None:
    model, inputs, info = load(str(program(tmp_path / "m.pt2")))
    assert isinstance(model, torch.export.ExportedProgram)
    assert (inputs.shape, info.name) == ((2, 3, 8, 8), "m")
    with pytest.raises(ModelError, match="holds its own weights"):
        load(str(tmp_path / "m.pt2"), weights="w.pt")


def rewrite(source: Path, target: Path, change: Any) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)
        extra = change(None, b"")
        if extra is not None:
            new.writestr(*extra)
    return target


def pickled() -> bytes:
    return pickle.dumps(Payload())


def edited(name: str | None, data: bytes, suffix: str, edit: Any) -> bytes | None:
    if name is None:
        return None
    if not name.endswith(suffix):
        return data
    document = json.loads(data)
    edit(document)
    return json.dumps(document).encode()


def inject(document: Any) -> None:
    if isinstance(document, dict):
        if "expr_str" in document:
            document["expr_str"] = "exec(chr(105))"
        for value in document.values():
            inject(value)
    elif isinstance(document, list):
        for value in document:
            inject(value)


def mark(document: Any) -> None:
    next(iter(document["config"].values()))["use_pickle"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d: pickled() if n and n.endswith("sample_inputs/model.pt") else (d if n else None), "than tensors"),
        (lambda n, d: d if n else ("m/data/constants/custom_obj_0", pickled()), "pickled object"),
        (lambda n, d: d if n else ("m/data/aotinductor/model/x.so", b"ELF"), "compiled code"),
        (lambda n, d: d if n else ("honest/DATA/sample_inputs/model.PT", pickled()), "two entries of one name"),
        (lambda n, d: edited(n, d, "weights_config.json", mark), "pickled objects"),
        (lambda n, d: edited(n, d, "models/model.json", inject), "more than arithmetic"),
    ],
)
def test_an_archive_that_would_run_code_needs_trust(change: Any, message: str, tmp_path: Path) -> None:
    path = rewrite(program(tmp_path / "honest.pt2"), tmp_path / "m.pt2", change)
    with pytest.raises(TrustError, match=message):
        load(str(path))


def test_a_damaged_archive(tmp_path: Path) -> None:
    data = program(tmp_path / "m.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a PyTorch file"):
        load(str(tmp_path / "cut.pt2"))


# -- zoos -------------------------------------------------------------------------------------------------------------


def test_torchvision_without_weights_and_with_a_file_of_other_classes(tmp_path: Path) -> None:
    models = import_torchvision().models
    model, inputs, info = load("torchvision:squeezenet1_1", weights="none", input_size=64)
    assert (inputs.shape, info.labels, info.preprocess) == ((1, 3, 64, 64), None, None)
    tuned = seeded(models.squeezenet1_1(weights=None, num_classes=4))
    path = save(tmp_path / "w.pth", tuned.state_dict())
    model = load("torchvision:squeezenet1_1", weights=str(path)).model
    assert torch.equal(model.classifier[1].weight, tuned.classifier[1].weight)
    assert load("torchvision:squeezenet1_1", weights=str(path)).example_inputs.shape == (1, 3, 224, 224)


def test_torchvisions_own_weights_bring_labels_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    models = import_torchvision().models
    best = models.SqueezeNet1_1_Weights.DEFAULT
    network = models.squeezenet1_1(weights=None)
    monkeypatch.setattr(type(best), "get_state_dict", lambda *_, **__: network.state_dict())
    info = load("torchvision:squeezenet1_1").info
    assert info.labels is not None
    assert (len(info.labels), info.labels[0]) == (1000, "tench")
    assert info.preprocess == {
        "color": "RGB",
        "scale": 1 / 255,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": {"mode": "shortest", "size": 256, "interpolation": "bilinear", "antialias": True},
        "crop": {"size": [224, 224], "anchor": "center"},
    }


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    models = import_torchvision().models

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(type(models.SqueezeNet1_1_Weights.DEFAULT), "get_state_dict", offline)
    with pytest.raises(ModelError, match=r"cannot be fetched from https.*--weights FILE.*--weights none"):
        load("torchvision:squeezenet1_1")


@pytest.mark.slow
def test_main_exports_and_tells_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.onnx"
    assert main([f"{NETS}:make", "-o", str(out), "--input-size", "8", "--layer", "two"]) == 0
    assert "layer 'two', parity {" in capsys.readouterr().out
    assert out.exists()
    assert main([f"{NETS}:make", "-o", str(out), "--layer", "three"]) == 3
    assert "error: the model has no module 'three'" in capsys.readouterr().err


def test_a_model_of_ultralytics_is_told_its_own_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = types.ModuleType("ultralytics.nn.tasks")
    net = type("ClassificationModel", (torch.nn.Linear,), {"__module__": tasks.__name__})
    tasks.ClassificationModel = net  # type: ignore[attr-defined]
    with monkeypatch.context() as context:
        for name in ("ultralytics", "ultralytics.nn"):
            context.setitem(sys.modules, name, types.ModuleType(name))
        context.setitem(sys.modules, tasks.__name__, tasks)
        path = save(tmp_path / "best.pt", {"epoch": -1, "model": net(2, 2), "ema": None})
    with pytest.raises(TrustError, match="yolo export model=FILE format=onnx"):
        load(str(path))
    with pytest.raises(TrustError, match="yolo export"):
        load(f"{NETS}:make", weights=str(path))
