"""An exporter run as a program: `python exporters/pytorch.py SOURCE -o OUT.onnx`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from onnxcam.errors import OnnxcamError, escaped, listing
from onnxcam.exporters.export import Loaded, export


def run(framework: str, sources: str, load: Callable[..., Loaded], arguments: Sequence[str] | None) -> int:
    """Export what the arguments name; 0 when done, 3 for a model that cannot be exported or trusted.

    Arguments:
        framework: its name.
        sources: what SOURCE may be, for the help.
        load: the framework module's.
        arguments: those of the program, by default `sys.argv`'s.
    """
    parser = argparse.ArgumentParser(description=f"Export a {framework} classifier as an explainable ONNX file.")
    parser.add_argument("source", help=sources)
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    parser.add_argument("--weights", help="a weights file, 'none' or 'imagenet'")
    parser.add_argument("--layer", action="append", help="target layer (repeatable)")
    parser.add_argument("--input-size", type=int, help="side of the square input picture")
    parser.add_argument("--trust-model", action="store_true", help="allow loading to run code from the file")
    options = parser.parse_args(arguments)
    try:
        loaded = load(options.source, weights=options.weights, trust=options.trust_model, input_size=options.input_size)
        manifest = export(
            loaded.framework,
            options.output,
            layers=options.layer,
            labels=loaded.info.labels,
            preprocess=loaded.info.preprocess,
            origin={"name": loaded.info.name},
        )
    except OnnxcamError as error:
        print(escaped(f"error: {error}"), file=sys.stderr)
        return 3
    assert isinstance(manifest, dict)
    layers = listing(entry["name"] for entry in manifest["layers"])
    print(escaped(f"{options.output}: layer {layers}, parity {manifest['parity']}"))
    return 0
