"""What a failed run means where the model leaves the picture's height and width open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcam.errors import ModelError, OnnxcamError
from onnxcam.network.layout import Layout


def refusal(error: OnnxcamError, entry: dict[str, Any], shape: Sequence[int]) -> OnnxcamError:
    """The error of a run, or the likeliest reason for it: that the model runs at another size only.

    Arguments:
        error: what `onnxcam.runtime.run` raised, or anything else, which is returned as it is.
        entry: the manifest's `input`.
        shape: of the batch.
    """
    layout = Layout.of(entry)
    at_run = type(error.__cause__).__module__.startswith("onnxruntime")
    if not at_run or all(isinstance(side, int) for side in layout.size(entry["shape"])):
        return error
    rows, columns = layout.size(shape)
    return ModelError(
        f"the model leaves the picture's size open but does not run on {rows} x {columns} pixels; name the size it was "
        "trained on: --input-size HEIGHTxWIDTH (input_size=)"
    )
