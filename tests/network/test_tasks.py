"""Every form of output is read as what it is, or refused: against the boxes and scores that the nets compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from scipy import special

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.graph.normalize import normalize
from onnxcam.network import tasks
from onnxcam.network.network import Network
from onnxcam.network.task_boxes import Declared
from onnxcam.targets.tasks import Detect, Embed, Segment, Values
from tests.network.test_detector_nets import run
from tests.support import detectors
from tests.support.detectors import CLASSES, HEIGHT, M1, M2, QUERIES, WIDTH, Net, count, yolov5, yolov8
from tests.support.detectors import _with as with_options

SIZE = (HEIGHT, WIDTH)
Outputs = dict[str, np.ndarray]
# corners in pixels `[M, 4]`, and scores `[M, K]` of all candidates, or score and label `[M, 2]` of detections
Truth = Callable[[Outputs], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Form:
    """A net, and how its outputs are to be read."""

    net: Net
    truth: Truth
    expected: dict[str, Any]
    settings: dict[str, Any]


def corners(box: np.ndarray, kind: str = "xyxy", relative: bool = False) -> np.ndarray:
    """Corners in pixels, number by number."""
    a, b, c, d = (np.asarray(box, np.float64)[:, k] for k in range(4))
    x0, y0, x1, y1 = {
        "xyxy": (a, b, c, d), "yxyx": (b, a, d, c), "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[kind]  # fmt: skip
    w, h = (WIDTH, HEIGHT) if relative else (1, 1)
    return np.stack([x0 * w, y0 * h, x1 * w, y1 * h], axis=1)


def joined(kind: str, *, turn: bool = False, relative: bool = False, objectness: bool = False, extra: int = 0) -> Truth:
    def truth(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        (table,) = outputs.values()
        table = table.T if turn else table
        table = table[:, : table.shape[1] - extra]
        scores = table[:, 5:] * table[:, 4:5] if objectness else table[:, 4:]
        return corners(table[:, :4], kind, relative), scores

    return truth


def apart(
    box: str, score: str, kind: str, *, relative: bool = False, turn: bool = False, activation: Any = None
) -> Truth:
    def truth(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        scores = outputs[score].T if turn else outputs[score]
        return corners(outputs[box], kind, relative), scores if activation is None else activation(scores)

    return truth


def detections(box: str, score: str, label: str, kind: str = "xyxy", relative: bool = False) -> Truth:
    def truth(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        return corners(outputs[box], kind, relative), np.stack([outputs[score], outputs[label]], axis=1)

    return truth


def rows_of(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    (table,) = outputs.values()
    return corners(table[:, :4]), table[:, 4:6]


FORMS: dict[str, Form] = {}


def form(name: str, net: Net, truth: Truth, settings: dict[str, Any] | None = None, **expected: Any) -> None:
    FORMS[name] = Form(net, truth, expected, settings or {})


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.asarray(special.softmax(scores.astype(np.float64), axis=1))


for batch in (None, 1, 2):
    for k in (1, 2, 5):
        for transposed in (False, True):
            shape = ["N", M1, 4 + k] if transposed else ["N", 4 + k, M1]
            form(
                f"v8 {k} {batch} {transposed}",
                Net(with_options(yolov8, transposed=transposed, classes=k), {"output0": shape}, batch=batch),
                joined("cxcywh", turn=not transposed),
                classes=k, candidates=M1, overlapping=True, objectness=None,
            )  # fmt: skip
for k in (1, 3):
    for anchors in (1, 2):
        m = count(2, anchors)
        form(
            f"v5 {k} {anchors}",
            Net(with_options(yolov5, classes=k, anchors=anchors), {"output": ["N", m, 5 + k]}, seed=30 + k),
            joined("cxcywh", objectness=True), classes=k, candidates=m, overlapping=True,
        )  # fmt: skip
for seed in (1, 2, 3):
    form(f"v8 seed {seed}", replace(detectors.NETS["yolov8"], seed=seed, metadata={}), joined("cxcywh", turn=True))
    form(f"corners {seed}", replace(detectors.NETS["yolov8-corners"], seed=seed), joined("xyxy", turn=True))
    form(f"relative {seed}", replace(detectors.NETS["yolov8-relative"], seed=seed),
         joined("cxcywh", turn=True, relative=True), unit="relative")  # fmt: skip
    form(
        f"end-to-end {seed}", replace(detectors.NETS["end-to-end"], seed=seed), rows_of, overlapping=False, classes=None
    )
    form(f"detr {seed}", replace(detectors.NETS["detr"], seed=seed),
         apart("pred_boxes", "logits", "cxcywh", relative=True, activation=softmax),
         background=CLASSES, overlapping=False, activation="softmax")  # fmt: skip
    form(f"detr-sigmoid {seed}", replace(detectors.NETS["detr-sigmoid"], seed=seed),
         apart("pred_boxes", "logits", "cxcywh", relative=True, activation=special.expit),
         background=None, overlapping=False, activation="sigmoid")  # fmt: skip
    form(f"retinanet {seed}", replace(detectors.NETS["retinanet"], seed=seed), apart("boxes", "scores", "xyxy"))
    form(f"ssd {seed}", replace(detectors.NETS["ssd-raw"], seed=seed),
         apart("boxes", "scores", "xyxy", relative=True), background=0, overlapping=True)  # fmt: skip
    form(f"tensorflow {seed}", replace(detectors.NETS["tensorflow"], seed=seed),
         detections("detection_boxes", "detection_scores", "detection_classes", "yxyx", True),
         box_format="yxyx")  # fmt: skip
    form(
        f"zoo {seed}",
        replace(detectors.NETS["zoo"], seed=seed),
        detections("bboxes", "scores", "labels", relative=True),
    )
    form(f"torchvision {seed}", replace(detectors.NETS["torchvision"], seed=20 + seed),
         detections("boxes", "scores", "labels"), one_picture=True, candidates=None)  # fmt: skip
form("3 levels", detectors.NETS["yolov8-3-levels"], joined("cxcywh", turn=True))
form("yolox", detectors.NETS["yolox"], joined("cxcywh", objectness=True))
form("masks beside", detectors.NETS["yolov8-seg"], joined("cxcywh", turn=True, extra=6), classes=CLASSES)
form("scores first", detectors.NETS["retinanet-first"], apart("boxes", "scores", "xyxy", turn=True))
form("scores before labels", detectors.NETS["torchvision-ssd"], detections("boxes", "scores", "labels"))
form("fixed batch of DETR", replace(detectors.NETS["detr"], batch=1),
     apart("pred_boxes", "logits", "cxcywh", relative=True, activation=softmax), background=CLASSES)  # fmt: skip
form(
    "four classes",
    Net(lambda op, x: four_classes(op, x), {"a": ["N", M2, 4], "b": ["N", M2, 4]}),
    apart("b", "a", "xyxy"),
)
form("Caffe", Net(lambda op, x: caffe(op, x), {"detections": ["N", 1, QUERIES, 7]}),
     lambda o: (corners(o["detections"][0][:, 3:], "xyxy", True), o["detections"][0][:, [2, 1]]),
     unit="relative")  # fmt: skip
form("nothing but a table, with objectness", Net(lambda op, x: one_table(op, x), {"y": ["N", M1, 8]}),
     joined("cxcywh", objectness=True), {"boxes_output": ":objectness"}, classes=3)  # fmt: skip
form("nothing but a table, without", Net(lambda op, x: one_table(op, x), {"y": ["N", M1, 8]}),
     joined("cxcywh"), {"boxes_output": "y:no-objectness"}, classes=4)  # fmt: skip
form("nothing but a table, by its names",
     Net(lambda op, x: one_table(op, x), {"y": ["N", M1, 8]}, metadata={"names": '["a", "b", "c"]'}),
     joined("cxcywh", objectness=True), classes=3)  # fmt: skip
form("no dominant class", Net(lambda op, x: even(op, x), {"l": ["N", QUERIES, 3], "b": ["N", QUERIES, 4]}),
     apart("b", "l", "cxcywh", relative=True, activation=softmax),
     {"boxes_output": ":softmax,background-last"}, background=2, activation="softmax")  # fmt: skip
form("nothing that an NMS left",
     Net(lambda op, x: none_left(op, x), {"b": ["D", 4], "l": ["D"], "s": ["D"]}, {"l": "int64"}, batch=1),
     detections("b", "s", "l"), unit="pixels")  # fmt: skip


form("one score each, in no table", Net(lambda op, x: one_class(op, x), {"b": ["N", M2, 4], "s": ["N", M2]}),
     apart("b", "s", "xyxy", activation=lambda s: s[:, None]), classes=1, overlapping=True)  # fmt: skip
form("keypoints in 0..1 beside",
     Net(lambda op, x: keypoints(op, x), {"y": ["N", 11, M1]}, metadata={"names": "{0: 'person'}"}),
     joined("cxcywh", turn=True, relative=True, extra=6), classes=1, objectness=None)  # fmt: skip


def one_class(op: Any, x: Any, factor: float = 1.0, apart: bool = False) -> Outputs:
    box, logits = detectors.anchored_corners(op, x, classes=1)
    scores = op.mul(op.sigmoid(logits), np.float32(factor))
    return {"b": box, "s": scores if apart else op.reshape(scores, 0, -1)}


def keypoints(op: Any, x: Any) -> Outputs:
    box, logits = detectors.anchor_free(op, x, classes=1)
    size = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32).reshape(1, 4, 1)
    box, score = op.div(detectors.to_centre(op, box, 1), size), op.sigmoid(logits)
    points = [op.mul(op.cut(box, 1, 0, 2), np.float32(0.9)), score]
    return {"y": op.concat([op.concat([box, score], 1), op.concat(points * 2, 1)], 1)}


def four_classes(op: Any, x: Any) -> Outputs:
    box, logits = detectors.anchored_corners(op, x, classes=4)
    return {"a": op.sigmoid(logits), "b": box}


def caffe(op: Any, x: Any) -> Outputs:
    out = detectors.zoo(op, x)
    label = op.unsqueeze(op.cast(out["labels"], "float"), 2)
    score = op.unsqueeze(out["scores"], 2)
    table = op.concat([op.mul(label, np.float32(0)), label, score, out["bboxes"]], 2)
    return {"detections": op.unsqueeze(table, 1)}


def one_table(op: Any, x: Any) -> Outputs:
    """Box, objectness and classes of each cell by arithmetic on one map: nothing of them is ever apart."""
    tables = []
    for level, a in enumerate(detectors.backbone(op, x)):
        stride, h, w = detectors.cells(level)
        raw = op.sigmoid(detectors.head(op, a, 8, [0, 0, 0, 0, -1, -1, -1, -1]))
        scale = np.array([1.0, 1, 1.5, 1.5, *[1 / stride] * 4], np.float32).reshape(1, 8, 1, 1) * stride
        offset = np.zeros((1, 8, h, w), np.float32)
        offset[0, :2] = (detectors.centres(level) - 0.5).reshape(2, h, w) * stride
        tables.append(op.reshape(op.add(op.mul(raw, scale), offset), 0, 8, h * w))
    return {"y": op.transpose(op.concat(tables, 2), 0, 2, 1)}


def even(op: Any, x: Any) -> Outputs:
    logits, boxes = detectors.queries(op, x, 3, [0.5, 0.5, 0.5])
    return {"l": logits, "b": boxes}


def none_left(op: Any, x: Any) -> Outputs:
    box, logits = detectors.anchored_corners(op, x)
    classes, candidates = op.nms(box, op.transpose(op.sigmoid(logits), 0, 2, 1), 0.99)
    flat = op.reshape(op.maximum(op.sigmoid(logits), 2), -1)
    return {"b": op.rows(op.squeeze(box, 0), candidates), "l": classes, "s": op.rows(flat, candidates)}


def test_there_are_enough_forms() -> None:
    assert len(FORMS) >= 60


@pytest.mark.sample(20)
@pytest.mark.parametrize("name", FORMS)
def test_a_detector_is_read_as_what_it_is(name: str) -> None:
    case = FORMS[name]
    model = detectors.build(case.net)
    graph = normalize(model)
    recognition = tasks.recognise(graph, "picture", **case.settings)
    assert recognition is not None
    task = recognition.task
    assert isinstance(task, Detect)
    for key, value in case.expected.items():
        assert getattr(task, key) == value, key
    outputs = dict(
        zip([o.name for o in model.graph.output], run(model, detectors.pictures(case.net.batch or 2)), strict=True)
    )
    rows = {key: value if task.one_picture else value[0] for key, value in outputs.items()}
    columns = np.concatenate([rows[value].reshape(-1).astype(np.float64) for value in recognition.values])
    box, scores = case.truth(rows)
    m = task.count(len(columns))
    np.testing.assert_allclose(task.pixels(task.boxes.read(columns, m), SIZE), box, atol=1e-3)
    if task.labels is not None:
        np.testing.assert_allclose(task.probabilities(columns)[:, 0], scores[:, 0], atol=1e-6)
        np.testing.assert_array_equal(task.labels.read(columns, m)[:, 0], scores[:, 1])
    else:
        np.testing.assert_allclose(task.probabilities(columns), scores, atol=1e-6)


SEGMENTERS = {
    "segment": (False, "softmax"), "segment-last": (True, "softmax"), "segment-softmax": (False, None),
    "segment-last-softmax": (True, None), "segment-sigmoid": (False, None), "mask": (False, None),
    "mask-logit": (False, "sigmoid"), "argmax": (False, "softmax"), "argmax-keepdims": (False, "softmax"),
    "argmax-float": (False, "softmax"), "threshold": (False, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmentation_is_read_as_what_it_is(name: str) -> None:
    model = detectors.build(name)
    last, activation = SEGMENTERS[name]
    recognition = tasks.recognise(normalize(model), "picture")
    assert recognition is not None
    classes = 1 if "mask" in name or name == "threshold" else 4
    assert recognition.task == Segment(classes, HEIGHT, WIDTH, last, activation)
    decided = name.startswith("argmax") or name == "threshold"
    assert any("explained are the scores" in warning for warning in recognition.warnings) == decided
    assert any("depth" in warning for warning in recognition.warnings) == (name == "mask-logit")
    if decided:  # the decision of the scores is the mask
        (mask, scores) = run(model, detectors.pictures(2), recognition.values[0])
        mask = mask.reshape(2, HEIGHT, WIDTH)
        np.testing.assert_array_equal(scores[:, 0] > 0.5 if name == "threshold" else scores.argmax(axis=1), mask)


def test_vectors_are_embeddings_where_their_length_is_constant_or_the_user_says_so() -> None:
    graph = normalize(detectors.build("embed"))
    assert tasks.recognise(graph, "picture") == tasks.Recognition(("embedding",), Embed(16, True))
    free = normalize(detectors.build("embed-free"))
    assert tasks.recognise(free, "picture") is None
    assert tasks.recognise(free, "picture", task="embed") == tasks.Recognition(("embedding",), Embed(16, False))


@pytest.mark.parametrize(("size", "names", "doubted"), [(512, False, True), (512, True, False), (500, False, False)])
def test_as_many_numbers_as_vectors_have_are_doubted(size: int, names: bool, doubted: bool) -> None:
    metadata = {"names": str([f"class {k}" for k in range(size)])} if names else {}
    net = Net(with_options(detectors.classifier, classes=size), {"logits": ["N", size]}, metadata=metadata)
    network = Network(detectors.build(net))
    assert (network.readout.kind, network.readout.size) == ("logits", size)
    assert any("--task embed" in warning for warning in network.readout.warnings) == doubted
    assert Network(detectors.build(net), task="embed").readout.task == Embed(size, False)


def test_quantities_where_the_user_says_so() -> None:
    two = normalize(detectors.build("regress-two"))
    expected = tasks.Recognition(("value0", "value1"), Values(("value0", "value1"), (1, 2)))
    assert tasks.recognise(two, "picture", task="regress") == expected
    only = tasks.recognise(two, "picture", task="regress", scores="value1")
    assert only == tasks.Recognition(("value1",), Values(("value1",), (2,)))
    network = Network(detectors.build("regress"), task="regress")
    assert (network.readout.kind, network.readout.task) == ("regression", None)


def classified(op: Any, x: Any, beside: str) -> Outputs:
    logits = detectors.classifier(op, x)["logits"]
    if beside == "softmax in parts":
        parts = op.exp(logits)
        return {"y": op.div(parts, op.unsqueeze(op.reshape(op.matmul(parts, op.constant(np.ones((5, 1)))), -1), 1))}
    maps = detectors.backbone(op, x)
    further = {
        "a map": {"map": maps[-1]},
        "a map of 4 channels": {"map": detectors.head(op, maps[0], 4)},
        "a map of the picture's size": {"map": op.resize(detectors.head(op, maps[0], 5), 8)},
        "tokens": {"tokens": op.transpose(op.reshape(maps[-1], 0, 12, 24), 0, 2, 1)},
        "a box of each class": {
            "boxes": op.reshape(op.sigmoid(op.matmul(op.mean(maps[-1]), op.weight(12, 20))), 0, 5, 4)
        },
        "boxes of nothing": {"boxes": op.reshape(detectors.head(op, maps[-1], 4), 0, 24, 4)},
    }
    return {"y": logits, **further.get(beside, {})}


@pytest.mark.parametrize(
    ("beside", "shape"),
    [
        ("softmax in parts", None), ("a map", [12, 4, 6]), ("a map of 4 channels", [4, 8, 12]), ("nothing", None),
        ("a map of the picture's size", [5, 64, 96]), ("tokens", [24, 12]), ("boxes of nothing", [24, 4]),
        ("a box of each class", [5, 4]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [None, 1])
def test_a_classifier_stays_one(beside: str, shape: list[int] | None, batch: int | None) -> None:
    shapes: dict[str, Any] = {"y": ["N", 5]}
    if shape is not None:
        shapes[{"tokens": "tokens", "boxes of nothing": "boxes", "a box of each class": "boxes"}.get(beside, "map")] = [
            "N",
            *shape,
        ]
    model = detectors.build(Net(lambda op, x: classified(op, x, beside), shapes, batch=batch))
    assert tasks.recognise(normalize(model), "picture") is None
    network = Network(model)
    assert network.readout.task is None
    assert network.readout.size == 5


def raw(op: Any, x: Any, what: str) -> Outputs:
    maps = detectors.backbone(op, x)
    if what == "offsets":
        tables = [op.reshape(op.sigmoid(detectors.head(op, a, 8)), 0, 8, -1) for a in maps]
        return {"y": op.transpose(op.concat(tables, 2), 0, 2, 1)}
    if what in ("distances", "logarithms"):  # YOLOX without its decoding: offsets within a cell, logarithms of sizes
        bias = [0.5, 0.5, *([2.5, 2.5] if what == "distances" else [0, 0]), -3, 0, 0, 0]
        tables = [op.reshape(detectors.head(op, a, 8, bias, 0.3), 0, 8, -1) for a in maps]
        table = op.transpose(op.concat(tables, 2), 0, 2, 1)
        return {"y": op.concat([op.cut(table, 2, 0, 4), op.sigmoid(op.cut(table, 2, 4, 8))], 2)}
    return {
        "features": lambda: {"y": maps[-1]},
        "a head's maps": lambda: {"y": detectors.head(op, maps[0], 16), "z": detectors.head(op, maps[1], 16)},
        "a picture": lambda: {"y": op.add(op.mul(x, np.float32(1.5)), np.float32(-0.2))},
        "a picture of 0 to 1": lambda: {"y": op.sigmoid(op.mul(op.sub(x, np.float32(0.5)), np.float32(4)))},
        "percentages": lambda: one_class(op, x, 100, apart=True),
        "percentages of one number": lambda: one_class(op, x, 100),
        "a depth": lambda: {"y": op.exp(op.add(op.resize(detectors.head(op, maps[0], 1), 8), np.float32(1)))},
        "boxes alone": lambda: {"y": op.transpose(detectors.anchor_free(op, x)[0], 0, 2, 1)},
        "tokens": lambda: {"y": op.transpose(op.reshape(maps[-1], 0, 12, 24), 0, 2, 1)},
        "two segmentations": lambda: {"y": detectors.segmenter(op, x)["out"], "z": detectors.segmenter(op, x)["out"]},
        "rounded": lambda: {"y": op.cast(op.mul(detectors.segmenter(op, x, 1)["out"], np.float32(30)), "int64")},
        "a table": lambda: one_table(op, x),
        "even": lambda: even(op, x),
    }[what]()  # fmt: skip


@pytest.mark.parametrize(
    ("what", "shapes", "message"),
    [
        ("offsets", {"y": ["N", M1, 8]}, "boxes do not lie near the cells"),
        ("distances", {"y": ["N", M1, 8]}, "neither pixels nor shares of the input's size"),
        ("offsets", {"y": ["N", M1, 8]}, "export the model with its decoding in the file"),
        ("distances", {"y": ["N", M1, 8]}, r"still to be decoded .*--decode_in_inference"),
        ("logarithms", {"y": ["N", M1, 8]}, r"neither a second corner .* nor a size .*--decode_in_inference"),
        ("features", {"y": ["N", 12, 4, 6]}, "of one sign, as features"),
        ("a head's maps", {"y": ["N", 16, 8, 12], "z": ["N", 16, 4, 6]}, "no larger than their layer makes them"),
        ("a picture", {"y": ["N", 3, HEIGHT, WIDTH]}, "follow the picture: an image"),
        ("a picture of 0 to 1", {"y": ["N", 3, HEIGHT, WIDTH]}, "of 0 to 1 that follow the picture: an image"),
        ("percentages", {"b": ["N", M2, 4], "s": ["N", M2, 1]}, "'s' holds no scores: .* neither probabilities"),
        ("percentages of one number", {"b": ["N", M2, 4], "s": ["N", M2]}, "'s' holds no scores: .* nor logits"),
        ("a depth", {"y": ["N", 1, HEIGHT, WIDTH]}, "of one sign, as features or quantities"),
        ("boxes alone", {"y": ["N", M1, 4]}, "the model is not an image classifier"),
        ("tokens", {"y": ["N", 24, 12]}, "Measured: 'y' read as 24 candidates"),
        ("two segmentations", {"y": ["N", 4, 64, 96], "z": ["N", 4, 64, 96]}, "several outputs could be the scores"),
        ("rounded", {"y": ["N", 1, HEIGHT, WIDTH]}, "holds indices of classes"),
        ("a table", {"y": ["N", M1, 8]}, r'boxes_output=":objectness"'),
        ("even", {"l": ["N", QUERIES, 3], "b": ["N", QUERIES, 4]}, r'--boxes-output :sigmoid.*softmax'),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_with_what_was_measured(what: str, shapes: dict[str, Any], message: str) -> None:
    model = detectors.build(Net(lambda op, x: raw(op, x, what), shapes, {"y": "int64"} if what == "rounded" else {}))
    with pytest.raises(ModelError, match=message):
        Network(model)


def test_masks_that_a_loop_pastes_are_refused_with_the_value_before_it() -> None:
    """As Mask R-CNN's: a mask of each box is shifted to its place, one box after the other."""
    info = onnx.helper.make_tensor_value_info
    inputs = [info("i", onnx.TensorProto.INT64, []), info("more", onnx.TensorProto.BOOL, [])]
    outputs = [info("again", onnx.TensorProto.BOOL, []), info("mask", onnx.TensorProto.FLOAT, None)]
    names: dict[str, str] = {}

    def pasted(op: Any, x: Any) -> Outputs:
        names["small"] = op.sigmoid(detectors.head(op, detectors.backbone(op, x)[0], 3))
        nodes = [
            onnx.helper.make_node("Identity", ["more"], ["again"]),
            onnx.helper.make_node("Gather", [names["small"], "i"], ["mask"], axis=1),
        ]
        body = onnx.helper.make_graph(nodes, "paste", inputs, outputs)
        count, go = op.constant(3, np.int64), op.constant(True, np.bool_)
        return {"masks": op.unsqueeze(op.reshape(op.emit("Loop", count, go, body=body), -1, 8, 12), 1)}

    model = detectors.build(Net(pasted, {"masks": ["boxes", 1, 8, 12]}))
    with pytest.raises(ModelError, match=rf"pasted together by a Loop.*before it is '{names['small']}'.*--task detect"):
        Network(model, task="segment")


