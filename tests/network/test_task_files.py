"""Files of detectors, segmentations, embeddings and values in plain ONNX Runtime: against the explainer's own maps.

The explainer computes each objective in NumPy and its map in a graph of its own; the file has nodes for both.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import Explainer
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError, OnnxcamError, TargetError
from onnxcam.network import manifest as manifests
from onnxcam.targets.scalars import Box, Region, Similarity, Value
from tests.support import detectors
from tests.support.runtime import run

RNG = np.random.default_rng(24)
ROWS = 4
PICTURES = detectors.pictures(ROWS)
# forms of output, and what their files take beside the picture
FORMS = {
    "yolov8": ["box"], "yolov8-transposed": ["box"], "yolov5": ["box"], "end-to-end": ["box"], "detr": ["box"],
    "retinanet": ["box"], "ssd-raw": ["box"], "segment": ["target", "region"], "segment-last": ["target", "region"],
    "mask-logit": ["target", "region"], "embed": ["reference"], "regress-two": ["target"],
}  # fmt: skip
TASKS = {"regress-two": "regress"}  # what cannot be measured
SLOW = {"yolov8-transposed", "retinanet", "ssd-raw", "segment-last", "mask-logit"}


def exported(name: str, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    model = onnxcam.augment(detectors.build(name), probe=False, task=TASKS.get(name), **options)
    record = manifests.read(model)
    assert record is not None
    return model, record


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FORMS])
def test_the_file_has_the_explainers_map(name: str) -> None:
    model, record = exported(name)
    inputs = [value.name for value in model.graph.input]
    assert inputs == ["picture", *FORMS[name]]
    explainer = Explainer(detectors.build(name), probe=False, task=TASKS.get(name))
    task = record["scores"]["task"]["task"]
    heatmap = _heatmap(record)
    layer = _layer(record)
    cases: list[tuple[dict[str, np.ndarray], list[Any]]]
    if task == "detect":
        scores = explainer.batch_scores(PICTURES)
        candidates = explainer.terms.readout.task.count(scores.shape[1])  # type: ignore[union-attr]
        selected = RNG.integers(0, candidates, ROWS)
        cases = [
            ({"box": selected}, [Box(int(index)) for index in selected]),
            ({"box": np.array([1])}, [Box(1)] * ROWS),
        ]
    elif task == "segment":
        region = np.resize(np.array([[5, 9, 60, 50], [0, 0, 96, 20]], np.float32), (ROWS, 4))
        none = np.zeros((1, 4), np.float32)
        cases = [
            ({"target": np.array([0]), "region": region}, [Region(0, tuple(map(float, one))) for one in region]),
            ({"target": np.array([-1]), "region": none}, [None] * ROWS),
        ]
    elif task == "embed":
        vectors = RNG.normal(size=(ROWS, detectors.DIMENSIONS)).astype(np.float32)
        cases = [({"reference": vectors}, [Similarity(v) for v in vectors]),
                 ({"reference": vectors[:1] * 9}, [Similarity(vectors[0])] * ROWS)]  # fmt: skip
    else:
        cases = [({"target": np.resize([0, 2], ROWS)}, [Value("value0"), Value("value1", 1)] * (ROWS // 2))]
    some = False
    for feeds, targets in cases:
        maps = run(model, {"picture": PICTURES} | feeds, outputs=[heatmap])[heatmap]
        expected = explainer.attribute(PICTURES, target=targets, layer=layer, normalize="none", size=maps.shape[1:])
        some |= bool(maps.any())
        np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-4 * float(expected.max()) + 1e-9)
    assert some


def _layer(record: dict[str, Any]) -> Any:
    """The layer of the file's one heatmap; None for that of each box."""
    return None if record["target"].get("heatmaps") else record["layers"][-1]["name"]


def _heatmap(record: dict[str, Any]) -> str:
    joined = record["target"].get("heatmaps")
    (name,) = (joined or record["layers"][-1]["heatmaps"]).values()
    return str(name)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["yolov5", "detr", "segment", "embed", "regress-two"])
def test_a_file_is_checked_against_finite_differences(name: str) -> None:
    report = check(exported(name)[0], samples=2, directions=4, places=False)
    assert report.passed and {one.status for one in report.findings} <= {"ok", "note", "unsure"}
    gradients = [one for one in report.findings if one.name.startswith("gradients")]
    assert gradients and any(one.status == "ok" for one in gradients)


