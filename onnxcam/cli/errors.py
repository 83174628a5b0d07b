"""Turn exceptions into one sentence on standard error and an exit code, at the edge of the command line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import click

from onnxcam.cli import terminal
from onnxcam.errors import (
    InputError,
    LabelsError,
    LayerError,
    MethodError,
    ModelError,
    OnnxcamError,
    OutputError,
    PictureError,
    PreprocessError,
    RuntimeUnavailable,
    SettingError,
    TargetError,
)

DEBUG = "ONNXCAM_DEBUG"


def about(name: str, error: Exception | str) -> str:
    """An error about an input, which is named once."""
    text = str(error)
    return text if name in text else f"{name!r}: {text}"


class ExitCode(IntEnum):
    """The command's exit status."""

    DONE = 0
    FAILED = 1  # some or all inputs failed or could not be written
    USAGE = 2  # usage, unknown class, layer, labels or preprocessing
    MODEL = 3  # bad or untrusted model, failed verify or check
    RUNTIME = 4  # no usable runtime or execution provider
    CONDITION = 5  # a --fail-on condition holds
    INTERRUPTED = 130


_CODES: dict[type[OnnxcamError], ExitCode] = {
    OnnxcamError: ExitCode.FAILED,
    InputError: ExitCode.FAILED,
    PictureError: ExitCode.FAILED,
    OutputError: ExitCode.FAILED,
    TargetError: ExitCode.USAGE,
    LabelsError: ExitCode.USAGE,
    LayerError: ExitCode.USAGE,
    MethodError: ExitCode.USAGE,
    PreprocessError: ExitCode.USAGE,
    SettingError: ExitCode.USAGE,
    ModelError: ExitCode.MODEL,
    RuntimeUnavailable: ExitCode.RUNTIME,
}


def exit_code(error: OnnxcamError) -> ExitCode:
    """Return the exit code of the error's nearest base class that has one."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def sentence_and_code(error: BaseException) -> tuple[str, ExitCode]:
    """Return the sentence that tells the user about `error`, and the exit code."""
    if isinstance(error, OnnxcamError):
        return str(error), exit_code(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("onnxcam"):
        return f"a library cannot be imported ({error}); run `onnxcam doctor`", ExitCode.RUNTIME
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {os.fsdecode(error.filename)}", ExitCode.FAILED
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:  # as click raises it for a help text
        return str(terminal.unwritable(error)), ExitCode.FAILED
    if isinstance(error, SystemExit):
        return (
            f"code that was loaded with the model ended the program (exit status {error.code}); remove its call of "
            "exit",
            ExitCode.MODEL,
        )
    message = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return (
        f"onnxcam failed unexpectedly ({reason}); please run this again with {DEBUG}=1 and report what it prints",
        ExitCode.FAILED,
    )


# of a stream without a file name
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)


@contextmanager
def reported(ctx: click.Context) -> Iterator[None]:
    """Turn the block's exceptions into a sentence and an exit code; ONNXCAM_DEBUG=1 prints the traceback first."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except (KeyboardInterrupt, click.Abort):
        terminal.echo("Interrupted.", err=True)
        ctx.exit(ExitCode.INTERRUPTED)
    except BaseException as error:  # code that comes with a model may raise anything
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader of our output has left: click ends quietly
        if os.environ.get(DEBUG) == "1":
            import traceback

            terminal.echo_lines(traceback.format_exc().rstrip("\n").split("\n"), err=True)
        sentence, code = sentence_and_code(error)
        terminal.echo(f"Error: {sentence}", err=True)
        ctx.exit(code)
