"""Small detectors, segmenters, embedding nets and regressors in every form of output, each also in torch.

A net is written once, over operations that either emit ONNX nodes or compute with torch. `build(name)` gives the file;
`forward(name, x)` gives the same outputs as torch tensors, so that autograd is an oracle for their gradients.
Weights are random and small; biases are those of trained detectors (few objects, "no object" likely), pictures are
NCHW, 64 pixels high and 96 wide, so that rows and columns cannot be taken for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.detector_operations import Onnx, Torch

HEIGHT, WIDTH = 64, 96
CLASSES, QUERIES, DIMENSIONS = 3, 20, 16
SEED = 24


@dataclass(frozen=True)
class Net:
    """A net by name.

    Attributes:
        make: from operations and the picture to the outputs by name.
        types: element types of the outputs that are no floats.
        shapes: declared shapes of the outputs.
        batch: the picture's declared number of rows; None for a dynamic one.
        size: the picture's height and width.
        dynamic: whether height and width are declared dynamic.
        metadata: of the file.
    """

    make: Callable[[Any, Any], dict[str, Any]]
    shapes: dict[str, Sequence[int | str]]
    types: dict[str, str] = field(default_factory=dict)
    batch: int | None = None
    size: tuple[int, int] = (HEIGHT, WIDTH)
    dynamic: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    seed: int = SEED


def build(net: Net | str) -> onnx.ModelProto:
    """The file of a net."""
    net = NETS[net] if isinstance(net, str) else net
    op = Onnx(net.seed)
    outputs = net.make(op, "picture")
    for name, value in outputs.items():
        op.nodes.append(helper.make_node("Identity", [value], [name]))
    size: list[Any] = ["height", "width"] if net.dynamic else list(net.size)
    rows = "N" if net.batch is None else net.batch
    graph = helper.make_graph(
        op.nodes,
        "net",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [rows, 3, *size])],
        [
            helper.make_tensor_value_info(
                name,
                getattr(TensorProto, net.types.get(name, "float").upper()),
                [rows if dim == "N" else dim for dim in net.shapes[name]],
            )
            for name in outputs
        ],
        op.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in net.metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model


def forward(net: Net | str, picture: Any, indices: Sequence[Any] = ()) -> dict[str, Any]:
    """The same outputs by torch, float64.

    Arguments:
        picture: a float64 tensor `[N, 3, H, W]`.
        indices: of a net with an NMS inside, the classes and the candidates that the file's NMS leaves.
    """
    net = NETS[net] if isinstance(net, str) else net
    return net.make(Torch(net.seed, indices), picture)


def pictures(count: int = 2, size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 5) -> np.ndarray:
    """Blobs of colour, float32 `[N, 3, H, W]` in 0..1."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(size=(count, 3, size[0] // 8, size[1] // 8))
    return coarse.repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- pieces


def backbone(op: Any, x: Any, levels: int = 2) -> list[Any]:
    """Maps at strides 8, 16 (and 32), 12 channels each."""
    channels, maps = 3, []
    for width in (8, 10, 12, 12, 12)[: levels + 2]:
        x = op.relu(op.conv(x, op.weight(width, channels, 3, 3), op.weight(width, scale=0.1), 2))
        channels = width
        maps.append(x)
    return maps[2:]


def head(op: Any, x: Any, channels: int, bias: Any = 0.0, scale: float = 1.0, kernel: int = 1) -> Any:
    """A convolution whose outputs vary by about `scale` around `bias`."""
    b = op.constant(np.broadcast_to(np.asarray(bias, np.float32), (channels,)))
    return op.conv(op.mul(x, np.float32(scale)), op.weight(channels, 12, kernel, kernel), b)


