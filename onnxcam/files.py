"""Files: written atomically, or through what is not a regular file; read within bounds on size and type."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from onnxcam.errors import OnnxcamError, OutputError

Where = str | os.PathLike[str]
Pieces = Iterable[bytes | memoryview]

PATIENCE = 10.0  # seconds to wait for the other end of a FIFO
pipes: dict[str, bytes] | None = None  # what was read from pipes, by name; None where a pipe is not read again
_CHUNK = 1 << 20
_LINKS = 40  # followed at most, as Linux does
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
_NOW = getattr(os, "O_NONBLOCK", 0)  # a FIFO without its other end is not waited for in the system


class FileError(OnnxcamError):
    """A file cannot be read; the message lacks its subject, the file's name."""


class _Target(NamedTuple):
    """Where the bytes for a path go.

    Attributes:
        path: the file behind symbolic links.
        state: of that file, None where there is none yet.
        descriptor: of this process, where the path names one (`/dev/stdout`, `/dev/fd/3`).
    """

    path: Path
    state: os.stat_result | None
    descriptor: int | None = None

    @property
    def through(self) -> bool:
        """Whether it is written through rather than replaced."""
        return self.descriptor is not None or (self.state is not None and not stat.S_ISREG(self.state.st_mode))


class FileSet:
    """Files that are written together, all of them or none.

    Each is written under a temporary name in its folder (with `sync` to the disk); at the end of the `with` block all
    are renamed. An error or an interruption before that leaves every existing file as it was, and nothing new.

    A file that is replaced keeps its mode, its extended attributes, and its owner where that is permitted; of a
    symbolic link the file behind it is replaced. A file with several names (hard links) gets its new content under this
    name alone: the others may be a backup or a cache. What is not a regular file, a device, a FIFO, a socket or an open
    descriptor such as `/dev/stdout`, is written through, at once.
    """

    def __init__(self, sync: bool = False) -> None:
        self._sync = sync
        self._parts: dict[Path, tuple[Path, Path]] = {}  # temporary name -> file, and the path that was named
        self._renaming: set[Path] = set()  # temporary names whose renaming has begun

    def __enter__(self) -> FileSet:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                _each(self._rename, list(self._parts))
        finally:
            _each(self._remove, list(self._parts))

    def write(self, path: Where, pieces: Pieces) -> int:
        """Write the pieces of a file, which should be few or large: writes are not buffered.

        Returns:
            the number of bytes.

        Raises:
            OutputError: the file cannot be written; the message gives the reason.
        """
        path = Path(path)
        try:
            target = _target(path)
            if target.through:
                return _through(path, target, pieces)
            # a short name, so that a temporary name never exceeds the length limit where that of the file does not
            part = target.path.parent / f".{os.urandom(8).hex()}.part"
            self._parts[part] = target.path, path
            with _create(part, target) as file:
                return _send(file, pieces, self._sync)
        except OSError as error:
            raise OutputError(f"{str(path)!r} could not be written ({_reason(error, path)})") from error

    def _rename(self, part: Path) -> None:
        if part not in self._parts or (part in self._renaming and not part.exists()):
            return  # called again after an interruption
        self._renaming.add(part)
        file, path = self._parts[part]
        try:
            os.replace(part, file)  # noqa: PTH105
        except OSError as error:
            raise OutputError(f"{str(path)!r} could not be written ({_reason(error, path)})") from error
        self._parts.pop(part, None)

    def _remove(self, part: Path) -> None:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        self._parts.pop(part, None)


def write_bytes(path: Where, *data: bytes | memoryview) -> int:
    """Write a file atomically, see `write_pieces`."""
    return write_pieces(path, data)


def write_pieces(path: Where, pieces: Pieces, sync: bool = False) -> int:
    """Write a file atomically, as one of a `FileSet`: whole, or not at all.

    Returns:
        the number of bytes.

    Raises:
        OutputError: the file could not be written; the message gives the reason, and an existing file is unchanged.
    """
    with FileSet(sync) as files:
        return files.write(path, pieces)


