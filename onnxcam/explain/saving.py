"""Writing explanations: which files, in which format, all of one explanation or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, OutputError, listing
from onnxcam.explain.outlines import of_map
from onnxcam.files import FileSet
from onnxcam.image import png
from onnxcam.image.colormap import look_up

if TYPE_CHECKING:
    from onnxcam.explain.explanation import Explanation

RECORD = "explanation.json"
FILES = ("input", "grayscale", "heatmap", "overlay", "panel", "json")
MAPS = frozenset(("grayscale", "heatmap", "overlay"))
FORMATS = ("png", "jpeg", "webp")
ENDINGS = tuple(f".{name}" for name in (*FORMATS, "json"))


@dataclass(frozen=True)
class Drawing:
    """How the pictures of explanations are drawn and written.

    Attributes:
        alpha: opacity of the heatmap in overlays, 0 (the picture alone) to 1 (the heatmap alone); None for one that
            grows with the map, see `onnxcam.image.overlay`.
        colormap: a name of `onnxcam.image.COLORMAPS`.
        compress: False stores the colours of PNG files as they are: faster, and larger files.
        files: which are written, of `FILES`.
        format: of colour pictures, one of `FORMATS`.
    """

    alpha: float | None = None
    colormap: str = image.DEFAULT_COLORMAP
    compress: bool = True
    files: frozenset[str] = frozenset(FILES)
    format: str = "png"

    @classmethod
    def of(
        cls,
        alpha: float | None = None,
        colormap: str | None = None,
        compress: bool = True,
        files: str | Iterable[str] | None = None,
        format: str = "png",
    ) -> Drawing:
        """The drawing with these settings, the default for None.

        Raises:
            InputError: no such file or format.
        """
        if format not in FORMATS:
            raise InputError(f"format={format!r}; expected one of {', '.join(FORMATS)}")
        colormap = image.DEFAULT_COLORMAP if colormap is None else colormap
        return cls(alpha, colormap, compress, frozenset(FILES) if files is None else check_files(files), format)


def check_files(names: str | Iterable[str]) -> frozenset[str]:
    """The files that these names, in a sequence or separated by commas, stand for.

    Raises:
        InputError: an unknown name, or none.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    selected = [part.strip() for part in parts if isinstance(part, str)]
    unknown = [name for name in selected if name not in FILES]
    if unknown or len(selected) != len(parts) or not selected:
        what = listing(unknown) if unknown else repr(names)
        raise InputError(f"files={what}; expected some of {', '.join(FILES)}")
    return frozenset(selected)