def test_what_is_refused_can_be_named() -> None:
    two = detectors.build(Net(lambda op, x: raw(op, x, "two segmentations"), {n: ["N", 4, 64, 96] for n in "yz"}))
    assert Network(two, scores="z").values == ("z",)
    features = detectors.build(Net(lambda op, x: classified(op, x, "a map"), {"y": ["N", 5], "map": ["N", 12, 4, 6]}))
    with pytest.raises(ModelError, match="expected class scores of shape"):
        Network(features, scores="map")  # the name alone does not make a segmentation of features
    depth = detectors.build(Net(lambda op, x: raw(op, x, "a depth"), {"y": ["N", 1, HEIGHT, WIDTH]}))
    assert Network(depth, task="segment").readout.kind == "segmentation"
    model = detectors.build("yolov8")
    inner = next(
        node.output[0] for node in model.graph.node if node.op_type == "Concat" and "output0" not in node.output
    )
    with pytest.raises(ModelError, match="task='detect': no output holds boxes"):
        Network(model, task="detect", boxes_output=inner, scores=inner)
    with pytest.raises(ModelError, match="task='segment': no output holds"):
        Network(model, task="segment")
    with pytest.raises(ModelError, match="expected one of detect, segment, embed, regress"):
        Network(model, task="classify")
    with pytest.raises(ModelError, match="is of a classifier"):
        Network(model, task="detect", kind="logits")


