"""A model whose picture is changed: pixels 0 to 1 in, as its own tensor, and a scalar with its gradient out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxcam import image, runtime
from onnxcam.errors import PreprocessError, SettingError
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.view import Graph
from onnxcam.inside import differentiated
from onnxcam.inside.scalar import Scalar
from onnxcam.network.layout import Layout
from onnxcam.network.names import COTANGENT, GRADIENT
from onnxcam.runtime.rows import like

Size = tuple[int, int]


class Subject:
    """A classifier, the scale of its input, and the size of the pictures that are made for it.

    Arguments:
        explainer: of the classifier; it has to know how pictures become tensors.
        size: height and width; None for what the file or its preprocessing fixes.

    Attributes:
        network: of the classifier.
        preprocess: how pictures become tensors.
        size: height and width.
        channels: of a picture: 3 of colours, red first; 1 of grey; else the model's bands.
        shape: of the model's batch.
        graph: of the network, for batches of this shape.

    Raises:
        PreprocessError: nothing says how pictures become tensors.
        SettingError: the size is left open, or another one than the file's.
    """

    def __init__(self, explainer: Explainer, size: Sequence[int] | None = None) -> None:
        if explainer.preprocess is None:
            raise PreprocessError(
                "the model does not say how pictures become tensors, so which values a picture may have is unknown; "
                f"name it: preprocess= or --preprocess, one of {', '.join(image.candidates())}"
            )
        self.explainer = explainer
        self.preprocess = explainer.preprocess
        self.network = explainer.sessions.network
        entry = explainer.manifest["input"]
        self._layout, self._dtype = Layout.of(entry), np.dtype(entry["dtype"])
        self.channels = self.preprocess.channels
        self.size = self._size(entry["shape"], size)
        self.shape = differentiated.picture_shape(self.network, self._layout, self.size, self.channels)
        self.graph: Graph = differentiated.fixed(self.network.graph, self.network.picture.name, self.shape)
        self._ascent: AscentSession | None = None
        self._values: ValueSession | None = None
        self._mean, self._std = (np.asarray(c, np.float64) for c in (self.preprocess.mean, self.preprocess.std))

    @property
    def colors(self) -> bool:
        """Whether the channels are colours."""
        return self.preprocess.color in ("RGB", "BGR")

    def tensor(self, picture: np.ndarray) -> np.ndarray:
        """The model's tensor, one row of it in float32, of a picture `[C, H, W]` of values 0 to 1, red first.

        (255 p · scale - mean) / std, without resizing and cropping.
        """
        factor, offset = self.affine
        values = picture[::-1] if self.preprocess.color == "BGR" else picture
        values = values * factor.astype(np.float32)[:, None, None] - offset.astype(np.float32)[:, None, None]
        return np.asarray(self._layout.from_canonical(values[None]))

    def adjoint(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient at the picture `[C, H, W]`, from that at every row of the model's batch."""
        factor, _ = self.affine
        rows = self._layout.to_canonical(gradient).astype(np.float32, copy=False)
        total: np.ndarray = rows[0] if len(rows) == 1 else rows.sum(axis=0)
        total = total * factor.astype(np.float32)[:, None, None]
        return total[::-1] if self.preprocess.color == "BGR" else total

    def batch(self, tensor: np.ndarray) -> np.ndarray:
        """A batch of the model's own element type of one row, which is repeated where the file fixes more of them."""
        rows = np.repeat(tensor, self.shape[0], axis=0) if self.shape[0] > 1 else tensor
        return np.ascontiguousarray(like(rows, self._dtype).astype(self._dtype, copy=False))

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """A picture of values 0 to 1 as uint8 `[H, W, C]`, rounded."""
        return np.ascontiguousarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """Values 0 to 1, float32 `[C, H, W]`, of pixels 0 to 255, `[H, W, C]`, red first."""
        return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255))

    def begin(self, picture: Any) -> np.ndarray:
        """A real picture as the model is given it, as values 0 to 1, `[C, H, W]`, red first.

        Raises:
            PictureError: it cannot be read, or is of another size.
        """
        loaded = self.explainer.preparation.read(picture)
        if loaded.tensor is not None:
            raise SettingError("an ascent begins from a picture, and this is the model's own input; give a picture")
        pixels, _ = self.preprocess.transform(loaded)
        if pixels.shape[:2] != self.size:
            pixels = image.Preprocess(
                color="RGB" if self.channels == 3 else "L", resize=image.Resize("stretch", self.size)
            ).transform(image.load(np.ascontiguousarray(np.asarray(pixels, np.uint8))))[0]
        values = self.picture(np.asarray(pixels, np.float32))
        return values[::-1].copy() if self.preprocess.color == "BGR" else values

    def as_picture(self, pixels: np.ndarray) -> image.Picture:
        """What the explainer takes for pixels `[H, W, C]` of this model."""
        if self.preprocess.color == "bands":
            visible = pixels[..., :3] if self.channels >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
            return image.Picture(np.ascontiguousarray(visible), "maximised", values=pixels.astype(np.float32))
        return image.Picture(pixels if self.channels == 3 else np.repeat(pixels, 3, axis=2), "maximised")

    def ascent(self, scalar: Scalar) -> AscentSession:
        """A session of a scalar and its gradient; the one before it, where that was of the same value."""
        if self._ascent is None or self._ascent.value != scalar.value:
            self._ascent = None  # its memory is needed
            self._ascent = AscentSession(self, scalar)
        self._ascent.aim(scalar)
        return self._ascent

    def values(self, names: Sequence[str]) -> ValueSession:
        """A session of the plain model up to these values, of whatever pictures it takes; the one before it, where that
        was of the same values.
        """
        if self._values is None or self._values.names != list(dict.fromkeys(names)):
            self._values = ValueSession(self, names)
        return self._values

    def value_shape(self, model: onnx.ModelProto, scalar: Scalar) -> list[int]:
        """The shape of a scalar's value, from the model of its ascent or from a run."""
        info = next(info for info in model.graph.input if info.name == COTANGENT)
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if info.type.tensor_type.HasField("shape") and all(shape):
            return shape
        grey = np.full((self.channels, *self.size), 0.5, np.float32)
        return list(self.values([scalar.value])(self.batch(self.tensor(grey)))[scalar.value].shape)

    def open(self, model: Any) -> Any:
        """Open a session on the explainer's execution providers."""
        return self.explainer.sessions.open(model, runtime.options.serving)

    @property
    def channels_last(self) -> bool:
        """Whether the model's input is `[N, H, W, C]`."""
        return self._layout.name == "NHWC"

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset per channel in the model's order: tensor = p · factor - offset."""
        return 255.0 * self.preprocess.scale / self._std, self._mean / self._std

    def _size(self, shape: Sequence[Any], size: Sequence[int] | None) -> Size:
        """The size of the picture.

        Raises:
            SettingError: it is left open, or contradicts the file.
        """
        declared = self._layout.size(shape)
        usual = self.preprocess.output_size or (None, None)
        sides: list[Any] = [a if isinstance(a, int) else b for a, b in zip(declared, usual, strict=True)]
        if size is not None:
            numbers = list(size)
            if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
                raise SettingError(f"size is {size!r}; expected height and width in pixels, such as (224, 224)")
            if any(isinstance(a, int) and a != b for a, b in zip(declared, numbers, strict=True)):
                raise SettingError(
                    f"the model takes pictures of {' x '.join(map(str, declared))} and was asked for "
                    f"{' x '.join(map(str, numbers))}; leave the size out"
                )
            sides = numbers
        if not all(isinstance(side, int) for side in sides):
            raise SettingError(
                "the file leaves the size of its picture open, and its preprocessing does not fix one; name height and "
                "width: size=(224, 224), --input-size 224"
            )
        return int(sides[0]), int(sides[1])


