"""The null that a verdict is given against: other trainings of OLD, or small changes of each picture."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcam.diagnose.shift.verdict import AUGMENT, SEEDS
from onnxcam.errors import SettingError

_MOST = 1000  # augmentations, or trainings


@dataclass(frozen=True)
class Seeds:
    """Other trainings of OLD, in which nothing but chance differs: what a verdict on a retraining is given against.

    Attributes:
        models: explainers, or what `Explainer` opens.
    """

    models: Sequence[Any]


@dataclass(frozen=True)
class Augment:
    """Small changes of each picture under OLD (`onnxcam.diagnose.shift.augmentation`).

    What a verdict on the same training in another form is given against: quantized, converted, on another runtime.

    Attributes:
        count: changed copies of each picture.
    """

    count: int


Null = Seeds | Augment


def parse(text: str) -> Null:
    """Read `seeds:FILE,FILE,...` (files, globs or folders of `.onnx` files) or `augment:M`.

    Raises:
        SettingError: something else, or no such file.
    """
    name, colon, rest = text.partition(":")
    if name == AUGMENT and colon and re.fullmatch(r"[0-9]{1,6}", rest) and 1 <= int(rest) <= _MOST:
        return Augment(int(rest))
    if name == SEEDS and colon and rest:
        files = {path.resolve(): str(path) for part in reversed(rest.split(",")) for path in reversed(_files(part))}
        return Seeds(list(reversed(files.values())))  # each file once, however often it is named
    raise SettingError(
        f"the null {text!r} is none; expected seeds:FILE,FILE,... (other trainings of OLD; globs and folders too) or "
        f"augment:M (M from 1 to {_MOST:,} small changes of each picture)"
    )


def checked(null: Any) -> Null | None:
    """Return the null that a caller names: None, a text, `Seeds` or `Augment`.

    Raises:
        SettingError: something else.
    """
    if isinstance(null, str):
        null = parse(null)
    if null is None or isinstance(null, Seeds):
        return null
    if isinstance(null, Augment) and isinstance(null.count, int) and 1 <= null.count <= _MOST:
        return null
    raise SettingError(f"null={null!r}; expected None, 'seeds:FILE,...', 'augment:M', Seeds(...) or Augment(...)")


def _files(part: str) -> list[Path]:
    path = Path(part)
    if path.is_dir():
        files = sorted(path.glob("*.onnx"))
    elif path.exists() or not glob.has_magic(part):
        files = [path]
    else:
        files = [Path(match) for match in sorted(glob.glob(part, recursive=True))]  # noqa: PTH207 - absolute patterns
    if not files or not all(file.is_file() for file in files):
        raise SettingError(f"the null seeds: names {part!r}, where there is no model; name .onnx files of trainings")
    return files[: _MOST + 1]
