"""Every form of labels file, and a clear sentence for each way one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcam.errors import LabelsError
from onnxcam.targets import labels

NAMES = ["tench, Tinca tinca", "crane", "crane"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.txt", "tench, Tinca tinca\ncrane\ncrane\n"),
        ("crlf.txt", "\ufefftench, Tinca tinca\r\ncrane\r\ncrane\r\n\r\n"),
        ("numbered.txt", "0 tench, Tinca tinca\n1 crane\n2 crane"),
        ("colons.txt", "0: tench, Tinca tinca\n2: crane\n1: crane"),
        ("wordnet.txt", "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"),
        ("list.json", '["tench, Tinca tinca", "crane", "crane"]'),
        ("list_in_a_text_file.txt", '["tench, Tinca tinca", "crane", "crane"]'),
        ("by_index.json", '{"0": "tench, Tinca tinca", "2": "crane", "1": "crane"}'),
        ("keras.json", '{"0": ["n1", "tench, Tinca tinca"], "1": ["n2", "crane"], "2": ["n3", "crane"]}'),
        ("config.json", '{"id2label": {"0": "tench, Tinca tinca", "1": "crane", "2": "crane"}, "x": 1}'),
        ("timm.json", '{"label_names": ["tench, Tinca tinca", "crane", "crane"], "num_classes": 3}'),
        ("indices.json", '{"class_indices": {"crane": 1, "tench, Tinca tinca": 0, "crane": 2}}'),
        ("teachable.txt", "0 tench, Tinca tinca\n1 crane\n2 crane\n"),
        ("by_name.json", '{"crane": 1, "crane": 2, "tench, Tinca tinca": 0}'),
        ("python.txt", "{0: 'tench, Tinca tinca',\n 1: 'crane',\n 2: 'crane'}"),
        ("table.csv", 'index,name\n2,crane\n0,"tench, Tinca tinca"\n1,crane\n'),
        ("semicolons.csv", "Class ID;Class;more\n0;tench, Tinca tinca;x\n1;crane;y\n2;crane;z\n"),
        ("tabs.tsv", "label\tname\n0\ttench, Tinca tinca\n1\tcrane\n2\tcrane\n"),
        ("one_column.csv", 'name\n"tench, Tinca tinca"\ncrane\ncrane\n'),
    ],
)
def test_every_form_reads_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert labels.read(path) == NAMES


def test_utf16_as_windows_shells_write_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("猫\r\nchien\r\n".encode("utf-16"))
    assert labels.read(path, 2) == ["猫", "chien"]


@pytest.mark.parametrize("text", ["label\ncat\ndog", "[unused]\ncat\ndog", "class, one\nclass, two\nclass, three"])
def test_lines_that_only_look_like_something_else_are_names(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text)
    assert labels.read(path) == text.splitlines()


@pytest.mark.parametrize("text", ["label\n0\n1\n2", "class\n3\n4\n5"])
def test_one_column_of_digits_holds_names(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    assert labels.read(path) == text.splitlines()[1:]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("gap.txt", b"0 cat\n1 dog\n3 cow", ["gaps", "2", "3 the largest"]),
        ("one_based.txt", b"1 cat\n2 dog", ["from 1 to 2", "from 0"]),
        ("twice.txt", b"0 cat\n1 dog\n1 cow", ["index 1", "twice", "dog", "cow"]),
        ("twice.json", b'{"0": "cat", "0": "dog"}', ["index 0", "twice"]),
        ("blank.txt", b"cat\n\ndog", ["line 2", "blank"]),
        ("broken.json", b'["cat", ', ["not JSON"]),
        ("nested.json", b'["cat", {"a": 1}]', ["entry 1", "expected a name"]),
        ("neither.json", b'{"cat": "dog"}', ["neither"]),
        ("null.json", b"null", ["no class names"]),
        ("nameless.json", b'["cat", " "]', ["entry 1", "no name"]),
        ("headless.csv", b"0,cat\n1,dog", ["header", "index,name"]),
        ("unnamed.csv", b"index,colour\n0,red", ["index", "colour", "'name'"]),
        ("short.csv", b"index,name\n0,cat\n1", ["row 3"]),
        ("rowless.csv", b"index,name\n", ["no rows"]),
        ("empty.txt", b" \n", ["empty"]),
        ("latin.txt", b"cat\ncaf\xe9", ["UTF-8", "line 2"]),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0", ["UTF-8"]),
        ("zeros.bin", b"abc\0\0", ["not a text file"]),
        ("number.json", b'{"' + b"9" * 5000 + b'": "cat"}', ["neither"]),
        ("cell.csv", b"index,name\n0," + b"x" * 200_000, ["not a table", "field limit"]),
        ("deep.json", b"[" * 100_000, ["not JSON"]),
        ("large.txt", b"cat\n" * (3 << 20), ["larger than 8 MiB"]),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, name: str, data: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(LabelsError) as caught:
        labels.read(path)
    message = str(caught.value)
    assert name in message and "\n" not in message
    assert all(word in message for word in words), message


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="No such file"):
        labels.read(tmp_path / "none.txt")
    with pytest.raises(LabelsError, match="folder"):
        labels.read(tmp_path)


@pytest.mark.parametrize(("classes", "words"), [(3, "3 classes"), (1, "background"), (5, "5 classes")])
def test_the_number_of_names_must_be_the_number_of_classes(tmp_path: Path, classes: int, words: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("background\ncat\n")
    with pytest.raises(LabelsError, match="has 2 names") as caught:
        labels.read(path, classes)
    assert words in str(caught.value)
