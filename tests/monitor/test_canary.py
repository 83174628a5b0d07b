"""Promise 14: what `redact` holds back is nowhere: not in files, records, logs, metrics or messages, whatever fails."""

from __future__ import annotations

import base64
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest

from onnxcam.image import colorize
from onnxcam.monitor import metrics
from onnxcam.monitor.hook import Monitor
from onnxcam.monitor.metrics import RecordMetrics
from tests.monitor.monitoring import ALWAYS, MODEL, SIZE, UNLIMITED

# noise: no eight bytes of it come about by chance, nor do these colours lie on the colour scale
PIXELS = np.random.default_rng(4711).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
WINDOW = 8


def encoded() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def tensor() -> np.ndarray:
    return (PIXELS.astype(np.float32) / 255).transpose(2, 0, 1)[None]


def canaries() -> Iterator[bytes]:
    """The picture's bytes in every order and type they pass through, in pieces, plain and written out."""
    pixels = tensor()
    orders = (PIXELS, PIXELS[..., ::-1], PIXELS.transpose(2, 0, 1), pixels, pixels.transpose(0, 2, 3, 1))
    whole = [np.ascontiguousarray(order).tobytes() for order in orders] + [encoded()[60:]]
    for data in whole:
        for at in range(0, len(data) - 64, 251):
            piece = data[at : at + WINDOW]
            yield piece
            yield piece.hex().encode()
            yield piece.hex(" ").encode()
            yield from (base64.b64encode(data[at + k : at + k + 12]) for k in range(3))
            yield repr(piece)[2:-1].encode()
    for order in orders:
        flat = order.ravel()
        for at in range(0, flat.size - 4, 97):
            four = [value.item() for value in flat[at : at + 4]]
            for gap in (", ", ",", " "):
                yield gap.join(str(value) for value in four).encode()
                yield gap.join(f"{value:.4f}" for value in four).encode()


CANARIES = sorted(set(canaries()))
SCALE = {tuple(color) for color in colorize(np.linspace(0, 1, 4096, dtype=np.float32)[None])[0].tolist()}


def traces_in(data: bytes) -> list[bytes]:
    return [canary for canary in CANARIES if canary in data]


