"""Which pictures the arguments mean, and where their explanations go."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePath

import numpy as np
import pytest

from onnxcam.errors import PictureError
from onnxcam.explain.pictures import Collection, collect, distinct, read_list
from onnxcam.image import encode_png


def folders(collection: Collection) -> dict[str, str]:
    return {item.name.replace(os.sep, "/"): item.folder.as_posix() for item in collection.items}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.jpg", "p/a.PNG", "p/q/b.webp", "p/q/x.txt", "p/.h/c.jpg", "p/.c.jpg", "r/a.jpg", "top.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def collected(*named: str, output: str = "out", stdin: bytes = b"") -> Collection:
    return collect(named, Path(output), io.BytesIO(stdin))


def test_one_picture_has_no_folder_of_its_own(here: Path) -> None:
    assert folders(collected("p/a.jpg")) == {"p/a.jpg": "."}
    assert folders(collected("r")) == {"r/a.jpg": "."}


def test_a_folder_is_searched_without_hidden_files(here: Path) -> None:
    assert folders(collected("p")) == {"p/a.PNG": "a.PNG", "p/a.jpg": "a.jpg", "p/q/b.webp": "q/b"}


def test_folders_are_kept_apart_below_what_they_share(here: Path) -> None:
    assert folders(collected("p/q", "r")) == {"p/q/b.webp": "p/q/b", "r/a.jpg": "r/a"}
    assert folders(collected("p/a.jpg", "r/a.jpg", "top.jpg")) == {"p/a.jpg": "p/a", "r/a.jpg": "r/a", "top.jpg": "top"}


def test_globs_are_expanded_here(here: Path) -> None:
    assert folders(collected("p/*.[jP]*")) == {"p/a.PNG": "a.PNG", "p/a.jpg": "a.jpg"}
    assert folders(collected("**/*.jpg")) == {"p/a.jpg": "p/a", "r/a.jpg": "r/a", "top.jpg": "top"}
    assert folders(collected("?")) == {
        "p/a.PNG": "p/a.PNG",
        "p/a.jpg": "p/a.jpg",
        "p/q/b.webp": "p/q/b",
        "r/a.jpg": "r/a",
    }


def test_a_name_with_brackets_is_a_file_where_there_is_one(here: Path) -> None:
    Path("x[1].jpg").write_bytes(b"")
    assert folders(collected("x[1].jpg", "r/a.jpg")) == {"x[1].jpg": "x[1]", "r/a.jpg": "r/a"}


def test_each_file_once_in_the_order_named(here: Path) -> None:
    assert list(folders(collected("top.jpg", "r", "top.jpg", str(here / "r" / "a.jpg")))) == ["top.jpg", "r/a.jpg"]


def test_what_is_in_the_output_folder_is_no_input(here: Path) -> None:
    assert folders(collected("p", output="p/q")) == {"p/a.PNG": "a.PNG", "p/a.jpg": "a.jpg"}
    assert folders(collected("p/q/*", "top.jpg", output="p/q")) == {"top.jpg": "."}
    assert folders(collected("p/q/b.webp", output="p/q")) == {"p/q/b.webp": "."}


def test_missing_files_are_left_to_whoever_reads_them(here: Path) -> None:
    assert folders(collected("none.jpg", "top.jpg")) == {"none.jpg": "none", "top.jpg": "top"}


@pytest.mark.parametrize(("named", "words"), [("empty", "no pictures in it"), ("*.bmp", "no picture matches")])
def test_nothing_found_is_told(here: Path, named: str, words: str) -> None:
    result = collected(named, "top.jpg")
    assert [name for name, _ in result.failures] == [named]
    assert words in str(result.failures[0][1]) and named in str(result.failures[0][1])
    assert folders(result) == {"top.jpg": "."}


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs symbolic links")
def test_links_that_lead_in_a_circle_are_names_like_others(here: Path) -> None:
    for name in ("loop", "p/loop.png", "p/q/loop"):
        (here / name).symlink_to(Path(name).name)
    assert folders(collect(["p", "r/*"], Path("loop"))).keys() == {
        "p/a.PNG",
        "p/a.jpg",
        "p/loop.png",
        "p/q/b.webp",
        "r/a.jpg",
    }
    assert collect(["p/**/*", "loop"], Path("out")).items


def test_standard_input_is_one_picture(here: Path) -> None:
    data = encode_png(np.zeros((3, 4, 3), np.uint8))
    assert [item.source for item in collected("-", "-", stdin=data).items] == [data]
    assert folders(collected("-", "top.jpg", stdin=data)) == {"stdin": "stdin", "top.jpg": "top"}
    Path("stdin.png").write_bytes(b"")
    assert folders(collected("-", "stdin.png", stdin=data)) == {"stdin": "stdin", "stdin.png": "stdin.png"}
    result = collected("-", "top.jpg", stdin=b"data")
    assert folders(result) == {"top.jpg": "."} and "'stdin' is not a picture" in str(result.failures[0][1])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "A.png"], ["a.jpg", "A.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["a.jpg", "A.jpg", "a.png"], ["a.jpg", "A.jpg-2", "a.png"]),
        (["analysis_summary.json.jpg", "panel.png.jpg"], ["analysis_summary.json.jpg", "panel.png.jpg"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        (["noextension"], ["noextension"]),
    ],
)
def test_no_two_pictures_share_a_folder(names: list[str], expected: list[str]) -> None:
    assert [folder.as_posix() for folder in distinct([PurePath(name) for name in names])] == expected


@pytest.mark.parametrize(
    "data", [b"a.jpg\nb c.jpg\n", b"\xef\xbb\xbfa.jpg\r\n\r\nb c.jpg", b"a.jpg\0b c.jpg\0", b"a.jpg\0b c.jpg"]
)
def test_lists_of_pictures(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "list"
    path.write_bytes(data)
    assert read_list(str(path)) == ["a.jpg", "b c.jpg"]
    assert read_list("-", io.BytesIO(data)) == ["a.jpg", "b c.jpg"]


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="No such file"):
        read_list(str(tmp_path / "none"))
