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
        ("cell.csv", b"index,name\n0," + b"x" * 200_000, ["a line of more than 65,536 characters"]),
        ("deep.json", b"[" * 100_000, ["nested 100,000 levels deep"]),
        ("large.txt", b"cat\n" * (3 << 20), ["larger than 4 MiB"]),
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


FIRST_TWO = ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ultralytics.txt", "{0: 'cat', 1: 'dog'}"),
        ("yolov5.txt", "['cat', 'dog']"),
        ("ordered.txt", "OrderedDict([(0, 'cat'), (1, 'dog')])"),
        ("deepness.txt", '[{"0": "cat", "1": "dog"}]'),
        ("traffic_signs.csv", "ClassId,SignName\n1,dog\n0,cat\n"),
        ("traffic_signs.txt", "ClassId,SignName\n1,dog\n0,cat\n"),
        ("with_more.csv", "ClassId;SignName;Meta\n1;dog;a\n0;cat;b\n"),
        ("pipes.txt", "id|name\n1|dog\n0|cat"),
        ("last.txt", "dog 1\ncat 0\n"),
        ("last_colon.txt", "dog: 1\ncat: 0\n"),
        ("last_comma.txt", "dog,1\ncat,0\n"),
        ("last_tab.txt", "dog\t1\r\ncat\t0\r\n"),
        ("dash.txt", "1 - dog\n0 - cat"),
        ("bracket.txt", "[1] dog\n[0] cat"),
        ("dot.txt", "1. dog\n0. cat"),
        ("wordnet_number.txt", "n02124075 1 dog\nn02084071 0 cat"),
        ("objects.json", '[{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]'),
        ("objects_without_id.json", '[{"name": "cat"}, {"name": "dog"}]'),
        ("coco.json", '{"info": {}, "categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]}'),
        ("lines.jsonl", '{"id": 1, "name": "dog"}\n{"id": 0, "name": "cat"}\n'),
        ("lines.txt", '{"id": 1, "name": "dog"}\n{"id": 0, "name": "cat"}\n'),
        ("pairs.json", '[[1, "dog"], [0, "cat"]]'),
        ("pairs_by_name.json", '[["dog", 1], ["cat", 0]]'),
        ("texts.json", '{"dog": "1", "cat": "0"}'),
        ("by_index.json", '{"1": {"name": "dog"}, "0": {"name": "cat"}}'),
        ("by_name.json", '{"dog": {"id": 1}, "cat": {"id": 0}}'),
        ("both.json", '{"label2id": {"cat": 0, "dog": 1}, "id2label": {"0": "cat", "1": "dog"}}'),
        ("data.yaml", "path: ../x  # here\nnc: 2\nnames: ['cat', \"dog\"]\n"),
        ("flow.yaml", "names: [cat,\n  dog,  # the last\n]\ntrain: a"),
        ("mapping.yml", "\ufeffnames:\r\n  1: dog\r\n  0: cat # a comment\r\n\r\nnc: 2"),
        ("flow_mapping.yaml", "names: {1: dog, 0: 'cat'}"),
        ("list.yaml", "---\n# classes\nnames:\n- cat\n- \"dog\"\n"),
        ("bare_list.yaml", "- cat\n- dog\n"),
        ("bare_mapping.yaml", "0: cat\n1: dog\n"),
        ("yaml.txt", "train: images\nnames: [cat, dog]"),
        ("map.pbtxt", "item {\n  id: 1\n  name: 'n1'\n  display_name: \"dog\"\n}\nitem { name: 'cat' id: 0 }\n"),
    ],
)  # fmt: skip
def test_numbers_decide_and_not_the_order_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert labels.read(path) == FIRST_TWO


@pytest.mark.parametrize(
    "text",
    [
        "class 0\nclass 1\nclass 2",  # one name thrice: the numbers tell them apart
        "Boeing 737\nAirbus 320\nEmbraer 190",
        "7-series\n3-series\n5-series",
        "cat\x0cdog\ncow\u2028calf",
        "3.5 mm\nM3\n3.5 inch",
        "Level 1\nLevel 0",
    ],
)
def test_numbers_in_names_stay_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    assert labels.read(path) == text.split("\n")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("from_one.txt", "dog 2\ncat 1", ["from 1 to 2", "JSON list"]),
        ("gap.txt", "dog 0\ncat 1\ncow 3", ["gaps", "2"]),
        ("title.txt", "my classes\n" + "\n".join(f"{n} name{n}" for n in range(9)), ["line 1", "my classes", "number"]),
        ("footer.txt", "\n".join(f"name{n}: {n}" for n in range(9)) + "\nend", ["line 10", "number"]),
        ("from_one.json", '[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]', ["from 1 to 2", "list"]),
        ("coco.json", '{"categories": [{"id": 1, "name": "a"}, {"id": 90, "name": "b"}]}', ["gaps", "90 the largest"]),
        ("half.json", '[{"id": 0, "name": "cat"}, {"name": "dog"}]', ["no id"]),
        ("nameless.json", '[{"id": 0, "colour": "red"}]', ["keys id, colour", "'name'"]),
        ("twice.json", '[{"id": 0, "name": "cat"}, {"id": 0, "name": "dog"}]', ["index 0", "twice"]),
        ("literal.txt", "{0: 'cat', 0: 'dog'}", ["index 0", "twice"]),
        ("code.txt", "{0: open('x')}", ["not JSON"]),
        ("ranked.csv", "name,rank\ncat,1\ndog,0\n", ["'rank'", "another order"]),
        ("two_texts.csv", "ClassId,English,German\n0,cat,Katze\n", ["english", "german", "'name'"]),
        ("page.txt", "<!DOCTYPE html>\n<html>", ["HTML"]),
        ("twice.yaml", "names:\n  0: cat\n  0: dog", ["index 0", "twice"]),
        ("count.yaml", "nc: 3\nnames: [cat, dog]", ["nc: 3", "2 classes"]),
        ("anchor.yaml", "names: &all [cat, dog]", ["names", "not read", "JSON list"]),
        ("nested.yaml", "names:\n  0:\n    - cat", ["names", "not read"]),
        ("block.yaml", "names: |\n  cat\n  dog", ["names", "not read"]),
        ("open.yaml", "names: ['cat, dog]", ["names", "not read"]),
        ("keys.yaml", "train: x\nval: y", ["train", "names"]),
        ("keys_twice.yaml", "names: [a]\nnames: [b]", ["'names'", "twice"]),
        ("empty.yaml", "names: []", ["no classes"]),
        ("map.pbtxt", "item { id: 1 name: 'cat' }\nitem { id: 2 name: 'dog' }", ["from 1 to 2", "background"]),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(LabelsError) as caught:
        labels.read(path)
    message = str(caught.value)
    assert name in message and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["names: [" + "'a\"" * 100_000, "names:\n" + " " * 500_000 + "x", "{" * 300_000])
def test_a_large_senseless_file_is_refused_soon(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(LabelsError):
        labels.read(path)
