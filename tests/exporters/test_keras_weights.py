"""Weights outside the graph: the conversion gives what it gives with them inside, and copies them less often."""

from __future__ import annotations

import collections
import contextlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

from onnxcam.exporters import keras_capture
from onnxcam.exporters.keras import export
from onnxcam.exporters.keras_weights import lean
from onnxcam.network import manifest
from onnxcam.runtime import open_session, run

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")]


def wide() -> Any:
    """A classifier of convolutions, plain, grouped, depthwise and separable, that have over 16,384 weights each."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(128, 3, padding="same"),
            layers.BatchNormalization(),
            layers.Conv2D(256, 3, groups=4, activation="relu"),
            layers.DepthwiseConv2D(9, padding="same"),
            layers.SeparableConv2D(128, 9, padding="same", activation="relu", name="last"),
            layers.LayerNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(200, activation="softmax"),
        ]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_collections")
def test_the_file_is_the_one_that_weights_inside_the_graph_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide()
    exported = export(model, None, verify=2)
    monkeypatch.setattr(keras_capture, "lean", contextlib.nullcontext)
    expected = export(model, None, verify=False)
    kinds = [collections.Counter(node.op_type for node in one.graph.node) for one in (exported, expected)]
    assert kinds[0] == kinds[1]
    batch = {"input": np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)}
    header = manifest.read(exported)
    assert header is not None
    names = [header["scores"]["name"], header["layers"][0]["gradients"]]
    arrays = [run(open_session(one.SerializeToString(), None), names, batch) for one in (exported, expected)]
    for name in names:
        np.testing.assert_allclose(arrays[0][name], arrays[1][name], rtol=1e-5, atol=1e-7)


def test_everything_of_others_is_put_back_even_after_an_error() -> None:
    from tensorflow.python.framework import convert_to_constants
    from tf2onnx import convert, graph, optimizer, tf_loader

    def patched() -> list[Any]:
        return [
            convert_to_constants._construct_concrete_function,
            convert._convert_common,
            convert.process_tf_graph,
            graph.Node.update_proto,
            optimizer.copy,
            tf_loader.fix_freezing_errors_part2,
            tf_loader.tf_optimize,
        ]

    before = patched()
    with pytest.raises(RuntimeError, match="in between"), lean():
        assert all(a is not b for a, b in zip(patched(), before, strict=True))
        raise RuntimeError("in between")
    assert patched() == before


def test_a_version_without_one_of_the_steps_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.framework import convert_to_constants
    from tf2onnx import convert, tf_loader

    monkeypatch.delattr(convert, "process_tf_graph")
    before = convert_to_constants._construct_concrete_function, tf_loader.tf_optimize
    with lean():
        assert (convert_to_constants._construct_concrete_function, tf_loader.tf_optimize) == before


def test_the_float64_oracle_takes_weights_that_nothing_reads_and_agrees() -> None:
    import keras

    from onnxcam.exporters import keras_module, keras_oracle
    from onnxcam.targets.readout import LOGITS, Readout

    class Idle(keras.Model):
        """Computes a large convolution whose result it drops."""

        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Conv2D(128, 3, name="first")
            self.idle = keras.layers.Conv2D(128, 3)
            self.head = keras.layers.Dense(300)

        def call(self, x: Any) -> Any:
            x = self.first(x)
            self.idle(x)
            return self.head(keras.ops.mean(keras.ops.relu(x), axis=(1, 2)))

    keras.utils.set_random_seed(2)
    model = Idle()
    batch = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)
    model(batch)
    watched = keras_module.Watched(model)
    target = keras_module.Target("first", "first", 0, (10, 10, 128))
    oracle = keras_oracle.KerasOracle(
        watched, [target], batch, outputs=1, places=[0], readout=Readout("scores", LOGITS, 300), stepped_over=False
    )
    single, double = oracle(batch, False), oracle(batch, True)
    assert single is not None and double is not None
    assert double.scores.dtype == np.float64
    np.testing.assert_allclose(single.scores, double.scores, rtol=1e-4, atol=1e-5)
    targets = np.array([3, 250])
    for one, other in zip(single.gradients(targets), double.gradients(targets), strict=True):
        assert other.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


SCRIPT = """
import json, resource, sys
import keras
from onnxcam.exporters.keras import export

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

side = 2800
model = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
    *(keras.layers.Dense(side, activation="relu") for _ in range(4)), keras.layers.Dense(10)])
small = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
    keras.layers.Dense(10)])
export(small, None, verify=1)
before = peak()
export(model, None, verify=1)
print(json.dumps({"used": peak() - before, "weights": 4 * model.count_params()}))
"""


@pytest.mark.slow
def test_an_export_holds_the_weights_a_dozen_times_at_most() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["weights"] > 90e6
    # measured: 7; with the weights in the graph 18
    assert figures["used"] < 13 * figures["weights"]
