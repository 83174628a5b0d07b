"""Torch computes what the small nets of `tests.support.detectors` compute, so that its autograd is an oracle."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support import detectors


def run(model: onnx.ModelProto, picture: np.ndarray, *values: str) -> list[np.ndarray]:
    """What onnxruntime gives for the file's outputs, and for further values."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"picture": picture}))


@pytest.mark.parametrize("name", detectors.NETS)
def test_torch_computes_what_the_file_computes(name: str) -> None:
    torch = pytest.importorskip("torch")
    model, net = detectors.build(name), detectors.NETS[name]
    picture = detectors.pictures(net.batch or 2)
    names = [output.name for output in model.graph.output]
    selected = [node.output[0] for node in model.graph.node if node.op_type == "NonMaxSuppression"]
    *outputs, indices = [*run(model, picture, *selected), *([] if selected else [np.empty((0, 3), np.int64)])]
    if selected:
        assert len(indices) > 2
    expected = detectors.forward(name, torch.from_numpy(picture.astype(np.float64)), indices.T[1:])
    for key, output in zip(names, outputs, strict=True):
        np.testing.assert_allclose(output, expected[key].numpy(), rtol=1e-4, atol=1e-4)