def test_a_wrong_cotangent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcam.autodiff import task_seed

    right = task_seed.box_cotangent

    def other_box(op: Any, task: Any, flat: str, box: str) -> Any:
        return right(op, task, flat, op.Mod(op.Add(op.Max(box, 0), 1), task.candidates))

    monkeypatch.setattr(task_seed, "box_cotangent", other_box)
    report = check(exported("detr")[0], samples=2, directions=4, places=False)
    assert not report.passed


@pytest.mark.parametrize("name", ["detr", "segment", "embed", "regress-two"])
def test_what_has_to_be_fed(name: str) -> None:
    model, record = exported(name, target="required")
    assert record["target"]["mode"] == "required"
    feeds: dict[str, np.ndarray] = {"picture": PICTURES}
    with pytest.raises(Exception, match=r"(?i)required inputs|missing input"):
        run(model, feeds)
    optional, described = exported(name)
    needs = name in ("embed", "regress-two")  # where no first choice exists
    assert described["target"]["mode"] == ("required" if needs else "optional")
    if not needs:
        first = run(optional, feeds, outputs=[_heatmap(described)])
        task_feeds = {"target": np.array([-1]), "region": np.zeros((1, 4), np.float32)}
        named = run(model, feeds | ({"box": np.array([-1])} if name == "detr" else task_feeds),
                    outputs=[_heatmap(record)])  # fmt: skip
        for key, value in first.items():
            np.testing.assert_array_equal(value, named[key])


def test_a_file_may_be_bound_to_a_class_or_a_value_and_to_nothing_else() -> None:
    model, record = exported("segment", target=2)
    assert record["target"]["class"] == 2 and [value.name for value in model.graph.input] == ["picture", "region"]
    free, described = exported("segment")
    feeds = {"picture": PICTURES, "region": np.array([[0, 0, 50, 50]], np.float32)}
    bound = run(model, feeds, outputs=[_heatmap(record)])[_heatmap(record)]
    named = run(free, feeds | {"target": np.array([2])}, outputs=[_heatmap(described)])[_heatmap(described)]
    np.testing.assert_allclose(bound, named, rtol=1e-5, atol=1e-7)
    assert exported("regress-two", target="value1[1]")[1]["target"] == {
        "name": "target",
        "mode": "constant",
        "class": 2,
    }
    for name, wrong in (("detr", 3), ("embed", 0)):
        with pytest.raises(TargetError, match="no file can be bound to it"):
            exported(name, target=wrong)


def test_one_box_for_all_rows_of_a_portable_file() -> None:
    model, record = exported("detr", portable=True)
    assert record["target"]["rows"] == "shared"
    box = next(value for value in model.graph.input if value.name == "box")
    assert [dim.dim_value for dim in box.type.tensor_type.shape.dim] == [1]
    plain, described = exported("detr")
    feeds = {"picture": PICTURES, "box": np.array([4])}
    ours, theirs = (run(m, feeds, outputs=[_heatmap(r)])[_heatmap(r)] for m, r in ((model, record), (plain, described)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_augmented_again_it_is_the_same_file_and_its_original_outputs_are_those_of_the_plain_one() -> None:
    plain = detectors.build("detr")
    model, record = exported("detr")
    again = onnxcam.augment(model, probe=False)
    assert manifests.read(again) == record
    feeds = {"picture": PICTURES, "box": np.array([2])}
    first, second, original = run(model, feeds), run(again, feeds), run(plain, PICTURES)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    for name, value in original.items():
        np.testing.assert_allclose(first[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("scores", "task"), None), (("scores", "task", "width"), 0), (("scores", "task", "box_format"), "polar"),
        (("scores", "task", "activation"), "relu"), (("scores", "task", "scores", "first"), 40),
        (("scores", "task", "boxes"), None), (("scores", "task", "task"), "caption"), (("scores", "classes"), 9),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused(place: tuple[str, ...], value: Any) -> None:
    model, record = exported("detr")
    entry = record = json.loads(json.dumps(record))
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    manifests.write(model, record)
    with pytest.raises(ModelError, match="export the model again"):
        Explainer(model)


def test_pictures_and_gates_of_a_detector_are_refused_in_a_sentence() -> None:
    for options in ({"gate": "confidence < 0.6"}, {"pixels": True, "preprocess": "0..1"}):
        with pytest.raises(OnnxcamError) as error:
            exported("detr", **options)
        assert "\n" not in str(error.value) and "detect" in str(error.value)
