"""From what users call a picture to a batch of one row, and the geometry that maps back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.errors import ModelError, PictureError, PreprocessError
from onnxcam.network.layout import Layout
from onnxcam.targets.labels import from_configuration
from onnxcam.targets.readout import Readout
from onnxcam.targets.task_labels import check_labels

if TYPE_CHECKING:
    from onnxcam.image.arrays import Array

Prepared = tuple[image.Picture, np.ndarray, image.Geometry]


def labels_of(labels: Sequence[str] | None, manifest: Mapping[str, Any], preprocess: Any) -> list[str] | None:
    """The class names that a caller gives, or else those in the file, or in the folder of a preprocessing.

    Raises:
        LabelsError: not one label per class.
    """
    names: list[str] | None = list(labels) if labels is not None else manifest.get("labels")
    if names is None:
        names = from_configuration(preprocess)
        return names if names is not None and len(names) == int(manifest["scores"]["classes"]) else None
    return check_labels(names, Readout.from_manifest(manifest["scores"]))


class Preparation(NamedTuple):
    """How pictures become tensors of one model.

    Attributes:
        entry: the manifest's `input`.
        preprocess: None if neither the file nor the caller says.
        bands: indices of the bands that are shown of pictures of many.
    """

    entry: dict[str, Any]
    preprocess: image.Preprocess | None
    bands: tuple[int, ...] | None = None

    @classmethod
    def of(cls, entry: dict[str, Any], spec: Any, value_range: Any, bands: Any) -> Preparation:
        """What the caller and the file say.

        Arguments:
            entry: the manifest's `input`.
            spec: the caller's preprocessing, or None for that of the file.
            value_range, bands: as of `onnxcam.Explainer`.

        Raises:
            PreprocessError: a preprocessing that does not exist or does not fit the model.
            ModelError: that of the file does not.
            PictureError: a range or bands that cannot be.
        """
        stated = displayed = None
        if value_range is not None or bands is not None:
            from onnxcam.image import arrays

            stated, displayed = arrays.check_range(value_range), arrays.check_bands(bands)
        stored = entry.get("preprocess") if spec is None else None
        try:
            spec = spec if spec is not None else stored
            preprocess = image.resolve(spec, entry["shape"], layout=entry["layout"]) if spec else None
        except PreprocessError as error:
            if stored is None:
                raise
            raise ModelError(
                f"the preprocessing in the model's manifest cannot be used: {error}; export the model again, or name "
                "another: preprocess= or --preprocess"
            ) from error
        if preprocess is None and stated is not None:
            raise PreprocessError(
                "a range says which values count as pixels of 0 and 255, and the model does not say how pixels become "
                f"tensors; name it: preprocess= or --preprocess, one of {', '.join(image.candidates())}"
            )
        if preprocess is not None and stated is not None:
            preprocess = replace(preprocess, value_range=stated)
        return cls(entry, preprocess, displayed)

    def prepare(
        self,
        picture: Any,
        *,
        color: str = "RGB",
        header: image.Header | None = None,
        max_pixels: int | None = image.MAX_PIXELS,
    ) -> Prepared:
        """Read one picture and make it a batch of one row, see `onnxcam.Explainer.prepare`.

        Arguments:
            picture, color: as in `onnxcam.Explainer.explain`.
            header: of encoded bytes, where it is known.
            max_pixels: refuse encoded pictures of more pixels before anything is decoded; None for no limit.

        Raises:
            PreprocessError: neither the file nor the caller says how pictures become tensors.
            PictureError: it cannot be read.
        """
        loaded = self.read(picture, color=color, header=header, max_pixels=max_pixels)
        if loaded.tensor is not None:
            size = loaded.size
            return loaded, loaded.tensor, image.Geometry(size, size, (0, 0), size)
        if self.preprocess is None:
            raise self.unknown()
        tensor, geometry = self.preprocess.apply(loaded, layout=self.entry["layout"], dtype=self.entry["dtype"])
        return loaded, tensor, geometry

    def read(
        self,
        picture: Any,
        *,
        color: str = "RGB",
        header: image.Header | None = None,
        max_pixels: int | None = image.MAX_PIXELS,
    ) -> image.Picture:
        """Read one picture, or a tensor of the model's own input; its errors are those of `prepare`."""
        if isinstance(picture, image.Picture):
            return picture
        plain = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim < 4
        array = None if plain else image.read_array(picture, max_pixels, header)
        if array is not None and self.is_prepared(array):
            return self._of_tensor(array)
        if self.preprocess is None:
            raise self.unknown()
        return image.load(
            picture if array is None else array,
            color=color,
            max_pixels=max_pixels,
            header=header,
            channels=self.preprocess.channels,
            value_range=self.preprocess.value_range,
            bands=self.bands,
        )

    def unknown(self) -> PreprocessError:
        """The error where nobody says how pictures become tensors."""
        shape = ", ".join(str(side) for side in self.entry["shape"])
        return PreprocessError(
            "the model does not say how pictures become tensors, and a wrong guess silently gives a wrong map; "
            f"name it: preprocess= or --preprocess, one of {', '.join(image.candidates())}; or give arrays of the "
            f"model's own input, {self.entry['dtype']} [{shape}]"
        )

    def is_prepared(self, array: Array) -> bool:
        """Whether an array is the model's own input rather than a picture.

        It is where it has the input's type, number of axes and sizes. Without the batch axis it could be a picture too,
        so then only where nobody says how pictures become tensors.

        Raises:
            PictureError: it may be either, or holds several rows.
        """
        values, shape = array.values, self.entry["shape"]
        floats = values.dtype.kind == "f" and self.entry["dtype"].startswith("float")
        if not (floats or (values.dtype == np.uint8 and self.entry["dtype"] == "uint8")):
            return False
        sides = shape[4 - values.ndim :] if values.ndim in (3, 4) else ()
        batch = values.ndim == 4
        pairs = list(zip(sides, values.shape, strict=True))[1 if batch else 0 :] if sides else []
        channels = shape[Layout.of(self.entry).channels]
        if not pairs or not isinstance(channels, int) or any(isinstance(a, int) and a != b for a, b in pairs):
            return False
        if batch and len(values) != 1:
            raise PictureError(
                f"{array.subject} holds {len(values)} rows of the model's input; give one at a time, or a batch to "
                "attribute()"
            )
        if batch or (self.preprocess is None and floats):
            return True
        if floats and self.preprocess is not None and self.preprocess.value_range is None:
            raise PictureError(
                f"{array.subject} could be the model's prepared input or a picture: add the batch axis, array[None], "
                "if it is prepared; or state which values are black and white, --range LO,HI (value_range=)"
            )
        return False

    def _of_tensor(self, array: Array) -> image.Picture:
        """A picture of a tensor of the model's own input; what is shown of it are its bands, stretched."""
        from onnxcam.image import arrays

        values = array.values if array.values.ndim == 4 else array.values[None]
        try:
            arrays.check_finite(values)
            canonical: Any = np.moveaxis(Layout.of(self.entry).to_canonical(values)[0], 0, -1)
            pixels = arrays.display(canonical, self.bands)
        except PictureError as error:
            raise PictureError(f"{array.subject} {error}") from error
        tensor = np.ascontiguousarray(values.astype(self.entry["dtype"]))
        return image.Picture(pixels, array.name, array.path, tensor=tensor)


def takes_all(preparation: Preparation, pictures: Sequence[Any]) -> bool:
    """Whether every one of these is an array of the model's own input, so that no preprocessing is needed."""
    for picture in pictures:
        array = image.read_array(picture)
        if array is None or not preparation.is_prepared(array):
            return False
    return bool(pictures)