def check_writable(path: Where) -> None:
    """Refuse a file that cannot be written, before the work rather than after it; nothing is left behind.

    Raises:
        OutputError: the message gives the reason.
    """
    path = Path(path)
    try:
        target = _target(path)
        if target.through:
            if target.descriptor is None and not os.access(target.path, os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return
        part = target.path.parent / f".{os.urandom(8).hex()}.part"
        try:
            _create(part, target).close()
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{str(path)!r} could not be written ({_reason(error, path)})") from error


def is_replaced(path: Where) -> bool:
    """Whether writing a file replaces it as a whole: false of what is written through, such as a FIFO."""
    try:
        return not _target(Path(path)).through
    except OSError:
        return True


def is_standard_output(path: Where) -> bool:
    """Whether a path names what standard output is connected to, so that nothing else may be printed there."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))  # noqa: PTH116
    except (OSError, ValueError):
        return False


def _each(step: Callable[[Path], None], parts: list[Path]) -> None:
    """Take a step for each temporary file; an interruption is raised only after the last one."""
    interruption: KeyboardInterrupt | None = None
    for part in parts:
        while True:
            try:
                step(part)
                break
            except KeyboardInterrupt as error:
                interruption = error
    if interruption is not None:
        raise interruption


def _target(path: Path) -> _Target:
    """Where the bytes for a path go.

    Raises:
        OSError: it is a folder, a circle of links, a file that is read-only, or a descriptor that is not open.
    """
    if path.parent.name != "fd" and not os.path.lexists(path):  # the usual case, with one question to the system
        return _Target(path, None)
    descriptor = _descriptor(path)
    if descriptor is not None:
        return _Target(path, os.fstat(descriptor), descriptor)
    try:
        state = path.stat()
    except FileNotFoundError:
        return _Target(Path(os.path.realpath(path)) if path.is_symlink() else path, None)
    if stat.S_ISDIR(state.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    behind = Path(os.path.realpath(path)) if path.is_symlink() else path
    if stat.S_ISREG(state.st_mode) and not os.access(behind, os.W_OK):
        raise OSError(errno.EACCES, "the file is read-only")
    return _Target(behind, state)


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path names, directly or by links."""
    if not path.is_symlink() and path.parent.name != "fd":
        return None
    for _ in range(_LINKS):
        folder = os.path.realpath(path.parent)
        match = re.fullmatch(rf"(?:/dev|/proc/{os.getpid()})/fd/([0-9]{{1,9}})", f"{folder}/{path.name}")
        if match is not None:
            return int(match[1])
        try:
            path = Path(folder, os.readlink(path))  # noqa: PTH115
        except OSError:
            return None
    return None


def _create(part: Path, target: _Target) -> BinaryIO:
    """Open a new file that will replace the target: unreadable to others before it has the target's mode."""
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666 if target.state is None else 0o600)
    try:
        if target.state is not None:
            _adopt(handle, target.path, target.state)
        return io.FileIO(handle, "w")
    except BaseException:
        os.close(handle)
        raise


def _adopt(handle: int, path: Path, state: os.stat_result) -> None:
    """Give a new file the owner, the mode and the extended attributes of another."""
    if not hasattr(os, "fchmod"):
        return
    mode, new = stat.S_IMODE(state.st_mode), os.fstat(handle)
    with contextlib.suppress(OSError):
        if state.st_uid != new.st_uid:
            os.fchown(handle, state.st_uid, -1)
    try:
        if state.st_gid != new.st_gid:
            os.fchown(handle, -1, state.st_gid)
    except OSError:
        mode = mode & ~0o070 | (mode & 0o007) << 3  # what was its group's alone is not another group's
    with contextlib.suppress(OSError, AttributeError):
        for name in os.listxattr(path):
            with contextlib.suppress(OSError):
                os.setxattr(handle, name, os.getxattr(path, name))
    os.fchmod(handle, mode)


def _through(path: Path, target: _Target, pieces: Pieces) -> int:
    """Write to what is not a regular file."""
    for stream in (sys.stdout, sys.stderr):  # what was printed before comes first
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if target.descriptor is not None:
        handle = os.dup(target.descriptor)
    elif target.state is not None and stat.S_ISSOCK(target.state.st_mode):
        handle = _connect(target.path)
    else:
        handle = _open_special(target.path)
    with io.FileIO(handle, "w") as file:
        return _send(file, pieces)


def _connect(path: Path) -> int:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        return connection.detach()


def _open_special(path: Path) -> int:
    """Open a device, or a FIFO once it has a reader."""
    start = time.monotonic()
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | _FLAGS | _NOW)
        except OSError as error:
            if error.errno != errno.ENXIO or not path.is_fifo() or time.monotonic() - start > PATIENCE:
                raise
            time.sleep(0.02)
        else:
            os.set_blocking(handle, True)
            return handle


def _send(file: BinaryIO, pieces: Pieces, sync: bool = False) -> int:
    count = 0
    for piece in pieces:
        rest = memoryview(piece)
        count += rest.nbytes
        while rest:
            written: int | None = file.write(rest)
            if written is None:  # a descriptor that does not block, and is full
                import select

                select.select([], [file], [])
            rest = rest[written or 0 :]
    if sync:
        os.fsync(file.fileno())
    return count


def _reason(error: OSError, path: Path) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.ENOENT and not path.parent.exists():
        return f"the folder {str(path.parent)!r} does not exist; create it first"
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"it is a link to {str(Path(os.path.realpath(path)))!r}, whose folder does not exist; create it first"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{text}; choose a folder that you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{text}; free some space or choose another disk"
    if error.errno == errno.ENXIO:
        return f"{text}: nobody reads from it; start its reader first"
    if error.errno == errno.EPIPE:
        return f"{text}: its reader has stopped"
    if error.errno == errno.EBUSY:
        return f"{text}: it may be mounted by itself, as into a container; mount its folder instead"
    return text


