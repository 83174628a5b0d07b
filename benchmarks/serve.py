"""Measure `onnxcam serve` beside a bare server of the same model, and beside FastAPI with pytorch-grad-cam.

    python benchmarks/serve.py [--rounds 5] [--seconds 2.5] [--output benchmarks/serve.md] [--json FILE]

All servers run at once, each in a process of its own, and are asked in turn, round by round, by one client that keeps
`--connections` busy; ratios are taken within a round. Then arrivals at 80 % of what the server can answer are compared
with an ideal queue whose service times were measured just before, and servers are started anew to their first answer.
Processor time is that of the server's process alone, so its ratios hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.folder import CORRUPT, photographs  # noqa: E402
from benchmarks.serving import ideal  # noqa: E402
from tests.server import flood  # noqa: E402
from tests.support.http_load import Answer, request  # noqa: E402

ROUTE = "/predict_with_gradcam"
SIZES = {"640 x 480": (480, 640), "224 x 224": (224, 224)}
PICTURES = 16  # different ones of each size
CORES = os.cpu_count() or 1
GOOD, BAD = 15, 100  # requests a second, of the flood


class Question(NamedTuple):
    """What is asked of a server: its name in the table, the server, the query string, and the pictures' size."""

    name: str
    server: str
    query: str
    size: str


SHUT, DRAWN, MAP = "when=never", "files=heatmap,overlay", "files=map"
LARGE, SMALL = SIZES
QUESTIONS = (
    *(Question("bare", "bare", "", size) for size in SIZES),
    *(Question("bare, Pillow", "bare, Pillow", "", size) for size in SIZES),
    *(Question("onnxcam, gate shut", "onnxcam", SHUT, size) for size in SIZES),
    *(Question("onnxcam, heatmap and overlay", "onnxcam", DRAWN, size) for size in SIZES),
    *(Question("onnxcam, raw map", "onnxcam", MAP, size) for size in SIZES),
    Question("FastAPI, pytorch-grad-cam", "torch", "", LARGE),
)
# name, size, compared with, and what the issue wants of the ratio of requests per second
LIMITS = (
    ("onnxcam, gate shut", LARGE, "bare", 0.95),
    ("onnxcam, gate shut", SMALL, "bare", 0.95),
    ("onnxcam, heatmap and overlay", LARGE, "bare", 0.6),
    ("onnxcam, heatmap and overlay", SMALL, "bare", 0.85),
    ("onnxcam, raw map", LARGE, "bare", 0.85),
    ("onnxcam, raw map", SMALL, "bare", 0.85),
    ("onnxcam, heatmap and overlay", LARGE, "FastAPI, pytorch-grad-cam", 5.0),
)