class Observed:
    """Everything that left the monitor."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = CollectorRegistry()
        self.logged = io.StringIO()
        self.handler = logging.StreamHandler(self.logged)
        self.handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        logger = logging.getLogger()
        self._level = logger.level
        logger.addHandler(self.handler)
        logger.setLevel(logging.DEBUG)

    def close(self) -> None:
        logging.getLogger().removeHandler(self.handler)
        logging.getLogger().setLevel(self._level)

    def texts(self) -> dict[str, bytes]:
        """Logs and metrics, and every file with its name."""
        texts_by_place = {"log": self.logged.getvalue().encode(), "metrics": generate_latest(self.registry)}
        for path in self.root.rglob("*"):
            if path.is_file():
                texts_by_place[path.name] = path.name.encode() + path.read_bytes()
        return texts_by_place

    def pictures(self) -> list[np.ndarray]:
        return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(self.root.rglob("*.png"))]


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[Observed]:
    result = Observed(tmp_path / "cam")
    yield result
    result.close()


def monitor(observed: Observed, redact: str, sink: Any = (), **options: Any) -> Monitor:
    sinks = [observed.root, "logging:records", RecordMetrics(observed.registry), *sink]
    settings = UNLIMITED | {"when": ALWAYS, "baseline_sample": 0, "preprocess": "0..1", "redact": redact} | options
    watcher = Monitor(MODEL, sink=sinks, **settings)
    metrics.export(watcher, observed.registry)
    return watcher


def show(watcher: Monitor, tmp_path: Path) -> int:
    """One prediction of the picture in each form in which it may be given."""
    scores = np.array([[0.1, 0.2, 0.3, 0.2, 0.1]], np.float32)
    path = tmp_path / "patient.png"
    path.write_bytes(encoded())
    queued = watcher.observe(scores, tensor=tensor())
    for picture in (encoded(), PIXELS, str(path)):
        queued += watcher.observe(scores, pictures=[picture])
    return queued


def test_the_scan_finds_what_is_there(tmp_path: Path, observed: Observed) -> None:
    """Without redaction the picture is kept: the scan below is not blind."""
    watcher = monitor(observed, "none")
    show(watcher, tmp_path)
    assert watcher.flush(60)
    watcher.close(5)
    assert any(np.array_equal(picture, PIXELS) for picture in observed.pictures())
    assert traces_in(PIXELS.tobytes()) and traces_in(encoded()) and traces_in(tensor().tobytes())
    assert traces_in(str(PIXELS.ravel().tolist()).encode()) and traces_in(repr(encoded()).encode())
    assert traces_in(base64.b64encode(encoded())) and traces_in(tensor().tobytes().hex().encode())


@pytest.mark.parametrize("worker", ["thread", "inline", pytest.param("process", marks=pytest.mark.slow)])
@pytest.mark.parametrize("redact", ["heatmap_only", "hash"])
def test_nothing_of_the_picture_is_kept(
    redact: str, worker: str, tmp_path: Path, observed: Observed, capfd: pytest.CaptureFixture[str]
) -> None:
    watcher = monitor(observed, redact, worker=worker)
    assert show(watcher, tmp_path) == 4
    assert watcher.flush(60)
    stats = watcher.stats()
    watcher.close(5)
    assert stats["explained"] == 4, stats
    texts = observed.texts() | {"printed": "".join(capfd.readouterr()).encode()}
    assert {name: traces_in(data) for name, data in texts.items() if traces_in(data)} == {}
    artefacts = observed.pictures()
    assert len(artefacts) == (4 if redact == "heatmap_only" else 0)
    for picture in artefacts:
        colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
        assert colors <= SCALE, "a heatmap shows colours of its scale, and nothing else"


def failing_sink(record: Any, files: Any) -> None:
    raise ValueError(f"no space for {PIXELS.ravel()[:600].tolist()} {encoded()!r}")


def failing_with(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise error()

    return fail


@pytest.mark.parametrize("redact", ["heatmap_only", "hash"])
def test_failures_do_not_tell_the_picture(redact: str, tmp_path: Path, observed: Observed) -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.2, 0.1]], np.float32)
    whole = encoded()
    position = observed.logged.tell()
    # a monitor each, since one does not say the same thing twice
    for values, keywords in (
        (scores, {"tensor": tensor()}),
        (scores, {"pictures": [whole[: len(whole) // 2]]}),
        (scores, {"pictures": [PIXELS.tobytes()]}),
        (scores, {"pictures": [base64.b64encode(whole)]}),
        (scores, {"pictures": [whole[:50] + PIXELS.tobytes()]}),
        (scores, {"pictures": [PIXELS.astype(np.float32)]}),
        (scores, {"pictures": [PIXELS.tolist()]}),
        (scores, {"tensor": tensor()[:, :2]}),
        (scores, {"tensor": PIXELS}),
        (scores, {"tensor": [PIXELS.tolist()]}),
        (PIXELS.astype(np.float32), {"tensor": tensor()}),
        (PIXELS.tolist(), {"pictures": PIXELS}),
        (repr(whole), {"tensor": tensor()}),
        ([[PIXELS.tolist(), "x"]], {"tensor": tensor()}),
    ):
        watcher = Monitor(
            MODEL,
            sink=[RecordMetrics(observed.registry), failing_sink],
            preprocess="0..1",
            redact=redact,
            when=ALWAYS,
            **UNLIMITED,
        )
        watcher.observe(values, **keywords)
        assert watcher.flush(60)
        stats = watcher.stats()
        watcher.close(5)
        assert stats["explained"] == 0 and stats["seen"] == stats["failed"] + sum(stats["dropped"].values())
        assert observed.logged.tell() > position, "it was said"
        position = observed.logged.tell()
    texts = observed.texts()
    assert {name: traces_in(data) for name, data in texts.items() if traces_in(data)} == {}


def test_a_sinks_own_error_is_chained_but_not_quoted(observed: Observed) -> None:
    from onnxcam.errors import OutputError
    from onnxcam.monitor.sinks import open_sink
    from tests.monitor import samples

    with pytest.raises(OutputError) as caught:
        open_sink(failing_sink).write(samples.make(), {})
    assert not traces_in(str(caught.value).encode())
    assert traces_in("".join(traceback.format_exception(caught.value)).encode()), "a debugger still sees the cause"
