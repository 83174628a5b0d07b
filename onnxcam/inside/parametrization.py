"""Parametrizations: the numbers that an ascent changes, and the picture of pixels 0 to 1 that they stand for.

    picture = sigmoid(colour · basis(parameters))

A basis is linear and has an exact adjoint: a gradient at the picture becomes the gradient at the parameters. Bases
other than `pixels` give every frequency the amplitude that it has in photographs, about 1 / f, so that the ascent does
not drown in fine noise (https://distill.pub/2017/feature-visualization).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from onnxcam.errors import SettingError, listing, nearest

# a square root of the correlation of colours over ImageNet's pictures, scaled to a largest column of norm 1: values of
# lucid (Apache-2.0), https://github.com/tensorflow/lucid/blob/master/lucid/optvis/param/color.py
_COLOR_ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLORS = (_COLOR_ROOT / np.linalg.norm(_COLOR_ROOT, axis=0).max()).astype(np.float32)
_CONTRAST = 0.25  # of the pictures of a natural spectrum, as in lucid
_DARKEST = 1 / 510  # half a grey level: what a picture that begins an ascent is clipped to, for a finite logit


class Basis(Protocol):
    """A linear map from parameters to `[C, H, W]`.

    Attributes:
        shape: of the parameters, float32.
    """

    shape: tuple[int, ...]

    def apply(self, parameters: np.ndarray) -> np.ndarray:
        """The values `[C, H, W]`, float32."""

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient at the parameters, from that at the values."""

    def solve(self, values: np.ndarray) -> np.ndarray:
        """Parameters of these values."""


class Pixels:
    """The values themselves."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape: tuple[int, ...] = (channels, height, width)

    def apply(self, parameters: np.ndarray) -> np.ndarray:
        """The parameters."""
        return parameters

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient."""
        return gradient

    def solve(self, values: np.ndarray) -> np.ndarray:
        """The values."""
        return values


class Fourier:
    """Real and imaginary parts of the half spectrum, `[C, H, W // 2 + 1, 2]`, times a natural amplitude."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self._size = height, width
        self.shape: tuple[int, ...] = (channels, height, width // 2 + 1, 2)
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        amplitude = _CONTRAST * np.sqrt(height * width) * _natural(frequency, self._size)
        self._amplitude = amplitude.astype(np.float32)
        # every column but those of frequency 0 and 1/2 stands for its conjugate, too
        twice = np.full(width // 2 + 1, 2.0)
        twice[0] = 1.0
        if width % 2 == 0:
            twice[-1] = 1.0
        self._weight = (amplitude * twice / (height * width)).astype(np.float32)

    def apply(self, parameters: np.ndarray) -> np.ndarray:
        """The inverse real Fourier transform of amplitude · parameters."""
        spectrum = np.ascontiguousarray(parameters).view(np.complex64)[..., 0] * self._amplitude
        return np.asarray(np.fft.irfft2(spectrum, s=self._size, axes=(1, 2)), np.float32)

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """amplitude · weight / (H W) · the Fourier transform of the gradient, weight 2 where a conjugate is implied."""
        spectrum = np.fft.rfft2(gradient, axes=(1, 2)) * self._weight
        return np.asarray(spectrum.astype(np.complex64, copy=False)[..., None].view(np.float32))

    def solve(self, values: np.ndarray) -> np.ndarray:
        """The Fourier transform of the values / amplitude."""
        spectrum = np.fft.rfft2(values.astype(np.float64), axes=(1, 2)) / self._amplitude
        return np.ascontiguousarray(spectrum.astype(np.complex64)[..., None].view(np.float32))


class Cosine:
    """Coefficients `[C, H, W]` of the orthonormal cosine basis (DCT-II), times a natural amplitude.

    The one basis of natural amplitudes that is two matrices, so that any ONNX runtime computes it.

    Attributes:
        rows, columns: the orthonormal bases `[H, H]` and `[W, W]`, one frequency per column.
        amplitude: of each coefficient, `[H, W]`.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.shape: tuple[int, ...] = (channels, height, width)
        self.rows, self.columns = _cosines(height), _cosines(width)
        frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width)[None] / (2 * width))
        # sqrt 2: the noise of one real coefficient stands for that of a complex one and its conjugate
        amplitude = np.sqrt(2) * _CONTRAST * _natural(frequency, (height, width))
        self.amplitude = amplitude.astype(np.float32)

    def apply(self, parameters: np.ndarray) -> np.ndarray:
        """rows · (amplitude · parameters) · columnsᵀ."""
        return np.asarray(self.rows @ (self.amplitude * parameters) @ self.columns.T)

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """amplitude · (rowsᵀ · gradient · columns)."""
        return np.asarray(self.amplitude * (self.rows.T @ gradient @ self.columns))

    def solve(self, values: np.ndarray) -> np.ndarray:
        """(rowsᵀ · values · columns) / amplitude."""
        return np.asarray((self.rows.T @ values @ self.columns) / self.amplitude)


