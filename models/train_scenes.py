"""Train a small detector and a small segmenter on synthetic scenes and write them as ONNX files.

    pip install onnxcam[cpu,torch]
    python models/train_scenes.py detector
    python models/train_scenes.py segmenter

The scenes come from `draw_scenes.py`; nothing is downloaded. The detector is built as the YOLO family is: a backbone of
strided convolutions and split residual blocks, a feature pyramid of two levels (strides 8 and 16) with a way up and a
way down, and at each level one branch for the box and one for the classes; its one output is `[N, 4 + 4, 320]`: centre
x, centre y, width and height in pixels, and a probability per class, of 16 x 16 and 8 x 8 cells. The segmenter
has the trained detector's features of strides 4 and 8 and learns three convolutions behind them; its output is the
logits `[N, 5, 128, 128]` of the background and the four classes.

Pictures are RGB, 128 x 128, divided by 255. Written into models/scenes: NAME.onnx, and a few scenes of a seed that the
training does not use, with their boxes in boxes.csv. How well the networks do on such scenes is printed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models.draw_scenes import LABELS, SIDE, Scene, scenes

HERE = Path(__file__).resolve().parent / "scenes"
SEED, TEST_SEED, PICTURE_SEED = 1234, 4321, 7
TESTS, PICTURES = 300, 6
POOL = {"detector": 3000, "segmenter": 1500}
STEPS = {"detector": 3000, "segmenter": 400}
BATCH, RATE, DECAY = 16, 4e-3, 1e-3
STRIDES = (8, 16)
SPLIT = 30.0  # objects with a longer side up to this many pixels are the finer level's
_IOU = 0.5


def network(name: str) -> Any:
    """The untrained network, a `torch.nn.Module`."""
    from torch import cat, nn

    class Conv(nn.Sequential):
        """Convolution, batch normalisation, SiLU."""

        def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
            super().__init__(
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                nn.BatchNorm2d(outputs),
                nn.SiLU(),
            )

    class Block(nn.Module):
        """Half of the channels through a residual pair of convolutions, joined with both halves."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            half = outputs // 2
            self.first, self.last = Conv(inputs, outputs, 1), Conv(outputs + half, outputs, 1)
            self.pair = nn.Sequential(Conv(half, half), Conv(half, half))

        def forward(self, x: Any) -> Any:
            left, right = self.first(x).chunk(2, 1)
            return self.last(cat([left, right, right + self.pair(right)], 1))

    class Detector(nn.Module):
        """Boxes and class probabilities `[N, 8, 320]`; while training, corners and logits."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2), Block(16, 16))
            self.fine = nn.Sequential(Conv(16, 32, 3, 2), Block(32, 32))
            self.coarse = nn.Sequential(Conv(32, 36, 3, 2), Block(36, 36))
            self.up, self.way_up = nn.Upsample(scale_factor=2), Block(68, 32)
            self.down, self.way_down = Conv(32, 12, 3, 2), Block(48, 36)
            self.boxes = nn.ModuleList(nn.Sequential(Conv(c, 12), Conv(12, 12), nn.Conv2d(12, 4, 1)) for c in (32, 36))
            self.classes = nn.ModuleList(
                nn.Sequential(
                    *(Conv(c, c, groups=c), Conv(c, 16, 1), Conv(16, 16, groups=16), Conv(16, 16, 1)),
                    nn.Conv2d(16, len(LABELS), 1),
                )
                for c in (32, 36)
            )
            for branch in self.classes:
                nn.init.constant_(branch[-1].bias, -4.0)
            for stride in STRIDES:
                self.register_buffer(f"centres{stride}", _tensor(_centres(stride).T.copy()))

        def forward(self, x: Any) -> Any:
            fine = self.fine(self.stem(x))
            coarse = self.coarse(fine)
            fine = self.way_up(cat([self.up(coarse), fine], 1))
            coarse = self.way_down(cat([self.down(fine), coarse], 1))
            corners, logits = [], []
            for level, stride, box, classes in zip((fine, coarse), STRIDES, self.boxes, self.classes, strict=True):
                reach = box(level).flatten(2).exp() * stride
                centres = getattr(self, f"centres{stride}")
                corners.append(cat([centres - reach[:, :2], centres + reach[:, 2:]], 1))
                logits.append(classes(level).flatten(2))
            edges, scores = cat(corners, 2), cat(logits, 2)
            if self.training:
                return edges, scores
            low, high = edges[:, :2], edges[:, 2:]
            return cat([(low + high) / 2, high - low, scores.sigmoid()], 1)

    class Segmenter(nn.Module):
        """Logits `[N, 5, 128, 128]`, computed at a quarter of that, from features of the trained detector."""

        def __init__(self) -> None:
            super().__init__()
            trained = fold(Detector().eval())
            trained.load_state_dict(_stored(HERE / "detector.onnx", trained.state_dict()))
            self.stem, self.fine, self.coarse = trained.stem, trained.fine, trained.coarse
            self.up, self.way_up = trained.up, trained.way_up
            for weight in self.parameters():
                weight.requires_grad = False
            self.join, self.last = Conv(48, 24), nn.Conv2d(24, len(LABELS) + 1, 1)
            self.middle, self.enlarge = Conv(24, 24), nn.Upsample(scale_factor=4, mode="bilinear")

        def forward(self, x: Any) -> Any:
            early = self.stem(x)
            fine = self.fine(early)
            level = self.way_up(cat([self.up(self.coarse(fine)), fine], 1))
            return self.enlarge(self.last(self.middle(self.join(cat([self.up(level), early], 1)))))

    return {"detector": Detector, "segmenter": Segmenter}[name]()


def _stored(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Weights of an exported network by name."""
    import onnx

    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: _tensor(arrays[name].copy()) for name in names}


