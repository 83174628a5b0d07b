"""Occlusion that computes only what a window changes: against the plain file run on every changed picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcam.diagnose.cost import bench
from onnxcam.explain import patches, view
from onnxcam.explain.explainer import Explainer
from onnxcam.graph import stages
from onnxcam.graph.locality import changes, locality
from onnxcam.graph.normalize import normalize
from tests.support.runtime import run

CPU = ["CPUExecutionProvider"]
SIZE = (40, 48)
TOLERANCE = 1e-5  # of the map's maximum

# as in tests.support.wrong_gradients: weights are named after their shapes. With each: the operator that ends the local
# part, None where all of the graph up to the head is local
ARCHITECTURES: dict[str, tuple[str, str | None]] = {
    "strided": (
        """a = Conv<pads = [3, 3, 3, 3], strides = [2, 2]>(input, w8_3_7_7, b8)  r = Relu(a)
        c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, w8_8_3_3, b8)  e = Relu(c)
        d = Conv<pads = [1, 1, 1, 1]>(e, w8_8_3_3, b8)  k = Relu(d)""",
        None,
    ),
    "dilated": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
        c = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(r, w8_8_3_3, b8)  e = Relu(c)
        d = Conv<pads = [0, 3, 0, 3], dilations = [1, 3]>(e, w8_8_3_3, b8)  k = Tanh(d)""",
        None,
    ),
    "padded unevenly": (
        """p = Pad(input, pads, three)  a = Conv<strides = [2, 2]>(p, w8_3_3_3, b8)  r = Relu(a)
        c = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(r, w8_8_3_3, b8)  e = Relu(c)
        d = Conv<auto_pad = "SAME_LOWER">(e, w8_8_4_4, b8)  f = Relu(d)
        k = Conv<pads = [0, 2, 1, 0]>(f, w8_8_2_3, b8)""",
        None,
    ),
    "without padding": (
        """a = Conv(input, w8_3_3_3, b8)  r = Relu(a)  c = Conv<strides = [2, 1]>(r, w8_8_3_5, b8)  e = Relu(c)
        k = Conv(e, w8_8_3_3, b8)""",
        None,
    ),
    "basic blocks": (
        """a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(input, w8_3_3_3, b8)  r = Relu(a)
        b = Conv<pads = [1, 1, 1, 1]>(r, w8_8_3_3, b8)  c = Relu(b)  d = Conv<pads = [1, 1, 1, 1]>(c, x8_8_3_3, b8)
        e = Add(d, r)  f = Relu(e)
        ga = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(f, w12_8_3_3, b12)  ha = Relu(ga)
        i = Conv<pads = [1, 1, 1, 1]>(ha, w12_12_3_3, b12)  j = Conv<strides = [2, 2]>(f, w12_8_1_1, b12)
        l = Add(i, j)  k = Relu(l)""",
        None,
    ),
    "bottlenecks": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w12_3_3_3, b12)  r = Relu(a)
        m = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r)
        b = Conv(m, w4_12_1_1, b4)  c = Relu(b)  d = Conv<pads = [1, 1, 1, 1]>(c, w4_4_3_3, b4)  e = Relu(d)
        f = Conv(e, w12_4_1_1, b12)  h = Add(f, m)  i = Relu(h)
        j = Conv(i, x4_12_1_1, b4)  l = Relu(j)  n = Conv<pads = [1, 1, 1, 1]>(l, x4_4_3_3, b4)  o = Relu(n)
        q = Conv(o, x12_4_1_1, b12)  s = Add(q, i)  k = Relu(s)""",
        None,
    ),
    "inverted residuals": (
        """a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(input, w6_3_3_3, b6)  r = Clip(a, zero, six)
        b = Conv(r, w18_6_1_1, b18)  c = Clip(b, zero, six)
        d = Conv<pads = [1, 1, 1, 1], group = 18>(c, w18_1_3_3, b18)  e = Clip(d, zero, six)
        f = Conv(e, w6_18_1_1, b6)  h = Add(f, r)
        i = Conv(h, x18_6_1_1, b18)  j = Clip(i, zero, six)
        l = Conv<pads = [2, 2, 2, 2], strides = [2, 2], group = 18>(j, w18_1_5_5, b18)  m = Clip(l, zero, six)
        k = Conv(m, w8_18_1_1, b8)""",
        None,
    ),
    "concatenated": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
        b = Conv(r, w4_8_1_1, b4)  c = Relu(b)  d = Conv<pads = [2, 2, 2, 2]>(r, w4_8_5_5, b4)  e = Relu(d)
        m = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r)  f = Conv(m, x4_8_1_1, b4)
        h = Concat<axis = 1>(c, e, f)
        n = BatchNormalization(h, g12, s12, m12, v12)  q = Relu(n)
        i = Conv<pads = [1, 1, 1, 1]>(q, w4_12_3_3, b4)  j = Concat<axis = 1>(h, i)
        k = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(j)""",
        None,
    ),
    "pooling": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = LeakyRelu<alpha = 0.2>(a)
        m = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(r)
        v = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(m)
        y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(v)
        z = LpPool<kernel_shape = [2, 2], strides = [2, 2]>(y)
        k = MaxPool<kernel_shape = [3, 3], dilations = [2, 2], pads = [2, 2, 2, 2]>(z)""",
        None,
    ),
    "channels last": (
        """t = Transpose<perm = [0, 2, 3, 1]>(input)  s = Sub(t, b3)  u = Transpose<perm = [0, 3, 1, 2]>(s)
        a = Conv<strides = [2, 2]>(u, w8_3_2_2, b8)
        d = Conv<pads = [1, 1, 1, 1], group = 8>(a, w8_1_3_3, b8)  e = Transpose<perm = [0, 2, 3, 1]>(d)
        n = LayerNormalization<axis = -1>(e, g8, s8)  p = MatMul(n, w8_16)  q = Gelu(p)  o = MatMul(q, w16_8)
        v = Transpose<perm = [0, 3, 1, 2]>(o)  k = Add(v, a)""",
        None,
    ),
    "squeeze and excitation": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
        c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, w8_8_3_3, b8)  h = HardSwish(c)
        p = GlobalAveragePool(h)  u = Conv(p, w4_8_1_1)  q = Relu(u)  y = Conv(q, w8_4_1_1)  z = HardSigmoid(y)
        x = Mul(h, z)  k = Conv<pads = [1, 1, 1, 1]>(x, x8_8_3_3, b8)""",
        "GlobalAveragePool",
    ),
    "attention": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)  c = Conv<strides = [8, 8]>(r, w8_8_8_8, b8)
        f = Reshape(c, tokens)  t = Transpose<perm = [0, 2, 1]>(f)  q = MatMul(t, w8_8)  kt = MatMul(q, f)
        w = Softmax<axis = -1>(kt)  o = MatMul(w, t)  e = Add(o, t)  ee = Transpose<perm = [0, 2, 1]>(e)
        k = Reshape(ee, grid)""",
        "Reshape",
    ),
    "normalised over all places": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
        n = InstanceNormalization(r, g8, s8)  k = Conv<pads = [1, 1, 1, 1]>(n, w8_8_3_3, b8)""",
        "InstanceNormalization",
    ),
    "another constant at each place": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
        n = Add(r, q1_8_40_48)  k = Conv<pads = [1, 1, 1, 1]>(n, w8_8_3_3, b8)""",
        "Add",
    ),
    "upsampled": (
        """a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(input, w8_3_3_3, b8)  r = Relu(a)
        n = Resize<mode = "nearest">(r, , twice)  k = Conv<pads = [1, 1, 1, 1]>(n, w8_8_3_3, b8)""",
        "Resize",
    ),
    "reflected": (
        """p = Pad<mode = "reflect">(input, around)  a = Conv(p, w8_3_5_5, b8)  r = Relu(a)
        k = Conv<pads = [1, 1, 1, 1]>(r, w8_8_3_3, b8)""",
        "Pad",
    ),
    "one branch over all places": (
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
        p = GlobalMaxPool(r)  c = Conv<pads = [1, 1, 1, 1]>(r, w8_8_3_3, b8)  s = Sigmoid(p)  e = Tanh(c)
        k = Mul(e, s)""",
        "GlobalMaxPool",
    ),
}  # fmt: skip
CONSTANTS: dict[str, np.ndarray] = {
    "zero": np.array(0, np.float32),
    "six": np.array(1.5, np.float32),
    "three": np.array(0.3, np.float32),
    "pads": np.array([0, 0, 0, 2, 0, 0, 1, 1]),
    "around": np.array([0, 0, 2, 2, 0, 0, 2, 2]),
    "tokens": np.array([0, 8, -1]),
    "grid": np.array([0, 8, 5, 6]),
    "twice": np.array([1, 1, 2, 2], np.float32),
}
LOCAL = [name for name, (_, end) in ARCHITECTURES.items() if end is None]


