"""Boxes from files: every form that the documentation names, and one sentence for what is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxcam.errors import InputError, SettingError
from onnxcam.evaluation.boxes import Box, Boxes, checked, mask, read

CSV = "picture,x0,y0,x1,y1,label\na/cat.jpg,1,2,5,6,tabby\na/cat.jpg,0,0,2,2,\nb.jpg,1.5,1.5,3,3,lynx\n"
FORMS = {
    "boxes.csv": CSV,
    "upper.csv": "Image, X0, Y0, X1, Y1, Label\n" + CSV.split("\n", 1)[1],
    "map.json": json.dumps(
        {
            "a/cat.jpg": [{"box": [1, 2, 5, 6], "label": "tabby"}, [0, 0, 2, 2]],
            "b.jpg": {"box": [1.5, 1.5, 3, 3], "label": "lynx"},
        }
    ),
    "list.json": json.dumps(
        [
            {"picture": "a/cat.jpg", "box": [1, 2, 5, 6], "label": "tabby"},
            {"picture": "a/cat.jpg", "box": [0, 0, 2, 2]},
            {"picture": "b.jpg", "box": [1.5, 1.5, 3, 3], "label": "lynx"},
        ]
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FORMS[name])
    boxes = read(path)
    assert len(boxes) == 3
    assert boxes.of("/data/a/cat.jpg") == [Box(1, 2, 5, 6, "tabby"), Box(0, 0, 2, 2, None)]
    assert boxes.of("./a/cat.jpg") == boxes.of("a\\cat.jpg") == boxes.of("a/cat.jpg")
    assert boxes.of("b.jpg") == [Box(1.5, 1.5, 3, 3, "lynx")]
    assert boxes.of("cat.jpg") == boxes.of("c/cat.jpg") == []


def test_one_box_of_four_numbers_needs_no_list(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text('{"a.png": [1, 2, 3, 4]}')
    assert read(path).of("x/a.png") == [Box(1, 2, 3, 4)]


def test_pixels_in_boxes() -> None:
    inside = mask([Box(1, 2, 3, 4), Box(-5, -5, 0.5, 0.5)], (5, 6))
    assert inside is not None
    expected = np.zeros((5, 6), bool)
    expected[2:4, 1:3] = expected[0, 0] = True
    np.testing.assert_array_equal(inside, expected)
    assert mask([], (5, 6)) is None and mask([Box(9, 9, 12, 12)], (5, 6)) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("picture,x,y\na,1,2\n", "the header is 'picture', 'x', 'y'; expected picture, x0, y0, x1, y1"),
        ("picture,x0,y0,x1,y1\na.jpg,1,2,x,4\n", "is not a box; expected four numbers"),
        ("picture,x0,y0,x1,y1\na.jpg,5,2,5,4\n", r"the box \[5.0, 2.0, 5.0, 4.0\] of 'a.jpg' is empty"),
        ('{"a.jpg": [[1, 2, 3]]}', "is not a box; expected four numbers"),
        ('{"a.jpg": [[1, 2, 3, Infinity]]}', "not finite"),
        ("picture,x0,y0,x1,y1\na.jpg,1,2,3,inf\n", "is empty"),
        ('{"a.jpg": ["1234"]}', "is not a box"),
        ('{"a.jpg": {"box": [1, 2, 3, 4], "label": ["cat"]}}', "neither a name nor an index"),
        ("picture,x0,y0,x1,y1\n,1,2,3,4\n", "line 2 names no picture"),
        ('[{"box": [1, 2, 3, 4]}]', "does not name a picture"),
        ('{"a.jpg": ', "it is not JSON"),
        ("", "the header is none"),
        ("[]", "has no box"),
    ],
)
def test_what_is_no_box_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "boxes"
    path.write_text(text)
    with pytest.raises(SettingError, match=sentence) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        read(tmp_path / "none.csv")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="not UTF-8"):
        read(tmp_path / "bytes")


def test_what_python_takes(tmp_path: Path) -> None:
    boxes = checked({"a.jpg": [[1, 2, 3, 4], Box(0, 0, 1, 1, 3)]})
    assert boxes.of("a.jpg") == [Box(1, 2, 3, 4), Box(0, 0, 1, 1, 3)]
    assert checked(boxes) is boxes
    assert isinstance(boxes, Boxes)
    with pytest.raises(InputError, match="pass a file, or a mapping"):
        checked(3)
