"""What a covered part changes, as a picture and as a page with a slider of boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

import numpy as np

from onnxcam import image
from onnxcam.html import page as html
from onnxcam.image import sheet
from onnxcam.inside import boxes, outcome
from onnxcam.inside.feature_maps import as_input
from onnxcam.inside.outcome import Prediction
from onnxcam.inside.perturbation import Perturbation, Prepared
from onnxcam.network.layout import Layout

_COLORMAP = "viridis"
_LISTED = 3


def draw(prepared: Prepared, result: Perturbation, layout: Layout, preprocess: image.Preprocess | None) -> sheet.Pixels:
    """Draw a page: the picture with the box, what the model got instead, and the difference at each layer.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    picture, tensor, geometry = prepared
    view = as_input(picture, geometry)
    size = (view.shape[0], view.shape[1])
    large = _enlarged(view, size)  # of a small picture the lines of the box would hide the most
    box = _scaled(result.covered, size, large.shape[:2])
    cells = [
        sheet.Cell(boxes.outlined(large, box), "covered", f"fill {result.fill}"),
        sheet.Cell(covered_view(view, tensor, result, layout, preprocess), "what the model got"),
    ]
    maps = []
    for layer, difference in result.differences.items():
        shares = image.normalize(difference, "max")
        large = _enlarged(image.colorize(shares, _COLORMAP), size)
        marked = boxes.outlined(large, _scaled(result.covered, geometry.input_size, large.shape[:2]))
        maps.append(sheet.Cell(marked, layer, share(result.spread[layer])))
    notes = [
        f"{when}: {_listed(result, some)}"
        for when, some in (("before", result.before), ("after", result.after))
        if some
    ]
    explained = [
        "Below each map: the layer, and the share of its cells that changed. Bright: changed most, each map on its own "
        "scale. The box is where the picture was covered."
    ]
    return sheet.page(
        [
            sheet.heading(f"Covered: {answer(result)}", notes),
            sheet.grid(cells, 2),
            sheet.heading("Mean change over channels", explained),
            sheet.grid(maps, min(3, max(len(maps), 2))),
            sheet.scale(image.palette(_COLORMAP), "unchanged", "changed most"),
        ]
    )


def answer(result: Perturbation) -> str:
    """What the cover did to the prediction, in a sentence."""
    if result.similarity is not None:
        return f"the embedding's cosine with that of the whole picture is {result.similarity:.4g}"
    index, label, before = result.before[0]
    now = float(result.probabilities[1, index])
    text = f"{label} goes from {outcome.amount(result.kind, before)} to {outcome.amount(result.kind, now)}"
    if result.after[0][0] == index:
        return text
    return f"{text}, now {result.after[0][1]} {outcome.amount(result.kind, result.after[0][2])}"


def _listed(result: Perturbation, predictions: Sequence[Prediction]) -> str:
    return outcome.listed(result.kind, predictions[:_LISTED])


def share(number: float) -> str:
    """A share of cells as a percentage: 0 % and 100 % only where it is exactly that."""
    if 0 < number < 0.01:
        return "< 1 %"
    if 0.99 < number < 1:
        return "> 99 %"
    return f"{100 * number:.0f} %"


def covered_view(
    view: sheet.Pixels,
    tensor: np.ndarray,
    result: Perturbation,
    layout: Layout,
    preprocess: image.Preprocess | None,
) -> sheet.Pixels:
    """The view with the covered part as the model got it: its preprocessing undone, or else from the tensor's lowest
    to its highest value.
    """
    before, after = (layout.to_canonical(values)[0].astype(np.float64) for values in (tensor, result.tensor))
    if preprocess is not None and preprocess.scale:
        mean, std = (np.reshape(values, (-1, 1, 1)) for values in (preprocess.mean, preprocess.std))
        shades = (after * std + mean) / preprocess.scale
        shades = shades[::-1] if preprocess.color == "BGR" else shades
    else:
        low, high = before.min(axis=(1, 2), keepdims=True), before.max(axis=(1, 2), keepdims=True)
        shades = (after - low) / np.where(high > low, high - low, 1) * 255
    shades = np.clip(shades, 0, 255)
    if len(shades) not in (1, 3):
        shades = shades.mean(axis=0, keepdims=True)
    filled = np.rint(np.broadcast_to(shades, (3, *shades.shape[1:])).transpose(1, 2, 0)).astype(np.uint8)
    left, top, right, bottom = result.covered
    drawn = view.copy()
    drawn[top:bottom, left:right] = filled[top:bottom, left:right]
    return drawn