def cells(level: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[int, int, int]:
    """Stride, height and width of a level's grid."""
    stride = 8 << level
    return stride, -(-size[0] // stride), -(-size[1] // stride)


def centres(level: int) -> np.ndarray:
    """x, y of the cells' centres in cells, `[2, h * w]`."""
    _, h, w = cells(level)
    y, x = np.mgrid[:h, :w] + 0.5
    return np.stack([x.reshape(-1), y.reshape(-1)]).astype(np.float32)


def count(levels: int = 2, anchors: int = 1) -> int:
    """Number of candidates."""
    return sum(anchors * cells(level)[1] * cells(level)[2] for level in range(levels))


def anchor_free(op: Any, x: Any, levels: int = 2, classes: int = CLASSES, bins: int = 4) -> tuple[Any, Any]:
    """x0, y0, x1, y1 in pixels `[N, 4, M]` by distances to the sides (each the mean of a distribution), and logits
    `[N, K, M]`: YOLOv8's."""
    corners, logits = [], []
    for level, a in enumerate(backbone(op, x, levels)):
        stride, h, w = cells(level)
        sides = op.reshape(head(op, a, 4 * bins, scale=2.0), 0, 4, bins, h * w)
        sides = op.transpose(op.softmax(sides, 2), 0, 2, 1, 3)
        sides = op.reshape(
            op.conv(sides, op.constant(np.arange(bins).reshape(1, bins, 1, 1)), op.constant([0.0])), 0, 4, h * w
        )
        low = op.sub(op.mul(op.cut(sides, 1, 0, 2), np.float32(-1)), -centres(level)[None])
        high = op.add(op.cut(sides, 1, 2, 4), centres(level)[None])
        corners.append(op.mul(op.concat([low, high], 1), np.float32(stride)))
        logits.append(op.reshape(head(op, a, classes, -2.0, 1.5), 0, classes, h * w))
    return op.concat(corners, 2), op.concat(logits, 2)


def to_centre(op: Any, corners: Any, axis: int) -> Any:
    """Centre and size of corners."""
    low, high = op.cut(corners, axis, 0, 2), op.cut(corners, axis, 2, 4)
    return op.concat([op.mul(op.add(low, high), np.float32(0.5)), op.sub(high, low)], axis)


def anchor_based(op: Any, x: Any, classes: int = CLASSES, anchors: int = 2, split: bool = True) -> Any:
    """Centre, size, objectness and classes of each candidate, `[N, M, 5 + K]`: YOLOv5's."""
    width, tables = 5 + classes, []
    sizes = np.array([[[10, 13], [16, 30]], [[30, 61], [62, 45]]], np.float32)[:, :anchors]
    for level, a in enumerate(backbone(op, x)):
        stride, h, w = cells(level)
        bias = np.tile(np.array([0, 0, 0, 0, -3.5] + [-0.5] * classes, np.float32), anchors)
        raw = op.sigmoid(op.reshape(head(op, a, anchors * width, bias), 0, anchors, width, h, w))
        raw = op.transpose(raw, 0, 1, 3, 4, 2)
        grid = (centres(level) - 0.5).T.reshape(1, 1, h, w, 2)
        xy = op.mul(op.add(op.mul(op.cut(raw, 4, 0, 2), np.float32(2)), grid - 0.5), np.float32(stride))
        double = op.mul(op.cut(raw, 4, 2, 4), np.float32(2))
        wh = op.mul(op.mul(double, double), sizes[level].reshape(1, anchors, 1, 1, 2))
        table = op.concat([xy, wh, op.cut(raw, 4, 4, width)], 4)
        tables.append(op.reshape(table, 0, anchors * h * w, width))
    return op.concat(tables, 1)


def anchored_corners(op: Any, x: Any, classes: int = CLASSES, background: bool = False) -> tuple[Any, Any]:
    """Corners in pixels `[N, M, 4]` by deltas of anchors, and logits `[N, M, K (+ 1)]`: RetinaNet's and SSD's, where
    the anchors of a cell follow each other."""
    shapes = np.array([[14, 14], [20, 12]], np.float32)
    corners, logits = [], []
    columns = classes + background
    bias = np.array(([3.0] if background else []) + [-2.0] * classes, np.float32)
    for level, a in enumerate(backbone(op, x)):
        stride, h, w = cells(level)
        deltas = op.reshape(op.transpose(head(op, a, 8, 0, 0.3), 0, 2, 3, 1), 0, h * w * 2, 4)
        size = np.tile(shapes * (1 << level), (h * w, 1))[None]
        centre = (centres(level).T * stride).repeat(2, axis=0)[None]
        middle = op.add(op.mul(op.cut(deltas, 2, 0, 2), size), centre)
        half = op.mul(op.exp(op.cut(deltas, 2, 2, 4)), size / 2)
        corners.append(op.concat([op.sub(middle, half), op.add(middle, half)], 2))
        scores = op.transpose(head(op, a, 2 * columns, np.tile(bias, 2), 1.5), 0, 2, 3, 1)
        logits.append(op.reshape(scores, 0, h * w * 2, columns))
    return op.concat(corners, 1), op.concat(logits, 1)


def queries(op: Any, x: Any, columns: int, bias: Any) -> tuple[Any, Any]:
    """Logits `[N, Q, columns]` and boxes `[N, Q, 4]` (centre and size, relative) of queries that attend to the cells of
    the last map: DETR's."""
    _, h, w = cells(1)
    tokens = op.transpose(op.reshape(backbone(op, x)[-1], 0, 12, h * w), 0, 2, 1)
    keys = op.transpose(op.matmul(tokens, op.weight(12, 12)), 0, 2, 1)
    attention = op.softmax(op.matmul(op.weight(1, QUERIES, 12, scale=1.0), keys), 2)
    mixed = op.matmul(attention, op.matmul(tokens, op.weight(12, 12)))
    mixed = op.add(mixed, op.weight(1, QUERIES, 12, scale=1.0))
    logits = op.add(op.matmul(mixed, op.weight(12, columns, scale=0.3)), np.broadcast_to(np.float32(bias), (columns,)))
    centre = op.sigmoid(op.matmul(mixed, op.weight(12, 2, scale=0.6)))
    size = op.mul(op.sigmoid(op.matmul(mixed, op.weight(12, 2, scale=0.6))), np.float32(0.5))
    return logits, op.concat([centre, size], 2)


def best(op: Any, corners: Any, scores: Any, keep: int = QUERIES) -> tuple[Any, Any, Any]:
    """Boxes `[N, Q, 4]`, scores `[N, Q]` and classes `[N, Q]` of the best candidates of `[N, M, 4]` and `[N, M, K]`."""
    values, indices = op.topk(op.maximum(scores, 2), keep)
    classes = op.argmax(op.take(scores, indices), 2)
    return op.take(corners, indices), values, classes


# ------------------------------------------------------------------------------------------------------------ nets

M1, M2 = count(2, 1), count(2, 2)
NAMES = "{0: 'cat', 1: 'dog', 2: 'hen'}"


def yolov8(op: Any, x: Any, transposed: bool = False, relative: bool = False, corners: bool = False, levels: int = 2,
           classes: int = CLASSES, extra: int = 0) -> dict[str, Any]:  # fmt: skip
    box, logits = anchor_free(op, x, levels, classes)
    box = box if corners else to_centre(op, box, 1)
    if relative:
        box = op.div(box, np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32).reshape(1, 4, 1))
    parts = [box, op.sigmoid(logits)]
    if extra:
        parts.append(op.concat([op.mul(op.cut(box, 1, 0, 1), np.float32(-0.1 * k)) for k in range(1, extra + 1)], 1))
    table = op.concat(parts, 1)
    return {"output0": op.transpose(table, 0, 2, 1) if transposed else table}


def yolov5(op: Any, x: Any, anchors: int = 2, classes: int = CLASSES) -> dict[str, Any]:
    return {"output": anchor_based(op, x, classes, anchors)}


def yolox(op: Any, x: Any) -> dict[str, Any]:
    box, logits = anchor_free(op, x)
    objectness = op.sigmoid(op.sub(op.cut(logits, 1, 0, 1), np.float32(2)))
    table = op.concat([to_centre(op, box, 1), objectness, op.sigmoid(logits)], 1)
    return {"output": op.transpose(table, 0, 2, 1)}


def end_to_end(op: Any, x: Any) -> dict[str, Any]:
    box, logits = anchor_free(op, x)
    boxes, scores, classes = best(op, op.transpose(box, 0, 2, 1), op.transpose(op.sigmoid(logits), 0, 2, 1))
    columns = [op.unsqueeze(value, 2) for value in (scores, op.cast(classes, "float"))]
    return {"output0": op.concat([boxes, *columns], 2)}


def detr(op: Any, x: Any, no_object: bool = True) -> dict[str, Any]:
    bias = [-1.0] * CLASSES + [3.0] if no_object else [-4.0] * CLASSES
    logits, boxes = queries(op, x, CLASSES + no_object, bias)
    return {"logits": logits, "pred_boxes": boxes}


def retinanet(op: Any, x: Any, first: bool = False) -> dict[str, Any]:
    corners, logits = anchored_corners(op, x)
    scores = op.sigmoid(logits)
    return {"boxes": corners, "scores": op.transpose(scores, 0, 2, 1) if first else scores}


def ssd_raw(op: Any, x: Any) -> dict[str, Any]:
    corners, logits = anchored_corners(op, x, background=True)
    relative = op.div(corners, np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32))
    return {"scores": op.softmax(logits, 2), "boxes": relative}


