"""Options of the commands that ask a question about pictures."""

from __future__ import annotations

from collections.abc import Callable

import click

from onnxcam import image
from onnxcam.cli.options import F
from onnxcam.explain.maps import FUSIONS, SMOOTHINGS
from onnxcam.targets.scalars import PARTS

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
box_option: Callable[[F], F] = click.option(
    "--box",
    "boxes",
    multiple=True,
    metavar="BOX",
    help="Box of a detector to explain: an index in the model's own output (as printed), rank:0, label:cat, at:X,Y (a "
    "point of the picture), or several of these joined by ';'; repeatable, for a map of each.  [default: rank:0]",
)
part_option: Callable[[F], F] = click.option(
    "--part",
    type=click.Choice(PARTS),
    help="Number of the box to explain: its score, an edge, or its score times its overlap with itself.  "
    "[default: score]",
)
region_option: Callable[[F], F] = click.option(
    "--region",
    metavar="X0,Y0,X1,Y1",
    help="Part of the picture, in its pixels, over which a segmentation's class (--target) is summed.  [default: the "
    "pixels of the class]",
)
like_option: Callable[[F], F] = click.option(
    "--like",
    metavar="PICTURE|VECTOR.npy",
    help="What an embedding is compared with: another picture, or a stored embedding.",
)
value_option: Callable[[F], F] = click.option(
    "--value",
    metavar="NAME[INDEX]",
    help="Which of several values to explain, by its output and its place in it; with a minus sign what lowers it.",
)
settings_option: Callable[[F], F] = click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the methods that have it; repeatable. `onnxcam methods` lists them.",
)


def subject_options(command: F) -> F:
    """What is explained of a model that is no classifier."""
    for option in (value_option, like_option, region_option, part_option, box_option):
        command = option(command)
    return command


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