def _centres(stride: int) -> np.ndarray:
    """Centres of a level's cells, x and y in pixels, row by row, float32 `[n, 2]`."""
    n = SIDE // stride
    rows, columns = np.divmod(np.arange(n * n), n)
    return ((np.stack([columns, rows], axis=1) + 0.5) * stride).astype(np.float32)


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def assign(scene: Scene) -> np.ndarray:
    """Which object each of the detector's cells answers for: the object's number, -1 for none, int64 `[320]`.

    A cell answers for the smallest object of its level whose box contains the cell's centre, at most 1.5 strides from
    the box's own centre.
    """
    owners = []
    sizes = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1, initial=0)
    for level, stride in enumerate(STRIDES):
        centres = _centres(stride)
        owner = np.full(len(centres), -1)
        for number in np.argsort(-sizes, kind="stable"):
            if (sizes[number] > SPLIT) != (level == 1):
                continue
            low, high = scene.boxes[number, :2], scene.boxes[number, 2:]
            inside = ((centres > low) & (centres < high)).all(axis=1)
            near = (np.abs(centres - (low + high) / 2) <= 1.5 * stride).all(axis=1)
            owner[inside & near] = number
        owners.append(owner)
    return np.concatenate(owners)


class Pool:
    """Scenes drawn once; each batch is turned, mirrored and has its colours mixed anew."""

    def __init__(self, seed: int, count: int) -> None:
        self.scenes = list(scenes(seed, count))
        self.rng = np.random.default_rng(seed)

    def batch(self, size: int) -> list[Scene]:
        """Scenes at random, changed at random."""
        return [self._changed(self.scenes[k]) for k in self.rng.integers(len(self.scenes), size=size)]

    def _changed(self, scene: Scene) -> Scene:
        picture, mask, boxes = scene.picture, scene.mask, scene.boxes
        if self.rng.random() < 0.5:
            picture, mask = picture[:, ::-1], mask[:, ::-1]
            boxes = np.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], axis=1)
        if self.rng.random() < 0.5:
            picture, mask = picture.transpose(1, 0, 2), mask.T
            boxes = boxes[:, [1, 0, 3, 2]]
        if self.rng.random() < 0.5:
            picture, mask = picture[::-1], mask[::-1]
            boxes = np.stack([boxes[:, 0], SIDE - boxes[:, 3], boxes[:, 2], SIDE - boxes[:, 1]], axis=1)
        picture = picture[..., self.rng.permutation(3)]
        return Scene(picture, boxes, scene.labels, mask)


def prepared(batch: list[Scene]) -> np.ndarray:
    """Pictures as the networks take them: float32 `[N, 3, 128, 128]`, 0 to 1."""
    stacked = np.stack([scene.picture for scene in batch])
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def detector_loss(model: Any, batch: list[Scene]) -> Any:
    """Focal cross-entropy of the classes, and 1 - GIoU of the cells that answer for an object."""
    import torch
    from torch.nn import functional

    edges, logits = model(_tensor(prepared(batch)))
    owners = [assign(scene) for scene in batch]
    labels_of_cells = np.zeros(tuple(logits.shape), np.float32)
    boxes = np.zeros((len(batch), edges.shape[2], 4), np.float32)
    for row, (scene, owner) in enumerate(zip(batch, owners, strict=True)):
        cells = np.flatnonzero(owner >= 0)
        labels_of_cells[row, scene.labels[owner[cells]], cells] = 1
        boxes[row, cells] = scene.boxes[owner[cells]]
    positive = _tensor(np.stack(owners) >= 0)
    truth = _tensor(labels_of_cells)
    chances = logits.sigmoid()
    wrong = (truth - chances).abs().detach() ** 2
    count = positive.sum().clamp(min=1)
    classes = (functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * wrong).sum() / count
    a, b = edges.transpose(1, 2)[positive], _tensor(boxes)[positive]
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    giou = both / union - (around - union) / around
    return 4 * classes + 2 * (1 - giou).sum() / count


