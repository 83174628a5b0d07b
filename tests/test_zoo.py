"""Old files as other tools wrote them: the onnx package's light models, augmented, run and checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.diagnose.gradients import ModelReport, check
from onnxcam.network import manifest
from onnxcam.runtime import open_session, run
from tests.support import onnx_models as zoo

# half a gigabyte of vgg19 takes a minute, and it is made of what bvlc_alexnet and zfnet512 are made of
MARKS: dict[str, Any] = {"shufflenet": (), "squeezenet": (), "vgg19": pytest.mark.soak}
# a run of their tails reads up to half a GB of weights
LARGE = ("bvlc_alexnet", "vgg19", "zfnet512")
CPU = ["CPUExecutionProvider"]
every = pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in zoo.NAMES],
    indirect=True,
    scope="module",
)


class Model(NamedTuple):
    name: str
    plain: onnx.ModelProto
    explainable: onnx.ModelProto


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    plain = zoo.light(request.param)
    return Model(request.param, plain, onnxcam.augment(plain))


def predict(model: onnx.ModelProto, outputs: list[str], batch: np.ndarray) -> dict[str, np.ndarray]:
    header = manifest.read(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    picture = header["input"]["name"] if header else next(i.name for i in model.graph.input if i.name not in weights)
    return run(open_session(model.SerializeToString(), CPU), outputs, {picture: batch})


@pytest.mark.slow
@every
def test_predictions_of_the_explainable_model_are_those_of_the_file_as_it_came(model: Model) -> None:
    _, plain, explained = model
    header = manifest.read(explained)
    assert header is not None
    batch = np.random.default_rng(5).normal(size=header["input"]["shape"]).astype(np.float32)
    output = plain.graph.output[0].name
    entry = header["layers"][0]

    before = predict(plain, [output], batch)[output]
    after = predict(explained, [output, entry["activations"], entry["gradients"], "heatmap"], batch)

    assert before.std() > 1e-8, "a zoo model whose scores are all equal proves nothing"
    assert after[output].shape == before.shape
    assert np.linalg.norm(after[output] - before) <= 1e-5 * np.linalg.norm(before)
    assert after[entry["gradients"]].shape == after[entry["activations"]].shape == tuple(entry["shape"])
    assert after["heatmap"].shape == (1, *entry["grid"])


@pytest.mark.slow
@every
def test_gradients_agree_with_finite_differences(model: Model) -> None:
    agree(check(model.explainable, providers=CPU, directions=3 if model.name in LARGE else 8))


@pytest.mark.soak
@pytest.mark.parametrize("model", LARGE, indirect=True, scope="module")
def test_gradients_agree_with_finite_differences_in_more_directions(model: Model) -> None:
    agree(check(model.explainable, providers=CPU))


def agree(report: ModelReport) -> None:
    assert report.passed, "\n".join(report.lines())
    gradients = [finding for finding in report.findings if finding.name.startswith("gradients")]
    assert [finding.status for finding in gradients] == ["ok"], "\n".join(report.lines())
