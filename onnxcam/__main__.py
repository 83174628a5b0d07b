"""The `onnxcam` command, also as `python -m onnxcam`: Ctrl-C during imports ends it as at any other time."""

from __future__ import annotations

import gc
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command."""
    try:
        from onnxcam.cli import main as command

        command(prog_name="onnxcam")
    except KeyboardInterrupt:  # before the command could take care of it, or after
        sys.stderr.write("Interrupted.\n")
        sys.exit(_INTERRUPTED)
    finally:
        gc.freeze()  # the interpreter looks through all objects several times as it ends, which takes 50 ms


if __name__ == "__main__":
    main()
