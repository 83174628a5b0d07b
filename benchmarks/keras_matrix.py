"""The Keras part of the coverage matrix: parity with GradientTape, the way a Keras Grad-CAM script computes it.

The oracle shares nothing with the exporter: a second model with the same weights and no softmax, its inner layer and
its logits in one functional model, `tape.gradient(score, layer output)`; in float64 a third one for the noise floor.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from benchmarks import matrix
from benchmarks.architectures import KERAS

Row = dict[str, Any]
# parameters up to which the exporter compares, too, before the matrix does: above, both at once need over 24 GB
MOST_VERIFIED = 250_000_000
PACKAGES = ("keras", "tensorflow_cpu", "tf2onnx")


class Built:
    """An architecture with seeded weights and batch-norm statistics that are neither trivial nor absurd, three times.

    They are drawn as `matrix.build` draws them.

    Attributes:
        model: with its softmax, the one that is exported.
    """

    def __init__(self, name: str, seed: int = matrix.SEED) -> None:
        import keras
        import numpy as np

        self.entry = KERAS[name]
        keras.utils.set_random_seed(seed)
        self.model = self._made("softmax")
        self._exact: Any = None
        generator = np.random.default_rng(seed)
        norms = [layer for layer in self.model.layers if type(layer).__name__ == "BatchNormalization"]

        def settle(norm: Any, given: Any, **options: Any) -> Any:
            mean, variance = np.mean(given, axis=(0, 1, 2)), np.var(given, axis=(0, 1, 2))
            norm.moving_variance.assign(variance * generator.uniform(0.8, 1.25, variance.shape))
            norm.moving_mean.assign(mean + np.sqrt(variance) * generator.uniform(-0.2, 0.2, mean.shape))
            for weight, low, high in ((norm.gamma, 0.7, 1.3), (norm.beta, -0.2, 0.2)):
                if weight is not None:
                    weight.assign(generator.uniform(low, high, weight.shape))
            return type(norm).call(norm, given, **options)

        for norm in norms:
            norm.call = functools.partial(settle, norm)
        if norms:
            self.model(self.pictures(matrix.SETTLING, seed), training=False)
        for norm in norms:
            del norm.call

    def _made(self, activation: str | None) -> Any:
        import keras

        side = self.entry.size
        build = getattr(keras.applications, self.entry.build)
        return build(weights=None, input_shape=(side, side, 3), classifier_activation=activation)

    def pictures(self, count: int, seed: int) -> Any:
        """Random pictures of 0 to 255 for models that scale them, else standard normal."""
        import numpy as np

        generator = np.random.default_rng(seed)
        shape = (count, self.entry.size, self.entry.size, 3)
        scales = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in self.model.layers[:3])
        found = generator.uniform(0, 255, shape) if scales else generator.standard_normal(shape)
        return found.astype(np.float32)

    @functools.cached_property
    def logits(self) -> Any:
        """The same weights without the softmax."""
        made = self._made(None)
        made.set_weights(self.model.get_weights())
        return made

    @property
    def exact(self) -> Any:
        """The model without softmax in float64."""
        import keras

        if self._exact is None:
            before = keras.config.dtype_policy()
            try:
                keras.config.set_dtype_policy("float64")
                self._exact = self._made(None)
            finally:
                keras.config.set_dtype_policy(before)
            self._exact.set_weights(self.model.get_weights())
        return self._exact


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
        chosen = np.where(targets < 0, np.asarray(scores).argmax(axis=1), targets)
        total = tf.reduce_sum(tf.gather(scores, chosen, axis=1, batch_dims=1))
    return np.asarray(scores), np.asarray(value), np.asarray(tape.gradient(total, value)), chosen


def measure(name: str) -> dict[str, Row]:
    """Export an architecture twice, at its default layer and in the middle, and compare both with GradientTape.

    Returns:
        rows `default` and `middle`, in the form of the torch part of the matrix.
    """
    import numpy as np

    built = Built(name)
    batch = built.pictures(matrix.SAMPLES, matrix.SEED + 1)
    return {
        kind: _compare(built, None if kind == "default" else built.entry.middle, batch, np.array([-1, 7, 123]))
        for kind in ("default", "middle")
    }


def _compare(built: Built, layer: str | None, batch: Any, targets: Any) -> Row:
    import numpy as np

    from onnxcam.errors import VerificationError
    from onnxcam.exporters.keras import export
    from onnxcam.graph import manifest

    began = time.perf_counter()
    refused = None
    try:
        verify = 1 if built.model.count_params() <= MOST_VERIFIED else False
        explained: Any = export(built.model, None, layers=layer and [layer], verify=verify)
    except VerificationError as error:
        refused = str(error)
        explained = export(built.model, None, layers=layer and [layer], verify=False)
    seconds = time.perf_counter() - began
    held = manifest.read(explained)
    assert held is not None
    entry = held["layers"][0]
    names = [own.name for own in built.model.layers]
    place = names.index(entry["name"])

    def oracle(model: Any, pictures: Any, classes: Any) -> tuple[Any, Any, Any, Any]:
        return gradient_tape(model, model.layers[place].name, pictures, classes)

    found = matrix._run(explained, held, entry, batch, targets)
    expected = oracle(built.logits, batch, targets)
    far = [matrix._distance(*pair) for pair in zip(found, expected[:3], strict=True)]
    figures: dict[str, Row] = {
        quantity: {"error": float(far[k].max()), "floor": None, "beside": None}
        for k, quantity in enumerate(matrix.QUANTITIES)
    }
    above = [part > matrix.TOLERANCE for part in far]
    if any(part.any() for part in above):
        classes = expected[3]
        exact = oracle(built.exact, batch.astype(np.float64), classes)
        floors = [matrix._distance(*pair) for pair in zip(expected[:3], exact[:3], strict=True)]
        for k, quantity in enumerate(matrix.QUANTITIES):
            if above[k].any():
                figures[quantity]["floor"] = float(floors[k].max())
        above = [
            part > np.maximum(matrix.TOLERANCE, matrix.SLACK * floor) for part, floor in zip(far, floors, strict=True)
        ]
    if any(part.any() for part in above):
        least = [np.where(part, np.inf, 0.0) for part in above]
        generator = np.random.default_rng(matrix.SEED)
        for _ in range(matrix.DRAWS):
            moved = (batch * (1 + matrix.ROUNDING * generator.standard_normal(batch.shape))).astype(np.float32)
            there = oracle(built.logits, moved, classes)
            again = matrix._run(explained, held, entry, moved, classes)
            pairs = zip(again, there[:3], strict=True)
            least = [np.minimum(part, matrix._distance(*pair)) for part, pair in zip(least, pairs, strict=True)]
            if max(float(part.max()) for part in least) <= matrix.TOLERANCE:
                break
        for k, quantity in enumerate(matrix.QUANTITIES):
            if above[k].any():
                figures[quantity]["beside"] = float(least[k].max())
        above = [part > matrix.TOLERANCE for part in least]
    return {
        "layer": entry["name"],
        "shape": entry["shape"],
        "oracle": "hooks",
        "figures": figures,
        "passed": not any(part.any() for part in above),
        "exporter": "tf2onnx",
        "export_s": seconds,
        "refused": refused,
    }