class AscentSession:
    """The value of a scalar and its gradient, of one picture at a time.

    Raises:
        ModelError, UnsupportedOperator: the model cannot be differentiated at its picture.
    """

    def __init__(self, subject: Subject, scalar: Scalar) -> None:
        self._subject, self._feed = subject, subject.network.picture.name
        model = differentiated.ascent(subject.network, scalar.value, subject.shape)
        inputs = {info.name: info.type.tensor_type for info in model.graph.input}
        self._picture_type = _dtype(inputs[self._feed])
        self._cotangent_type = _dtype(inputs[COTANGENT])
        self.value, self._shape = scalar.value, subject.value_shape(model, scalar)
        scalar.weights(self._shape)  # refuses a place that does not lie on the map, before anything is opened
        self._session = subject.open(model)
        self.aim(scalar)

    def aim(self, scalar: Scalar) -> None:
        """Compute another scalar of the same value."""
        weights = scalar.weights(self._shape)
        # scaled to 1, so that the gradients of a model in float16 do not vanish
        self._scale = float(np.abs(weights).max()) or 1.0
        self._cotangent = (weights / self._scale).astype(self._cotangent_type)

    def __call__(self, picture: np.ndarray) -> tuple[float, np.ndarray]:
        """The value and its gradient, float32 `[C, H, W]`, at a picture of values 0 to 1, `[C, H, W]`."""
        value, gradient = self.at(self._subject.tensor(picture))
        return value, self._subject.adjoint(gradient)

    def at(self, tensor: np.ndarray) -> tuple[float, np.ndarray]:
        """The value and its gradient at the model's tensor of one row."""
        rows = self._subject.shape[0]
        batch = np.repeat(tensor, rows, axis=0) if rows > 1 else tensor
        feeds = {self._feed: np.ascontiguousarray(batch, self._picture_type), COTANGENT: self._cotangent}
        outputs = runtime.run(self._session, [differentiated.VALUE, GRADIENT], feeds)
        gradient = outputs[GRADIENT].astype(np.float32, copy=False) * np.float32(self._scale)
        return float(outputs[differentiated.VALUE]) * self._scale, gradient


class ValueSession:
    """Values of the plain model."""

    def __init__(self, subject: Subject, names: Sequence[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._feed = subject.network.picture.name
        self._session = subject.open(differentiated.forward(subject.network, self.names))

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The values of a batch of the model's own element type, by name."""
        return runtime.run(self._session, self.names, {self._feed: batch})


def _dtype(tensor: Any) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
