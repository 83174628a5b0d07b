"""The reports of `onnxcam compare`: an HTML page, JUnit XML and Markdown, and blame by depth, which they show."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcam import files
from onnxcam.cli.progress import Bar
from onnxcam.errors import OnnxcamError, OutputError

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.junit import Condition
    from onnxcam.diagnose.shift.result import Shift

F = TypeVar("F", bound=Callable[..., Any])
_DATA = (".data", "_data")  # weights beside a model
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


def _identity(path: str | os.PathLike[str]) -> object:
    """What two names of one file share, links included."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return Path(os.path.realpath(path))
    return status.st_dev, status.st_ino


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
        if len({_identity(path) for path in paths}) < len(paths):
            raise OutputError("two of --report, --junit and --markdown name the same file; give each one of its own")
        for path in paths:
            files.check_writable(path)
        self._paths = paths

    def check(self, inputs: Mapping[str, Iterable[Any]], *, as_json: bool) -> None:
        """Refuse reports that would replace what the command reads, or mix with what it prints.

        Arguments:
            inputs: by what they are, such as "OLD": paths; what is no path, or names no file, is passed over.
            as_json: whether standard output gets the JSON.

        Raises:
            OutputError: a report would replace an input. UsageError: it goes where the JSON goes.
        """
        if as_json and self.piped:
            raise click.UsageError(
                "--json and a report both go to standard output; write the report to a file, or leave out --json."
            )
        existing = {_identity(path): path for path in self._paths if path.is_file()}
        for what, paths in inputs.items() if existing else ():
            names = [os.fspath(path) for path in paths if isinstance(path, (str, os.PathLike))]
            for path in names + [f"{name}{end}" for name in names if name.endswith(".onnx") for end in _DATA]:
                report = existing.get(_identity(path))
                if report is not None:
                    raise OutputError(
                        f"the report {str(report)!r} would replace {what} ({path!r}); give it a file of its own"
                    )

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

    @contextlib.contextmanager
    def said_to_fail(self, names: tuple[str, str]) -> Iterator[None]:
        """Write JUnit XML and Markdown that say why, where a comparison ends with an error: those of an earlier run,
        which may have passed, would otherwise be read as this one's.

        Arguments:
            names: of the two files.
        """
        try:
            yield
        except OnnxcamError as error:
            title, text = f"{names[0]} -> {names[1]}", str(error)
            with contextlib.suppress(OnnxcamError), files.FileSet() as together:
                if self._junit is not None:
                    from onnxcam.diagnose.shift.junit import junit

                    xml = junit(
                        title, (), stopped=text, seconds=time.monotonic() - self._clock,
                        timestamp=f"{self._begin:%Y-%m-%dT%H:%M:%S}",
                    )  # fmt: skip
                    together.write(self._junit, [xml.encode("utf-8", "backslashreplace")])
                if self._markdown is not None:
                    from onnxcam.diagnose.shift.markdown import stopped

                    together.write(self._markdown, [stopped(title, text).encode("utf-8", "backslashreplace")])
            raise

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
                from onnxcam.diagnose.shift.text import titles

                properties = {"old": names[0], "new": names[1], "pictures": str(len(shift.pictures))}
                if shift.mapped:
                    properties["distance of the maps"] = f"{shift.distance:.6g}"
                if shift.predicts_classes:
                    properties[f"{titles(shift)[2]} flipped"] = str(len(shift.changes(flipped=True)))
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
