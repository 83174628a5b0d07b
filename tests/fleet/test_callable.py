"""`Explain` over batches: what every row says, against `Explainer`, and what is raised once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.errors import (
    InputError,
    LabelsError,
    LayerError,
    MethodError,
    ModelError,
    OnnxcamError,
    PreprocessError,
    SettingError,
    TargetError,
)
from onnxcam.fleet import Explain
from onnxcam.fleet.columns import columns
from tests.fleet import samples
from tests.support import detectors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.model(tmp_path_factory.mktemp("fleet"))


PICTURES = samples.pictures(12, every=6)
BROKEN = {3, 9}


def test_every_row_says_what_the_explainer_says(model: Path) -> None:
    table = Explain(model)(samples.batch(PICTURES))
    explainer = onnxcam.Explainer(model)
    assert list(table) == ["id", *(column.name for column in columns())]
    assert table["id"].tolist() == list(range(12))
    for row, data in enumerate(PICTURES):
        if row in BROKEN:
            assert table["error"][row] and table["prediction"][row] == -1 and len(table["map"][row]) == 0
            continue
        e = explainer.explain(data)
        index, label, probability = e.predictions[0]
        assert (table["error"][row], table["prediction"][row], table["label"][row]) == ("", index, label)
        assert table["top"][row].tolist() == [index for index, _, _ in e.predictions]
        assert table["confidence"][row] == pytest.approx(probability, abs=1e-6)
        assert (table["target"][row], table["target_label"][row]) == (e.target, e.label)
        assert (table["height"][row], table["width"][row]) == e.picture.shape[:2]
        tensor = explainer.prepare(data)[1]
        small = explainer.attribute(tensor, size="layer")[0]
        shape = table["map_height"][row], table["map_width"][row]
        assert table["map"][row].dtype == np.float32 and shape == small.shape
        assert np.abs(table["map"][row].reshape(shape) - small).max() < 1e-6
        assert table["map_box"][row].tolist() == pytest.approx([0, 0, e.picture.shape[1], e.picture.shape[0]])
        statistics = e.statistics
        assert table["attention_y"][row] == pytest.approx(statistics["centroid"][0], abs=1e-6)
        for name in ("spread", "entropy", "gini", "half_area", "border", "peaks"):
            assert table[f"attention_{name}"][row] == pytest.approx(statistics[name], abs=1e-6)


@pytest.mark.parametrize("rows", [1, 4])
def test_only_rows_that_meet_the_condition_are_explained(model: Path, rows: int) -> None:
    everything = Explain(model, rows=rows)(samples.batch(PICTURES))
    threshold = float(np.nanmedian(everything["confidence"]))
    table = Explain(model, rows=rows, when=f"confidence < {threshold}")(samples.batch(PICTURES))
    fired = everything["confidence"] < threshold
    assert 0 < fired.sum() < 10 and table["fired"].tolist() == fired.tolist()
    for row in range(12):
        assert (len(table["map"][row]) > 0) == fired[row]
        assert table["prediction"][row] == everything["prediction"][row]
        if fired[row]:
            assert np.abs(table["map"][row] - everything["map"][row]).max() < 1e-6
    never = Explain(model, when="never")(samples.batch(PICTURES))
    assert not never["fired"].any() and never["label"].tolist() == everything["label"].tolist()


def test_pictures_come_as_bytes_paths_arrays_structs_and_pil_images(model: Path, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    values: list[Any] = [data, bytearray(data), str(path), path, pixels, Image.fromarray(pixels)]
    values += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    table = Explain(model)(samples.batch(values))
    assert table["error"].tolist() == [""] * 8
    assert len(set(table["confidence"].tolist())) == 1
    stacked = Explain(model, column="image")({"image": np.stack([pixels, pixels])})
    assert stacked["confidence"].tolist() == table["confidence"].tolist()[:2]


@pytest.mark.parametrize("cell", [None, float("nan"), 3.5, 7, [1, 2], {}, {"x": 1}, "", "/no/such/file.png", b""])
def test_a_cell_that_is_no_picture_is_a_row_with_a_sentence(model: Path, cell: Any) -> None:
    table = Explain(model)(samples.batch([cell, PICTURES[0]]))
    assert table["error"][1] == "" and table["prediction"][1] >= 0
    assert table["prediction"][0] == -1 and len(table["error"][0]) > 20 and "unexpected" not in table["error"][0]


def test_what_is_wrong_with_every_row_is_raised(model: Path, tmp_path: Path) -> None:
    wrong: list[tuple[type[OnnxcamError], dict[str, Any]]] = [
        (TargetError, {"target": "zebra"}),
        (TargetError, {"target": 5}),
        (LayerError, {"layer": "nowhere"}),
        (MethodError, {"method": "magic"}),
        (MethodError, {"colum": "bytes"}),
        (SettingError, {"when": "confidence <"}),
        (TargetError, {"when": "label == 'zebra'"}),
        (InputError, {"when": 3}),
        (SettingError, {"rows": 0}),
        (SettingError, {"threads": 1.5}),
        (InputError, {"top": 3}),
        (InputError, {"method": ["gradcam", "layercam"]}),
        (InputError, {"target": [1, 2]}),
        (InputError, {"color": "GBR"}),
        (LabelsError, {"labels": ["a", "b"]}),
        (PreprocessError, {"preprocess": "nonsense"}),
    ]
    for error, settings in wrong:
        with pytest.raises(error):
            Explain(model, **settings)
    with pytest.raises(ModelError):
        Explain(tmp_path / "missing.onnx")
    with pytest.raises(ModelError):
        Explain(b"no model")
    with pytest.raises(InputError, match="no column 'image'; it has 'bytes', 'id'"):
        Explain(model, column="image")(samples.batch(PICTURES))
    with pytest.raises(InputError, match="prefix='cam_'"):
        Explain(model)(samples.batch(PICTURES) | {"label": np.arange(12)})
    with pytest.raises(InputError, match="fixed-width bytes"):
        Explain(model)({"bytes": np.array([b"ab", b"c"])})
    renamed = Explain(model, prefix="cam_", keep=True)(samples.batch(PICTURES) | {"label": np.arange(12)})
    assert renamed["label"].tolist() == list(range(12)) and len(renamed["cam_label"]) == 12 and "bytes" in renamed


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"path": ["1.png"], "order": [1, 2, 3]}, "'order' has 3 rows, and 'path' 1"),
        ({"path": ["1.png", "2.png"], "order": np.arange(1)}, "'order' has 1 rows, and 'path' 2"),
        ({"path": "1.png"}, "'path' is a str"),
        ({"path": b"1.png"}, "'path' is a bytes"),
        ({"path": ["1.png"], "order": 7}, "'order' is a int"),
        ({"path": ["1.png"], "order": np.array(7)}, "'order' is a ndarray"),
        ({"path": ["1.png"], "name": "a"}, "'name' is a str"),
        ({"path": ["1.png"], "name": {"a": 1}}, "'name' is a dict"),
        ({"path": iter(["1.png"])}, "and no rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_that_are_no_row_for_each_picture_are_refused(model: Path, batch: Any, message: str) -> None:
    with pytest.raises(InputError, match="give ") as caught:
        Explain(model, column="path")(batch)
    assert message in str(caught.value)


def test_names_that_are_no_text_pass_through(model: Path) -> None:
    explain = Explain(model, when="never")
    table = explain({"bytes": samples.column(PICTURES[:2]), 0: [1, 2], ("a", 1): [3, 4]})
    assert table[0] == [1, 2] and table["a", 1] == [3, 4] and list(table["error"]) == ["", ""]
    with pytest.raises(InputError, match="no column 'bytes'; it has '0'"):
        explain({0: [1, 2]})
    pandas = pytest.importorskip("pandas")
    frame = explain(pandas.DataFrame({"bytes": PICTURES[:2], 0: [1, 2]}))
    assert frame[0].tolist() == [1, 2] and frame["error"].tolist() == ["", ""]


def test_two_columns_of_one_name_are_refused(model: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    names = ["bytes", "a", "a"]
    table = pyarrow.table([pyarrow.array([PICTURES[0]]), pyarrow.array([1]), pyarrow.array([2])], names=names)
    for batch in (table, table.to_batches()[0]):
        with pytest.raises(InputError, match="two columns 'a'; rename one"):
            Explain(model)(batch)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="two columns 'a'; rename one"):
        Explain(model)(pandas.DataFrame([[PICTURES[0], 1, 2]], columns=names))


def test_models_without_a_target_of_their_own_are_refused() -> None:
    with pytest.raises(ModelError, match="this model's task is 'embed'"):
        Explain(detectors.build("embed"), preprocess="0..1")
