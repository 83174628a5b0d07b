"""`onnxcam batch`: its table against the plain loop over `Explain`, its files, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pyarrow import parquet

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.errors import InputError
from onnxcam.fleet import Explain, run, tables
from onnxcam.fleet.columns import columns
from tests.fleet import samples, table

COUNT, BROKEN = 45, {10, 30}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eighteenth is the largest, so that the second part is: the first one's errors hold the folder's name."""
    folder = table.folder_of(tmp_path_factory.mktemp("pictures"), COUNT, every=20)
    noise = np.random.default_rng(1).integers(0, 256, (80, 80, 3), np.uint8)
    image.write_png(sorted(folder.rglob("*.png"))[17], noise)
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete table."""
    output = tmp_path_factory.mktemp("out") / "table.parquet"
    result = table.batch(model, pictures, "-o", output, "--rows-per-part", 16, "--by-folder", "--overlay", "--json")
    assert result.exit_code == 1, result.stderr
    assert json.loads(result.stdout) == table.summary(output)
    return output


def test_the_table_is_that_of_the_plain_loop(model: Path, pictures: Path, whole: Path) -> None:
    paths = sorted(pictures.rglob("*.png"))
    loop = Explain(model, column="picture", overlay=True)({"picture": samples.column([str(path) for path in paths])})
    rows = table.rows(whole)
    assert list(rows) == ["path", "truth", "truth_label", "right", *(c.name for c in columns(overlay=True))]
    added = {name: rows[name] for name in loop}
    assert not samples.differences({name: list(values) for name, values in loop.items()}, added)
    assert rows["path"] == [path.relative_to(pictures).as_posix() for path in paths]
    folders = [samples.NAMES.index(path.parent.name) for path in paths]
    assert rows["truth"] == folders and rows["truth_label"] == [path.parent.name for path in paths]
    ok = [not error for error in rows["error"]]
    assert [right for right, good in zip(rows["right"], ok, strict=True) if good] == [
        predicted == truth for predicted, truth, good in zip(rows["prediction"], folders, ok, strict=True) if good
    ]


def test_parts_are_whole_and_say_what_they_are(model: Path, pictures: Path, whole: Path) -> None:
    files = tables.files_of(whole)
    assert [path.name for path in files] == [f"part-{number:06d}.parquet" for number in range(3)]
    parts = [tables.metadata(path) for path in files]
    assert [part.counts.rows for part in parts if part] == [16, 16, 13]
    assert [part.first for part in parts if part] == [0, 16, 32]
    digest = Explain(model).sha256
    assert {(part.model, part.root, part.onnxcam) for part in parts if part} == {
        (digest, str(pictures), onnxcam.__version__)
    }
    counts = sum((part.counts for part in parts if part), tables.Counts())
    assert (counts.rows, counts.failed, counts.explained) == (COUNT, len(BROKEN), COUNT - len(BROKEN))
    about = table.summary(whole)
    assert about["counts"] | {"left_out": 0, "resumed": 0} == about["counts"]
    assert about["counts"]["right"] + about["counts"]["wrong"] == COUNT - len(BROKEN)
    assert len(about["failures"]) == len(BROKEN) and all(entry["error"] for entry in about["failures"])
    assert not table.leftovers(whole)
    assert parquet.read_table(whole).num_rows == COUNT, "as any reader has it: its own files are passed over"


def test_only_rows_that_meet_the_condition_are_explained(
    model: Path, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    confidence = np.array(table.rows(whole, ["confidence"])["confidence"])
    limit = float(np.sort(confidence)[20:22].mean())  # between two rows
    result = table.batch(model, pictures, "-o", tmp_path / "t", "--when", f"confidence < {limit:.9f}", "--top-k", 2)
    assert result.exit_code == 1 and f"{len(BROKEN)} failed" in result.stdout
    rows = table.rows(tmp_path / "t")
    fired = np.array(rows["fired"])
    assert 0 < fired.sum() < COUNT
    np.testing.assert_array_equal(fired, np.nan_to_num(confidence, nan=2) < limit)
    assert [value is not None for value in rows["map"]] == fired.tolist()
    assert {len(top) for top in rows["top"] if top is not None} == {2}


def test_what_is_named_is_in_the_order_of_the_names_and_once(model: Path, pictures: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    source = sorted(pictures.rglob("*.png"))[0]
    names = [b"plain.png", b"half\xff.png", "ä\nb.png".encode()]
    for name in names:
        (odd / os.fsdecode(name)).write_bytes(source.read_bytes())
    os.mkfifo(odd / "pipe.png")
    (odd / "link.png").symlink_to(source)
    listed = tmp_path / "list"
    listed.write_bytes(b"\0".join([os.fsencode(odd / os.fsdecode(names[2])), os.fsencode(source), b"no such.png"]))
    output = tmp_path / "t"
    result = table.batch(model, odd, pictures / "ant", "--files-from", listed, "-o", output, "--json")
    assert result.exit_code == 1
    about = json.loads(result.stdout)
    assert about["counts"]["left_out"] == 1 and "pipe (FIFO)" in about["left_out"][0]
    rows = table.rows(output, ["path", "error"])
    root = Path(about["root"])
    names_shown = ("half\\xff.png", "link.png", "plain.png", "ä\nb.png")
    inside = [os.path.relpath(odd / name, root) for name in names_shown]
    ant = [path.relative_to(root).as_posix() for path in sorted((pictures / "ant").iterdir())]
    assert rows["path"][:4] == inside and rows["path"][4 : 4 + len(ant)] == ant
    assert len(rows["path"]) == 4 + len(ant) + 1, "what was named twice is there once"
    assert rows["path"][-1].endswith("no such.png") and rows["error"][-1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["MODEL", "-o", "OUT"], 2, "no PICTURES were given"),
        (["MODEL", "-", "-o", "OUT"], 2, "made of files"),
        (["MODEL", "none/*.png", "-o", "OUT"], 1, "no pictures"),
        (["MODEL", "PICTURES", "-o", "OUT", "--when", "confidence < 7"], 2, "a number from 0 to 1"),
        (["MODEL", "PICTURES", "-o", "OUT", "--target", "zebra"], 2, "zebra"),
        (["MODEL", "PICTURES", "-o", "OUT", "--layer", "none"], 2, "'none'"),
        (["MODEL", "PICTURES", "-o", "OUT", "--method", "nocam"], 2, "nocam"),
        (["MODEL", "PICTURES", "-o", "OUT", "--option", "x=1"], 2, "x"),
        (["MODEL", "PICTURES", "-o", "OUT", "--truth", "none.csv"], 2, "none.csv"),
        (["MODEL", "PICTURES/ant", "-o", "OUT", "--truth", "by-folder"], 2, "--by-folder each lies in"),
        (["MODEL", "PICTURES", "-o", "OUT", "--labels", "none.txt"], 2, "none.txt"),
        (["MODEL", "PICTURES", "-o", "OUT", "--provider", "cuda"], 4, "CUDA"),
        (["MODEL", "--files-from", "none", "-o", "OUT"], 1, "list of pictures 'none'"),
        (["none.onnx", "PICTURES", "-o", "OUT"], 3, "none.onnx"),
        (["PICTURES/ant/00000.png", "PICTURES", "-o", "OUT"], 3, "00000.png"),
        (["MODEL", "PICTURES", "-o", "MODEL"], 1, "is a file"),
        (["MODEL", "PICTURES", "-o", "MODEL/out"], 1, "is a file"),
        (["MODEL", "PICTURES", "-o", "PICTURES"], 2, "is not empty"),
        (["MODEL", "PICTURES", "-o", "PICTURES", "--resume"], 1, "is not the table of a run"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(pictures.rglob("*"))
    places = {"MODEL": model, "PICTURES": pictures, "OUT": tmp_path / "out"}
    spelled = ["/".join(str(places.get(part, part)) for part in one.split("/")) for one in arguments]
    result = table.batch(*spelled)
    assert result.exit_code == code, result.output
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists() and sorted(pictures.rglob("*")) == before


def test_pictures_that_a_table_of_classes_does_not_have_are_counted(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    ants, bees = sorted((pictures / "ant").iterdir()), sorted((pictures / "bee").iterdir())
    (tmp_path / "truth.csv").write_text("".join(f"ant/{path.name},ant\n" for path in ants))
    call = [model, pictures / "ant", pictures / "bee", "-o", tmp_path / "t", "--truth", tmp_path / "truth.csv"]
    sentence = f"{len(bees)} of {len(ants) + len(bees)} pictures are not in the table of classes"
    for more in ([], ["--resume"]):
        result = table.batch(*call, "--json", *more)
        record = json.loads(result.stdout)
        assert sentence in result.stderr and any(sentence in text for text in record["warnings"])
        counts = record["counts"]
        failed = [error for path, error in zip(*table.rows(tmp_path / "t", ["path", "error"]).values(), strict=True)
                  if error and path.startswith("ant")]  # fmt: skip
        assert (counts["unknown"], counts["right"] + counts["wrong"]) == (len(bees), len(ants) - len(failed))


def test_a_row_of_a_table_of_classes_is_of_one_picture(model: Path, pictures: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(next(iter((pictures / "ant").iterdir())), tmp_path / folder / "0.png")
    (tmp_path / "truth.csv").write_text("0.png,ant\n")
    call = [model, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "t", "--truth", tmp_path / "truth.csv"]
    result = table.batch(*call)
    assert result.exit_code == 2 and "the row '0.png'" in result.stderr and "fits several pictures" in result.stderr
    assert not (tmp_path / "t").exists()


def test_a_picture_needs_a_preprocessing(tmp_path: Path, pictures: Path) -> None:
    from tests.support.models import tiny_cnn

    plain = tmp_path / "plain.onnx"
    plain.write_bytes(tiny_cnn(classes=5, size=32).SerializeToString())
    result = table.batch(plain, pictures, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "preprocess" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_pyarrow_it_says_what_to_install(model: Path, pictures: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from onnxcam.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "batch", str(model), str(pictures), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 4 and "pip install 'onnxcam[parquet]'" in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_two_processes_do_not_write_one_table(model: Path, pictures: Path, tmp_path: Path) -> None:
    with run.Folder(tmp_path / "out"):
        result = table.batch(model, pictures, "-o", tmp_path / "out")
    assert result.exit_code == 1 and "another process writes to" in result.stderr


@pytest.mark.slow
def test_a_full_disk_leaves_whole_parts_and_goes_on_later(
    model: Path, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """A limit on the size of a file stands for the disk: the second part is larger than the first."""
    arguments = [
        str(model),
        str(pictures),
        "-o",
        str(tmp_path / "t"),
        "--rows-per-part",
        "16",
        "--by-folder",
        "--overlay",
    ]
    limit = max(path.stat().st_size for path in tables.files_of(whole)) - 1
    command = [sys.executable, "-m", "onnxcam", "batch", *arguments]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1 and "could not be written" in result.stderr, result.stderr
    assert not table.leftovers(tmp_path / "t")
    assert table.batch(*arguments, "--resume").exit_code == 1
    assert table.same(tmp_path / "t", whole)


def test_reading_is_bounded_and_refuses_what_is_no_table(whole: Path, tmp_path: Path) -> None:
    sizes = [len(some["path"]) for some in tables.read(whole, ["path"], rows=7)]
    assert max(sizes) == 7 and sum(sizes) == COUNT
    with pytest.raises(InputError, match="no column 'pathh'; it has 'path'"):
        list(tables.read(whole, ["pathh"]))
    with pytest.raises(InputError, match="has 0 Parquet files"):
        list(tables.read(tmp_path))
    part = tables.files_of(whole)[1]
    for name, data in {"no.parquet": b"PAR1 no", "cut.parquet": part.read_bytes()[:-50]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="is not a Parquet file"):
            list(tables.read(tmp_path / name))
    data = bytearray(part.read_bytes())
    data[4:4000] = bytes(3996)
    (tmp_path / "spoilt.parquet").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        list(tables.read(tmp_path / "spoilt.parquet"))


@pytest.mark.slow
def test_the_commands_of_the_page_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/how-to/tables.md, on 520 small pictures; its Python is run where pandas is installed."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "tables.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ onnxcam (.*)$", page, flags=re.MULTILINE)
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    few = sorted(table.folder_of(tmp_path / "few", 10, every=1000).rglob("*.png"))
    for number, name in enumerate(samples.NAMES):
        table.linked(tmp_path / "photos" / name, few[number : number + 2], 104)
    assert len(commands) == 5
    for command in commands:
        if "monday" in command:
            for day in ("monday", "tuesday"):
                shutil.copytree("table.parquet", f"{day}.parquet")
        result = CliRunner().invoke(main, shlex.split(command))
        assert result.exit_code == 0, f"{command}: {result.output}"
    assert [len(some["map"]) for some in tables.read("table.parquet", ["path", "map"])] == [520]
