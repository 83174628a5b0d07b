"""Write a network of JAX as an ONNX file, with its own activations: the oracle of `benchmarks.inside`.

    python -m venv build/jax && build/jax/bin/pip install 'jax[cpu]==0.10.2' flax==0.12.8 jax2onnx==0.17.1
    build/jax/bin/python benchmarks/jax_network.py build/jax residual     # or separable
    python -m benchmarks.inside build/jax

It has an environment of its own, as that of the tests has other versions.

The folder gets `network.onnx` and `network.npz`: its title, the picture `x`, and by the names that jax2onnx gives the
values of the file, JAX's activations in float32 and, with `/float64` behind the name, in float64. Weights are random,
seeded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax2onnx import to_onnx

SEED, SIDE = 1234, 64


class Block(nnx.Module):
    """Two convolutions with batch norms beside a convolution 1x1, added."""

    def __init__(self, channels: int, features: int, rngs: Any) -> None:
        options: dict[str, Any] = {"rngs": rngs}
        self.conv1 = nnx.Conv(channels, features, (3, 3), strides=2, **options)
        self.norm1 = nnx.BatchNorm(features, use_running_average=True, **options)
        self.conv2 = nnx.Conv(features, features, (3, 3), **options)
        self.norm2 = nnx.BatchNorm(features, use_running_average=True, **options)
        self.side = nnx.Conv(channels, features, (1, 1), strides=2, **options)

    def __call__(self, x: Any) -> Any:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + self.side(x))


class Separable(nnx.Module):
    """An inverted residual block: 1x1, depthwise 3x3, a gate of the mean over the picture, 1x1, added."""

    def __init__(self, channels: int, strides: int, rngs: Any) -> None:
        wide = 4 * channels
        options: dict[str, Any] = {"rngs": rngs, "use_bias": False}
        self.expand = nnx.Conv(channels, wide, (1, 1), **options)
        self.norm1 = nnx.BatchNorm(wide, use_running_average=True, rngs=rngs)
        self.depthwise = nnx.Conv(wide, wide, (3, 3), strides=strides, feature_group_count=wide, **options)
        self.norm2 = nnx.BatchNorm(wide, use_running_average=True, rngs=rngs)
        self.gate = nnx.Linear(wide, wide, rngs=rngs)
        self.project = nnx.Conv(wide, channels, (1, 1), **options)
        self.added = strides == 1

    def __call__(self, x: Any) -> Any:
        y = nnx.silu(self.norm2(self.depthwise(nnx.silu(self.norm1(self.expand(x))))))
        y = self.project(y * nnx.sigmoid(self.gate(y.mean(axis=(1, 2), keepdims=True))))
        return nnx.relu(x + y if self.added else y)


class Network(nnx.Module):
    """A stem, three blocks, mean and linear layer."""

    def __init__(self, kind: str, rngs: Any) -> None:
        self.stem = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        if kind == "residual":
            blocks: Any = (Block(c, f, rngs) for c, f in ((16, 24), (24, 48), (48, 64)))
        else:
            blocks = (Separable(16, strides, rngs) for strides in (1, 2, 2))
        self.first, self.second, self.third = blocks
        self.head = nnx.Linear(64 if kind == "residual" else 16, 10, rngs=rngs)

    def stages(self, x: Any) -> dict[str, Any]:
        first = self.first(nnx.relu(self.stem(x)))
        second = self.second(first)
        return {"first": first, "second": second, "third": self.third(second)}

    def __call__(self, x: Any) -> Any:
        return self.head(self.stages(x)["third"].mean(axis=(1, 2)))


# title of the network, and value of the file: stage of the network
NETWORKS: dict[str, tuple[str, dict[str, str]]] = {
    "residual": ("residual network", {"relu_out_2": "first", "relu_out_4": "second", "relu_out_6": "third"}),
    "separable": ("separable network", {"relu_out_1": "first", "relu_out_2": "second", "relu_out_3": "third"}),
}


def build(kind: str) -> Network:
    """The network with batch-norm statistics that are neither trivial nor absurd."""
    network, rng = Network(kind, nnx.Rngs(SEED)), np.random.default_rng(SEED)
    for block in (network.first, network.second, network.third):
        for norm in (block.norm1, block.norm2):
            for name, low, high in (("mean", -0.2, 0.2), ("var", 0.3, 1.2), ("scale", 0.7, 1.3), ("bias", -0.2, 0.2)):
                weight = getattr(norm, name)
                weight[...] = jnp.asarray(rng.uniform(low, high, weight.shape), jnp.float32)
    return network


def main(folder: Path, kind: str = "residual") -> None:
    title, layers = NETWORKS[kind]
    network = build(kind)
    picture = np.random.default_rng(SEED).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    to_onnx(network, [("B", SIDE, SIDE, 3)], return_mode="file", output_path=str(folder / "network.onnx"))
    values = network.stages(jnp.asarray(picture))
    jax.config.update("jax_enable_x64", True)
    definition, state = nnx.split(network)
    exact = nnx.merge(definition, jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), state))
    doubled = exact.stages(jnp.asarray(picture, jnp.float64))
    arrays = {name: np.asarray(values[stage])[0] for name, stage in layers.items()}
    arrays |= {f"{name}/float64": np.asarray(doubled[stage])[0] for name, stage in layers.items()}
    assert all(array.dtype == np.float64 for name, array in arrays.items() if "/" in name)
    np.savez(folder / "network.npz", title=np.array(title), x=picture, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