def build(
    name: str, batch: int | str = "N", body: str | None = None, size: tuple[int, ...] = (3, *SIZE)
) -> onnx.ModelProto:
    """One of the architectures with random weights, and a head that reads coarse cells."""
    rng = np.random.default_rng(3)
    text = body or ARCHITECTURES[name][0]
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]>\nsmall (float[{batch}, {", ".join(map(str, size))}] input) => '
        f"(float[{batch}, 5] logits) {{\n{text}\n"
        "kk = Abs(k)  kp = GlobalAveragePool(kk)  kf = Flatten(kp)  logits = MatMul(kf, head)\n}"
    )
    channels = next(
        dim.dim_value
        for info in onnx.shape_inference.infer_shapes(_weighted(model, rng, 1)).graph.value_info
        if info.name == "k"
        for dim in info.type.tensor_type.shape.dim[1:2]
    )
    return _weighted(model, rng, channels)


def _weighted(model: onnx.ModelProto, rng: np.random.Generator, channels: int) -> onnx.ModelProto:
    del model.graph.initializer[:]
    for value in dict.fromkeys(name for node in model.graph.node for name in node.input if name):
        match = re.fullmatch(r"([a-z])(\d+(?:_\d+)*)", value)
        made_by = {name for node in model.graph.node for name in node.output}
        if value in CONSTANTS:
            array = CONSTANTS[value]
        elif value == "head":
            array = rng.normal(size=(channels, 5)).astype(np.float32)
        elif match is not None and value not in made_by:
            shape = tuple(int(size) for size in match[2].split("_"))
            scale = {"g": 0.2, "v": 0.2, "b": 0.3, "s": 0.3, "m": 0.3, "q": 1.0}.get(
                match[1], 1.6 / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
            )
            array = (rng.normal(size=shape) * scale + (match[1] in "gv")).astype(np.float32)
        else:
            continue
        model.graph.initializer.append(numpy_helper.from_array(array, value))
    return model