BASES: dict[str, type[Pixels] | type[Fourier] | type[Cosine]] = {
    "fourier": Fourier,
    "pixels": Pixels,
    "cosine": Cosine,
}


class Canvas:
    """A picture made of parameters: a basis, decorrelated colours, a sigmoid.

    Arguments:
        parametrization: one of `BASES`.
        channels, height, width: of the picture.
        colors: whether the channels are red, green and blue, which are decorrelated then.

    Attributes:
        basis: of the parameters.
        matrix: from decorrelated colours to red, green and blue, `[3, 3]`; None of other channels.

    Raises:
        SettingError: no such parametrization.
    """

    def __init__(self, parametrization: str, channels: int, height: int, width: int, *, colors: bool) -> None:
        if parametrization not in BASES:
            close = nearest(str(parametrization), BASES, 1)[0]
            raise SettingError(
                f"parametrization is {parametrization!r}, expected one of {listing(BASES)}; did you mean {close!r}?"
            )
        self.basis: Basis = BASES[parametrization](channels, height, width)
        self.matrix: np.ndarray | None = COLORS if colors else None

    def noise(self, rng: np.random.Generator, deviation: float) -> np.ndarray:
        """Normal random parameters, float32."""
        return (rng.standard_normal(self.basis.shape) * deviation).astype(np.float32)

    def picture(self, parameters: np.ndarray) -> np.ndarray:
        """The picture, float32 `[C, H, W]` from 0 to 1."""
        values = self.basis.apply(parameters)
        if self.matrix is not None:
            values = _mixed(self.matrix, values)
        picture = np.tanh(values * np.float32(0.5))  # a sigmoid that does not overflow
        picture += np.float32(1)
        picture *= np.float32(0.5)
        return picture

    def adjoint(self, picture: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The gradient at the parameters of this picture, from that at the picture."""
        inner = gradient * picture
        inner *= np.float32(1) - picture
        if self.matrix is not None:
            inner = _mixed(self.matrix.T, inner)
        return self.basis.adjoint(inner)

    def parameters(self, picture: np.ndarray) -> np.ndarray:
        """Parameters, float32, of a picture of values 0 to 1, which are kept half a grey level from both ends."""
        pixels = np.clip(picture.astype(np.float64), _DARKEST, 1 - _DARKEST)
        values = np.log(pixels / (1 - pixels))
        if self.matrix is not None:
            values = _mixed(np.linalg.inv(self.matrix.astype(np.float64)), values)
        return np.ascontiguousarray(self.basis.solve(values), np.float32)


def _mixed(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mix channels by a matrix."""
    return np.asarray((matrix @ values.reshape(len(values), -1)).reshape(values.shape))


def _natural(frequency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The amplitude of each frequency, in cycles per pixel: 1 / f, at most that of the lowest frequency."""
    return np.asarray(1.0 / np.maximum(frequency, 1.0 / max(size)))


def _cosines(length: int) -> np.ndarray:
    """The orthonormal DCT-II basis, one frequency per column."""
    position, frequency = np.arange(length) + 0.5, np.arange(length)
    basis = np.cos(np.pi * position[:, None] * frequency[None] / length) * np.sqrt(2.0 / length)
    basis[:, 0] /= np.sqrt(2.0)
    return np.asarray(basis, np.float32)
