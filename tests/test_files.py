"""One writer for every file: through devices, pipes and links, whole or not at all, with the mode and owner it had."""

from __future__ import annotations

import ast
import contextlib
import os
import pty
import resource
import socket
import stat
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import files
from onnxcam.errors import OutputError
from onnxcam.explain.explanation import Explanation, Map
from onnxcam.graph.load import save
from onnxcam.image import write_png
from tests.support.models import tiny_cnn
from tests.test_layers import ROOT, SOURCES

PIXELS = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
NAME = "panel.png"


def explained() -> Explanation:
    heatmap = np.linspace(0, 1, 2000, dtype=np.float32).reshape(40, 50)
    return Explanation(
        PIXELS, [(0, "cat", 0.75), (1, "dog", 0.25)], [Map(0, "cat", 0.75, heatmap, heatmap)], "gradcam", "relu2", []
    )


# each writes a file of this name, one of several or alone
WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda path: files.write_bytes(path, b"x" * 5000),
    "picture": lambda path: write_png(path, PIXELS),
    "model": lambda path: save(tiny_cnn(), path),
    "explanation": lambda path: explained().save(path.parent),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    return WRITERS[request.param]


@pytest.fixture
def expected(write: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an ordinary file holds."""
    path = tmp_path_factory.mktemp("expected") / NAME
    write(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / NAME


def parts(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.name.endswith((".part", ".tmp"))]


@contextlib.contextmanager
def read_to_the_end(path: Path) -> Iterator[list[bytes]]:
    """Reads a FIFO meanwhile."""
    data: list[bytes] = []
    reader = threading.Thread(target=lambda: data.append(path.read_bytes()), daemon=True)
    reader.start()
    yield data
    reader.join(20)
    assert not reader.is_alive()


def test_a_fifo_is_written_through(write: Callable[[Path], Any], expected: bytes, path: Path) -> None:
    os.mkfifo(path)
    with read_to_the_end(path) as data:
        write(path)
    assert data == [expected] and path.is_fifo() and not parts(path.parent)


def test_a_fifo_without_a_reader_is_refused(
    write: Callable[[Path], Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    os.mkfifo(path)
    with pytest.raises(OutputError, match="nobody reads from it"):
        write(path)
    assert path.is_fifo() and not parts(path.parent)


def test_a_device_is_written_through(write: Callable[[Path], Any], path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null is, and never that itself
        path.write_bytes(b"x")
    except PermissionError:
        pytest.skip("devices cannot be made here")
    write(path)
    assert stat.S_ISCHR(path.stat().st_mode) and not parts(path.parent)


def test_a_terminal_is_written_through(path: Path) -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    path.symlink_to(os.ttyname(theirs))
    try:
        files.write_bytes(path, b"a report\n")
        assert os.read(ours, 100) == b"a report\n" and path.is_char_device()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_socket_is_written_through(
    write: Callable[[Path], Any], expected: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)  # the names of sockets are short
    server = socket.socket(socket.AF_UNIX)
    server.bind(NAME)
    with pytest.raises(OutputError, match="could not be written"):
        write(path)  # nobody listens
    server.listen()
    data = []

    def read() -> None:
        with server.accept()[0] as connection, connection.makefile("rb") as stream:
            data.append(stream.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    write(Path(NAME))
    reader.join(20)
    server.close()
    assert data == [expected] and path.is_socket()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o755])
def test_mode_and_owner_stay(write: Callable[[Path], Any], expected: bytes, path: Path, mode: int) -> None:
    path.write_bytes(b"old")
    path.chmod(mode)
    if not os.geteuid():
        os.chown(path, 1234, 4321)
    before = path.stat()
    write(path)
    after = path.stat()
    assert path.read_bytes() == expected
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_new_file_takes_its_mode_from_the_umask(write: Callable[[Path], Any], path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_replaces_a_private_file_is_private_from_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")
    path.chmod(0o600)
    modes = []

    def pieces() -> Iterator[bytes]:
        modes.extend(stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir())
        yield b"new"

    assert files.write_pieces(path, pieces()) == 3
    assert modes == [0o600, 0o600]


def test_a_group_that_cannot_be_given_gets_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")
    path.chmod(0o664)
    state = path.stat()
    other = os.stat_result((*state[:5], state.st_gid + 1, *state[6:]))

    def refuse(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with path.open("r+b") as file:
        files._adopt(file.fileno(), path, other)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_stays_one(
    write: Callable[[Path], Any], expected: bytes, path: Path, tmp_path: Path, relative: bool, there: bool
) -> None:
    (tmp_path / "data").mkdir()
    behind = tmp_path / "data" / "behind"
    if there:
        behind.write_bytes(b"old")
        behind.chmod(0o600)
    (tmp_path / "data" / "link").symlink_to("behind")
    path.symlink_to("../data/link" if relative else tmp_path / "data" / "link")
    write(path)
    assert path.is_symlink() and (tmp_path / "data" / "link").is_symlink()
    assert not behind.is_symlink() and behind.read_bytes() == expected
    assert not there or stat.S_IMODE(behind.stat().st_mode) == 0o600
    assert not parts(tmp_path)


def test_links_that_lead_nowhere_are_refused(write: Callable[[Path], Any], path: Path) -> None:
    path.symlink_to("gone/file")
    with pytest.raises(OutputError, match=r"is a link to '.*gone/file', whose folder does not exist"):
        write(path)
    path.unlink()
    path.symlink_to(NAME)
    with pytest.raises(OutputError, match="symbolic links"):
        write(path)
    assert path.is_symlink() and not parts(path.parent)


def test_other_names_of_a_file_keep_its_content(write: Callable[[Path], Any], expected: bytes, path: Path) -> None:
    path.write_bytes(b"old")
    os.link(path, path.parent / "backup")
    write(path)
    assert path.read_bytes() == expected and (path.parent / "backup").read_bytes() == b"old"


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_everything_as_it_was(write: Callable[[Path], Any], path: Path) -> None:
    path.write_bytes(b"old")
    with room_for(1000), pytest.raises(OutputError, match="File too large; free some space"):
        write(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {NAME: b"old"}


def test_an_interruption_leaves_everything_as_it_was(
    write: Callable[[Path], Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")

    def interrupted(file: Any, pieces: Any, *sync: bool) -> int:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {NAME: b"old"}


@pytest.mark.parametrize("moment", range(4))
def test_files_written_together_are_all_there_or_none(path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """An interruption while files are renamed waits for the last of them; an error leaves no temporary file."""
    names = [f"{number}.png" for number in range(4)]
    replace, count = os.replace, 0

    def interrupted(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == moment + 1:
            if moment % 2:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), files.FileSet() as together:
        for name in names:
            together.write(path.parent / name, [name.encode()])
    assert {p.name: p.read_text() for p in path.parent.iterdir()} == {name: name for name in names}


def test_a_lost_temporary_file_is_told(path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"), files.FileSet() as together:
        together.write(path, [b"new"])
        for part in path.parent.glob(".*.part"):
            part.unlink()
    assert not path.exists()


def test_a_read_only_file_is_left_alone(
    write: Callable[[Path], Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anything
    with pytest.raises(OutputError, match="read-only"):
        write(path)
    assert path.read_bytes() == b"old" and not parts(path.parent)


def test_a_missing_folder_and_a_folder_are_told(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        if name != "explanation":  # which makes its folder
            with pytest.raises(OutputError, match="does not exist; create it first"):
                write(tmp_path / "gone" / NAME)
        (tmp_path / name / NAME).mkdir(parents=True)
        with pytest.raises(OutputError, match="Is a directory"):
            write(tmp_path / name / NAME)
        assert not parts(tmp_path / name)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/fd/7"])
@pytest.mark.parametrize("way", ["pipe", "file", "socket"])
def test_descriptors_are_written_through(tmp_path: Path, name: str, way: str) -> None:
    """At the place where they are: what was written to a file before stays, and what comes after follows."""
    code = (
        "import os, sys\nfrom onnxcam import files\nif sys.argv[1].endswith('7'):\n    os.dup2(1, 7)\n"
        "print('before')\nfiles.write_bytes(sys.argv[1], b'model')\nprint('after')"
    )
    out = tmp_path / "out"
    ours, theirs = socket.socketpair()
    with out.open("w") as file:
        target: Any = {"pipe": subprocess.PIPE, "file": file, "socket": theirs.fileno()}[way]
        done = subprocess.run([sys.executable, "-c", code, name], stdout=target, check=True)
    theirs.close()
    data = done.stdout if way == "pipe" else out.read_bytes() if way == "file" else ours.recv(1000)
    ours.close()
    assert data == b"before\nmodelafter\n"
    assert Path("/dev/stdout").is_symlink()


def test_a_descriptor_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = bytes(range(256)) * 4096
    result = []

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            result.append(pipe.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    files.write_bytes(f"/dev/fd/{writing}", data)
    os.close(writing)
    reader.join(20)
    assert result == [data]


def test_a_check_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    files.check_writable(path)
    files.check_writable("/dev/stdout")
    os.mkfifo(tmp_path / "fifo")
    files.check_writable(tmp_path / "fifo")
    with pytest.raises(OutputError, match="Is a directory"):
        files.check_writable(tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        files.check_writable(tmp_path / "gone" / "x")
    assert not path.exists() and not parts(tmp_path)


# ways to write a file without `onnxcam.files`
WRITING = {"write_text", "write_bytes", "imwrite", "savez", "savez_compressed", "tofile", "dump", "copyfile", "touch"}
# of the monitor: its own journal, whose parts are under names of their own; of the streams: os.devnull
OTHERS = {"files.py", "monitor/segments.py", "monitor/artefacts.py", "monitor/locks.py", "monitor/ledger.py"}
OTHERS |= {"monitor/counters.py", "monitor/feedback.py"}
OTHERS |= {"cli/terminal.py", "exporters/keras_module.py"}


def writers(source: str) -> list[int]:
    """The lines in which a module writes a file by itself."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in {"open", "replace", "rename", *WRITING}:
            continue
        where = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        texts = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
        opens = name == "open" and any(
            isinstance(t, str) and set(t) <= set("rwxabt+") and set(t) & set("wxa+") for t in texts
        )
        low = name == "open" and where == "os" and not ast.unparse(node).count("O_RDONLY")
        moves = name in ("replace", "rename") and where in ("os", "shutil")
        saves = name in WRITING and isinstance(node.func, ast.Attribute) and where not in ("image", "files")
        if opens or low or moves or saves:
            lines.append(node.lineno)
    return lines


def test_one_module_writes_files() -> None:
    result = {}
    for source in SOURCES:
        name = source.relative_to(ROOT).as_posix().removeprefix("onnxcam/")
        lines = writers(source.read_text("utf-8"))
        if lines and name not in OTHERS:
            result[name] = lines
    assert result == {}


def test_the_check_itself() -> None:
    assert writers("path.write_text('x')\nopen(p, 'wb')\nos.replace(a, b)\nos.open(p, os.O_RDWR)") == [1, 2, 3, 4]
    assert writers("text.replace('a', 'b')\nopen(p, 'rb')\nfiles.write_bytes(p)\nos.open(p, os.O_RDONLY)") == []