class Server:
    """A server in a process of its own on a free port of this machine; ended with the block."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        self.log = folder / f"{self.port}.log"
        self.start = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [argument.format(port=self.port) for argument in command],
                stdout=log, stderr=log, env=environment, cwd=ROOT,
            )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def first(self, query: str, picture: Path, patience: float = 120.0) -> tuple[float, dict[str, Any]]:
        """Seconds from the start to the first answer, and that answer."""
        while True:
            try:
                return self.ask(query, picture)
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError):
                    sys.exit(f"{self.process.args}: {error.code}, {error.read(500)!r}")
                if self.process.poll() is not None or time.perf_counter() - self.start > patience:
                    sys.exit(f"{self.process.args} does not answer: {self.log.read_text()[-2000:]}")
                time.sleep(0.003)

    def ask(self, query: str, picture: Path) -> tuple[float, dict[str, Any]]:
        """Seconds since the start, and an answer."""
        url = f"http://127.0.0.1:{self.port}{ROUTE}?{query}"
        post = urllib.request.Request(url, picture.read_bytes(), {"content-type": "image/jpeg"})
        with urllib.request.urlopen(post, timeout=60) as answer:
            body = answer.read()
        return time.perf_counter() - self.start, json.loads(body)

    @property
    def processor(self) -> float:
        """Processor seconds of the process and its children so far."""
        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        return sum(sum(process.cpu_times()[:2]) for process in processes)


class Block(NamedTuple):
    """What one block showed: requests per second, processor ms and bytes of an answer, and the answers."""

    rate: float
    processor: float
    size: float
    answers: list[Answer]


def block(server: Server, files: Sequence[Path], **order: Any) -> Block:
    """One block of load on a server; an answer that is not 200 ends the measurement."""
    before = server.processor
    spec = json.dumps({"port": server.port, "requests": [str(file) for file in files], **order})
    command = [sys.executable, "-m", "tests.support.http_load"]
    done = subprocess.run(command, input=spec, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    answers = [Answer(*answer) for answer in json.loads(done.stdout)]
    wrong = {answer.status for answer in answers} - {200}
    if wrong:
        sys.exit(f"{server.process.args} answered {sorted(wrong)}: {server.log.read_text()[-2000:]}")
    processor = server.processor - before
    # the first and the last moments, in which not all connections are busy, are left out
    ends = sorted(answer.due + answer.seconds for answer in answers)
    skip = max(len(ends) // 20, 1)
    inner = ends[skip:-skip] if len(ends) > 3 * skip else ends
    rate = (len(inner) - 1) / max(inner[-1] - inner[0], 1e-9)
    return Block(rate, 1e3 * processor / len(answers), statistics.fmean(a.size for a in answers), answers)


def files_of(folder: Path, photos: dict[str, list[Path]], question: Question) -> list[Path]:
    """The requests of a question, each as the bytes that are sent."""
    paths = []
    for number, photo in enumerate(photos[question.size]):
        path = folder / f"{abs(hash(question))}-{number}.http"
        path.write_bytes(request(f"{ROUTE}?{question.query}", photo.read_bytes()))
        paths.append(path)
    return paths


def build(folder: Path) -> tuple[Path, Path]:
    """The plain file of the bundled model, and its labels."""
    from onnxcam import models
    from onnxcam.graph import load
    from onnxcam.graph.normalize import prepare
    from onnxcam.network import manifest
    from onnxcam.network.split import head_of

    explainable = load.load(models.path(models.MODEL))
    header = manifest.read(explainable)
    assert header is not None
    plain, labels = folder / "plain.onnx", folder / "labels.json"
    load.save(head_of(prepare(explainable), header), plain)
    labels.write_text(json.dumps(header["labels"]), "utf-8")
    return plain, labels


def commands(folder: Path) -> dict[str, list[str]]:
    """How each server is started."""
    from onnxcam import models

    plain, labels = build(folder)
    serving = ROOT / "benchmarks" / "serving"
    bare = [sys.executable, str(serving / "bare.py"), str(plain), str(labels), "{port}"]
    return {
        "bare": bare,
        "bare, one thread a run": [*bare, "--threads", "1"],
        "bare, Pillow": [*bare, "--decode", "pillow"],
        "onnxcam": [sys.executable, "-m", "onnxcam", "serve", str(models.path(models.MODEL)), "--port", "{port}"],
        "torch": [sys.executable, str(serving / "grad_cam.py"), "{port}"],
    }


def throughput(
    servers: dict[str, Server], files: dict[Question, list[Path]], arguments: argparse.Namespace
) -> dict[Question, list[Block]]:
    """Blocks of every question, in turn, round by round."""
    blocks: dict[Question, list[Block]] = {question: [] for question in files}
    for turn in range(arguments.rounds):
        for question in list(files)[:: 1 if turn % 2 == 0 else -1]:
            print(f"\rround {turn + 1} of {arguments.rounds}: {question.name:40}", end="", file=sys.stderr)
            server = servers[question.server]
            order = {"connections": arguments.connections, "seconds": arguments.seconds}
            blocks[question].append(block(server, files[question], **order))
    print(file=sys.stderr)
    return blocks


def faster(servers: dict[str, Server], files: dict[Question, list[Path]], arguments: argparse.Namespace) -> str:
    """Let the bare servers run with the threads that are better for them; return which."""
    seconds = arguments.seconds / 2
    sums = {}
    for threads, name in (("ONNX Runtime's default", "bare"), ("1", "bare, one thread a run")):
        rates = [
            block(servers[name], paths, connections=arguments.connections, seconds=seconds).rate
            for question, paths in files.items()
            if question.name == "bare"
        ]
        sums[threads] = sum(rates)
    best = max(sums, key=lambda threads: sums[threads])
    if best == "1":
        servers["bare"], servers["bare, one thread a run"] = servers["bare, one thread a run"], servers["bare"]
    return best


def waiting(server: Server, files: list[Path], arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """How long requests take that arrive at 80 % of capacity, beside an ideal queue of the measured service times.

    A service time is what a request takes with as many on their way as there are cores, so that none waits.
    """
    service = [a.seconds for a in block(server, files, connections=CORES, seconds=arguments.seconds * 2).answers]
    service = service[len(service) // 20 :]
    rate = 0.8 * CORES / statistics.fmean(service)
    arrivals = ideal.poisson(rate, arguments.load_seconds, seed)
    answers = block(server, files, arrivals=arrivals).answers
    p99 = float(np.percentile([answer.seconds for answer in answers], 99))
    best = ideal.p99(arrivals, service, CORES)
    return {
        "rate": rate, "requests": len(arrivals), "service": 1e3 * statistics.fmean(service),
        "p99": 1e3 * p99, "ideal p99": 1e3 * best, "ratio": p99 / best,
    }  # fmt: skip


def load(
    servers: dict[str, Server], files: dict[Question, list[Path]], arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """`waiting` of three questions in turn, several times, as the p99 of one turn is a handful of requests: medians."""
    names = ("bare", "onnxcam, gate shut", "onnxcam, heatmap and overlay")
    questions = [question for question in QUESTIONS if question.size == LARGE and question.name in names]
    turns: dict[str, list[dict[str, float]]] = {}
    for turn in range(arguments.load_turns):
        for number, question in enumerate(questions):
            name = f"{question.name}, {question.size}"
            print(f"\r80 % load, turn {turn + 1}: {name:50}", end="", file=sys.stderr)
            seed = turn * len(questions) + number
            turns.setdefault(name, []).append(waiting(servers[question.server], files[question], arguments, seed))
    return {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        | {"requests": sum(one["requests"] for one in measured)}
        | {"lowest": min(one["ratio"] for one in measured), "highest": max(one["ratio"] for one in measured)}
        for name, measured in turns.items()
    }


def cold(how: dict[str, list[str]], photo: Path, folder: Path, starts: int) -> dict[str, float]:
    """Medians of seconds from the start of a process to its first answer; the first round is not counted."""
    contestants = {"bare": "", "bare, Pillow": "", "onnxcam, gate shut": SHUT, "onnxcam, heatmap and overlay": DRAWN}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(starts + 1):
        print(f"\rcold start {turn} of {starts}", end="", file=sys.stderr)
        for name, query in list(contestants.items())[:: 1 if turn % 2 == 0 else -1]:
            with Server(how[name.split(",")[0] if name.startswith("onnxcam") else name], folder) as server:
                elapsed, _ = server.first(query, photo)
            if turn:
                seconds[name].append(elapsed)
    print(file=sys.stderr)
    figures = {name: statistics.median(values) for name, values in seconds.items()}
    for name in contestants:
        ratios = [mine / bare for mine, bare in zip(seconds[name], seconds["bare"], strict=True)]
        figures[f"{name} / bare"] = statistics.median(ratios)
    return figures


def agree(servers: dict[str, Server], photos: dict[str, list[Path]]) -> None:
    """End the measurement if the servers that run the same weights do not predict the same."""
    for photo in [path for paths in photos.values() for path in paths[:4]]:
        answers = {
            name: servers[name].ask(SHUT if name == "onnxcam" else "", photo)[1] for name in servers if name != "torch"
        }
        expected = answers["bare"]["top_predictions"]
        for name, answer in answers.items():
            actual = answer["top_predictions"]
            if not set(answers["bare"]) <= set(answer) | {"fired"} or [p["class_index"] for p in actual] != [
                p["class_index"] for p in expected
            ]:
                sys.exit(f"{name} answers {answer} and bare {answers['bare']}")
            if max(abs(p["confidence"] - q["confidence"]) for p, q in zip(actual, expected, strict=True)) > 1e-4:
                sys.exit(f"{name} is surer or less sure than bare: {actual}, {expected}")


@contextlib.contextmanager
def running(how: dict[str, list[str]], folder: Path, photo: Path) -> Iterator[dict[str, Server]]:
    """All servers, each once it has answered."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(command, folder)) for name, command in how.items()}
        for name, server in servers.items():
            print(f"\rstarting: {name:40}", end="", file=sys.stderr)
            server.first("", photo)
        print(file=sys.stderr)
        yield servers


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, ready for JSON."""
    photos = {
        size: sorted(photographs(folder / size, pixels, PICTURES + CORRUPT).glob("*.jpg"))[:PICTURES]
        for size, pixels in SIZES.items()
    }
    how = commands(folder)
    photo = photos[LARGE][0]
    files = {question: files_of(folder, photos, question) for question in QUESTIONS}
    with running(how, folder, photo) as servers:
        agree(servers, photos)
        threads = faster(servers, files, arguments)
        blocks = throughput(servers, files, arguments)
        loaded = load(servers, files, arguments)
        print("\rflood", " " * 70, end="", file=sys.stderr)
        flooded = flood.compare(
            servers["onnxcam"].port, photo.read_bytes(), rate=GOOD, bad=BAD, seconds=arguments.flood_seconds, turns=3
        )
        print(file=sys.stderr)
        if set(flooded["statuses"]) != {200} or flood.wrong(flooded["bad"], patience=True):
            sys.exit(f"the server answers {flooded}")
    return {
        "threads of the bare server": threads,
        "flood": flooded,
        "questions": [
            {
                "name": question.name, "size": question.size,
                "rates": [b.rate for b in measured], "rate": statistics.median(b.rate for b in measured),
                "processor": statistics.median(b.processor for b in measured),
                "bytes": statistics.median(b.size for b in measured),
                "p50": 1e3 * float(np.median([a.seconds for b in measured for a in b.answers])),
                "p99": 1e3 * float(np.percentile([a.seconds for b in measured for a in b.answers], 99)),
            }
            for question, measured in blocks.items()
        ],
        "load": loaded,
        "cold": cold(how, photo, folder, arguments.starts),
    }  # fmt: skip


def ratio(figures: dict[str, Any], name: str, other: str, size: str) -> tuple[float, float]:
    """The medians of ratios within rounds, of requests per second, and of processor time for a request."""
    rows = {(row["name"], row["size"]): row for row in figures["questions"]}
    mine, base = rows[name, size], rows[other, size]
    rates = [a / b for a, b in zip(mine["rates"], base["rates"], strict=True)]
    return statistics.median(rates), mine["processor"] / base["processor"]


def table(figures: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The figures as Markdown, with date, machine and versions."""
    from importlib.metadata import version

    names = ("onnxcam", "onnxruntime", "starlette", "uvicorn", "opencv-python", "isal", "torch", "grad-cam", "fastapi")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "# Serving",
        "",
        f"Measured {datetime.date.today()} with `python benchmarks/serve.py` on {CORES} CPU cores "
        f"({platform.machine()}, Python {platform.python_version()}): {versions}.",
        "",
        "EfficientNet-Lite0, JPEG in, JSON out, one process each, asked in turn by one client on the same cores with",
        f"{arguments.connections} connections; {arguments.rounds} rounds of {arguments.seconds} s. *Bare* is starlette",
        "with ONNX Runtime: it decodes with OpenCV, resamples by onnxcam's code (the same pixels), predicts, answers",
        f"with the same JSON fields; threads of a run: {figures['threads of the bare server']}, which was faster.",
        "*Pillow*: the same with Pillow's decoder and resampling. *processor*: of the server's process, for a request.",
        "",
        "| server | pictures | requests/s | / bare | processor (ms) | / bare | p50 (ms) | p99 (ms) | answer (kB) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in figures["questions"]:
        rate, processor = ratio(figures, row["name"], "bare", row["size"])
        lines.append(
            f"| {row['name']} | {row['size']} | {row['rate']:.1f} | {rate:.2f} | {row['processor']:.1f} | "
            f"{processor:.2f} | {row['p50']:.0f} | {row['p99']:.0f} | {row['bytes'] / 1e3:.1f} |"
        )
    lines += ["", "| ratio of requests per second | measured | at least |", "|---|---:|---:|"]
    for name, size, other, least in LIMITS:
        measured = ratio(figures, name, other, size)[0]
        lines.append(f"| {name}, {size} / {other} | {measured:.2f} | {least} |")
    lines += [
        "",
        "Poisson arrivals at 80 % of capacity, beside an ideal queue (first come, first served, a server a core)",
        "of the service times measured just before, with as many requests on their way as cores; medians of "
        f"{arguments.load_turns} turns of {arguments.load_seconds:g} s:",
        "",
        "| server | requests/s | requests | service (ms) | p99 (ms) | ideal p99 (ms) | ratio | at most |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in figures["load"].items():
        ratios = f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        lines.append(
            f"| {name} | {row['rate']:.1f} | {row['requests']} | {row['service']:.1f} | {row['p99']:.1f} | "
            f"{row['ideal p99']:.1f} | {ratios} | {'' if name.startswith('bare') else '1.5'} |"
        )
    flooded = figures["flood"]
    lines += [
        "",
        f"{GOOD} requests for heatmap and overlay a second, without and with {BAD} bad requests a second from a",
        f"process of the lowest priority: p99 {flooded['p99']:.1f} and {flooded['p99 flooded']:.1f} ms, a ratio of "
        f"{flooded['ratio']:.2f} (at most 2).",
    ]
    lines += [
        "",
        "From the start of the process to its first answer:",
        "",
        "| server | s | / bare |",
        "|---|---:|---:|",
    ]
    for name in [name for name in figures["cold"] if "/" not in name]:
        lines.append(f"| {name} | {figures['cold'][name]:.2f} | {figures['cold'][f'{name} / bare']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="of a block")
    parser.add_argument("--connections", type=int, default=2 * CORES)
    parser.add_argument("--load-seconds", type=float, default=15.0, help="of arrivals at 80 %% of capacity")
    parser.add_argument("--load-turns", type=int, default=3)
    parser.add_argument("--flood-seconds", type=float, default=6.0, help="of each of six turns")
    parser.add_argument("--starts", type=int, default=7, help="processes of each server")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "serve.md")
    parser.add_argument("--json", type=Path, help="also write all figures into this file")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), "utf-8")
    text = table(figures, arguments)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
