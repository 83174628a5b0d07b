"""Metrics against independent implementations: pytorch-grad-cam, captum, scipy, scikit-image; else by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.evaluation.imputation import impute
from onnxcam.evaluation.metrics import find
from onnxcam.evaluation.metrics.causal import area, background
from onnxcam.evaluation.metrics.randomization import spearman, ssim
from onnxcam.evaluation.metrics.robustness import unfaithful
from onnxcam.evaluation.trial import Trial
from tests.evaluation.trials import INSIDE, SIDE, trial
from tests.support.torchvision_stub import import_torchvision

SHAPE = (3, 20, 28)


class Case:
    """A random CNN in PyTorch, pictures and smooth maps without equal values."""

    def __init__(self) -> None:
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        nn = torch.nn
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.model = nn.Sequential(net, nn.Linear(32, 5), nn.Softmax(1)).eval()
        with torch.no_grad():
            self.model[1].weight *= 20
        rng = np.random.default_rng(1)
        self.pictures = rng.normal(size=(3, *SHAPE)).astype(np.float32)
        maps = rng.random((3, *SHAPE[1:])).cumsum(axis=1).cumsum(axis=2) % 7
        maps -= maps.min(axis=(1, 2), keepdims=True)
        self.maps = (maps / maps.max(axis=(1, 2), keepdims=True)).astype(np.float32)
        ranked = self.predict(self.pictures).argsort(axis=1)
        self.classes = np.array([ranked[0, -1], ranked[1, -2], ranked[2, -1]])
        whole = self.predict(self.pictures)[np.arange(3), self.classes].astype(np.float64)
        self.trial = Trial(self.predict, self.explain, self.pictures, self.maps, self.classes, whole, [0, 1, 2])

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return np.asarray(self.model(torch.from_numpy(np.ascontiguousarray(pictures, np.float32))).numpy())

    def explain(self, pictures: np.ndarray) -> np.ndarray:
        return np.tanh(np.abs(pictures).mean(axis=1) + 0.1 * pictures[:, 0] ** 3)

    @property
    def targets(self) -> list[Any]:
        return [lambda output, index=index: output[index] for index in self.classes]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.torch
def test_drop_and_increase_as_pytorch_grad_cam(case: Case) -> None:
    import_torchvision()
    cam = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    import torch

    arguments = (torch.from_numpy(case.pictures), case.maps[:, None], case.targets, case.model)
    # there the drop is not divided by the probability of the whole picture, as the paper has it
    np.testing.assert_allclose(
        find("average_drop")(case.trial) * case.trial.whole, cam.DropInConfidence()(*arguments), atol=1e-5
    )
    increase = find("average_increase")(case.trial)
    np.testing.assert_array_equal(increase, cam.IncreaseInConfidence()(*arguments))
    assert 0 < increase.sum() < 3


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("road_morf", "ROADMostRelevantFirstAverage"),
        ("road_lerf", "ROADLeastRelevantFirstAverage"),
        ("road", "ROADCombined"),
    ],
)
def test_road_as_pytorch_grad_cam(case: Case, name: str, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_torchvision()
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    import torch

    class Quiet(road.NoisyLinearImputer):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(noise=0.0)

    monkeypatch.setattr(road, "NoisyLinearImputer", Quiet)
    expected = getattr(road, theirs)()(torch.from_numpy(case.pictures), case.maps, case.targets, case.model)
    values = find(name)(case.trial, {"noise": 0.0})
    np.testing.assert_allclose(values, expected, atol=5e-5)
    assert np.abs(expected).max() > 0.004
    # the noise is small and drawn anew from the same seed
    noisy = find(name)(case.trial)
    assert 0 < np.abs(noisy - values).max() < 0.05
    np.testing.assert_array_equal(noisy, find(name)(Case().trial))


@pytest.mark.parametrize("shape", [(20, 28), (7, 5), (33, 64)])
@pytest.mark.parametrize("kind", ["blob", "noise"])
@pytest.mark.parametrize("part", [0.1, 0.9, 0.99])
def test_imputed_pixels_are_the_means_of_those_around(shape: tuple[int, int], kind: str, part: float) -> None:
    rng = np.random.default_rng(3)
    picture = rng.normal(size=(2, *shape)).astype(np.float32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = np.hypot(y - 3, x - 2) if kind == "blob" else rng.random(shape)
    missing = np.zeros(shape, bool)
    missing.ravel()[np.argsort(values, axis=None)[: int(part * values.size)]] = True
    imputed = impute(picture, missing)
    np.testing.assert_array_equal(imputed[:, ~missing], picture[:, ~missing])
    # the system itself, dense
    index = np.flatnonzero(missing)
    place = {int(flat): k for k, flat in enumerate(index)}
    a, b = np.zeros((len(index), len(index))), np.zeros((len(index), 2))
    for k, flat in enumerate(index):
        r, c = divmod(int(flat), shape[1])
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                inside = 0 <= r + dr < shape[0] and 0 <= c + dc < shape[1]
                if (dr or dc) and inside:
                    weight = 1 / 12 if dr and dc else 1 / 6
                    a[k, k] += weight
                    other = (r + dr) * shape[1] + c + dc
                    if other in place:
                        a[k, place[other]] -= weight
                    else:
                        b[k] += weight * picture[:, r + dr, c + dc]
    np.testing.assert_allclose(imputed[:, missing], np.linalg.solve(a, b).T, atol=2e-3)


def test_nothing_known_and_nothing_missing() -> None:
    picture = np.random.default_rng(0).normal(size=(3, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(impute(picture, np.zeros((6, 7), bool)), picture)
    whole = impute(picture, np.ones((6, 7), bool))
    np.testing.assert_allclose(whole, np.broadcast_to(picture.mean((1, 2))[:, None, None], picture.shape), rtol=1e-5)


@pytest.mark.torch
def test_sensitivity_as_captum(case: Case) -> None:
    captum = pytest.importorskip("captum.metrics")
    import torch

    maps = case.explain(case.pictures).astype(np.float32)
    unchanged = Trial(case.predict, case.explain, case.pictures, maps, case.classes, case.trial.whole, [0, 1, 2])
    rngs = [unchanged.rng(row, "sensitivity") for row in range(3)]
    moved = [np.stack([rng.uniform(-0.02, 0.02, SHAPE) for rng in rngs]).astype(np.float32) for _ in range(6)]
    each = torch.from_numpy(np.stack(moved, axis=1).reshape(18, *SHAPE))
    expected = captum.sensitivity_max(
        lambda x: (torch.from_numpy(case.explain((x[0] if isinstance(x, tuple) else x).numpy())),),
        torch.from_numpy(case.pictures),
        perturb_func=lambda x: x + each,
        n_perturb_samples=6,
    ).numpy()
    np.testing.assert_allclose(find("sensitivity")(unchanged, {"repeats": 6}), expected, rtol=1e-3)


@pytest.mark.torch
def test_infidelity_as_captum(case: Case) -> None:
    captum = pytest.importorskip("captum.metrics")
    import torch

    from onnxcam.evaluation.metrics.robustness import _inside, _squares

    count, (height, width) = 9, SHAPE[1:]
    masks = np.stack(
        [
            [
                _inside(square, height, width)
                for square in _squares(case.trial.rng(row, "infidelity"), count, height, width)
            ]
            for row in range(3)
        ]
    ).reshape(3 * count, 1, height, width)

    def perturb(inputs: Any) -> Any:
        removed = torch.from_numpy(np.repeat(masks, 3, axis=1).astype(np.float32))
        # the map counts once per pixel, not once per channel
        return removed / 3, inputs * (1 - removed)

    expected = captum.infidelity(
        case.model,
        perturb,
        torch.from_numpy(case.pictures),
        torch.from_numpy(np.repeat(case.maps[:, None], 3, axis=1)),
        target=torch.from_numpy(case.classes),
        n_perturb_samples=count,
        normalize=True,
    ).numpy()
    np.testing.assert_allclose(find("infidelity")(case.trial, {"patches": count}), expected, rtol=1e-3, atol=1e-7)
    assert expected.max() > 1e-3


def test_a_foretelling_map_is_not_unfaithful() -> None:
    lost = np.random.default_rng(0).random((2, 8))
    np.testing.assert_allclose(unfaithful(3 * lost, lost), 0, atol=1e-15)
    np.testing.assert_allclose(unfaithful(np.zeros((2, 8)), lost), (lost**2).mean(axis=1))


def test_curves_by_hand() -> None:
    one_trial = trial(np.where(INSIDE, 1.0, 0.0) * np.linspace(0.5, 1, SIDE))
    steps = 4
    order = np.argsort(-one_trial.maps[0].ravel(), kind="stable")
    inside = int(INSIDE.sum())
    for name, baseline in (("insertion", "zero"), ("deletion", "zero"), ("insertion", "blur"), ("deletion", "blur")):
        start = background(one_trial.pictures, baseline)[0]
        first, last = (start, one_trial.pictures[0]) if name == "insertion" else (one_trial.pictures[0], start)
        expected = []
        for step in range(steps + 1):
            changed = first.copy().reshape(3, -1)
            some = order[: round(step / steps * SIDE * SIDE)]
            changed[:, some] = last.reshape(3, -1)[:, some]
            expected.append(one_trial.predict(changed.reshape(1, 3, SIDE, SIDE))[0, 1])
        assert inside < order.size / steps  # what matters is gone at the first step, whatever the order of the rest
        values = find(name)(one_trial, {"steps": steps, "baseline": baseline})
        np.testing.assert_allclose(one_trial.curves[name][0][[0, 1, -1]], np.array(expected)[[0, 1, -1]], rtol=1e-6)
        np.testing.assert_allclose(values, area(one_trial.curves[name]))
    # RISE's own sum
    arr = np.array([0.9, 0.5, 0.4, 0.1])
    np.testing.assert_allclose(area(arr[None]), (arr.sum() - arr[0] / 2 - arr[-1] / 2) / (len(arr) - 1))
    with pytest.raises(InputError, match="expected 'zero' or 'blur'"):
        background(one_trial.pictures, "black")


def test_adcc_by_hand() -> None:
    one_trial = trial(np.where(INSIDE, 0.5, 0.0) + 0.25)
    again = one_trial.explain(one_trial.pictures * 0.25 + 0.5 * one_trial.pictures * INSIDE)
    coherency = (1 + np.corrcoef(again.ravel(), one_trial.maps.ravel())[0, 1]) / 2
    complexity = one_trial.maps.mean()
    drop = (
        max(0.0, one_trial.whole[0] - one_trial.predict(one_trial.pictures * one_trial.maps[:, None])[0, 1])
        / one_trial.whole[0]
    )
    assert 0 < drop < 1
    np.testing.assert_allclose(find("coherency")(one_trial), [coherency], rtol=1e-5)
    np.testing.assert_allclose(find("complexity")(one_trial), [complexity], rtol=1e-6)
    expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    np.testing.assert_allclose(find("adcc")(one_trial), [expected], rtol=1e-5)


def test_pointing_by_hand() -> None:
    def pointing(y: int, x: int, **options: float) -> float:
        heatmap = np.zeros((SIDE, SIDE))
        heatmap[y, x] = 1
        return float(find("pointing_game")(trial(heatmap), options)[0])

    assert pointing(6, 8) == pointing(13, 17) == 1
    assert pointing(5, 8, tolerance=0.0) == 0 and pointing(5, 8, tolerance=1.01 / SIDE) == 1
    assert pointing(0, 0) == 0
    energy = find("energy_in_box")
    np.testing.assert_allclose(energy(trial(np.ones((SIDE, SIDE)))), INSIDE.mean())
    assert energy(trial(np.zeros((SIDE, SIDE))))[0] == 0 == find("pointing_game")(trial(np.ones((SIDE, SIDE))))[0]
    assert np.isnan(energy(trial(np.ones((SIDE, SIDE)), boxes=[None]))).all()


def test_ranks_as_scipy_and_likeness_as_scikit_image() -> None:
    stats, measured = pytest.importorskip("scipy.stats"), pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(2)
    first = rng.random((3, 17, 23)).astype(np.float32)
    second = (first + rng.normal(scale=[[[0.05]], [[0.5]], [[5]]], size=first.shape)).astype(np.float32).clip(0, 1)
    first[:, :5] = 0  # equal values
    for a, b, rank, like in zip(first, second, spearman(first, second), ssim(first, second), strict=True):
        assert abs(rank - stats.spearmanr(a.ravel(), b.ravel()).statistic) < 1e-9
        expected = measured.structural_similarity(
            a.astype(float),
            b.astype(float),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert abs(like - expected) < 1e-6
    assert spearman(np.ones((1, 4, 4)), first[:1, :4, :4])[0] == 0
