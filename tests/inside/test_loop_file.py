"""The ascent as one file arrives at the library's picture, in ONNX Runtime and in others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam import Explainer, models
from onnxcam.errors import SettingError
from onnxcam.inside.ascent import ascend
from onnxcam.inside.loop_file import KEY, loop_model
from onnxcam.inside.maximization import Settings, scalar_of
from onnxcam.inside.parametrization import Canvas
from onnxcam.inside.scalar import Scalar
from onnxcam.inside.subject import Subject
from tests.support import runtimes
from tests.support.models import tiny_cnn
from tests.support.runtime import run
from tests.support.runtimes import Case

ROOT = Path(__file__).parents[2]
SPEC = {"color": "RGB", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "resize": None}


class Drawn:
    """A generator whose shifts are those of a list."""

    def __init__(self, jitter: np.ndarray, most: int) -> None:
        self._rows = iter((jitter + most + 0.5) / (2 * most + 1))

    def random(self, count: int) -> np.ndarray:
        return np.concatenate([next(self._rows), np.zeros(count - 2)])


def subject(source: Any = None, **changed: Any) -> Subject:
    return Subject(
        Explainer(tiny_cnn(size=(16, 12)) if source is None else source, preprocess=SPEC | changed, probe=False)
    )


def inputs(of: Subject, steps: int, most: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    start = (rng.standard_normal((of.channels, *of.size)) * 0.3).astype(np.float32)
    return {"start": start, "jitter": rng.integers(-most, most + 1, (steps, 2))}


def plain_value(of: Subject, scalar: Scalar, picture: np.ndarray) -> float:
    """What the plain model says of a picture `[H, W, C]`."""
    return scalar.of(of.values([scalar.value])(of.batch(of.tensor(of.picture(picture))))[scalar.value])


@pytest.mark.parametrize("parametrization", ["cosine", "pixels"])
@pytest.mark.parametrize(
    ("model", "spec", "penalties"),
    [
        (tiny_cnn(size=(16, 12)), {}, {}),
        (tiny_cnn(size=(16, 12)), {"color": "BGR"}, {"l2": 3.0, "tv": 2.0}),
        (tiny_cnn(size=(16, 12), nhwc=True), {}, {"tv": 1.0}),
        (tiny_cnn(size=(16, 12), batch=2), {"color": "BGR"}, {}),
        (tiny_cnn(size=(16, 12), channels=1), {"color": "L", "mean": [0.5], "std": [0.5]}, {"l2": 1.0}),
    ],
    ids=["plain", "BGR with penalties", "channels last", "two rows", "grey"],
)
def test_it_is_the_librarys_ascent(
    model: onnx.ModelProto, spec: dict[str, Any], penalties: dict[str, float], parametrization: str
) -> None:
    of = subject(model, **spec)
    scalar = scalar_of(of, None, None, None, 2, None)
    settings = Settings.of(of.size, steps=16, parametrization=parametrization, jitter=2, **penalties)
    file = loop_model(of, scalar, settings)
    onnx.checker.check_model(file, full_check=True)
    feeds = inputs(of, 16)
    outputs = run(file, feeds)
    canvas = Canvas(parametrization, of.channels, *of.size, colors=of.colors)
    climbed = ascend(
        of.ascent(scalar), canvas, feeds["start"], steps=16, rate=settings.rate, transformation=settings.transformation,
        penalty=settings.penalty, rng=Drawn(feeds["jitter"], 2),  # type: ignore[arg-type]
    )  # fmt: skip
    picture = of.pixels(canvas.picture(climbed.parameters))
    assert outputs["history"] == pytest.approx(climbed.history, rel=1e-3, abs=1e-3)
    assert np.abs(outputs["picture"].astype(int) - picture).max() <= 1
    assert outputs["picture"].shape == (*of.size, of.channels)
    assert plain_value(of, scalar, outputs["picture"]) == pytest.approx(
        plain_value(of, scalar, picture), rel=1e-3, abs=1e-3
    )
    assert outputs["history"][-1] > outputs["history"][0]


def test_a_run_goes_on_from_the_parameters_of_another() -> None:
    of = subject()
    scalar = scalar_of(of, "relu1", 3, None, None, None)
    file = loop_model(of, scalar, Settings.of(of.size, steps=8, parametrization="cosine"))
    first = run(file, inputs(of, 8))
    second = run(file, {**inputs(of, 8), "start": first["parameters"]})
    assert second["history"][0] == pytest.approx(plain_value(of, scalar, first["picture"]), rel=0.1)
    assert second["history"][-1] > first["history"][-1]


def test_nothing_in_it_is_random_and_the_file_says_what_it_is() -> None:
    of = subject()
    file = loop_model(of, scalar_of(of, "relu1", 3, None, None, None), Settings.of(of.size, parametrization="pixels"))
    (loop,) = [node for node in file.graph.node if node.op_type == "Loop"]
    operators = {node.op_type for node in (*file.graph.node, *loop.attribute[0].g.node)}
    assert not operators & {"RandomNormal", "RandomUniform", "RandomNormalLike", "Multinomial", "Bernoulli", "DFT"}
    assert "w2" not in {t.name.rpartition("/")[2] for t in loop.attribute[0].g.initializer}, "only up to the layer"
    about = json.loads(next(p.value for p in file.metadata_props if p.key == KEY))
    assert about["objective"]["layer"] == "relu1"
    assert about["settings"]["steps"] == 256
    assert about["start"] == {"distribution": "normal", "deviation": 0.3}


def test_what_a_file_cannot_hold_is_refused() -> None:
    of = subject()
    scalar = scalar_of(of, None, None, None, 2, None)
    with pytest.raises(SettingError, match="fourier"):
        loop_model(of, scalar, Settings.of(of.size, parametrization="fourier"))
    with pytest.raises(SettingError, match="jitter alone"):
        loop_model(of, scalar, Settings.of(of.size, parametrization="cosine", rotation=5.0))


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "tolerance"), [(16, 1e-3), (256, 2e-2)])
def test_other_runtimes_make_the_same_picture(steps: int, tolerance: float, tmp_path: Path) -> None:
    cases: list[tuple[Subject, Scalar, Case]] = []
    for network, what in (("mnist", {"target": 3}), ("fashion_mnist", {"channel": 3})):
        of = Subject(Explainer(models.path(f"classroom/{network}.onnx")))
        scalar = scalar_of(of, None, what.get("channel"), None, what.get("target"), None)
        for parametrization in ("cosine", "pixels"):
            path = tmp_path / f"{network}_{parametrization}.onnx"
            settings = Settings.of(of.size, steps=steps, parametrization=parametrization)
            onnx.save(loop_model(of, scalar, settings), path)
            feeds = inputs(of, steps)
            names = ("picture", "parameters", "history")
            cases.append((of, scalar, Case("", "", network, path, feeds, names, run(str(path), feeds))))
    results: dict[str, list[Any]] = {}
    node = runtimes.node(ROOT / "build" / "runtimes")
    if node is not None:
        for package in ("onnxruntime-web", "onnxruntime-node"):
            results[package] = node(package, [case for _, _, case in cases])
    try:
        import openvino  # noqa: F401
    except ImportError:
        pass
    else:
        results["openvino"] = [runtimes.openvino(case) for _, _, case in cases]
    if not results:
        pytest.skip("neither Node nor OpenVINO is installed")
    for name, outputs in results.items():
        for (of, scalar, case), output in zip(cases, outputs, strict=True):
            assert not isinstance(output, str), (name, output)
            value = plain_value(of, scalar, output["picture"].astype(np.uint8))
            expected = plain_value(of, scalar, case.expected["picture"])
            assert value == pytest.approx(expected, rel=tolerance), (name, case.path.name)