def save(
    explanation: Explanation, folder: Path, style: Drawing, encoded: bytes | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the files of an explanation, all of them or none.

    Arguments:
        encoded: the JPEG file that `explanation.picture` was decoded from; with `format="jpeg"` its data are written as
            they are, but for metadata, in place of an encoding of the pixels.

    Returns:
        what `explanation.json` says without its `files`; names of the files by what they show, relative to the folder.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    _make(folder)
    with FileSet() as together:
        writer = _Writer(explanation, folder, style, together)
        writer.pictures(encoded)
        record = explanation.to_dict()
        names = dict(writer.names)
        if "json" in style.files:
            text = json.dumps(record | {"files": names}, ensure_ascii=False, indent=2) + "\n"
            # a file name that is not text keeps its bytes as JSON escapes
            together.write(folder / RECORD, [text.encode(errors="backslashreplace")])
            names["explanation"] = RECORD
    return record, names


def would_overwrite(name: str, methods: Sequence[str], style: Drawing) -> bool:
    """Whether a file of this name in the folder of an explanation by these methods would be replaced."""
    path = Path(name.lower())
    if path.suffix not in {".png", f".{style.format}"}:
        return False
    stems = {"input"} & style.files | ({"panel", "methods", "layers", "boxes"} if "panel" in style.files else set())
    maps = any(path.stem == f"{method}_{kind}" for method in methods for kind in style.files)
    return path.stem in stems or maps


class _Writer:
    """Draws and writes the pictures of one explanation.

    Attributes:
        names: of the files written, by what they show.
    """

    def __init__(self, explanation: Explanation, folder: Path, style: Drawing, together: FileSet) -> None:
        self.names: dict[str, str] = {}
        self._explanation = explanation
        self._folder = folder
        self._style = style
        self._together = together
        self._levels = levels_of(explanation) if style.files & (MAPS | {"panel"}) else None

    def pictures(self, encoded: bytes | None = None) -> None:
        """Write all pictures that the style asks for; `encoded` as of `save`."""
        explanation, style = self._explanation, self._style
        if "input" in style.files:
            self._input(encoded)
        self._maps(explanation, "", "")
        if "panel" in style.files:
            self._colors("panel", "panel", explanation.panel(style.colormap, style.alpha, levels=self._levels))
        self._classes(explanation, "")
        if explanation.task is not None and len(explanation.maps) > 1 and "panel" in style.files:
            name = "boxes" if explanation.boxes else "regions"
            self._colors(name, name, explanation.boxes_panel(style.colormap, style.alpha))
        if explanation.per_method:
            if "panel" in style.files:
                self._colors("methods", "methods", explanation.methods_panel(style.colormap, style.alpha))
            for other in explanation.per_method[1:]:
                self._maps(other, f"{other.method}/", "")
                self._classes(other, f"{other.method}/")
        if explanation.per_layer:
            if "panel" in style.files:
                self._colors("layers", "layers", explanation.layers_panel(style.colormap, style.alpha))
            for stem, layer in zip(_layer_stems(explanation.per_layer), explanation.per_layer, strict=True):
                self._maps(layer, f"layers/{stem}/", f"layers/{stem}/")

    def _maps(self, explanation: Explanation, key: str, where: str) -> None:
        """The maps of one explanation."""
        if not self._style.files & MAPS:
            return
        if where:
            _make(self._folder / where)
        levels = self._levels if explanation is self._explanation else None
        for kind, ending, pieces in map_files(explanation, self._style, levels):
            self._write(f"{key}{kind}", f"{where}{explanation.method}_{kind}.{ending}", pieces)

    def _classes(self, explanation: Explanation, key: str) -> None:
        """Each class's overlay, where several were explained."""
        if len(explanation.maps) < 2 or "overlay" not in self._style.files:
            return
        where = "top_predictions" if explanation.task is None else "boxes" if explanation.boxes else "regions"
        _make(self._folder / where)
        for rank, one in enumerate(explanation.maps, start=1):
            kind = f"top{rank}" if one.box is None else f"box{one.box.index}"
            kind = kind if f"{key}{kind}" not in self.names else f"{kind}_{rank}"  # two parts of one box
            stem = f"{where}/{explanation.method}_{kind}_{file_stem(one.label)}"
            gray, outlines = image.grayscale(unit(one.heatmap)), of_map(explanation, one)
            pieces = _overlay(explanation.picture, gray, explanation.marks, self._style, outlines)
            self._write(f"{key}{kind}", f"{stem}.{self._style.format}", pieces)

    def _input(self, encoded: bytes | None) -> None:
        """The picture that was explained."""
        copied = None
        if encoded is not None and self._style.format == "jpeg":
            from onnxcam.image import lossy

            copied = lossy.copy(encoded)
        if copied is None:
            self._colors("input", "input", self._explanation.picture)
        else:
            self._write("input", "input.jpeg", [copied])

    def _colors(self, key: str, name: str, pixels: np.ndarray) -> None:
        """A colour picture in the style's format."""
        self._write(key, f"{name}.{self._style.format}", _encoded(pixels, self._style))

    def _write(self, key: str, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        self._together.write(self._folder / name, pieces)
        self.names[key] = name


def map_files(
    explanation: Explanation, style: Drawing, levels: np.ndarray | None = None
) -> Iterator[tuple[str, str, Iterable[bytes | memoryview]]]:
    """The files of an explanation's map that the style asks for: kind, ending and bytes in order.

    Without marks the grey and the coloured PNG share their compressed pixels; an overlay is drawn as it is written.

    Arguments:
        levels: `levels_of` the explanation, where they are computed already.
    """
    gray, marks = levels_of(explanation) if levels is None else levels, explanation.marks
    outlines = of_map(explanation)
    shared = style.format == "png" and "heatmap" in style.files and not marks and not outlines
    packed = png.pack(gray) if "grayscale" in style.files or shared else None
    if "grayscale" in style.files and packed is not None:
        yield "grayscale", "png", [png.shades(packed)]
    if "heatmap" in style.files:
        yield "heatmap", style.format, _heatmap(gray, packed if shared else None, marks, style, outlines)
    if "overlay" in style.files:
        yield "overlay", style.format, _overlay(explanation.picture, gray, marks, style, outlines)


def _heatmap(
    gray: np.ndarray, packed: png.Packed | None, marks: image.Marks, style: Drawing, outlines: Sequence[image.Outline]
) -> Iterable[bytes | memoryview]:
    """Grey levels in colours with the marks and outlines; what was `packed` without any is taken as it is."""
    table = image.palette(style.colormap)
    levels, colors = (marks.levels(gray), image.marked(table)) if marks else (gray, table)
    if outlines:
        return _encoded(image.outline(look_up(levels, colors), outlines), style)
    if style.format != "png":
        return _encoded(look_up(levels, colors), style)
    return [png.shades(png.pack(levels) if packed is None else packed, colors)]


def _overlay(
    picture: np.ndarray, gray: np.ndarray, marks: image.Marks, style: Drawing, outlines: Sequence[image.Outline] = ()
) -> Iterable[bytes | memoryview]:
    """Grey levels in colours over the picture, drawn as they are written where no outline lies on them."""

    def draw(rows: slice) -> np.ndarray:
        return image.draw(picture[rows], gray[rows], style.alpha, style.colormap, marks, rows.start)

    height, width = gray.shape
    if outlines:
        return _encoded(image.outline(draw(slice(0, height)), outlines), style)
    if style.format != "png":
        return _encoded(draw(slice(0, height)), style)
    return png.colors(height, width, (draw(rows) for rows in png.bands(height, width)), style.compress)


def _encoded(pixels: np.ndarray, style: Drawing) -> Iterable[bytes | memoryview]:
    """A colour picture in the style's format."""
    if style.format == "png":
        return png.pieces(pixels, style.compress)
    from onnxcam.image import lossy

    return [lossy.encode(pixels, style.format)]


def levels_of(explanation: Explanation) -> np.ndarray:
    """The grey levels of an explanation's heatmap, uint8 `[H, W]`."""
    return image.grayscale(unit(explanation.heatmap))


def unit(heatmap: np.ndarray) -> np.ndarray:
    """A map for display: as it is where it lies in 0..1, else divided by its maximum."""
    top = float(heatmap.max(initial=0.0))
    return heatmap / top if top > 1.0 + 1e-6 else heatmap


def file_stem(label: str) -> str:
    """A label as part of a file name: letters, digits and underscores, at most 60 of them."""
    first = label.split(",")[0].strip()
    return re.sub(r"\W+", "_", first).strip("_")[:60] or "class"


def _layer_stems(explanations: Sequence[Explanation]) -> list[str]:
    """A folder's name per layer; a number is added where the letters alone are the same."""
    stems: list[str] = []
    for explanation in explanations:
        stem = plain = re.sub(r"[^\w.-]+", "_", str(explanation.layer)).strip("._")[:100] or "layer"
        number = 1
        while stem.casefold() in (other.casefold() for other in stems):
            number += 1
            stem = f"{plain}-{number}"
        stems.append(stem)
    return stems


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {str(folder)!r} cannot be made: {error.strerror}; choose another") from error
