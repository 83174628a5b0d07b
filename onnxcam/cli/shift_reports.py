"""The reports of `onnxcam compare`: an HTML page, JUnit XML and Markdown, and blame by depth, which they show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcam import files
from onnxcam.cli.progress import Bar
from onnxcam.errors import OutputError

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.junit import Condition
    from onnxcam.diagnose.shift.result import Shift

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--report", metavar="FILE", help="Write an HTML page with the pictures side by side."),
    click.option("--junit", metavar="FILE", help="Write JUnit XML: a test case for each condition."),
    click.option("--markdown", metavar="FILE", help="Write Markdown for a comment on a pull request."),
    click.option(
        "--show", type=click.IntRange(min=0), default=60, show_default=True, metavar="N",
        help="Pictures on the HTML page, those whose attention moved most.",
    ),
    click.option(
        "--blame/--no-blame", "by_depth", default=None,
        help="Find the first layer in which the two models part, from 8 of the pictures.  [default: with a report]",
    ),
)  # fmt: skip


def report_options(command: F) -> F:
    """Add `--report`, `--junit`, `--markdown`, `--show` and `--blame` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Reports:
    """The reports of a comparison, which are written together.

    Arguments:
        report, junit, markdown: where each goes, None where it is not wanted.
        show: pictures on the page.
        by_depth: whether blame is assigned; None to decide by what is written.

    Raises:
        OutputError: a file that cannot be written, before any work; several reports into one file.
    """

    def __init__(
        self, report: str | None, junit: str | None, markdown: str | None, show: int, by_depth: bool | None
    ) -> None:
        self._page, self._junit, self._markdown = (
            None if name is None else Path(name) for name in (report, junit, markdown)
        )
        self._show, self._by_depth = show, by_depth
        self._begin, self._clock = datetime.now(UTC), time.monotonic()
        paths = [path for path in (self._page, self._junit, self._markdown) if path is not None]
        if len({path.absolute() for path in paths}) < len(paths):
            raise OutputError("two of --report, --junit and --markdown name the same file; give each one of its own")
        for path in paths:
            files.check_writable(path)
        self._paths = paths

    @property
    def piped(self) -> bool:
        """Whether a report goes to standard output, so that nothing else may be printed there."""
        return any(map(files.is_standard_output, self._paths))

    def blame(self, shift: Shift) -> Shift:
        """The comparison with blame by depth, where that is wanted."""
        wants = bool(self._paths) if self._by_depth is None else self._by_depth
        if not wants:
            return shift
        from onnxcam.diagnose.shift.blame import blame

        return replace(shift, blame=blame(shift.old, shift.new, [picture.source for picture in shift.pictures]))

    def write(
        self, shift: Shift, conditions: Sequence[Condition], names: tuple[str, str], errors: Sequence[str] = ()
    ) -> None:
        """Write what was asked for, all of it or nothing.

        Arguments:
            shift: the comparison.
            conditions: that were to hold or not.
            names: of the two files.
            errors: sentences about pictures that could not be read.

        Raises:
            OutputError: a file cannot be written.
        """
        title = f"{names[0]} -> {names[1]}"
        verdict = getattr(shift, "verdict", None)
        with files.FileSet() as together:
            if self._page is not None:
                from onnxcam.diagnose.shift.page import pieces

                with Bar("drawn") as bar:
                    page = pieces(shift, conditions, names=names, limit=self._show, progress=bar.to)
                    together.write(self._page, page)
            if self._junit is not None:
                from onnxcam.diagnose.shift.junit import junit

                properties = {"old": names[0], "new": names[1], "pictures": str(len(shift.pictures))}
                properties["distance of the maps"] = f"{shift.distance:.6g}"
                properties["predictions flipped"] = str(len(shift.flipped))
                if verdict is not None:
                    properties["verdict"] = verdict.sentence
                if shift.blame is not None:
                    properties["blame by depth"] = shift.blame.sentence
                text = junit(
                    title, conditions, errors=errors, properties=properties,
                    seconds=time.monotonic() - self._clock, timestamp=f"{self._begin:%Y-%m-%dT%H:%M:%S}",
                )  # fmt: skip
                together.write(self._junit, [text.encode("utf-8", "backslashreplace")])
            if self._markdown is not None:
                from onnxcam.diagnose.shift.markdown import markdown

                text = markdown(shift, conditions, title=title)
                together.write(self._markdown, [text.encode("utf-8", "backslashreplace")])