def torchvision(op: Any, x: Any, scores_before_labels: bool = False) -> dict[str, Any]:
    corners, logits = anchored_corners(op, x)
    scores = op.sigmoid(logits)
    classes, candidates = op.nms(corners, op.transpose(scores, 0, 2, 1), 0.3)
    boxes = op.rows(op.squeeze(corners, 0), candidates)
    flat = op.reshape(scores, -1)
    index = op.add(op.mul(candidates, op.constant(CLASSES, np.int64)), classes)
    outputs = {"boxes": boxes, "labels": op.add(classes, op.constant(1, np.int64)), "scores": op.rows(flat, index)}
    return {key: outputs[key] for key in ("boxes", "scores", "labels")} if scores_before_labels else outputs


def tensorflow(op: Any, x: Any) -> dict[str, Any]:
    """Rows first, columns second, relative; the number of detections is an output."""
    corners, logits = anchored_corners(op, x)
    relative = op.div(corners, np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32))
    turned = op.concat([op.cut(relative, 2, k, k + 1) for k in (1, 0, 3, 2)], 2)
    boxes, scores, classes = best(op, turned, op.sigmoid(logits))
    number = op.mul(op.maximum(op.mul(scores, np.float32(0)), 1), np.float32(0))
    return {
        "num_detections": op.add(number, np.float32(QUERIES)),
        "detection_boxes": boxes,
        "detection_scores": scores,
        "detection_classes": op.add(op.cast(classes, "float"), np.float32(1)),
    }


