"""Make the bundled pictures: a cat, a cup of coffee, and both side by side.

    pip install onnxcam[cpu] scikit-image==0.26.0
    python models/build_pictures.py

The photographs come with scikit-image (`skimage.data.chelsea` by Stefan van der Walt and `skimage.data.coffee` by
Rachel Michetti, both CC0), so that nothing is downloaded. Resizing is onnxcam's own, which gives the same pixels on
every machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from onnxcam.image import write_png
from onnxcam.image.resample import resize

HERE = Path(__file__).resolve().parent
SIDE = 224
SHORT = 300
# left, top and side of the square cut from each photograph: the face with both eyes, the cup with its whole rim
CAT = (144, 0, 300)
CUP = (120, 0, 300)


def square(picture: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square cut out of a picture, at the size of one half of the composite."""
    cut = picture[top : top + side, left : left + side]
    return resize(np.ascontiguousarray(cut), (SIDE, SIDE), "bicubic")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder to write to (default: %(default)s)")
    output: Path = parser.parse_args().output
    try:
        from skimage import data
    except ImportError:
        print("scikit-image is missing; run: pip install scikit-image==0.26.0", file=sys.stderr)
        return 4
    chelsea, coffee = data.chelsea(), data.coffee()
    width = round(coffee.shape[1] * SHORT / coffee.shape[0])
    pictures = {
        "cat.png": chelsea,
        "coffee.png": resize(coffee, (SHORT, width), "bicubic"),
        "cat_and_coffee.png": np.hstack([square(chelsea, *CAT), square(coffee, *CUP)]),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        write_png(output / name, pixels)
        size = (output / name).stat().st_size
        print(f"{output / name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