def test_words_about_boxes() -> None:
    assert Declared.parse("boxes:0") == Declared("boxes:0")
    assert Declared.parse("boxes:0:yxyx,relative") == Declared("boxes:0", "yxyx", "relative")
    assert Declared.parse(":no-objectness, nms") == Declared(None, objectness="no-objectness", nms="nms")
    for text, message in [("b:xyxy,xyz", "'xyz' is no word"), ("b:xyxy,yxyx", "a second word for one thing")]:
        with pytest.raises(ModelError, match=message):
            Declared.parse(text)


def test_a_grid_of_a_dynamic_size() -> None:
    net = replace(detectors.NETS["segment"], dynamic=True)
    shapes: dict[str, Any] = {"out": ["N", 4, "h", "w"]}
    network = Network(detectors.build(replace(net, shapes=shapes)))
    assert network.readout.task == Segment(4, None, None, False, "softmax")


def test_a_segmentation_in_percent_is_refused_instead_of_a_second_softmax() -> None:
    model = detectors.build("segment-softmax")
    (last,) = (node for node in model.graph.node if "out" in node.output)
    last.output[0] = "shares"
    model.graph.node.append(onnx.helper.make_node("Mul", ["shares", "hundred"], ["out"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(100, np.float32), "hundred"))
    for task in (None, "segment"):
        with pytest.raises(onnxcam.OnnxcamError, match="sum to 100 instead of 1: divide them in the file"):
            onnxcam.Explainer(model, task=task)
    assert onnxcam.Explainer(detectors.build("segment-softmax"), task="segment").terms.readout.task.activation is None
