"""Where a layer lies on the picture, measured: 40 misplaced layers are told, right ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from benchmarks import probe
from onnxcam.diagnose import gradients
from onnxcam.graph.layers import Layer
from onnxcam.graph.window import Window
from onnxcam.network import manifest
from onnxcam.network.network import Network
from onnxcam.network.probe import places, stimuli
from onnxcam.network.probe.measurement import measure
from onnxcam.network.probe.places import Place
from onnxcam.network.probe.runner import Runner
from tests.support import misplaced

SEEDS = range(5)


def place_of(model: onnx.ModelProto, layout: str = "NCHW") -> Place:
    network = Network(model)
    layer = Layer("layer", "layer", layout=layout, shape=network.graph.shape("layer"))
    return measure(network.graph, network.picture.name, network.readout, [layer]).layers[0].place


@pytest.mark.sample(12)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", misplaced.CASES)
def test_misplaced_layers_are_told(name: str, seed: int) -> None:
    case = misplaced.CASES[name]
    place = place_of(case.make(seed), case.layout)
    assert place.misplaced
    assert place.layout == (case.right if case.right != case.layout else None)
    if place.layout is None:
        assert place.verdict == case.verdict
    else:
        assert place.corrected is not None and place.corrected.verdict == "direct"


@pytest.mark.parametrize("seed", range(8))
def test_right_layers_are_direct(seed: int) -> None:
    assert place_of(misplaced.direct(seed)).verdict == "direct"
    assert place_of(misplaced.channels_last(seed), "NHWC").verdict == "direct"


@pytest.mark.parametrize("side", [2, 3, 4, 7])
@pytest.mark.parametrize("cells", [-0.5, 0.0, 0.5, 1.5])
def test_half_a_cell_is_no_shift(cells: float, side: int) -> None:
    """Behind strided convolutions each cell looks at its own top left corner: far where cells are few."""
    centres, half = np.array(stimuli.PLACES), stimuli.SIDE / 2
    boxes = np.stack([centres[:, 0] - half, centres[:, 0] + half, centres[:, 1] - half, centres[:, 1] + half], axis=1)
    axis = (np.arange(side) + 0.5) / side
    y, x = (np.exp(-(((axis - place[:, None] - cells / side) / 0.2) ** 2) / 2) for place in centres.T)
    place = places.judge([y[:, :, None] * x[:, None, :] + 1e-3] * 2, boxes)
    assert place.misplaced is (cells > 1 and side > 3)  # of fewer cells nothing is said


def test_a_layer_that_does_not_depend_on_places_is_unsettled() -> None:
    net = misplaced.Net(1)
    mean = net.add("GlobalAveragePool", net.features("x"))
    spread = net.add("Expand", mean, net.ints(1, misplaced.CHANNELS, misplaced.GRID, misplaced.GRID))
    place = place_of(net.model(spread))
    assert (place.verdict, place.reason) == ("unsettled", "every place of the picture changes the layer alike")


def test_a_layer_that_never_changes_is_unsettled() -> None:
    net = misplaced.Net(1)
    net.constants.clear()
    dead = net.add("Relu", net.add("Sub", net.features("x"), net.const(np.float32(1e6))))
    place = place_of(net.model(dead))
    assert (place.verdict, place.reason) == ("unsettled", "no change of the picture changes the layer")


def test_one_change_that_moves_everything_leaves_the_others_their_say() -> None:
    """A place that tips a network over moves every cell of every channel by 50 times as much as the others do."""
    rng = np.random.default_rng(0)
    boxes = stimuli.draw((1, 64, 64), np.asarray(0.0), np.asarray(1.0)).boxes
    axis = (np.arange(7) + 0.5) / 7
    y, x = (np.exp(-(((axis - (boxes[:, k] + boxes[:, k + 1])[:, None] / 2) / 0.2) ** 2) / 2) for k in (0, 2))
    near = (y[:, :, None] * x[:, None, :])[:, None] * rng.uniform(0.5, 1.5, (5, 64, 1, 1))
    for tipping in range(5):
        responses = []
        for _ in range(2):
            moved = 0.1 * rng.uniform(0.8, 1.2, (5, 64, 7, 7)) + 0.1 * near
            moved[tipping] = 50 * rng.uniform(0.3, 1.2, (64, 7, 7))
            responses.append(places.response(moved))
        assert places.judge(responses, boxes).verdict == "direct"


@pytest.mark.slow
def test_noise_is_unsettled_and_no_alarm() -> None:
    """Chance gives no verdict, of however few cells."""
    rng = np.random.default_rng(0)
    boxes = stimuli.draw((1, 64, 64), np.asarray(0.0), np.asarray(1.0)).boxes
    for side in (1, 2, 3, 4, 7, 14):
        for _ in range(20):
            responses = [rng.uniform(0.5, 1.5, (5, side, side)) for _ in range(2)]
            assert not places.judge(responses, boxes).settled


@pytest.mark.parametrize("seed", range(4))
def test_a_window_that_the_graph_tells_is_confirmed_or_contradicted(seed: int) -> None:
    """The layer is that of a crop, 30 of 48 pixels a side."""
    top, left = ((0, 18), (18, 0), (9, 9), (4, 15))[seed]
    net = misplaced.Net(seed)
    crop = net.part(net.part("x", 2, top, top + 30), 3, left, left + 30)
    network = Network(net.model(net.features(crop)))
    session = Runner(network.graph, "x", ["layer"])
    rows, columns = (top / 48, (top + 30) / 48), (left / 48, (left + 30) / 48)
    window = Window(rows, columns)
    drawn = stimuli.draw((3, 48, 48), np.asarray(-2.0), np.asarray(2.0), window=window)
    values = session.run(drawn.pictures)["layer"].reshape(2, 6, misplaced.CHANNELS, 8, 8)
    responses = [places.response(places.changes(rows[0], rows[1:])) for rows in values]
    place = places.judge(responses, drawn.boxes, window)
    assert (place.verdict, place.drawn, place.misplaced) == ("shifted", True, False)
    for wrong, verdict in ((Window(rows, columns[::-1]), "mirrored"), (Window(rows, columns, True), "transposed")):
        place = places.judge(responses, drawn.boxes, wrong)
        assert (place.verdict, place.misplaced) == (verdict, True)
    elsewhere = Window((1 - rows[1], 1 - rows[0]), (1 - columns[1], 1 - columns[0]))
    if seed < 2:
        place = places.judge(responses, drawn.boxes, elsewhere)
        assert place.misplaced or not place.settled


# ---- what follows from a verdict


def test_a_mistaken_layout_is_corrected() -> None:
    """A layer declared channels last that is channels first: its map is that of the right layout."""
    source = misplaced.direct(1)
    wrong = onnxcam.augment(source, [Layer("layer", "layer", layout="NHWC")])
    right = onnxcam.augment(source, [Layer("layer", "layer", layout="NCHW")])
    entry, expected = ((manifest.read(model) or {})["layers"][0] for model in (wrong, right))
    assert (entry["layout"], entry["grid"], entry["place"]["verdict"]) == ("NCHW", [12, 12], "direct")
    assert entry["place"]["reason"] == "its layout is NCHW, not NHWC"
    assert {**entry, "place": None} == {**expected, "place": None}
    assert wrong.graph.node == right.graph.node


def test_a_misplaced_layer_is_warned_of_everywhere(tmp_path: Path) -> None:
    source = misplaced.rolled(1)
    with pytest.warns(UserWarning, match="'layer' lies shifted on the picture"):
        explainable = onnxcam.augment(source, ["layer"])
    entry = (manifest.read(explainable) or {})["layers"][0]
    assert entry["place"]["verdict"] == "shifted"
    for model in (source, explainable):
        explainer = onnxcam.Explainer(model.SerializeToString(), layers=["layer"], preprocess="0..1")
        assert any("lies shifted" in sentence for sentence in explainer.warnings)
    path = tmp_path / "m.onnx"
    onnx.save(explainable, path)
    report = gradients.check(path)
    assert report.failed == ["place of layer"]
    names = {finding.name for finding in gradients.check(path, all_layers=True).findings}
    assert len([name for name in names if name.startswith("place of")]) > 1 and "place of layer" in names


def test_facts_are_lines_of_check() -> None:
    report = gradients.check(misplaced.direct(1).SerializeToString())
    by_name = {finding.name: finding for finding in report.findings}
    assert report.passed
    assert [by_name[name].status for name in ("scores", "rows", "determinism")] == ["ok"] * 3
    assert "from -" in by_name["scores"].detail
    layer = next(finding for name, finding in by_name.items() if name.startswith("place of"))
    assert layer.status == "ok" and layer.figures["correlation"] > 0.7


# ---- benchmarks/probe.md


def test_the_page_about_whole_architectures_is_written_from_its_rows() -> None:
    assert probe.PAGE.read_text("utf-8") == probe.page()


def test_the_default_layers_of_the_coverage_matrix_are_settled_and_raise_no_alarm() -> None:
    """At least 115 of the 120 lie as they are; those whose row is missing are still to be measured."""
    rows = {name: row for name in probe.EVERY if (row := probe.read(name)) is not None and "failed" not in row}
    assert not [name for name, row in rows.items() if row["misplaced"] or row["loads"] > 1 or row["passes"] > 14]
    assert len(probe.MATRIX) == 120
    assert sum(row["verdict"] == "direct" for name, row in rows.items() if name in probe.MATRIX) >= 115


@pytest.mark.slow
def test_a_light_model_is_measured_as_its_row_says() -> None:
    fresh, row = probe.measure("light_shufflenet"), probe.read("light_shufflenet")
    assert row is not None and fresh["correlation"] == pytest.approx(row["correlation"], abs=1e-3)
    assert (fresh["layer"], fresh["shape"], fresh["verdict"]) == (row["layer"], row["shape"], row["verdict"])
