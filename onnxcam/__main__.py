"""`python -m onnxcam` is the `onnxcam` command."""

from __future__ import annotations

from onnxcam.cli import main

if __name__ == "__main__":
    main(prog_name="onnxcam")
