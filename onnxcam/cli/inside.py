"""`onnxcam inside`: look at layers, filters and neurons, and at what they respond to."""

from __future__ import annotations

import click

from onnxcam.cli import options
from onnxcam.cli.group import CommandGroup

# each command is a module `onnxcam.cli.inside_NAME`
COMMANDS = {
    "features": ("onnxcam.cli.inside_features:features", "Show feature maps, the activations of a layer's channels."),
    "filters": ("onnxcam.cli.inside_filters:filters", "Show the filters of a convolution."),
    "dead": ("onnxcam.cli.inside_dead:dead", "Find dead channels."),
    "perturb": ("onnxcam.cli.inside_perturb:perturb", "Show what a covered part of a picture changes at each depth."),
    "fields": ("onnxcam.cli.inside_fields:fields", "Compute receptive fields, and draw them on a picture."),
    "maximize": (
        "onnxcam.cli.inside_maximize:maximize",
        "Make the picture that a channel or a class responds to most.",
    ),
}


@click.group("inside", cls=CommandGroup, places=COMMANDS, context_settings=options.CONTEXT)
def inside() -> None:
    """Look at layers, filters and neurons, and at what they respond to.

    MODEL is any image classifier in ONNX form, explainable or not.
    """
