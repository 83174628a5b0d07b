"""Values that count over the whole batch: the map of a picture is the same alone and among others."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcam
from onnxcam.errors import LayerError
from onnxcam.graph.batch_positions import batch_positions
from onnxcam.graph.normalize import normalize
from onnxcam.network.network import Network
from tests.support.misplaced import CHANNELS, GRID, SIZE, Net
from tests.support.torchvision_stub import import_torchvision

# what is computed from positions, and whether the scores count over the batch even where a whole file runs
KINDS = {
    "indices": True, "modulo": False, "unpool": False, "rows": False, "mask": False, "windows": False, "joined": False
}  # fmt: skip
SEVERAL = ("windows", "joined")  # whose values have several rows for each picture, all of them in the batch's order
METHODS = ("gradcam", "scorecam", "ablationcam", "saliency")


def model(kind: str, rows: int | str = "N") -> onnx.ModelProto:
    """A network whose layer `layer` has, beside it, values that count over the batch or are of several rows."""
    net = Net(7)
    y = net.features("x")
    net.add("Identity", y, output="layer")
    if kind in ("indices", "modulo"):
        net.nodes.append(helper.make_node("MaxPool", ["layer"], ["pooled", "at"], kernel_shape=[2, 2], strides=[2, 2]))
        at = "at" if kind == "indices" else net.add("Mod", "at", net.ints(CHANNELS * GRID * GRID))
        step = net.const(np.float32(1e-4))
        end = net.add("Add", "pooled", net.add("Mul", net.add("Cast", at, to=TensorProto.FLOAT), step))
    elif kind == "unpool":  # as SegNet's decoder
        net.nodes[-1].input[0] = "pooled"
        net.nodes[-1:-1] = [helper.make_node("MaxPool", [y], ["pooled", "at"], kernel_shape=[2, 2], strides=[2, 2])]
        end = net.conv(net.add("MaxUnpool", net.conv("layer", CHANNELS, CHANNELS), "at",
                               kernel_shape=[2, 2], strides=[2, 2]), CHANNELS, CHANNELS)  # fmt: skip
    elif kind == "rows":  # x[arange(N), best]: a channel of each picture
        count = net.add("Gather", net.add("Shape", "x"), net.const(np.int64(0)))
        every = net.add("Range", net.const(np.int64(0)), count, net.const(np.int64(1)))
        best = net.add("ArgMax", net.add("ReduceMean", y, net.ints(2, 3), keepdims=0), axis=1, keepdims=0)
        pairs = net.add("Concat", *(net.add("Unsqueeze", v, net.ints(1)) for v in (every, best)), axis=1)
        one = net.add("Unsqueeze", net.add("GatherND", net.conv("layer", CHANNELS, CHANNELS), pairs), net.ints(1))
        end = net.add("Add", "layer", one)
    elif kind in SEVERAL:  # several rows of a picture stand one after the other, as windows of attention do
        windows, whole = net.ints(-1, CHANNELS // 4, GRID, GRID), net.ints(-1, CHANNELS, GRID, GRID)
        flat = net.add("Tanh", net.add("Reshape", net.conv(y, CHANNELS, CHANNELS), windows))
        after = net.conv("layer", CHANNELS, CHANNELS)
        if kind == "windows":
            end = net.add("Mul", after, net.add("Reshape", flat, whole))
        else:
            end = net.add("Reshape", net.add("Mul", net.add("Reshape", after, windows), flat), whole)
    else:  # the positive numbers of another map, by NonZero, and added where they were
        side = net.conv(y, CHANNELS, CHANNELS)
        places = net.add("Transpose", net.add("NonZero", net.add("Greater", side, net.const(np.float32(0.3)))))
        end = net.add("ScatterND", net.conv("layer", CHANNELS, CHANNELS), places, net.add("GatherND", side, places))
    mean = net.add("ReduceMean", net.conv(end, CHANNELS, CHANNELS), net.ints(2, 3), keepdims=0)
    w = net.rng.normal(size=(CHANNELS, 5)).astype(np.float32)
    net.add("MatMul", mean, net.const(w), output="scores")
    graph = helper.make_graph(
        net.nodes, kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, 5])],
        net.constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@cache
def explainer(kind: str, probe: bool = True) -> onnxcam.Explainer:
    return onnxcam.Explainer(model(kind), layers=["layer"], probe=probe, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_graph_says(kind: str) -> None:
    graph = normalize(model(kind))
    assert ("scores" in batch_positions(graph, "x")) is (kind in ("indices", "modulo"))
    cut = Network(model(kind)).cut("layer")
    assert (cut.singly, cut.free) == (kind != "windows", kind == "windows"), "after the windows are joined again"
    assert not Network(model(kind, 1)).cut("layer").singly, "one row is the batch"


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_compares_a_row_behind_another(kind: str) -> None:
    facts = onnxcam.probe(model(kind))
    assert (facts.rows, facts.deterministic) == ("coupled" if KINDS[kind] else "independent", True)
    assert facts.passes <= 14


@pytest.mark.parametrize("probe", [True, False], ids=["measured", "not measured"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_among_others_has_the_map_that_it_has_alone(kind: str, probe: bool) -> None:
    opened, batch, target = explainer(kind, probe), pictures(), [4, 0, 2]
    for method in METHODS:
        together = opened.attribute(batch, target, method, normalize="none")
        scale = np.abs(together).max()
        assert scale > 0
        for row, (one, index) in enumerate(zip(batch, target, strict=True)):
            alone = opened.attribute(one[None], index, method, normalize="none")[0]
            assert np.abs(together[row] - alone).max() <= 1e-5 * scale, (method, row)
    raw, alone = opened.run(batch, target), [opened.run(one[None], k) for one, k in zip(batch, target, strict=True)]
    for name in ("scores", "activations", "gradients"):
        a, b = getattr(raw, name), np.concatenate([getattr(one, name) for one in alone])
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("name", "most"), [("VisionTransformer", 2), ("SwinTransformer", 16)])
def test_pictures_of_transformers_share_runs(name: str, most: int) -> None:
    """PyTorch's older exporter leaves the rows of their values without a name, and counts places of masks by Range.

    At most inside an attention, between its queries, keys and values, do several rows of a picture pass.
    """
    torch = pytest.importorskip("torch")
    import_torchvision()
    from torchvision.models import SwinTransformer, VisionTransformer

    torch.manual_seed(0)
    with torch.random.fork_rng():
        network = {
            "VisionTransformer": lambda: VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
            "SwinTransformer": lambda: SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=5),
        }[name]()
    buffer, axes = io.BytesIO(), {"x": {0: "N"}, "y": {0: "N"}}
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
    torch.onnx.export(network.eval(), (torch.zeros(2, 3, 32, 32),), buffer, dynamo=False, **names)
    network = Network(buffer.getvalue())
    values = [node.output[0] for node in network.graph.nodes if len(network.graph.shape(node.output[0]) or ()) > 2]
    cuts = []
    for value in values:
        with contextlib.suppress(LayerError):
            cuts.append(network.cut(value))
    assert len(cuts) > 30 and sum(cut.singly for cut in cuts) <= most


def test_the_file_says_it_where_nothing_was_measured() -> None:
    explainable = onnxcam.augment(model("indices"), ["layer"], probe=False, on_warning=lambda text: None)
    again = onnxcam.Explainer(explainable)
    assert again.batch_size == 1
    assert any("depend on the others in its batch" in text for text in again.warnings)
    assert onnxcam.Explainer(onnxcam.augment(model("unpool"), ["layer"])).batch_size is None


def test_places_in_a_fixed_batch_stay() -> None:
    """A map in one run of the batch is that of the free model; variants of one picture cannot take other places."""
    opened, batch = onnxcam.Explainer(model("unpool", 2), layers=["layer"]), pictures()
    together = opened.attribute(batch, 1, "gradcam", normalize="none")
    free = explainer("unpool").attribute(batch, 1, "gradcam", normalize="none")
    assert np.abs(together - free).max() <= 1e-5 * np.abs(free).max()
    with pytest.raises(LayerError, match="where in the model's batch of 2 a picture stands"):
        opened.attribute(batch, 1, "ablationcam")


def test_a_fixed_batch_is_probed_at_several_places() -> None:
    facts = onnxcam.probe(model("indices", 2))
    assert (facts.rows, facts.deterministic) == ("coupled", True)
    facts = onnxcam.probe(model("unpool", 2))
    assert (facts.rows, facts.deterministic) == ("independent", True)