def segmenter_loss(model: Any, batch: list[Scene]) -> Any:
    """Cross-entropy of each pixel, the background's weighing a third."""
    import torch
    from torch.nn import functional

    weight = torch.ones(len(LABELS) + 1)
    weight[0] = 1 / 3
    truth = _tensor(np.stack([scene.mask for scene in batch]).astype(np.int64))
    return functional.cross_entropy(model(_tensor(prepared(batch))), truth, weight)


def train(name: str, steps: int, seed: int = SEED, pool: int | None = None, threads: int = 1) -> Any:
    """The trained network, the same in every run on the same machine."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    loss_of = {"detector": detector_loss, "segmenter": segmenter_loss}[name]
    model, scenes_pool = network(name).train(), Pool(seed, pool or POOL[name])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    start, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = loss_of(model, scenes_pool.batch(BATCH))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        mean += (float(loss.detach()) - mean) / min(step, 100)
        if step % 100 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return model.eval()


def fold(model: Any) -> Any:
    """The network with each batch normalisation folded into the convolution before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in model.modules():
        if isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
    return model


def export(name: str, model: Any, path: Path) -> None:
    """Write the network as an ONNX file of opset 18 with an open number of pictures and its class names."""
    import onnx
    import torch

    program = torch.onnx.export(
        fold(model),
        (torch.zeros(2, 3, SIDE, SIDE),),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=["output0" if name == "detector" else "logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    proto = program.model_proto
    for node in [*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del node.metadata_props[:]  # the exporting machine's stack traces
        node.doc_string = ""
    for part in (proto.graph, proto):
        del part.metadata_props[:]
    del proto.graph.value_info[:]
    names = LABELS if name == "detector" else ("background", *LABELS)
    for key, value in (
        ("names", str(dict(enumerate(names)))),
        ("license", "Apache-2.0"),
        ("author", "the onnxcam project; models/train_scenes.py"),
    ):
        onnx.helper.set_model_props(proto, {**{p.key: p.value for p in proto.metadata_props}, key: value})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def detections(output: np.ndarray, least: float = 0.25, overlap: float = 0.5) -> list[tuple[int, int, np.ndarray]]:
    """Candidate, class and box (x0, y0, x1, y1) of what is left of an output `[8, 320]`, best first."""
    boxes = np.concatenate([output[:2] - output[2:4] / 2, output[:2] + output[2:4] / 2]).T
    scores, classes = output[4:].max(axis=0), output[4:].argmax(axis=0)
    kept_boxes: list[tuple[int, int, np.ndarray]] = []
    for k in np.argsort(-scores, kind="stable"):
        if scores[k] < least:
            break
        if all(c != classes[k] or iou(boxes[k], b) < overlap for _, c, b in kept_boxes):
            kept_boxes.append((int(k), int(classes[k]), boxes[k]))
    return kept_boxes


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    both = float(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod())
    return both / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - both)


def judge(name: str, path: Path, count: int = TESTS) -> str:
    """How well the file does on scenes that it was not trained on, in words."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tests = list(scenes(TEST_SEED, count))
    output = session.run(None, {session.get_inputs()[0].name: prepared(tests)})[0]
    if name == "segmenter":
        truth, predicted = np.stack([scene.mask for scene in tests]), output.argmax(axis=1)
        shares = [
            ((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum()
            for k in range(len(LABELS) + 1)
        ]
        return f"mean intersection over union {np.mean(shares):.3f}: " + ", ".join(
            f"{label} {share:.3f}" for label, share in zip(("background", *LABELS), shares, strict=True)
        )
    objects = right = alarms = 0
    for scene, values in zip(tests, output, strict=True):
        free = set(range(len(scene.boxes)))
        objects += len(free)
        for _, label, box in detections(values):
            match = [k for k in free if scene.labels[k] == label and iou(box, scene.boxes[k]) >= _IOU]
            right += bool(match)
            alarms += not match
            free -= set(match[:1])
    return f"{right} of {objects} objects detected (class right, IoU >= {_IOU}), {alarms} false alarms"


def pictures(folder: Path) -> None:
    """Write a few scenes, and where their objects are."""
    from onnxcam.image import write_png

    lines = ["picture,x0,y0,x1,y1,label"]
    for number, scene in enumerate(scenes(PICTURE_SEED, PICTURES)):
        write_png(folder / f"scene{number}.png", scene.picture)
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            lines.append(",".join([f"scene{number}.png", *(f"{v:g}" for v in box), LABELS[label]]))
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(STEPS), help="network")
    parser.add_argument("--steps", type=int, help=f"of training (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--pool", type=int, help=f"scenes to train with (default: {POOL})")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder to write to (default: %(default)s)")
    options = parser.parse_args()
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is missing; run: pip install onnxcam[cpu,torch]", file=sys.stderr)
        return 4
    model = train(options.name, options.steps or STEPS[options.name], options.seed, options.pool, options.threads)
    path = options.output / f"{options.name}.onnx"
    export(options.name, model, path)
    pictures(options.output)
    print(f"{path}: {path.stat().st_size} bytes; {judge(options.name, path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