def _enlarged(pixels: sheet.Pixels, size: tuple[int, int]) -> sheet.Pixels:
    """A small map in whole multiples of its cells, about as large as the picture."""
    factor = max(round(max(size[0], 224) / pixels.shape[0]), 1)
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _scaled(box: boxes.Box, before: tuple[int, int], after: Sequence[int]) -> boxes.Box:
    down, across = after[0] / before[0], after[1] / before[1]
    left, top, right, bottom = box
    x0, y0 = round(left * across), round(top * down)
    return x0, y0, max(round(right * across), x0 + 1), max(round(bottom * down), y0 + 1)


def slider(prepared: Prepared, results: Sequence[Perturbation], rows: int, title: str) -> str:
    """Build a page on which a box is moved over the picture, and the maps and predictions follow.

    Without its script the page lists every place in a table.

    Arguments:
        results: one for each place of the box, row by row.
        rows: how many rows of places there are.
    """
    picture, _, geometry = prepared
    view = as_input(picture, geometry)
    height, width = geometry.input_size
    layers = list(results[0].differences)
    peaks = {layer: max(float(one.differences[layer].max()) for one in results) or 1.0 for layer in layers}
    worst = max(range(len(results)), key=lambda index: results[index].drop)
    places = []
    for one in results:
        left, top, right, bottom = one.covered
        places.append(
            {
                "box": [
                    100 * part for part in (left / width, top / height, (right - left) / width, (bottom - top) / height)
                ],
                "text": answer(one),
                "after": [[label, outcome.amount(one.kind, p)] for _, label, p in one.after[:_LISTED]],
                "spread": [share(one.spread[layer]) for layer in layers],
            }
        )
    columns = len(results) // rows
    data = json.dumps({"rows": rows, "columns": columns, "start": worst, "places": places})
    data = data.replace("<", r"\u003c")  # a label must not end the script element
    sources = [
        html.picture(image.encode_png(image.colorize(one.differences[layer] / peaks[layer], _COLORMAP)), layer)
        for one in results
        for layer in layers
    ]
    figures = "".join(
        f'<figure class="depth"><div class="map" data-layer="{index}"></div><figcaption>{escape(layer)}: '
        f'<span class="spread" data-layer="{index}"></span> of its cells changed</figcaption></figure>'
        for index, layer in enumerate(layers)
    )
    table = "".join(
        f"<tr><td>{index // columns + 1}</td><td>{index % columns + 1}</td><td>{escape(answer(one))}</td>"
        + "".join(f'<td class="number">{share(one.spread[layer])}</td>' for layer in layers)
        + "</tr>"
        for index, one in enumerate(results)
    )
    head = "".join(f'<th class="number">{escape(layer)}</th>' for layer in layers)
    left, top, right, bottom = results[0].covered
    size = f"{right - left} x {bottom - top} pixels of the model's input, filled with {results[0].fill}"
    before = f"Before: {escape(_listed(results[0], results[0].before))}. " if results[0].before else ""
    where = f"row {worst // columns + 1}, column {worst % columns + 1}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{before}The box covers {escape(size)}. It matters most in {where}: {escape(answer(results[worst]))}.</p>",
        '<section id="slider" hidden><div class="stage"><div class="view">',
        html.picture(image.encode_png(_enlarged(view, (height, width))), "what the model sees of the picture"),
        '<div id="box" aria-hidden="true"></div></div><div class="controls">',
        f'<label>across <input type="range" id="column" min="0" max="{columns - 1}" step="1"></label>',
        f'<label>down <input type="range" id="row" min="0" max="{rows - 1}" step="1"></label>',
        '<p class="soft">Arrow keys move the box.</p>',
        '<p id="answer" aria-live="polite"></p><ol id="after"></ol></div></div>',
        f'<div class="depths">{figures}</div><p class="soft">Mean change over channels; bright: changed most, one '
        "scale for all places of a layer.</p></section>",
        '<h2>Every place</h2><div class="wide"><table class="places"><thead><tr><th>row</th><th>column</th>'
        f"<th>prediction</th>{head}</tr></thead><tbody>{table}</tbody></table></div>",
        f'<div id="maps" hidden>{"".join(sources)}</div>',
        f'<script type="application/json" id="data">{data}</script>',
        html.foot(),
    ]
    return html.page(title, body, style="perturb.css", script="perturb.js")