def open_file(path: Where, allow: str = "a file or a pipe") -> BinaryIO:
    """Open a file for reading: a regular one, or a pipe or terminal that was named directly.

    Nothing is waited for but the other end of a FIFO, for `PATIENCE` seconds.

    Arguments:
        allow: for the message.

    Raises:
        FileError: a folder, a socket, a block device, or what cannot be opened.
    """
    path = Path(path)
    try:
        descriptor = _descriptor(path)
        mode = path.stat().st_mode if descriptor is None else os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or descriptor is not None):
            raise FileError(f"is {kind(mode)}; give {'the file in it' if stat.S_ISDIR(mode) else allow}")
        if descriptor is not None and not stat.S_ISREG(mode):
            return io.FileIO(os.dup(descriptor), "r")
        handle = os.open(path, os.O_RDONLY | _FLAGS | _NOW)
        file = io.FileIO(handle, "r")
        try:
            mode = os.fstat(handle).st_mode  # the name may be that of another file by now
            if stat.S_ISREG(mode):
                return file
            stream = _written(file) if stat.S_ISFIFO(mode) else file
            os.set_blocking(handle, True)
            return stream  # type: ignore[return-value]
        except BaseException:
            file.close()
            raise
    except OSError as error:
        hint = "check its name" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "check its name and permissions"
        raise FileError(f"cannot be read ({error.strerror or error}); {hint}") from error
    except ValueError as error:  # a NUL in its name
        raise FileError(f"cannot be read ({error}); check its name") from error


def read_bytes(path: Where, limit: int, allow: str = "a file or a pipe") -> bytes:
    """Read a file of at most `limit` bytes; its size is checked before it is read. A pipe in `pipes` is not read again.

    Raises:
        FileError: it is larger, or `open_file` refuses it.
    """
    if pipes is not None and str(path) in pipes:
        return pipes[str(path)]
    with open_file(path, allow) as file:
        try:
            data = read_stream(file, limit)
            if pipes is not None and not stat.S_ISREG(mode(file)):
                pipes[str(path)] = data
            return data
        except OSError as error:
            raise FileError(f"cannot be read ({error.strerror or error}); check its name and permissions") from error


def real_path(path: Where) -> Path:
    """Return a path without symbolic links but those that lead in a circle, where `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def read_stream(file: BinaryIO, limit: int) -> bytes:
    """Read an open file to its end.

    Raises:
        FileError: it has more than `limit` bytes.
        OSError: it cannot be read.
    """
    size = 0
    with contextlib.suppress(OSError, ValueError):  # in memory
        size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise _too_large(limit)
    data = bytearray()
    while True:
        block: bytes | None = file.read(min(_CHUNK, limit + 1 - len(data)))
        if block is None:  # a descriptor that does not block, and is empty
            import select

            select.select([file], [], [])
            continue
        data += block
        if len(data) > limit:
            raise _too_large(limit)
        if not block:
            return bytes(data)


def read_text(path: Where, limit: int) -> str:
    """Read a UTF-8 text, with or without a mark, of at most `limit` bytes.

    Raises:
        FileError: it is larger or not UTF-8, or `open_file` refuses it.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"is not UTF-8 text (byte {error.start}); save it as UTF-8, or is it another file?") from error


def mode(file: BinaryIO) -> int:
    """The mode of an open file, that of a pipe where it has no descriptor of its own."""
    try:
        return os.fstat(file.fileno()).st_mode
    except (OSError, ValueError):
        return stat.S_IFIFO


def kind(mode: int) -> str:
    """The kind of a file that is not regular, from its mode: `a pipe`."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe (FIFO)"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


class _Rest(io.RawIOBase):
    """A pipe whose first bytes have been read, and are read again."""

    def __init__(self, file: io.FileIO, start: bytes) -> None:
        self._file = file
        self._start = start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._start:
            return self._file.readinto(buffer)
        count = min(len(buffer), len(self._start))
        buffer[:count], self._start = self._start[:count], self._start[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _written(file: io.FileIO) -> io.RawIOBase:
    """A FIFO that was opened without blocking, once it has a writer.

    Raises:
        FileError: nobody writes to it.
    """
    import select

    waiting = select.poll()
    waiting.register(file.fileno(), select.POLLIN)
    end = time.monotonic() + PATIENCE
    # a writer that has gone without writing counts: the end of the file is reported
    while not waiting.poll(20):
        try:
            start = os.read(file.fileno(), _CHUNK)
        except BlockingIOError:  # a writer that has not written yet
            return file
        if start:
            return _Rest(file, start)
        if time.monotonic() > end:
            raise FileError(f"is a pipe that nobody writes to (waited {PATIENCE:.0f} s); start its writer first")
    return file


def _too_large(limit: int) -> FileError:
    amount = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
    return FileError(f"is larger than {amount}; is it another file?")