@pytest.fixture(params=["many stages", "as estimated"])
def eager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Stages however little they save; with nothing to pay for copies and runs there is one for each window."""
    monkeypatch.setattr(patches, "_DEAREST", 10.0)
    monkeypatch.setattr(view, "FEWEST", 1)
    if request.param == "many stages":
        for name in ("_COPY_IN", "_COPY_OUT", "_RUN"):
            monkeypatch.setattr(stages, name, 0.0)
    yield request.param


def pictures(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(rows, 3, *SIZE)).astype(np.float32)


def brute_force(model: onnx.ModelProto, x: np.ndarray, window: int, stride: int, baseline: float) -> np.ndarray:
    """Occlusion of each class by the plain file, one changed picture at a time, summed in float64; `[K, N, H, W]`."""
    total, count = np.zeros((5, len(x), *SIZE)), np.zeros(SIZE)
    tops, lefts = (range(0, -(-(side - window) // stride) * stride + 1, stride) for side in SIZE)
    for row, picture in enumerate(x):
        whole = run(model, {"input": picture[None]})["logits"][0].astype(np.float64)
        for top in tops:
            for left in lefts:
                changed = picture[None].copy()
                changed[:, :, top : top + window, left : left + window] = baseline
                lost = whole - run(model, {"input": changed})["logits"][0]
                total[:, row, top : top + window, left : left + window] += lost[:, None, None]
                count[top : top + window, left : left + window] += row == 0
    return np.asarray(total / count)


def assert_equals_brute_force(explainer: Explainer, model: onnx.ModelProto, x: np.ndarray) -> None:
    """For the class that depends most on the windows: the scores themselves are rounded."""
    every = brute_force(model, x, 13, 9, 2.0)
    target = int(np.abs(every).max(axis=(1, 2, 3)).argmax())
    attribution = explainer.attribution(x, target, "occlusion", window=13, stride=9, baseline=2.0)
    want = every[target]
    assert np.abs(want).max() > 0.1
    assert np.abs(attribution - want[:, None]).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_equals_brute_force(name: str, eager: str) -> None:
    model = build(name)
    explainer = Explainer(model, providers=CPU, probe=False)
    assert_equals_brute_force(explainer, model, pictures())
    plan = plan_of(explainer)
    assert plan.stages or eager == "as estimated" or name == "reflected"
    operators = {entry.node.op_type for stage in plan.stages for entry in stage.nodes}
    assert ARCHITECTURES[name][1] not in operators


def plan_of(explainer: Explainer) -> stages.Plan:
    latest = explainer.sessions._patches  # those that are not useful too
    assert latest is not None
    return latest[1].plan


@pytest.mark.parametrize("name", ["basic blocks", "inverted residuals", "concatenated"])
def test_both_kinds_of_stages_take_part(name: str, eager: str) -> None:
    """Else the comparisons above would prove one of them alone."""
    if eager == "many stages":
        explainer = Explainer(build(name), providers=CPU, probe=False)
        explainer.attribution(pictures(1), 1, "occlusion", window=7, stride=6)
        assert len(plan_of(explainer).stages) > 2


@pytest.mark.sample(3)
@pytest.mark.parametrize("window", [3, 40, (2, 9, 11), (3, 40, 5)])
def test_windows_of_any_size(window: int | tuple[int, ...], eager: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell or all of the picture, some of the channels, any baseline."""
    explainer = Explainer(build("bottlenecks"), providers=CPU, probe=False)
    x = pictures()
    baseline = np.random.default_rng(8).normal(size=x.shape).astype(np.float32)
    options = {"window": window, "stride": window if isinstance(window, tuple) else max(window // 2, 3)}
    attribution = explainer.attribution(x, [1, 4], "occlusion", baseline=baseline, **options)
    monkeypatch.setattr(view, "FEWEST", 10**9)
    want = explainer.attribution(x, [1, 4], "occlusion", baseline=baseline, **options)
    assert np.abs(attribution - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.slow
def test_a_model_of_fixed_rows_gives_the_same(eager: str) -> None:
    by_rows = [
        Explainer(build("basic blocks", rows), providers=CPU, probe=False).attribution(
            pictures(3), [0, 1, 2], "occlusion", window=8, stride=5
        )
        for rows in ("N", 1, 2)
    ]
    for other in by_rows[1:]:
        assert np.abs(other - by_rows[0]).max() <= TOLERANCE * np.abs(by_rows[0]).max()


def test_a_picture_with_channels_last_gives_the_same(eager: str) -> None:
    body = ARCHITECTURES["strided"][0].replace("(input", "(u")
    model = build("strided")
    last = build("strided", body=f"u = Transpose<perm = [0, 3, 1, 2]>(input)\n{body}", size=(*SIZE, 3))
    attribution, want = (
        Explainer(one, providers=CPU, probe=False).attribution(x, 1, "occlusion", window=8, stride=5)
        for one, x in ((last, pictures().transpose(0, 2, 3, 1)), (model, pictures()))
    )
    assert np.abs(attribution - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.sample(1)
def test_a_quantized_model_is_cut_between_its_integers(eager: str, tmp_path: Path) -> None:
    """Elsewhere a runtime could not compute with them, and would round otherwise than for the whole picture."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        remaining = iter(pictures(4)[:, None])

        def get_next(self) -> dict[str, np.ndarray] | None:
            tensor = next(self.remaining, None)
            return None if tensor is None else {"input": tensor}

    path, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(build("bottlenecks"), path)
    quantize_static(
        path, target, Pictures(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, per_channel=True
    )
    model = onnx.load(target)
    explainer = Explainer(model, providers=CPU, probe=False)
    assert_equals_brute_force(explainer, model, pictures(1))
    for stage in plan_of(explainer).stages:
        assert all("Quantize" in read.value or read.value == "input" for read in stage.reads)


@pytest.mark.parametrize("name", LOCAL)
def test_changes_are_the_cells_that_change(name: str) -> None:
    """Nothing outside of the spans changes, and without a hole between taps all of them do."""
    graph = normalize(build(name))
    local = locality(graph, "input", (2, 3), (1, 3, *SIZE))
    assert "k" in local.axes
    x = pictures(1)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    maps = [value for value in local.axes if value != "input"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(value, 1, None) for value in maps)
    before = run(model, {"input": x})
    for top, left in ((0, 0), (17, 22), (33, 41)):
        changed = x.copy()
        changed[:, :, top : top + 7, left : left + 7] += 3 * np.random.default_rng(1).normal(size=(1, 3, 7, 7))
        after = run(model, {"input": changed})
        spans = [
            changes(local, "input", np.array([[start, start + 7]]), axis) for axis, start in enumerate((top, left))
        ]
        for value in maps:
            rows, columns = local.axes[value]
            differs = (before[value] != after[value]).any(axis=tuple({0, 1, 2, 3} - {rows, columns}))
            inside = np.zeros_like(differs)
            (a, b), (c, d) = spans[0][value][0], spans[1][value][0]
            inside[a:b, c:d] = True
            assert not (differs & ~inside).any()


@pytest.mark.slow
def test_memory_for_few_windows_gives_the_same(eager: str, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = Explainer(build("bottlenecks"), providers=CPU, probe=False)
    results = []
    for limit in (patches._PATCH_BYTES, 100_000, 1):
        monkeypatch.setattr(patches, "_PATCH_BYTES", limit)
        monkeypatch.setattr(patches, "_RUN_BYTES", limit)
        results.append(explainer.attribution(pictures(), 4, "occlusion", window=9, stride=9, baseline=2.0))
    for other in results[1:]:
        assert np.abs(other - results[0]).max() <= TOLERANCE * np.abs(results[0]).max()


def test_few_windows_and_dear_stages_run_the_whole_graph() -> None:
    explainer = Explainer(build("strided"), providers=CPU, probe=False)
    explainer.attribution(pictures(1), 1, "occlusion", window=20, stride=20)
    assert explainer.sessions._patches is None


def test_sessions_for_other_windows_replace_the_last_ones(eager: str) -> None:
    explainer = Explainer(build("strided"), providers=CPU, probe=False)
    plans = []
    for window in (8, 8, 10):
        explainer.attribution(pictures(1), 1, "occlusion", window=window, stride=6)
        plans.append(plan_of(explainer))
    assert plans[0] is plans[1] and plans[1] is not plans[2]


def test_the_share_is_that_of_the_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by hand: a window of 8 x 8 in the middle of 40 x 48 reaches 10 x 10, then 12 x 12; the head is all."""
    body = """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
    k = Conv<pads = [1, 1, 1, 1]>(r, w8_8_3_3, b8)"""
    graph = normalize(build("", body=body))
    local = locality(graph, "input", (2, 3), (1, 3, *SIZE))
    plan = stages.Planner(graph, local, "input", "logits").plan((np.array([[16, 24]]), np.array([[20, 28]])))
    cells, head = SIZE[0] * SIZE[1], 8 * 5
    changing = 100 * 8 * 27 + 144 * 8 * 72 + head
    assert plan.share == pytest.approx(changing / (cells * 8 * 27 + cells * 8 * 72 + head))


@pytest.mark.slow
def test_what_a_bench_says_of_occlusion(tmp_path: Path, eager: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(build("bottlenecks"), path)
    done = bench(path, ["occlusion"], batches=[1], rounds=1, seconds=0, providers=CPU)
    case = next(case for case in done.cases if case.name == "occlusion")
    if eager == "as estimated":  # so small a network is not worth a stage
        assert case.windows is None and case.row()[-1] == "" and case.to_dict()["reached"] is None
        return
    assert case.windows == 19 * 15 and case.possible is not None and case.possible > 1
    assert case.reached == pytest.approx(case.windows / case.ratio)
    assert "285 windows at" in case.row()[-1] and case.to_dict()["reached"] == case.reached


FORKED = """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, w8_8_3_3, b8)  c = Relu(b)
d = Conv<pads = [1, 1, 1, 1], strides = [3, 3]>(r, x8_8_3_3, b8)  e = Relu(d)
f = GlobalAveragePool(c)  h = GlobalAveragePool(e)  k = Concat<axis = 1>(f, h)"""


def test_branches_of_different_strides_begin_where_both_have_a_cell(
    eager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it as one padded stage: at a multiple of the larger stride alone the other branch would be shifted."""
    monkeypatch.setattr(stages.Planner, "_shortest", lambda self, *_: ([(0, len(self._cuts) - 1, False)], 0.1))
    model = build("", body=FORKED)
    explainer = Explainer(model, providers=CPU, probe=False)
    assert_equals_brute_force(explainer, model, pictures(1))
    (stage,) = plan_of(explainer).stages
    assert stage.aligned == (6, 6) and set(stage.results) == {"c", "e"}


def test_a_pool_whose_last_window_lies_behind_the_map_gives_the_same(eager: str) -> None:
    """Shape inference counts it, runtimes do not: 48 columns in steps of 3 are 16 of them."""
    body = """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3, b8)  r = Relu(a)
    m = MaxPool<kernel_shape = [2, 2], strides = [3, 3], ceil_mode = 1>(r)
    k = Conv<pads = [1, 1, 1, 1]>(m, w8_8_3_3, b8)"""
    model = build("", body=body)
    assert_equals_brute_force(Explainer(model, providers=CPU, probe=False), model, pictures(1))
