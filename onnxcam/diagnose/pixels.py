"""Findings about a file that takes the picture itself: the same picture, predictions and maps as prepared in Python."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcam import image, runtime
from onnxcam.diagnose.report import Finding
from onnxcam.diagnose.subject import Subject
from onnxcam.graph import edit
from onnxcam.image.resample import Pixels, resize
from onnxcam.network import manifest as manifests

# (height, width) of the pictures: reduced, enlarged, wide and tall
_SIZES = ((480, 640), (150, 100), (90, 400), (300, 300))
EQUAL_PIXELS = 0.999  # of a resized picture, within one grey level
TOLERANCE = 1e-2  # of predictions and of heatmaps from 0 to 1


def preparation(model: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Finding:
    """Compare what a file of pixels makes of pictures with the preprocessing in Python and the file behind it.

    Arguments:
        model: the file of pixels; the picture it prepares becomes an output.
        subject: the explainable model inside it.
    """
    manifest = manifests.read(model) or {}
    pixels, entry = manifest["pixels"], manifest["input"]
    graph = {name for node in model.graph.node for name in node.output}
    resized = pixels.get("resized") if pixels.get("resized") in graph else None
    if resized is not None:
        model.graph.output.append(edit.info(resized, onnx.TensorProto.FLOAT, [None] * 4))
    session = subject.open_session(model)
    spec = image.resolve(entry["preprocess"], entry["shape"], layout=entry["layout"])
    one = pixels["maps"][-1]
    worst = {"predictions": 0.0, "heatmap": 0.0}
    equal = 1.0
    for size in _SIZES:
        picture = smooth(size, rng)
        tensor, geometry = spec.apply(picture, layout=entry["layout"], dtype=entry["dtype"])
        names = [subject.scores, one["heatmap"]]
        want = runtime.run(subject.file, names, subject.top_1(tensor))
        feeds = subject.top_1(tensor)
        feeds[pixels["name"]] = picture
        del feeds[entry["name"]]
        fetched = [pixels["predictions"], one["picture_heatmap"], *([resized] if resized is not None else [])]
        computed = runtime.run(session, fetched, feeds)
        off = np.abs(computed[pixels["predictions"]] - subject.readout.probabilities(want[subject.scores])[0])
        scale = max(float(np.abs(want[subject.scores]).max()), 1.0) if subject.readout.numeric else 1.0
        worst["predictions"] = max(worst["predictions"], float(off.max()) / scale)
        fused = image.normalize(image.resize_map(image.normalize(want[one["heatmap"]]), geometry.input_size))
        heatmap = geometry.to_picture(fused[0])
        worst["heatmap"] = max(worst["heatmap"], float(np.abs(computed[one["picture_heatmap"]] - heatmap).max()))
        if resized is not None:
            rows = computed[resized][0] if entry["layout"] == "NHWC" else computed[resized][0].transpose(1, 2, 0)
            equal = min(equal, float((np.abs(rows - spec.transform(picture)[0]) <= 1).mean()))
    figures = {**worst, "equal_pixels": equal}
    detail = (
        f"{100 * equal:.2f} % of the prepared pixels within one grey level, predictions off by at most "
        f"{worst['predictions']:.1e} and heatmaps by {worst['heatmap']:.1e}, on {len(_SIZES)} pictures of as many sizes"
    )
    if equal < EQUAL_PIXELS or max(worst.values()) > TOLERANCE or not np.isfinite(list(worst.values())).all():
        return Finding("pixels", "failed", detail, figures, "use another runtime or execution provider for this file")
    return Finding("pixels", "ok", detail, figures)


def smooth(size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A picture with a photograph's spectrum, roughly: coarse noise enlarged, and a little fine noise."""
    coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    enlarged = resize(coarse, size, "bicubic").astype(np.int64)
    return np.asarray(np.clip(enlarged + rng.integers(-12, 13, (*size, 3)), 0, 255), np.uint8)
