"""The view of a layer or input method: one layer of one batch, and the scores of the model when it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from onnxcam.targets.objectives import Objective
from onnxcam.targets.readout import Readout

if TYPE_CHECKING:
    from onnxcam.graph.window import Window

# (start, stop) of the variants -> their activations float32 [m, C, h, w], and int64 [m], which row each is of
Make = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class View(Protocol):
    """One layer of a batch of N pictures, under one objective.

    Attributes:
        scores: logits `[N, K]` of the unchanged pictures.
        objective: what is explained.
        activations: float32 `[N, C, h, w]`, whatever the model's layout is; of `input` the pictures, `[N, C, H, W]`.
        gradients: d objective / d activations, float32 `[N, C, h, w]`; computed when first read.
        affine: whether the scores are an affine function of the activations.
        shape: height and width of the model's input.
        window: the part of the model's input that the layer's grid covers, None for all of it.
        readout: the meaning of the scores.
        rng: random numbers, the same for the same seed.
    """

    scores: np.ndarray
    objective: Objective
    activations: np.ndarray
    affine: bool
    shape: tuple[int, int]
    window: Window | None
    readout: Readout
    rng: np.random.Generator

    @property
    def gradients(self) -> np.ndarray: ...

    @property
    def guided(self) -> np.ndarray:
        """`gradients` by guided backpropagation: at every ReLU only what is positive flows back."""

    def contributions(self) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """(start, stop, parts) of the pictures, a few at a time: what the picture itself (first) and each additive
        constant of the network contribute to the objective, gradient times value, float32 `[m, C, h, w]` each.
        """

    @property
    def input(self) -> View:
        """The same pictures, with the picture itself as the layer."""

    def value(self) -> np.ndarray:
        """The objective of the unchanged pictures, float64 `[N]`."""

    def values(self, total: int, make: Make) -> np.ndarray:
        """The objective of `total` variants, float64 `[total]`; they are made and run a few at a time."""

    def occluded(self, windows: Sequence[tuple[slice, slice, slice]], hidden: np.ndarray) -> np.ndarray | None:
        """The objective of the pictures with one window of channels, rows and columns replaced, float64
        `[windows, N]`; None where the layer is not the input, or windows had better be made as variants.

        Arguments:
            hidden: what is put there, float32 `[N, C, H, W]`.
        """

    def variants(self, total: int, make: Make) -> np.ndarray:
        """The scores of `total` variants, `[total, K]`."""

    def differentiate(self, total: int, make: Make, *, relu: str = "plain") -> Iterator[tuple[int, int, np.ndarray]]:
        """(start, stop, gradients float32 `[m, C, h, w]`) of variants, a few at a time.

        Arguments:
            relu: `guided` for guided backpropagation.
        """

    def under(self, objective: Objective) -> View:
        """The same layer and pictures under another objective."""

    def at(self, pictures: np.ndarray) -> View:
        """The same layer of changed pictures, float32 `[N, C, H, W]`; the objective's classes stay."""

    def curvature(self) -> np.ndarray:
        """The second derivative of the objective times the activations, float32 `[N, C, h, w]`."""

    @property
    def tokens(self) -> tuple[tuple[int, int], int]:
        """Of a transformer: height and width of the grid of patches, and how many tokens lie before it."""

    def attentions(self) -> list[np.ndarray]:
        """Of a transformer: the attention of each block, float32 `[N, heads, T, T]`, rows summing to 1.

        Raises:
            LayerError: no attention over all tokens was found.
        """

    def attention_gradients(self) -> list[np.ndarray]:
        """Gradients at each block's attention, float32 `[N, heads, T, T]`, of the objective read at that block."""

    def tell(self, done: int, total: int) -> None:
        """Report progress, where the method itself counts."""

    def without_channels(self, order: np.ndarray) -> np.ndarray | None:
        """The objective without each of these channels `[N, k]` of each row, float64 `[N, k]`; None where variants have
        to be run.
        """

    def places_alone(self) -> np.ndarray | None:
        """The objective with each place kept and the others 0, float64 `[N, h·w]`; None where variants must be run."""

    def first_component(self, values: np.ndarray) -> np.ndarray:
        """`[N, C, h, w]` to float32 `[N, h, w]`: each place's coordinate along the direction in which places differ
        most, with the sign with which it correlates with the mean over channels.
        """

    def gram(self) -> np.ndarray:
        """Inner products of the places of the activations minus their mean, float64 `[N, h w, h w]`."""

    def map(self, method: str) -> np.ndarray:
        """The map of a graph method, float32 `[N, h, w]` before its ReLU."""
