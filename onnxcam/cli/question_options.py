"""Options of the commands that ask a question about pictures."""

from __future__ import annotations

from collections.abc import Callable

import click

from onnxcam import image
from onnxcam.cli.options import F
from onnxcam.explain.maps import FUSIONS, SMOOTHINGS

files_from_option: Callable[[F], F] = click.option(
    "--files-from", metavar="LIST", help="Read more pictures from a file, one path per line ('-': standard input)."
)
target_option: Callable[[F], F] = click.option(
    "--target",
    "--class",
    "target",
    metavar="CLASS",
    help="Class to explain: index, label, or -1 for each picture's top-1.  [default: top-1, or the class that the file "
    "is bound to]",
)
contrast_option: Callable[[F], F] = click.option(
    "--contrast",
    metavar="CLASS",
    help="Explain why the target rather than this class (index, label, or runner-up for the next best).",
)
probability_option: Callable[[F], F] = click.option(
    "--probability", is_flag=True, help="Explain the class's probability rather than its score."
)
settings_option: Callable[[F], F] = click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the methods that have it; repeatable. `onnxcam methods` lists them.",
)
fusion_option: Callable[[F], F] = click.option(
    "--fusion",
    type=click.Choice(FUSIONS),
    default="mean",
    show_default=True,
    help="How the maps of several layers become one.",
)
smooth_option: Callable[[F], F] = click.option(
    "--smooth",
    multiple=True,
    type=click.Choice(SMOOTHINGS),
    help="eigen: the first principal component over channels; augment: the mean over mirrored and scaled copies.",
)
normalize_option: Callable[[F], F] = click.option(
    "--normalize",
    type=click.Choice(image.NORMALIZATIONS),
    default="minmax",
    show_default=True,
    help="How maps are brought to 0..1: minmax as pytorch-grad-cam, max as in the paper, none.",
)
alpha_option: Callable[[F], F] = click.option(
    "--alpha",
    type=click.FloatRange(0.0, 1.0),
    help="Opacity of the heatmap in overlays, 0 to 1.  [default: grows with its value v: 0.6 min(1, 2v)]",
)
colormap_option: Callable[[F], F] = click.option(
    "--colormap", type=click.Choice(image.COLORMAPS), default=image.DEFAULT_COLORMAP, show_default=True, help="Colours."
)
