"""Small Keras models of every kind that people bring."""

from __future__ import annotations

from typing import Any

import pytest

keras = pytest.importorskip("keras")
K = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Residual(K.Layer):
    """A block that calls two convolutions and adds, by operators rather than by layers."""

    def __init__(self, filters: int = 8, **options: Any) -> None:
        super().__init__(**options)
        self.filters = filters
        self.first = K.Conv2D(filters, 3, padding="same", name="first")
        self.second = K.Conv2D(filters, 3, padding="same", name="second")

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build((*shape[:-1], self.filters))
        self.built = True

    def call(self, x: Any) -> Any:
        return keras.ops.relu(x + self.second(keras.ops.relu(self.first(x))))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"filters": self.filters}


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Two stages and a head, in code; a condition on Python values alone."""

    def __init__(self, classes: int = 4, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self.stem = K.Conv2D(8, 3, strides=2, name="stem")
        self.block = Residual(name="block")
        self.drop = K.Dropout(0.5)
        self.head = K.Dense(classes, name="head")

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.block(self.stem(x))
        x = keras.ops.mean(x, axis=(1, 2))
        if training:
            x = self.drop(x, training=training)
        return self.head(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"classes": self.classes}


def seeded(model: Any, seed: int = 0) -> Any:
    """Random weights, batch-norm statistics included: nothing is an identity, no bias is zero."""
    import numpy as np

    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        values = generator.standard_normal(tuple(weight.shape)) * 0.4
        if "variance" in weight.path or "gamma" in weight.path:
            values = 0.5 + np.abs(values)
        weight.assign(values.astype(weight.dtype if isinstance(weight.dtype, str) else "float32"))
    return model


def functional(classes: int = 5, activation: str | None = "softmax", channels: int = 3, side: int = 16) -> Any:
    """Convolution, batch norm, ReLU, pooling, convolution, ReLU, pooling, dense."""
    picture = keras.Input((side, side, channels), name="picture")
    x = K.Conv2D(6, 3, name="conv1")(picture)
    x = K.BatchNormalization(name="norm1")(x)
    x = K.ReLU(name="relu1")(x)
    x = K.MaxPooling2D(name="pool1")(x)
    x = K.Conv2D(8, 3, name="conv2")(x)
    x = K.ReLU(name="relu2")(x)
    x = K.GlobalAveragePooling2D(name="mean")(x)
    return seeded(keras.Model(picture, K.Dense(classes, activation=activation, name="head")(x), name="small"))


def flattened() -> Any:
    """Sequential, grey, pooled at the end, with a Flatten head."""
    return seeded(
        keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                K.Conv2D(4, 3, activation="relu", name="a"),
                K.Conv2D(6, 3, activation="relu", name="b"),
                K.MaxPooling2D(name="pool"),
                K.Flatten(name="flat"),
                K.Dense(3, activation="softmax", name="head"),
            ],
            name="flattened",
        )
    )


def nested() -> Any:
    """Augmentation and Rescaling before a model of its own, with a Normalization inside and a new head behind."""
    inner = keras.Input((16, 16, 3))
    normal = K.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.04, 0.05, 0.06], name="normal")
    x = K.Conv2D(6, 3, name="conv")(normal(inner))
    x = K.BatchNormalization(name="bn")(x)
    x = K.Activation("swish", name="act")(x)
    x = K.Conv2D(8, 3, use_bias=False, name="top_conv")(x)
    x = K.BatchNormalization(name="top_bn")(x)
    backbone = seeded(keras.Model(inner, K.Activation("swish", name="top_activation")(x), name="backbone"))
    picture = keras.Input((16, 16, 3))
    x = K.RandomFlip("horizontal", name="flip")(picture)
    x = K.RandomRotation(0.2, name="turn")(x)
    x = K.RandomContrast(0.2, name="contrast")(x)
    x = K.Rescaling(1 / 255, name="scale")(x)
    x = K.GlobalAveragePooling2D(name="mean")(backbone(x))
    x = K.Dropout(0.3, name="drop")(x)
    head = K.Dense(3, activation="softmax", name="head")
    model = keras.Model(picture, head(x), name="fine_tuned")
    seeded(head, 1)
    return model


def shared() -> Any:
    """One convolution called three times."""
    picture = keras.Input((10, 10, 4))
    conv = K.Conv2D(4, 3, padding="same", activation="relu", name="again")
    x = conv(conv(conv(picture)))
    return seeded(keras.Model(picture, K.Dense(3, name="head")(K.GlobalAveragePooling2D()(x)), name="shared"))


def twins() -> Any:
    """Two nested models with layers of the same names."""
    picture = keras.Input((10, 10, 3))
    x = picture
    for name in ("left", "right"):
        inner = keras.Input(x.shape[1:])
        x = keras.Model(inner, K.Conv2D(4, 3, activation="relu", name="conv")(inner), name=name)(x)
    return seeded(keras.Model(picture, K.Dense(3, name="head")(K.GlobalAveragePooling2D()(x)), name="twins"))


def make() -> Any:
    """Named on a command line."""
    return functional()


@keras.saving.register_keras_serializable(package="tests")
class Tokens(K.Layer):
    """Patches `[N, h, w, C]` as tokens with positions, behind a class token where one is wanted."""

    def __init__(self, token: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.token = token

    def build(self, shape: Any) -> None:
        count = shape[1] * shape[2] + self.token
        self.position = self.add_weight(shape=(1, count, shape[3]), name="position")
        self.first = self.add_weight(shape=(1, 1, shape[3]), name="class_token") if self.token else None
        self.built = True

    def call(self, x: Any) -> Any:
        x = keras.ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))
        if self.first is not None:
            first = keras.ops.tile(self.first, (keras.ops.shape(x)[0], 1, 1))
            x = keras.ops.concatenate([first, x], axis=1)
        return x + self.position

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"token": self.token}


def transformer(token: bool = True, size: tuple[int, int] = (24, 32)) -> Any:
    """A ViT of two blocks over patches of 8 x 8, with a class token or the mean over its tokens."""
    picture = keras.Input((*size, 3))
    x = Tokens(token, name="tokens")(K.Conv2D(16, 8, strides=8, name="patches")(picture))
    for k in range(2):
        y = K.LayerNormalization(epsilon=1e-6, name=f"norm_{k}")(x)
        x = K.Add(name=f"looked_{k}")([x, K.MultiHeadAttention(2, 8, name=f"attention_{k}")(y, y)])
        y = K.LayerNormalization(epsilon=1e-6, name=f"mlp_norm_{k}")(x)
        y = K.Dense(16, name=f"second_{k}")(K.Dense(32, activation="gelu", name=f"first_{k}")(y))
        x = K.Add(name=f"block_{k}")([x, y])
    x = K.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = x[:, 0] if token else K.GlobalAveragePooling1D(name="mean")(x)
    return seeded(keras.Model(picture, K.Dense(5, name="head")(x), name="vit"))