def zoo(op: Any, x: Any) -> dict[str, Any]:
    corners, logits = anchored_corners(op, x)
    relative = op.div(corners, np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32))
    boxes, scores, classes = best(op, relative, op.sigmoid(logits))
    return {"bboxes": boxes, "labels": classes, "scores": scores}


def segmenter(op: Any, x: Any, classes: int = 4, end: str = "", last: bool = False) -> dict[str, Any]:
    logits = op.resize(head(op, backbone(op, x, 1)[0], classes, 0, 1.0), 8)
    scores = {"softmax": lambda: op.softmax(logits, 1), "sigmoid": lambda: op.sigmoid(logits)}.get(
        end, lambda: logits
    )()
    if end.startswith("argmax"):
        mask = op.argmax(logits, 1, int(end.endswith("keepdims")))
        return {"mask": op.cast(mask, "float") if end.endswith("float") else mask}
    if end == "threshold":
        return {"mask": op.cast(op.greater(op.sigmoid(logits), 0.5), "uint8")}
    return {"out": op.transpose(scores, 0, 2, 3, 1) if last else scores}


def embedder(op: Any, x: Any, normalised: bool = True) -> dict[str, Any]:
    pooled = op.mean(backbone(op, x)[-1])
    vector = op.matmul(pooled, op.weight(12, DIMENSIONS))
    return {"embedding": op.div(vector, op.norm(vector)) if normalised else vector}


def clip_with_texts(op: Any, x: Any) -> dict[str, Any]:
    """The similarity of a picture to each of five texts: a classifier, whose weights are the texts."""
    vector = embedder(op, x)["embedding"]
    texts = op.weight(DIMENSIONS, 5, scale=0.25)
    return {"logits_per_image": op.mul(op.matmul(vector, texts), np.float32(20))}


def regressor(op: Any, x: Any, sizes: Sequence[int] = (1,)) -> dict[str, Any]:
    pooled = op.mean(backbone(op, x)[-1])
    return {f"value{k}": op.matmul(pooled, op.weight(12, size)) for k, size in enumerate(sizes)}


def classifier(op: Any, x: Any, classes: int = 5) -> dict[str, Any]:
    return {"logits": op.matmul(op.mean(backbone(op, x)[-1]), op.weight(12, classes))}


def _with(make: Callable[..., dict[str, Any]], **options: Any) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda op, x: make(op, x, **options)


