"""True classes from folders and tables, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcam.errors import LabelsError
from onnxcam.targets.truth import Table, by_folder

LABELS = ["tabby, tabby cat", "coffee mug", "boat"]


def table(folder: Path, text: str, name: str = "truth.csv") -> Table:
    (folder / name).write_bytes(text.encode())
    return Table(folder / name, LABELS, 3)


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg,tabby\nb/2.jpg,1\n",
        "picture,class\na/1.jpg,tabby cat\nb/2.jpg,coffee_mug\n",
        "\ufeffid;label;file\r\n7;0;a/1.jpg\r\n8;coffee mug;b/2.jpg\r\n",
        'image_path\tclass_index\n"a/1.jpg"\t0\n"b\\2.jpg"\t1\n',
        'filename,label\n./a/1.jpg,"tabby, tabby cat"\n\nb/2.jpg, Coffee Mug \n',
    ],
)
def test_tables_as_people_write_them(tmp_path: Path, text: str) -> None:
    truth = table(tmp_path, text)
    assert len(truth) == 2
    assert truth.find_all([tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg"]) == [0, 1]
    assert truth.find(tmp_path / "a" / "2.jpg") is None


def test_a_picture_is_found_by_the_end_of_its_path_the_longest_first(tmp_path: Path) -> None:
    truth = table(tmp_path, "1.jpg,0\nb/1.jpg,1\n")
    elsewhere = Path("/elsewhere")
    assert [truth.find(elsewhere / name) for name in ("a/1.jpg", "b/1.jpg", "c/b/1.jpg", "2.jpg")] == [0, 1, 1, None]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("row", ["1.jpg", "a/1.jpg"])
def test_a_row_that_fits_several_pictures_is_refused(tmp_path: Path, row: str, several: bool) -> None:
    """In every folder there is a 1.jpg: the row of one would say what all of them show."""
    (tmp_path / "truth.csv").write_text(f"{row},0\nz.jpg,1\n")
    truth = Table(tmp_path / "truth.csv", LABELS, 3, several=several)
    one, other = tmp_path / "a" / "1.jpg", tmp_path / "b" / "a" / "1.jpg"
    find = truth.find_several if several else truth.find_all
    with pytest.raises(LabelsError, match="fits several pictures") as caught:
        find([one, other])
    assert str(one) in str(caught.value) and str(other) in str(caught.value) and repr(row) in str(caught.value)
    assert len(find([one, one, tmp_path / "x" / ".." / "a" / "1.jpg"])) == 3, "one picture thrice is one picture"


def test_rows_with_folders_tell_pictures_of_one_name_apart(tmp_path: Path) -> None:
    truth = table(tmp_path, "1.jpg,0\na/1.jpg,1\nb/1.jpg,2\n")
    paths = [tmp_path / name for name in ("a/1.jpg", "1.jpg", "b/1.jpg", "2.jpg")]
    assert truth.find_all(paths[:3]) == [1, 0, 2]
    assert truth.count_missing(iter(paths)) == (4, 1)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no rows"),
        ("picture,class\n", "no rows"),
        ("a.jpg\nb.jpg\n", "line 1 has one column"),
        ("a.jpg,0\nb.jpg\n", "line 2 has one column"),
        ("a.jpg,lion\nb.jpg,0\nc.jpg,3\n", "lion (line 1)"),
        ("a.jpg,0\n./a.jpg,1\n", "two classes for './a.jpg' (the second in line 2)"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(LabelsError, match=r"truth\.csv") as caught:
        table(tmp_path, text)
    assert part in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    for name, part in (("missing.csv", "No such file"), (".", "folder"), ("binary.csv", "not UTF-8")):
        with pytest.raises(LabelsError, match=part):
            Table(tmp_path / name, LABELS, 3)


def test_pictures_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"1 of 2 pictures are not in the table .*b\.jpg"):
        table(tmp_path, "a.jpg,0\n").find_all([tmp_path / "a.jpg", tmp_path / "b.jpg"])


def test_folders(tmp_path: Path) -> None:
    names = ["tabby/1.jpg", "coffee_mug/x/2.jpg", "2/3.jpg"]
    assert by_folder([tmp_path / name for name in names], tmp_path, LABELS, 3) == [0, 1, 2]
    assert by_folder([tmp_path / name for name in names], tmp_path, None, 3) == [2, 1, 0]  # in order of their names
    with pytest.raises(LabelsError, match="lie in"):
        by_folder([tmp_path / "1.jpg"], tmp_path, LABELS, 3)
    with pytest.raises(LabelsError, match="lion"):
        by_folder([tmp_path / "lion" / "1.jpg"], tmp_path, LABELS, 3)
