"""The Keras part of the coverage matrix: parity with GradientTape, the way a Keras Grad-CAM script computes it.

The oracle shares nothing with the exporter: a second model with the same weights and no softmax, its inner layer and
its logits in one functional model, `tape.gradient(score, layer output)`; in float64 a third one for the noise floor.
"""

from __future__ import annotations

import functools
import gc
import time
from typing import Any

from benchmarks.architectures import KERAS
from benchmarks.files import SAMPLES, SEED, SETTLING, open_file
from benchmarks.judgement import judge

Row = dict[str, Any]


class Built:
    """An architecture with seeded weights and batch-norm statistics that are neither trivial nor absurd, three times.

    They are drawn as `torch_matrix.build` draws them.

    Arguments:
        name: of `KERAS`. seed: of the weights.
        size: side of the input picture; that of `KERAS` by default.
        settling: pictures `[N, size, size, 3]` of mean 0 and deviation 1 whose statistics the batch norms take; white
            noise by default.

    Attributes:
        model: with its softmax, the one that is exported.
    """

    def __init__(self, name: str, seed: int = SEED, size: int | None = None, settling: Any = None) -> None:
        import keras
        import numpy as np

        self.entry = KERAS[name]
        self.size = self.entry.size if size is None else size
        keras.utils.set_random_seed(seed)
        self.model = self._network("softmax")
        generator = np.random.default_rng(seed)
        norms = [layer for layer in self.model.layers if type(layer).__name__ == "BatchNormalization"]

        def settle(norm: Any, inputs: Any, **options: Any) -> Any:
            mean, variance = np.mean(inputs, axis=(0, 1, 2)), np.var(inputs, axis=(0, 1, 2))
            norm.moving_variance.assign(variance * generator.uniform(0.8, 1.25, variance.shape))
            norm.moving_mean.assign(mean + np.sqrt(variance) * generator.uniform(-0.2, 0.2, mean.shape))
            for weight, low, high in ((norm.gamma, 0.7, 1.3), (norm.beta, -0.2, 0.2)):
                if weight is not None:
                    weight.assign(generator.uniform(low, high, weight.shape))
            return type(norm).call(norm, inputs, **options)

        for norm in norms:
            norm.call = functools.partial(settle, norm)
        if norms:
            self.model(self.pictures(SETTLING, seed) if settling is None else self._ranged(settling), training=False)
        for norm in norms:
            del norm.call

    def _network(self, activation: str | None) -> Any:
        import keras

        build = getattr(keras.applications, self.entry.build)
        return build(weights=None, input_shape=(self.size, self.size, 3), classifier_activation=activation)

    def pictures(self, count: int, seed: int) -> Any:
        """Random pictures of 0 to 255 for models that scale them, else standard normal."""
        import numpy as np

        generator = np.random.default_rng(seed)
        shape = (count, self.size, self.size, 3)
        pixels = generator.uniform(0, 255, shape) if self._scales() else generator.standard_normal(shape)
        return pixels.astype(np.float32)

    def _ranged(self, pictures: Any) -> Any:
        """Pictures of mean 0 and deviation 1 in the range that the model takes."""
        return (127.5 + 64 * pictures).clip(0, 255) if self._scales() else pictures

    def _scales(self) -> bool:
        """Whether the model takes pixels of 0 to 255."""
        return any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in self.model.layers[:3])

    @functools.cached_property
    def logits(self) -> Any:
        """The same weights without the softmax."""
        network = self._network(None)
        network.set_weights(self.model.get_weights())
        return network

    @functools.cached_property
    def exact(self) -> Any:
        """The model without softmax in float64."""
        import keras

        before = keras.config.dtype_policy()
        try:
            keras.config.set_dtype_policy("float64")
            network = self._network(None)
        finally:
            keras.config.set_dtype_policy(before)
        network.set_weights(self.model.get_weights())
        return network

    def release(self) -> None:
        """Forget the networks without softmax until they are asked for again: they are as large as the model."""
        self.__dict__.pop("logits", None)
        self.__dict__.pop("exact", None)
        gc.collect()


def gradient_tape(model: Any, layer: str, batch: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """Scores, the layer's value, d score[n, target[n]] / d value, and the targets with top-1 in place of negatives."""
    import keras
    import numpy as np
    import tensorflow as tf

    # layers without a name of their own are numbered on, so that the two models call them differently
    inner = model.get_layer(layer).output
    both = keras.Model(model.inputs, [inner, model.output])
    with tf.GradientTape() as tape:
        value, scores = both(tf.constant(batch), training=False)
        classes = np.where(targets < 0, np.asarray(scores).argmax(axis=1), targets)
        total = tf.reduce_sum(tf.gather(scores, classes, axis=1, batch_dims=1))
    return np.asarray(scores), np.asarray(value), np.asarray(tape.gradient(total, value)), classes


def measure(name: str) -> dict[str, Row]:
    """Export an architecture twice, at its default layer and in the middle, and compare both with GradientTape.

    Returns:
        rows `default` and `middle`, in the form of the torch part of the matrix.
    """
    import numpy as np

    built = Built(name)
    batch = built.pictures(SAMPLES, SEED + 1)
    rows = {}
    for kind in ("default", "middle"):
        layer = None if kind == "default" else built.entry.middle
        rows[kind] = _compare(built, layer, batch, np.array([-1, 7, 123]))
        built.release()
    return rows


def _compare(built: Built, layer: str | None, batch: Any, targets: Any) -> Row:
    import numpy as np

    from onnxcam.errors import VerificationError
    from onnxcam.exporters.keras import export
    from onnxcam.network import manifest

    began = time.perf_counter()
    refused = None
    try:
        explained: Any = export(built.model, None, layers=layer and [layer], verify=1)
    except VerificationError as error:
        refused = str(error)
        explained = export(built.model, None, layers=layer and [layer], verify=False)
    seconds = time.perf_counter() - began
    header = manifest.read(explained)
    assert header is not None
    entry = header["layers"][0]
    names = [inner.name for inner in built.model.layers]
    place = names.index(entry["name"])

    def oracle(model: Any, pictures: Any, classes: Any) -> tuple[Any, Any, Any, Any]:
        return gradient_tape(model, model.layers[place].name, pictures, classes)

    file = open_file(explained, header, entry)
    del explained
    *expected, classes = oracle(built.logits, batch, targets)
    figures, passed = judge(
        file(batch, targets),
        expected,
        batch,
        classes,
        file,
        lambda pictures, classes: oracle(built.logits, pictures, classes)[:3],
        lambda pictures, classes: oracle(built.exact, pictures.astype(np.float64), classes)[:3],
    )
    return {
        "layer": entry["name"],
        "shape": entry["shape"],
        "oracle": "hooks",
        "figures": figures,
        "passed": passed,
        "exporter": "tf2onnx",
        "export_s": seconds,
        "refused": refused,
    }