NETS: dict[str, Net] = {
    "yolov8": Net(yolov8, {"output0": ["N", 4 + CLASSES, M1]}, metadata={"names": NAMES}),
    "yolov8-transposed": Net(_with(yolov8, transposed=True), {"output0": ["N", M1, 4 + CLASSES]}),
    "yolov8-relative": Net(_with(yolov8, relative=True), {"output0": ["N", 4 + CLASSES, M1]}),
    "yolov8-corners": Net(_with(yolov8, corners=True), {"output0": ["N", 4 + CLASSES, M1]}),
    "yolov8-3-levels": Net(_with(yolov8, levels=3), {"output0": ["N", 4 + CLASSES, count(3)]}),
    "yolov8-seg": Net(_with(yolov8, extra=6), {"output0": ["N", 10 + CLASSES, M1]}),
    "yolov5": Net(yolov5, {"output": ["N", M2, 5 + CLASSES]}),
    "yolov5-named": Net(_with(yolov5, anchors=1), {"output": ["N", M1, 5 + CLASSES]}, metadata={"names": NAMES}),
    "yolox": Net(yolox, {"output": ["N", M1, 5 + CLASSES]}),
    "end-to-end": Net(end_to_end, {"output0": ["N", QUERIES, 6]}),
    "detr": Net(detr, {"logits": ["N", QUERIES, CLASSES + 1], "pred_boxes": ["N", QUERIES, 4]}),
    "detr-sigmoid": Net(
        _with(detr, no_object=False), {"logits": ["N", QUERIES, CLASSES], "pred_boxes": ["N", QUERIES, 4]}
    ),
    "retinanet": Net(retinanet, {"boxes": ["N", M2, 4], "scores": ["N", M2, CLASSES]}),
    "retinanet-first": Net(_with(retinanet, first=True), {"boxes": ["N", M2, 4], "scores": ["N", CLASSES, M2]}),
    "ssd-raw": Net(ssd_raw, {"scores": ["N", M2, CLASSES + 1], "boxes": ["N", M2, 4]}),
    "torchvision": Net(
        torchvision, {"boxes": ["D", 4], "labels": ["D"], "scores": ["D"]}, {"labels": "int64"}, batch=1
    ),
    "torchvision-ssd": Net(
        _with(torchvision, scores_before_labels=True), {"boxes": ["D", 4], "labels": ["D"], "scores": ["D"]},
        {"labels": "int64"}, batch=1,
    ),
    "tensorflow": Net(
        tensorflow,
        {"num_detections": ["N"], "detection_boxes": ["N", QUERIES, 4], "detection_scores": ["N", QUERIES],
         "detection_classes": ["N", QUERIES]},
    ),
    "zoo": Net(
        zoo, {"bboxes": ["N", QUERIES, 4], "labels": ["N", QUERIES], "scores": ["N", QUERIES]}, {"labels": "int64"}
    ),
    "segment": Net(segmenter, {"out": ["N", 4, HEIGHT, WIDTH]}),
    "segment-last": Net(_with(segmenter, last=True), {"out": ["N", HEIGHT, WIDTH, 4]}),
    "segment-softmax": Net(_with(segmenter, end="softmax"), {"out": ["N", 4, HEIGHT, WIDTH]}),
    "segment-last-softmax": Net(_with(segmenter, end="softmax", last=True), {"out": ["N", HEIGHT, WIDTH, 4]}),
    "segment-sigmoid": Net(_with(segmenter, end="sigmoid"), {"out": ["N", 4, HEIGHT, WIDTH]}),
    "mask": Net(_with(segmenter, classes=1, end="sigmoid"), {"out": ["N", 1, HEIGHT, WIDTH]}),
    "mask-logit": Net(_with(segmenter, classes=1), {"out": ["N", 1, HEIGHT, WIDTH]}),
    "argmax": Net(_with(segmenter, end="argmax"), {"mask": ["N", HEIGHT, WIDTH]}, {"mask": "int64"}),
    "argmax-keepdims": Net(
        _with(segmenter, end="argmax-keepdims"), {"mask": ["N", 1, HEIGHT, WIDTH]}, {"mask": "int64"}
    ),
    "argmax-float": Net(_with(segmenter, end="argmax-float"), {"mask": ["N", HEIGHT, WIDTH]}),
    "threshold": Net(
        _with(segmenter, classes=1, end="threshold"), {"mask": ["N", 1, HEIGHT, WIDTH]}, {"mask": "uint8"}
    ),
    "embed": Net(embedder, {"embedding": ["N", DIMENSIONS]}),
    "embed-free": Net(_with(embedder, normalised=False), {"embedding": ["N", DIMENSIONS]}),
    "clip": Net(clip_with_texts, {"logits_per_image": ["N", 5]}),
    "regress": Net(regressor, {"value0": ["N", 1]}),
    "regress-3": Net(_with(regressor, sizes=(3,)), {"value0": ["N", 3]}),
    "regress-two": Net(_with(regressor, sizes=(1, 2)), {"value0": ["N", 1], "value1": ["N", 2]}),
    "classifier": Net(classifier, {"logits": ["N", 5]}),
}  # fmt: skip
