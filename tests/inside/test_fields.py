"""Receptive fields: the published arithmetic, and the proof that nothing outside them has a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import inside
from onnxcam.errors import InputError, LayerError, ModelError
from onnxcam.inside import receptive_fields
from tests.cli.conftest import RAW, Run
from tests.inside import nets
from tests.inside.nets import conv, node, normal
from tests.support import misplaced, models
from tests.support.batches import batch, picture
from tests.support.onnx_models import light

LITE0 = Path(__file__).parents[2] / "models" / "efficientnet_lite0.onnx"


def stack(*layers: tuple[int, int, int, int], size: int = 64) -> onnx.ModelProto:
    """Convolutions of kernel, stride, padding and dilation, called `l0`, `l1`, …; the last is `last`."""
    nodes, weights = [], {}
    for index, (kernel, stride, padding, dilation) in enumerate(layers):
        name = "last" if index == len(layers) - 1 else f"l{index}"
        source = f"l{index - 1}" if index else "input"
        weights[f"w{index}"] = normal(4, 4 if index else 3, kernel, kernel, seed=index)
        geometry = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2}
        nodes.append(conv(source, f"w{index}", name, **geometry))
    return nets.classifier(nodes, (size, size), width=4, **weights)


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2)],
        [(7, 2, 3, 1), (3, 2, 1, 1), (1, 2, 0, 1), (5, 1, 2, 1)],
        [(3, 1, 0, 1), (2, 2, 0, 1), (3, 1, 0, 3)],
    ],
)
def test_fields_are_those_of_the_recurrence(layers: list[tuple[int, int, int, int]]) -> None:
    """Araujo et al. 2019, equations 2 and 4: r = 1 + sum (k - 1) prod s; the padding adds up likewise."""
    size = stride = 1
    offset = 0
    for kernel, step, padding, dilation in layers:
        size += (kernel - 1) * dilation * stride
        offset -= padding * stride
        stride *= step
    (field,) = inside.fields(stack(*layers), "last")
    assert (field.size, field.stride, field.offset) == ((size, size), (stride, stride), (offset, offset))
    assert field.mixing is None


# files of the old model zoo: inception_v2 as published (see test_published_fields), ResNet-50 with strides in the 3 x 3
# convolutions, VGG-19 to its last convolution
PUBLISHED = {"inception_v2": 699, "resnet50": 427, "vgg19": 252}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_of_whole_networks_are_the_published_ones(name: str) -> None:
    fields = inside.fields(light(name))
    assert max(field.size for field in fields) == (PUBLISHED[name], PUBLISHED[name])


def branches() -> onnx.ModelProto:
    nodes = [
        conv("input", "w0", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        conv("a", "w1", "wide", pads=[2, 2, 2, 2]),
        node("MaxPool", ["a"], "peaks", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", ["wide", "peaks"], "both", axis=1),
        conv("both", "w2", "joined", group=2),
        node("Add", ["joined", "a"], "sum"),
        node("Relu", ["sum"], "last"),
    ]
    return nets.classifier(nodes, width=4, w0=normal(4, 3, 3, 3), w1=normal(4, 4, 5, 5), w2=normal(4, 4, 1, 1))


def up_and_down() -> onnx.ModelProto:
    nodes = [
        conv("input", "w0", "a", strides=[4, 4], auto_pad="SAME_UPPER"),
        conv("a", "w1", "t", op="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Resize", ["t", "", "scales"], "r", mode="linear"),
        node("AveragePool", ["r"], "p", kernel_shape=[2, 3], strides=[1, 2], ceil_mode=1),
        node("Resize", ["p", "", "scales"], "n", mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
        conv("n", "w2", "last", pads=[0, 1, 2, 1]),
    ]  # fmt: skip
    weights = {"w0": normal(4, 3, 5, 5), "w1": normal(4, 4, 4, 4), "w2": normal(4, 4, 3, 3)}
    return nets.classifier(nodes, width=4, scales=np.array([1, 1, 2, 2], np.float32), **weights)


def padded_and_cropped() -> onnx.ModelProto:
    nodes = [
        node("Pad", ["input", "pads"], "reflected", mode="reflect"),
        conv("reflected", "w0", "a"),
        node("Slice", ["a", "start", "end", "axes"], "cut"),
        node("SpaceToDepth", ["cut"], "deep", blocksize=2),
        conv("deep", "w1", "b", pads=[1, 1, 1, 1]),
        node("DepthToSpace", ["b"], "last", blocksize=2),
    ]
    return nets.classifier(
        nodes, width=4, w0=normal(4, 3, 3, 3), w1=normal(16, 16, 3, 3),
        pads=np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64),
        start=np.array([3, 5], np.int64), end=np.array([29, 31], np.int64), axes=np.array([2, 3], np.int64),
    )  # fmt: skip


NETS: dict[str, tuple[Any, str]] = {
    "tiny": (models.tiny_cnn, "conv2"),
    "channels last": (lambda: models.tiny_cnn(nhwc=True), "relu2"),
    "dilated": (lambda: stack((3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 3, 3), size=32), "last"),
    "branches": (branches, "last"),
    "up and down": (up_and_down, "last"),
    "padded and cropped": (padded_and_cropped, "last"),
    "patches": (nets.transformer, "tokens"),
}


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_exactly_0_outside(name: str) -> None:
    """At 20 cells each; and what the theoretical field promises is there: the effective one fills most of it."""
    make, layer = NETS[name]
    model = make()
    explainer = onnxcam.Explainer(model, probe=False, providers=["CPUExecutionProvider"])
    tensor = batch(1)
    tensor = tensor.transpose(0, 2, 3, 1).copy() if name == "channels last" else tensor
    (field,) = inside.fields(model, layer)
    rng = np.random.default_rng(0)
    cells = [(int(rng.integers(field.grid[0])), int(rng.integers(field.grid[1]))) for _ in range(16)]
    cells += [(0, 0), (field.grid[0] - 1, field.grid[1] - 1), (0, field.grid[1] - 1), (field.grid[0] - 1, 0)]
    reached = total = 0
    for cell in cells:
        effect = receptive_fields.of_tensor(explainer, tensor, layer, cell)
        assert effect.shape == (32, 32)
        inner = np.zeros((32, 32), bool)
        box = field.box(cell)
        if box is not None:
            inner[box[1] : box[3], box[0] : box[2]] = True
        assert not effect[~inner].any()
        reached, total = reached + np.count_nonzero(effect[inner]), total + inner.sum()
    assert reached > 0.5 * total
    assert not field.whole


def test_attention_and_global_pooling_reach_the_whole_picture() -> None:
    (field,) = inside.fields(nets.transformer(), "block")
    assert field.whole and field.mixing is not None and field.mixing.startswith("Softmax")
    nodes = [
        conv("input", "w", "a"), node("GlobalAveragePool", ["a"], "mean"), node("Sigmoid", ["mean"], "gate"),
        node("Mul", ["a", "gate"], "last"),
    ]  # fmt: skip
    before, after = inside.fields(nets.classifier(nodes, width=4, w=normal(4, 3, 3, 3)), ["a", "last"])
    assert not before.whole and after.whole and after.mixing == "GlobalAveragePool 'mean/node'"
    assert after.box((0, 0)) == (0, 0, 32, 32)


def test_windows_of_attention_mix_within_themselves() -> None:
    """Windows of 8 x 8 pixels: a cell is reached by its own window alone."""
    shapes = {
        "into": [1, 4, 8, 4, 8, 3], "rows": [16, 64, 3], "back": [1, 4, 4, 8, 8, 3], "map": [1, 32, 32, 3],
    }  # fmt: skip
    nodes = [
        node("Transpose", ["input"], "last0", perm=[0, 2, 3, 1]),
        node("Reshape", ["last0", "into"], "r0"), node("Transpose", ["r0"], "r1", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", ["r1", "rows"], "r2"), node("Transpose", ["r2"], "r3", perm=[0, 2, 1]),
        node("MatMul", ["r2", "r3"], "scores"), node("Softmax", ["scores"], "share"),
        node("MatMul", ["share", "r2"], "mixed"), node("Reshape", ["mixed", "back"], "b0"),
        node("Transpose", ["b0"], "b1", perm=[0, 1, 3, 2, 4, 5]), node("Reshape", ["b1", "map"], "b2"),
        node("Transpose", ["b2"], "turned", perm=[0, 3, 1, 2]), conv("turned", "w", "last"),
    ]  # fmt: skip
    sizes = {name: np.array(shape, np.int64) for name, shape in shapes.items()}
    model = nets.classifier(nodes, width=4, w=normal(4, 3, 1, 1), **sizes)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    (field,) = inside.fields(model, "last")
    assert not field.whole and field.mixing is not None
    assert field.box((3, 20)) == (16, 0, 24, 8) and field.box((31, 8)) == (8, 24, 16, 32)


def test_a_transposed_picture_keeps_its_rows() -> None:
    (field,) = inside.fields(misplaced.transposed(0))[-1:]
    explainer = onnxcam.Explainer(misplaced.transposed(0), probe=False)
    tensor = batch(1, tuple(explainer.manifest["input"]["shape"][1:]))
    effect = receptive_fields.of_tensor(explainer, tensor, field.layer, (0, field.grid[1] - 1))
    x0, y0, x1, y1 = field.box((0, field.grid[1] - 1)) or (0, 0, 0, 0)
    rows, columns = np.nonzero(effect)
    assert rows.min() >= y0 and rows.max() < y1 and columns.min() >= x0 and columns.max() < x1


def test_the_size_of_an_open_picture_can_be_named() -> None:
    model = models.tiny_cnn(size=None)
    assert inside.fields(model, "relu2")[0].input_size == (224, 224)
    assert inside.fields(model, "relu2", input_size=(40, 60))[0].grid == (20, 30)
    with pytest.raises(ModelError, match="leave the size out"):
        inside.fields(models.tiny_cnn(), "relu2", input_size=(40, 60))


def test_bad_questions_are_refused() -> None:
    (field,) = inside.fields(models.tiny_cnn(), "relu2")
    with pytest.raises(InputError, match=r"cell \(16, 0\) is outside the map of layer 'relu2', of 16 rows"):
        field.box((16, 0))
    with pytest.raises(LayerError, match="nearest"):
        inside.fields(models.tiny_cnn(), "relu9")
    with pytest.raises(LayerError, match="expected a spatial map"):
        inside.fields(models.tiny_cnn(), "logits")
    with pytest.raises(InputError, match="outside the map"):
        inside.effective(onnxcam.Explainer(models.tiny_cnn(), probe=False), batch(1), "relu2", (0, 99))


@pytest.mark.slow
def test_the_gradient_is_exactly_0_outside_in_a_whole_network() -> None:
    explainer = onnxcam.Explainer(str(LITE0), providers=["CPUExecutionProvider"])
    tensor = normal(1, 3, 224, 224)
    rng = np.random.default_rng(0)
    for layer in ("hardtanh_4", "hardtanh_11"):
        (field,) = receptive_fields.fields_of(explainer, tensor, [layer])
        for _ in range(10):
            cell = (int(rng.integers(field.grid[0])), int(rng.integers(field.grid[1])))
            effect = receptive_fields.of_tensor(explainer, tensor, layer, cell)
            x0, y0, x1, y1 = field.box(cell) or (0, 0, 0, 0)
            effect[y0:y1, x0:x1] = 0
            assert not effect.any() and (x1 - x0) * (y1 - y0) < 224**2


def test_the_command(run: Run, tmp_path: Path) -> None:
    onnx.save(onnxcam.augment(models.tiny_cnn(), preprocess=RAW, probe=False), tmp_path / "model.onnx")
    image = tmp_path / "cat.png"
    onnxcam.image.write_png(image, picture())
    table = run("inside", "fields", tmp_path / "model.onnx")
    assert table.code == 0 and "3 x 3" in table.out and "5 x 5" in table.out
    drawn = run("inside", "fields", tmp_path / "model.onnx", image, "-o", tmp_path / "out", "--json")
    assert drawn.code == 0, drawn.err
    assert [entry["size"] for entry in drawn.json()["fields"]] == [[3, 3], [5, 5]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fields.png", "fields.json"}
    assert run("inside", "fields", tmp_path / "model.onnx", image).code == 2
