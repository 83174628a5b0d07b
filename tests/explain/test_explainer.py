"""What `Explainer` promises: forms of pictures and targets, layers and methods added in memory, threads, files."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcam import Explainer
from onnxcam.errors import (
    InputError,
    LabelsError,
    LayerError,
    MethodError,
    ModelError,
    PreprocessError,
    RuntimeUnavailable,
    TargetError,
)
from onnxcam.explain.maps import fuse
from tests.support import models, runtime
from tests.support.batches import CPU, LABELS, RAW, batch, explainable, picture


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(explainable(), providers=CPU)


# ---- run and attribute


def test_run_gives_what_the_file_computes(explainer: Explainer) -> None:
    x = batch()
    names = ["logits", "activations", "gradients"]
    want = list(runtime.run(explainable(), input=x, target=[3, -1, 0], outputs=names).values())
    raw = explainer.run(x, [3, None, 0])
    for actual, expected in zip((raw.scores, raw.activations, raw.gradients), want, strict=True):
        assert np.array_equal(actual, expected)
    assert raw.target.tolist() == [3, int(want[0][1].argmax()), 0] and raw.target.dtype == np.int64


def test_lists_of_layers_give_lists() -> None:
    two = Explainer(explainable(layers=["relu1", "relu2"]), providers=CPU)
    assert two.layers == ["relu1", "relu2"]
    both = two.run(batch(), 1, ["relu2", "relu1"])
    assert [a.shape for a in both.activations] == [(3, 16, 16, 16), (3, 8, 32, 32)]
    last, first = two.run(batch(), 1), two.run(batch(), 1, "relu1")
    assert np.array_equal(last.gradients, both.gradients[0])
    assert np.array_equal(first.gradients, both.gradients[1])
    assert isinstance(two.run(batch(), 1, ["relu1"]).gradients, list)


@pytest.mark.parametrize(
    ("target", "index"),
    [(3, 3), (np.int32(3), 3), (np.array(3), 3), ("hen", 3), (" HEN ", 3), ("cat", 0), ("tiger", 1), ("TIGER CAT", 1)],
)
def test_forms_of_a_target(explainer: Explainer, target: Any, index: int) -> None:
    assert explainer.run(batch(), target).target.tolist() == [index] * 3
    assert explainer.run(batch(), [target, 0, None]).target[:2].tolist() == [index, 0]


@pytest.mark.parametrize("target", [None, -1, np.int64(-1), [None, -1, np.int8(-1)]])
def test_top1(explainer: Explainer, target: Any) -> None:
    raw = explainer.run(batch(), target)
    assert raw.target.tolist() == raw.scores.argmax(axis=1).tolist()
    assert len(set(raw.target.tolist())) > 1


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ([0, 1], "got 2 targets for 3 pictures"),
        ([0, 1, 2, 3], "got 4 targets for 3"),
        (5, "5 is not a class .* 0 to 4"),
        (-2, "-2 is not a class"),
        ([0, 0, 17], "17"),
        ("crane", r"ambiguous: classes 2 \(crane\), 4 \(crane\)"),
        ("tigre", r"nearest are .*tiger cat, tiger \(1\)"),
        (1.0, "float"),
        (True, "bool"),
    ],
)
def test_targets_that_mean_nothing(explainer: Explainer, target: Any, says: str) -> None:
    for call in (explainer.run, explainer.attribute):
        with pytest.raises(TargetError, match=says):
            call(batch(), target)


def test_a_label_needs_labels() -> None:
    with pytest.raises(TargetError, match="no labels"):
        Explainer(models.tiny_cnn(), providers=CPU).run(batch(), "cat")


def test_batches_that_do_not_fit(explainer: Explainer) -> None:
    for wrong, says in (
        (batch()[0], r"\[3, 32, 32\].*batch\[None\]"),
        (batch().astype(np.float64), r"float64.*astype\(np.float32\)"),
        (batch()[:, :, :31], r"\[3, 3, 31, 32\]"),
        (batch()[:0], "empty batch"),
    ):
        with pytest.raises(InputError, match=says):
            explainer.run(wrong)


def test_sizes_and_normalisations(explainer: Explainer) -> None:
    layer = explainer.attribute(batch(), 1, normalize="none", size="layer")
    raw = explainer.run(batch(), 1)
    weights = raw.gradients.mean(axis=(2, 3), keepdims=True)
    want = np.maximum((weights * raw.activations).sum(axis=1), 0)
    assert layer.dtype == np.float32 and np.abs(layer - want).max() <= 1e-5 * want.max()
    assert explainer.attribute(batch(), 1, size=(7, 9)).shape == (3, 7, 9)
    assert explainer.attribute(batch(), 1).shape == (3, 32, 32)
    biggest = explainer.attribute(batch(), 1, normalize="max", size="layer")
    assert np.allclose(biggest, want / np.maximum(want.max(axis=(1, 2), keepdims=True), 1e-30), atol=1e-6)
    for wrong in ("input ", (0, 3), 5, (1, 2, 3)):
        with pytest.raises(InputError, match="'input', 'layer' or"):
            explainer.attribute(batch(), size=wrong)
    with pytest.raises(InputError, match="minmax"):
        explainer.attribute(batch(), normalize="maxmin")


def test_a_fixed_batch_serves_any_number_of_rows() -> None:
    free = Explainer(models.tiny_cnn(seed=2), providers=CPU)
    fixed = Explainer(models.tiny_cnn(batch=2, seed=2), providers=CPU)
    for rows in (1, 2, 5):
        target = list(range(rows))
        a, b = fixed.run(batch(rows), target), free.run(batch(rows), target)
        for actual, want in zip(a, b, strict=True):
            assert actual.shape == want.shape and np.allclose(actual, want, rtol=1e-4, atol=1e-6)
        assert np.allclose(fixed.predict(batch(rows)), free.predict(batch(rows)), atol=1e-6)
    many = [picture(seed=k) for k in range(3)]
    tops = [Explainer(models.tiny_cnn(batch=b, seed=2), preprocess=RAW, providers=CPU) for b in (2, "N")]
    for one, other in zip(*(e.explain(many, top=2) for e in tops), strict=True):
        assert [m.target for m in one.maps] == [m.target for m in other.maps]
        assert all(np.allclose(a.raw_map, b.raw_map, atol=1e-5) for a, b in zip(one.maps, other.maps, strict=True))


@pytest.mark.parametrize(("ending", "classes"), [(None, 5), ("Softmax", 5), ("Sigmoid", 5), ("Sigmoid", 1)])
def test_predict_gives_probabilities(ending: str | None, classes: int) -> None:
    source = models.tiny_cnn(ending=ending, classes=classes, seed=2)
    (want,) = runtime.run(source, input=batch()).values()
    if ending is None:
        want = np.exp(want) / np.exp(want).sum(axis=1, keepdims=True)
    if classes == 1:
        want = np.concatenate([1 - want, want], axis=1)
    actual = Explainer(source, providers=CPU).predict(batch())
    assert actual.dtype == np.float32 and np.abs(actual - want).max() <= 1e-6


# ---- layers, methods and targets the file lacks


def test_a_layer_and_a_method_are_added_in_memory() -> None:
    small = Explainer(explainable(), providers=CPU)
    large = Explainer(explainable(layers=["relu1", "relu2"], methods=("gradcam", "hirescam")), providers=CPU)
    before = small.attribute(batch(), 2)
    for method, layer in (("hirescam", None), ("gradcam", "relu1"), ("hirescam", ["relu1", "relu2"])):
        a, b = small.attribute(batch(), 2, method, layer), large.attribute(batch(), 2, method, layer)
        assert np.allclose(a, b, atol=1e-5)
    assert np.array_equal(small.attribute(batch(), 2), before)
    assert small.layers == ["relu2"]
    with pytest.raises(MethodError, match=r"no method .gradkam.; there are .gradcam."):
        small.attribute(batch(), method="gradkam")
    with pytest.raises(LayerError, match=r"relu7.*the file itself exposes.*relu2"):
        small.run(batch(), layer="relu7")
    with pytest.raises(InputError, match="layer="):
        small.run(batch(), layer=[])


def test_the_layers_asked_for_are_those_explained() -> None:
    both = explainable(layers=["relu1", "relu2"])
    for source in (both, explainable(), models.tiny_cnn(seed=2)):
        other = Explainer(source, layers=["relu1"], providers=CPU)
        assert other.layers == ["relu1"]
        assert other.run(batch()).activations.shape == (3, 8, 32, 32)
    swapped = Explainer(both, layers=["relu2", "relu1"], providers=CPU)
    assert swapped.layers == ["relu2", "relu1"]
    assert swapped.run(batch()).activations.shape == (3, 8, 32, 32)
    assert Explainer(both, layers="relu1", providers=CPU).layers == ["relu1"]


def test_raw_outputs_are_added_where_the_file_leaves_them_out() -> None:
    lean = Explainer(explainable(outputs="heatmap"), providers=CPU)
    full = Explainer(explainable(), providers=CPU)
    assert np.array_equal(lean.attribute(batch()), full.attribute(batch()))
    assert np.array_equal(lean.run(batch(), 1).gradients, full.run(batch(), 1).gradients)


@pytest.mark.parametrize("fixed", [0, 3])
def test_a_file_of_one_class_explains_others_in_memory(fixed: int) -> None:
    bound, free = Explainer(explainable(target=fixed), providers=CPU), Explainer(explainable(), providers=CPU)
    want = free.attribute(batch(), fixed)
    assert np.array_equal(bound.attribute(batch()), want)
    assert bound.run(batch()).target.tolist() == [fixed] * 3
    assert np.allclose(bound.attribute(batch(), 2), free.attribute(batch(), 2), atol=1e-6)
    # what was added since changes nothing about what None means
    assert np.allclose(bound.attribute(batch()), want, atol=1e-6)
    assert bound.run(batch()).target.tolist() == [fixed] * 3
    fresh = Explainer(explainable(target=fixed), providers=CPU)
    top = fresh.explain(picture(), top=3)
    assert [m.target for m in top.maps] == [m.target for m in free.explain(picture(), top=3).maps]


# ---- the constructor


def test_labels_given_replace_those_of_the_file() -> None:
    names = list("vwxyz")
    other = Explainer(explainable(), labels=names, providers=CPU)
    assert other.run(batch(), "x").target.tolist() == [2] * 3
    assert other.explain(picture(), "x").label == "x"
    for wrong in (names[:4], [*names, "extra"]):
        with pytest.raises(LabelsError, match=f"got {len(wrong)} labels .* 5 classes"):
            Explainer(explainable(), labels=wrong, providers=CPU)


def test_an_unknown_provider() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"NonsenseExecutionProvider is not in this onnxruntime"):
        Explainer(explainable(), providers=["NonsenseExecutionProvider"])
    assert Explainer(explainable(), providers=CPU).providers == CPU
    fallen = Explainer(explainable(), providers=["NonsenseExecutionProvider"], allow_fallback=True)
    assert fallen.providers == CPU


def test_forms_of_a_source(tmp_path: Path) -> None:
    model = explainable()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    want = Explainer(model, providers=CPU).attribute(batch())
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        assert np.array_equal(Explainer(source, providers=CPU).attribute(batch()), want)
    with pytest.raises(ModelError, match="a int is not a model"):
        Explainer(3)
    with pytest.raises(ModelError, match="no such file"):
        Explainer(tmp_path / "none.onnx")


def test_preprocessing_is_never_guessed() -> None:
    silent = Explainer(models.tiny_cnn(), providers=CPU)
    with pytest.raises(PreprocessError, match=r"imagenet.*caffe"):
        silent.explain(picture())
    assert silent.attribute(batch()).shape == (3, 32, 32)


# ---- pictures


def test_one_picture_or_a_list_in_order(explainer: Explainer, tmp_path: Path) -> None:
    arrays = [picture(seed=k, height=30 + k) for k in range(11)]
    alone = [explainer.explain(a) for a in arrays]
    together = explainer.explain(arrays)
    assert [e.heatmap.shape for e in together] == [(30 + k, 56) for k in range(11)]
    for one, other in zip(alone, together, strict=True):
        assert np.allclose(one.heatmap, other.heatmap, atol=1e-5)
        assert one.target == other.target
    path = tmp_path / "a.png"
    Image.fromarray(arrays[0]).save(path)
    for form in (path, str(path), path.read_bytes(), Image.open(path), arrays[0][..., ::-1]):
        color = "BGR" if isinstance(form, np.ndarray) else "RGB"
        explanation = explainer.explain(form, color=color)
        assert np.array_equal(explanation.heatmap, alone[0].heatmap)
        assert np.array_equal(explanation.picture, arrays[0])
    assert explainer.explain([]) == []
    mixed = explainer.explain((arrays[0], path), target=["hen", None])
    assert [mixed[0].target, mixed[1].target] == [3, alone[0].target]
    with pytest.raises(TargetError, match="got 1 targets for 2"):
        explainer.explain(arrays[:2], target=[1])


def test_predictions_and_raw_map(explainer: Explainer) -> None:
    explanation = explainer.explain(picture(), "hen")
    tensor = explainer.prepare(picture())[1]
    want = explainer.predict(tensor)[0]
    order = np.argsort(-want)
    assert [p[0] for p in explanation.predictions] == order.tolist()
    assert [p[1] for p in explanation.predictions] == [LABELS[i] for i in order]
    assert np.allclose([p[2] for p in explanation.predictions], want[order], atol=1e-6)
    assert (explanation.target, explanation.label, explanation.method, explanation.layer) == (
        3,
        "hen",
        "gradcam",
        "relu2",
    )
    assert explanation.probability == pytest.approx(float(want[3]), abs=1e-6)
    raw = explainer.attribute(tensor, 3, normalize="none", size="layer")[0]
    assert np.array_equal(explanation.raw_map, raw) and raw.shape == (16, 16)
    assert explanation.heatmap.shape == (40, 56) and explanation.heatmap.dtype == np.float32


def test_top_equals_single_explanations(explainer: Explainer) -> None:
    pictures = [picture(seed=k) for k in range(3)]
    for explanation, one in zip(explainer.explain(pictures, top=4, method="hirescam"), pictures, strict=True):
        assert [m.target for m in explanation.maps] == [p[0] for p in explanation.predictions[:4]]
        for part in explanation.maps:
            single = explainer.explain(one, part.target, "hirescam")
            assert np.allclose(part.raw_map, single.raw_map, atol=1e-5)
            assert np.allclose(part.heatmap, single.heatmap, atol=1e-4)
            assert part.probability == pytest.approx(single.probability, abs=1e-6)
        assert explanation.heatmap is explanation.maps[0].heatmap
    for wrong in (0, 6, True, 1.5):
        with pytest.raises(TargetError, match="top="):
            explainer.explain(pictures[0], top=wrong)
    with pytest.raises(TargetError, match="both target and top"):
        explainer.explain(pictures[0], "hen", top=2)


def test_several_layers_are_fused(explainer: Explainer) -> None:
    two = Explainer(explainable(layers=["relu1", "relu2"]), providers=CPU)
    explanation = two.explain(picture(), 1, layer=["relu1", "relu2"])
    assert [m.shape for m in explanation.raw_map] == [(32, 32), (16, 16)] and explanation.layer == ["relu1", "relu2"]
    fused = fuse([m[None] for m in explanation.raw_map], "minmax", (32, 32))[0]
    geometry = two.prepare(picture())[2]
    assert np.allclose(explanation.heatmap, geometry.to_picture(fused), atol=1e-6)


def test_exif_turns_the_picture(explainer: Explainer) -> None:
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored picture lies on its side
    stored = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(stored, "PNG", exif=exif)
    a, b = explainer.explain(stored.getvalue()), explainer.explain(upright)
    assert a.heatmap.shape == (40, 56)
    assert np.array_equal(a.heatmap, b.heatmap)


def test_zero_outside_the_crop() -> None:
    crop = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "shortest", "size": 40}, "crop": {"size": 32}}
    explanation = Explainer(explainable(), preprocess=crop, providers=CPU).explain(
        picture(80, 160), 1, normalize="none"
    )
    assert explanation.heatmap.shape == (80, 160)
    # shortest side 80 -> 40, the middle 32 × 32 of 40 × 80 is kept: rows 8..72, columns 48..112 of the original
    outside = explanation.heatmap.copy()
    outside[8:72, 48:112] = 0
    assert not outside.any()
    assert explanation.heatmap[8:72, 48:112].any()


@pytest.mark.parametrize("normalize", ["minmax", "max", "none"])
def test_a_map_that_is_zero_everywhere_is_flagged(normalize: str) -> None:
    source = models.tiny_cnn(classes=2)
    weights = next(t for t in source.graph.initializer if t.name == "w3")
    value = np.abs(onnx.numpy_helper.to_array(weights)) * np.array([[1, -1]], np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(value, "w3"))
    explanation = Explainer(source, preprocess=RAW, providers=CPU).explain([picture()] * 2, [0, 1], normalize=normalize)
    assert explanation[0].heatmap.any() and explanation[0].warnings == []
    assert np.array_equal(explanation[1].heatmap, np.zeros((40, 56), np.float32))
    assert len(explanation[1].warnings) == 1 and "zero everywhere" in explanation[1].warnings[0]
    explanation[1].panel()


def test_scores_that_are_not_finite_are_flagged() -> None:
    source = models.tiny_cnn()
    bias = next(t for t in source.graph.initializer if t.name == "b3")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(5, np.nan, np.float32), "b3"))
    with np.errstate(invalid="ignore"):
        explanation = Explainer(source, preprocess=RAW, providers=CPU).explain(picture(), 0)
    assert any("not finite" in warning for warning in explanation.warnings)


def test_pictures_of_other_sizes_where_nothing_resizes_them() -> None:
    plain = {"color": "RGB", "scale": 1 / 255, "resize": None}
    fixed = Explainer(explainable(), preprocess=plain, providers=CPU)
    assert fixed.explain(picture(32, 32)).heatmap.shape == (32, 32)
    with pytest.raises(InputError, match=r"\[1, 3, 40, 56\]"):
        fixed.explain([picture(32, 32), picture(40, 56)])
    free = Explainer(models.tiny_cnn(size=None), preprocess=plain, providers=CPU)
    shapes = [e.heatmap.shape for e in free.explain([picture(32, 32), picture(40, 56)])]
    assert shapes == [(32, 32), (40, 56)]


# ---- no state, threads, cold start


def test_two_runs_are_bitwise_equal(explainer: Explainer) -> None:
    a, b = explainer.explain(picture(), top=3), explainer.explain(picture(), top=3)
    assert np.array_equal(a.heatmap, b.heatmap) and a.predictions == b.predictions


@pytest.mark.slow
def test_threads_that_extend_the_model_at_once() -> None:
    reference = Explainer(explainable(layers=["relu1", "relu2"], methods=("gradcam", "hirescam")), providers=CPU)
    cases = [(m, n, t) for m in ("gradcam", "hirescam") for n in (None, "relu1", ["relu1", "relu2"]) for t in (1, 3)]
    want = [reference.attribute(batch(), t, m, n) for m, n, t in cases]
    best = [m.target for m in reference.explain(picture(), top=2).maps]
    for _ in range(3):
        shared = Explainer(explainable(), providers=CPU)
        gate = threading.Barrier(8)

        def work(k: int, shared: Explainer = shared, gate: threading.Barrier = gate) -> None:
            gate.wait()
            for step in range(len(cases)):
                index = (k + step) % len(cases)
                method, layer, target = cases[index]
                assert np.allclose(shared.attribute(batch(), target, method, layer), want[index], atol=1e-5)
                if step % 4 == k % 4:
                    assert [m.target for m in shared.explain(picture(), top=2).maps] == best
                    assert shared.predict(batch()).shape == (3, 5)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))


@pytest.mark.slow
def test_eight_threads_give_what_one_does_and_keep_nothing() -> None:
    import psutil

    shared = Explainer(explainable(), providers=CPU)
    calls = [(seed, target) for seed in range(10) for target in range(5)] * 40
    want = {call: shared.attribute(batch(2, seed=call[0]), call[1]) for call in set(calls)}
    process = psutil.Process()

    def one(call: tuple[int, int]) -> bool:
        return np.array_equal(shared.attribute(batch(2, seed=call[0]), call[1]), want[call])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, calls[:400]))
        before = process.memory_info().rss
        assert len(calls) == 2000 and all(pool.map(one, calls))
    assert process.memory_info().rss - before < 16 << 20


def test_explaining_imports_neither_onnx_nor_torch(tmp_path: Path) -> None:
    onnx.save(explainable(), tmp_path / "m.onnx")
    Image.fromarray(picture()).save(tmp_path / "p.png")
    script = f"""
import sys
from onnxcam import Explainer
explainer = Explainer({str(tmp_path / "m.onnx")!r}, providers=["CPUExecutionProvider"])
found = explainer.explain({str(tmp_path / "p.png")!r}, target="hen")
found.save({str(tmp_path / "out")!r})
assert found.label == "hen" and found.heatmap.any()
print(sorted({{"onnx", "torch", "tensorflow", "keras", "sympy", "PIL", "matplotlib", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(("targets", "pictures"), [(9, 10), (2, 1), (2, 3), (0, 1)])
def test_a_question_is_answered_for_as_many_pictures_as_it_has_targets(
    explainer: Explainer, targets: int, pictures: int
) -> None:
    question = explainer.question(target=[0] * targets)
    with pytest.raises(TargetError, match=f"got {targets} targets for {pictures} pictures"):
        list(explainer.answer(question, [picture()] * pictures))
