"""torchvision's detectors and segmenters, small and with random weights: eager with autograd, and exported.

A CPU-only torch lacks torchvision's compiled operators. `register_operators` declares the two that detectors use: in
eager mode they are computed in Python, so that autograd is an oracle; the exporters know both by name and write
NonMaxSuppression and RoiAlign.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import onnx

from tests.support.runtime import run
from tests.support.torchvision_stub import import_torchvision

_LIBRARIES: list[Any] = []
SIZE = 128  # rows and columns of the pictures
CLASSES = 5  # with background
MOST_BOXES = 12  # boxes that a detector keeps


def register_operators() -> Any:
    """torchvision with `nms` and `roi_align` in Python, and their symbolics; skips where it is not installed."""
    torchvision = import_torchvision()
    if _LIBRARIES:
        return torchvision
    import torch

    extension = sys.modules["torchvision.extension"]
    regions = sys.modules["torchvision.ops.roi_align"]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("roi_align", align, "CompositeImplicitAutograd")
    library.impl("nms", suppress, "CPU")
    _LIBRARIES.append(library)
    extension._has_ops = _has_operators
    regions._has_ops = _has_operators
    return torchvision


def _has_operators() -> bool:
    return True


def suppress(boxes: Any, scores: Any, threshold: float) -> Any:
    """Greedy non-maximum suppression as torchvision defines it: the indices of boxes kept, best first."""
    import torch

    left, top, right, bottom = boxes.data.unbind(1)
    areas = (right - left) * (bottom - top)
    order = torch.sort(scores.data, stable=True, descending=True).indices
    indices = []
    while len(order):
        first, rest = order[0], order[1:]
        indices.append(first)
        width = (torch.minimum(right[first], right[rest]) - torch.maximum(left[first], left[rest])).clamp(min=0)
        height = (torch.minimum(bottom[first], bottom[rest]) - torch.maximum(top[first], top[rest])).clamp(min=0)
        shared = width * height
        order = rest[~(shared / (areas[first] + areas[rest] - shared) > threshold)]  # boxes of no area stay
    return torch.stack(indices) if indices else torch.empty(0, dtype=torch.int64)


def faster_rcnn() -> Any:
    """Faster R-CNN on a pyramid of MobileNetV3: regions of a proposal network, features by RoiAlign of the levels."""
    return _regions("FasterRCNN")


def mask_rcnn() -> Any:
    """Mask R-CNN on the same."""
    return _regions("MaskRCNN")


def _regions(name: str) -> Any:
    torchvision = register_operators()
    detection = torchvision.models.detection
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32, 64),) * 3, ((0.5, 1.0, 2.0),) * 3)
    options = {"box_score_thresh": 0.0, "box_detections_per_img": MOST_BOXES, "box_nms_thresh": 0.5}
    few = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 30}
    build = getattr(detection, name)
    return build(_pyramid(), CLASSES, rpn_anchor_generator=anchors, **_pictures(), **options, **few)


def retinanet() -> Any:
    """RetinaNet on a pyramid of MobileNetV3."""
    torchvision = register_operators()
    detection = torchvision.models.detection
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32, 64),) * 3, ((0.5, 1.0, 2.0),) * 3)
    return detection.RetinaNet(_pyramid(), CLASSES, anchor_generator=anchors, **_pictures(), **_limits())


def fcos() -> Any:
    """FCOS on a pyramid of MobileNetV3."""
    torchvision = register_operators()
    detection = torchvision.models.detection
    anchors = detection.anchor_utils.AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    return detection.FCOS(_pyramid(), CLASSES, anchor_generator=anchors, **_pictures(), **_limits())


def ssdlite() -> Any:
    """SSDLite on MobileNetV3, at 320 pixels: its size is fixed."""
    torchvision = register_operators()
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    return build(weights=None, weights_backbone=None, num_classes=CLASSES, **_limits())


def deeplabv3() -> Any:
    """DeepLabV3 on MobileNetV3."""
    segmentation = register_operators().models.segmentation
    return segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)


def lraspp() -> Any:
    """LR-ASPP on MobileNetV3."""
    segmentation = register_operators().models.segmentation
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)


def faster_rcnn_of_levels() -> Any:
    """Faster R-CNN on a pyramid of ResNet-18, whose four levels have different sizes."""
    detection = register_operators().models.detection
    anchors = detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 5)
    options = {"box_score_thresh": 0.0, "box_detections_per_img": MOST_BOXES, "box_nms_thresh": 0.5}
    few = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 60}
    return detection.FasterRCNN(
        _levels([1, 2, 3, 4]), CLASSES, rpn_anchor_generator=anchors, **_pictures(), **options, **few
    )


def fcos_of_levels() -> Any:
    """FCOS on three levels of a pyramid of ResNet-18, and a fourth that is pooled of the third."""
    detection = register_operators().models.detection
    anchors = detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    return detection.FCOS(_levels([2, 3, 4]), CLASSES, anchor_generator=anchors, **_pictures(), **_limits())


def _levels(returned: list[int]) -> Any:
    utilities = sys.modules["torchvision.models.detection.backbone_utils"]
    norm = sys.modules["torch"].nn.BatchNorm2d
    return utilities.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, returned_layers=returned, norm_layer=norm
    )


DETECTORS: dict[str, Callable[[], Any]] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "ssdlite": ssdlite,
    "fcos": fcos,
    "mask_rcnn": mask_rcnn,
    "faster_rcnn_of_levels": faster_rcnn_of_levels,
    "fcos_of_levels": fcos_of_levels,
}
SEGMENTERS: dict[str, Callable[[], Any]] = {"deeplabv3": deeplabv3, "lraspp": lraspp}


@functools.cache
def network(name: str) -> tuple[Any, Any]:
    """A network in evaluation mode, and a picture `[1, 3, H, W]`; weights are random and give scores that differ.

    As torchvision initializes them, untrained networks answer all but the same for every place: normalizations take
    their statistics from the picture here, and convolutions weights that keep the activations' variance.
    """
    import torch

    register_operators()
    torch.manual_seed(0)
    module = {**DETECTORS, **SEGMENTERS}[name]().eval()
    size = 320 if name == "ssdlite" else SIZE
    coarse = torch.rand(1, 3, size // 16, size // 16)
    picture = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    handles = []
    for key, part in module.named_modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear):
            gain = 0.3 if "bbox" in key or "cls" in key else 1.4
            torch.nn.init.normal_(part.weight, std=gain * float(part.weight[0].numel()) ** -0.5)
            if part.bias is not None:
                torch.nn.init.normal_(part.bias, std=0.1)
        if isinstance(part, torch.nn.BatchNorm2d):
            handles.append(part.register_forward_pre_hook(_normalize))
    with torch.no_grad():
        module(picture)
    for handle in handles:
        handle.remove()
    return module, picture


def reads(name: str, picture: Any) -> Any:
    """What a network is called with: a detector a list of pictures, a segmenter a batch."""
    return [picture[0]] if name in DETECTORS else picture


@functools.cache
def exported(name: str) -> onnx.ModelProto:
    """The file of a network by PyTorch's older exporter, NMS inside.

    The newer one refuses torchvision's detectors (torch 2.13): non-maximum suppression asks whether there are boxes,
    which depends on the data.
    """
    import torch

    module, picture = network(name)
    stream = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (reads(name, picture),), stream, dynamo=False, opset_version=18)
    return onnx.load_from_string(stream.getvalue())


class Eager:
    """A network in torch with autograd, in double precision by default.

    Attributes:
        outputs: what it answers for the picture, by name.
        layers: outputs of the backbone, and the picture last.
    """

    def __init__(self, name: str, *, double: bool = True) -> None:
        import torch

        module, picture = network(name)
        maps: list[Any] = []
        module = copy.deepcopy(module)
        module, picture = (module.double(), picture.double()) if double else (module, picture)
        module.backbone.register_forward_hook(lambda _module, _inputs, output: maps.extend(output.values()))
        masks = getattr(getattr(module, "roi_heads", None), "mask_predictor", None)
        logits: list[Any] = []
        if masks is not None:
            masks.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
        picture = picture.detach().clone().requires_grad_()
        # torchvision trains the second stage on proposals without their gradient; a file has the whole derivative
        with mock.patch.object(torch.Tensor, "detach", lambda tensor: tensor):
            answer = module(reads(name, picture))
        self.outputs: dict[str, Any] = dict(answer[0] if isinstance(answer, list) else answer)
        if logits:
            self.outputs["mask_logits"] = logits[0]
        self.layers = [*maps, picture]

    def gradients(self, output: str, cotangent: np.ndarray) -> list[np.ndarray]:
        """The vector-Jacobian product of an output with respect to each of `layers`."""
        import torch

        dy = torch.from_numpy(cotangent).to(self.outputs[output].dtype)
        grads = torch.autograd.grad(
            self.outputs[output], self.layers, dy, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [grad.numpy() for grad in grads]


def matching(model: onnx.ModelProto, feeds: dict[str, np.ndarray], values: Sequence[np.ndarray]) -> list[str]:
    """The last value of a file that has the numbers of each of `values`.

    Raises:
        AssertionError: a value has no match.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    floats = {info.name for info in inferred if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    names = [name for node in model.graph.node for name in node.output if name in floats]
    names += [output.name for output in model.graph.output if output.name not in names]
    open_ended = onnx.ModelProto()
    open_ended.CopyFrom(model)
    del open_ended.graph.output[:]
    open_ended.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    computed = run(open_ended, feeds)
    matches = []
    for value in values:
        scale = 1e-3 * np.abs(value).max(initial=1e-6)
        same = [n for n in names if computed[n].shape == value.shape and np.abs(computed[n] - value).max() < scale]
        assert same, f"no value of the file has the numbers of {value.shape}"
        matches.append(same[-1])
    return matches


def _normalize(part: Any, inputs: tuple[Any]) -> None:
    """Give a batch normalization the statistics of what it is about to read."""
    (x,) = inputs
    if x[0, 0].numel() > 16:
        part.running_mean.copy_(x.mean((0, 2, 3)))
        part.running_var.copy_(x.var((0, 2, 3)) + 1e-3)
    else:
        part.running_var.fill_(float((x**2).mean()))


def align(x: Any, rois: Any, scale: float, rows: int, columns: int, ratio: int, aligned: bool) -> Any:
    """RoiAlign with averages, as torchvision's compiled operator: 0 beyond a pixel outside; `rois` are constants.

    (torchvision's own version in Python extends the border instead, and so differs from it and from ONNX.)
    """
    import torch

    pooled = []
    height, width = x.shape[2:]
    for region in rois.data:
        left, top, right, bottom = (region[1:] * scale - (0.5 if aligned else 0.0)).tolist()
        size = [bottom - top, right - left] if aligned else [max(bottom - top, 1.0), max(right - left, 1.0)]
        counts = [ratio if ratio > 0 else max(math.ceil(s / n), 0) for s, n in zip(size, (rows, columns), strict=True)]
        at = []
        for start, extent, cells, count in zip((top, left), size, (rows, columns), counts, strict=True):
            steps = torch.arange(cells * count, dtype=x.dtype) + 0.5
            at.append(start + extent * steps / max(cells * count, 1))
        y, z = torch.meshgrid(*at, indexing="ij")
        grid = torch.stack([2 * z / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
        picture = x[int(region[0])][None]
        if not y.numel():
            pooled.append(x.new_zeros(1, x.shape[1], rows, columns))
            continue
        options = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
        sampled = torch.nn.functional.grid_sample(picture, grid[None], **options)
        inside = (y >= -1) & (y <= height) & (z >= -1) & (z <= width)
        pooled.append(torch.nn.functional.avg_pool2d(sampled * inside, tuple(counts)))
    return torch.cat(pooled) if pooled else x.new_zeros(0, x.shape[1], rows, columns)


def _pyramid() -> Any:
    utilities = sys.modules["torchvision.models.detection.backbone_utils"]
    norm = sys.modules["torch"].nn.BatchNorm2d
    return utilities.mobilenet_backbone(
        backbone_name="mobilenet_v3_small", weights=None, fpn=True, trainable_layers=6, norm_layer=norm
    )


def _pictures() -> dict[str, Any]:
    return {"min_size": SIZE, "max_size": SIZE}


def _limits() -> dict[str, Any]:
    return {"score_thresh": 0.0, "detections_per_img": MOST_BOXES, "nms_thresh": 0.5, "topk_candidates": 40}
