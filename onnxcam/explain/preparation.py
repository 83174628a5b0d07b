"""From what users call a picture to a batch of one row, and the geometry that maps back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import PreprocessError

Prepared = tuple[image.Picture, np.ndarray, image.Geometry]


@dataclass(frozen=True)
class Preparation:
    """How pictures become tensors of one model.

    Attributes:
        entry: the manifest's `input`.
        preprocess: None if neither the file nor the caller says.
    """

    entry: dict[str, Any]
    preprocess: image.Preprocess | None

    def prepare(self, picture: Any, *, color: str = "RGB") -> Prepared:
        """Read one picture and make it a batch of one row, see `onnxcam.Explainer.prepare`.

        Raises:
            PreprocessError: neither the file nor the caller says how pictures become tensors.
            PictureError: it cannot be read.
        """
        if self.preprocess is None:
            raise PreprocessError(
                "the model does not say how pictures become tensors, and a wrong guess silently gives a wrong map; "
                f"name it: preprocess= or --preprocess, one of {', '.join(image.candidates())}"
            )
        loaded = image.load(picture, color=color)
        tensor, geometry = self.preprocess.apply(loaded, layout=self.entry["layout"], dtype=self.entry["dtype"])
        return loaded, tensor, geometry
