"""Measure onnxcam on a GPU end to end, in under ten minutes, and say what was not measured and why.

    python -m tools.gpu_check [--device 0] [--seconds 420] [--json gpu.json]
    python -m tools.gpu_check --stand-in          # the same on the processor, to try the script itself

Exit status: 0 everything was measured and agrees with the processor, 1 something disagrees, failed or found no time, 4
there is no usable GPU, and nothing was measured.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import onnxcam
from onnxcam import models, runtime
from onnxcam.errors import OnnxcamError
from onnxcam.fleet import Explain

TOLERANCE = 1e-3  # ‖a - b‖ / ‖b‖ of scores and maps, as everywhere
METHODS = ("gradcam", "layercam", "saliency")  # in the file; a session more; of the picture itself
NO_GPU = 4
ROWS = (1, 16)
_DEADLINE = 600.0


class Check:
    """One run of the script.

    Arguments:
        provider: `cuda:N`, or `cpu` as a stand-in.
        seconds: for all measurements together.
    """

    def __init__(self, provider: str, seconds: float) -> None:
        self.provider = provider
        self.cuda = provider.startswith("cuda")
        self.end = time.monotonic() + seconds
        self.share = seconds / 12  # of one timed measurement
        self.model = str(models.path(models.MODEL))
        self.pictures = [models.path(name).read_bytes() for name in ("cat.png", "coffee.png", "cat_and_coffee.png")]
        self.figures: dict[str, Any] = {}
        self.unmeasured: dict[str, str] = {}
        self.failed: list[str] = []
        self.late = False

    def run(self) -> None:
        """Measure everything that can be, each part whether or not those before it could."""
        for name, part in (
            ("device", self.device), ("parity", self.parity), ("determinism", self.determinism),
            ("placement", self.placement), ("IO binding", self.io_binding), ("throughput of a loop", self.loop),
            ("throughput of the fleet's callable", self.fleet), ("throughput of the server", self.server),
            ("memory", self.memory),
        ):  # fmt: skip
            if time.monotonic() > self.end:
                self.unmeasured[name] = "the time was spent; raise --seconds"
                self.late = True
                continue
            try:
                self.figures[name] = part()
            except (OnnxcamError, OSError, subprocess.SubprocessError, RuntimeError) as error:
                self.unmeasured[name] = f"it failed: {str(error).splitlines()[0]}"
                self.failed.append(name)
            print(f"{name}: {json.dumps(self.figures.get(name, self.unmeasured.get(name)))}", flush=True)

    def open(self, provider: str | None = None, **settings: Any) -> onnxcam.Explainer:
        """The bundled model on a provider, by default the one under test."""
        return onnxcam.Explainer(self.model, providers=[provider or self.provider], **settings)

    def batch(self, rows: int) -> np.ndarray:
        """Prepared pictures, of which no two rows are the same."""
        explainer = self.open("cpu")
        tensors = [explainer.prepare(picture)[1] for picture in self.pictures]
        rng = np.random.default_rng(1234)
        noise = rng.normal(0, 0.02, (rows, *tensors[0].shape[1:])).astype(np.float32)
        return np.concatenate([tensors[row % len(tensors)] for row in range(rows)]) + noise

    def device(self) -> dict[str, Any]:
        """Versions, and that every session of an explainer is on the device that was named."""
        explainer = self.open()
        explainer.attribute(self.batch(2), method="layercam", size="layer")
        about: dict[str, Any] = {
            "onnxcam": onnxcam.__version__,
            "onnxruntime": runtime.import_onnxruntime().__version__,
        }
        about["providers"] = explainer.providers
        session = runtime.open_session(self.model, [self.provider])
        about["options"] = session.get_provider_options().get(explainer.providers[0], {}).get("device_id", "")
        if self.cuda:
            about["gpu"] = _nvidia_smi("name,driver_version,memory.total")
            if about["options"] != self.provider.partition(":")[2]:
                self.failed.append("device")
        else:
            self.unmeasured["the GPU"] = "--stand-in: every figure is the processor's"
        return about

    def parity(self) -> dict[str, Any]:
        """Best classes, scores and maps against the processor's, and the worst of 24 rows."""
        x, cpu, gpu = self.batch(24), self.open("cpu"), self.open()
        expected, actual = cpu.run(x), gpu.run(x)
        figures: dict[str, Any] = {
            "same best class": int((expected.scores.argmax(1) == actual.scores.argmax(1)).sum()),
            "rows": len(x),
            "scores": _distance(actual.scores, expected.scores),
        }
        classes = expected.scores.argmax(1)
        for method in METHODS:
            rows = x[:4] if method == "saliency" else x
            maps = [
                one.attribute(rows, classes[: len(rows)], method, normalize="none", size="layer") for one in (gpu, cpu)
            ]
            figures[method] = _distance(*maps)
        worst = max(value for name, value in figures.items() if name not in ("rows", "same best class"))
        if worst > TOLERANCE or figures["same best class"] != len(x):
            self.failed.append("parity")
        return figures

    def determinism(self) -> dict[str, Any]:
        """Whether the same rows give the same bits again, in one session and in two."""
        x, first, second = self.batch(8), self.open(), self.open()
        maps = [one.attribute(x, size="layer") for one in (first, first, first, second)]
        alone = np.concatenate([first.attribute(x[row : row + 1], size="layer") for row in range(len(x))])
        return {
            "again": all(np.array_equal(maps[0], one) for one in maps[1:3]),
            "another session": bool(np.array_equal(maps[0], maps[3])),
            "a row alone differs by": _distance(alone, maps[0]),
        }

    def placement(self) -> dict[str, Any]:
        """How many nodes of the file ran on which provider, and which operators not on the device."""
        options = runtime.options.serving(single_use=True)
        options.enable_profiling = True
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = runtime.open_session(self.model, [self.provider], options)
            session.run(None, {session.get_inputs()[0].name: self.batch(1)})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        ran = [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
        on_cpu = Counter(one["op_name"] for one in ran if one["provider"] == runtime.CPU)
        copies = sum(one["op_name"].startswith("Memcpy") for one in ran)
        nodes = dict(Counter(one["provider"] for one in ran))
        return {"nodes": nodes, "copies": copies, "on the processor": dict(on_cpu) if self.cuda else {}}

    def io_binding(self) -> dict[str, Any]:
        """Runs of the file with arrays, with outputs bound to the device, and with inputs there already, in turns."""
        ort = runtime.import_onnxruntime()
        session = runtime.open_session(self.model, [self.provider])
        place, number = ("cuda", int(self.provider.partition(":")[2] or 0)) if self.cuda else ("cpu", 0)
        manifest = self.open("cpu").manifest
        feed, names = manifest["input"]["name"], [manifest["scores"]["name"], "heatmap"]
        figures = {}
        for rows in ROWS:
            x = self.batch(rows)
            there = ort.OrtValue.ortvalue_from_numpy(x, place, number)

            calls = {
                "run": lambda x=x: session.run(names, {feed: x}),
                "bound outputs": _bound(session, feed, x, names, (place, number)),
                "all bound": _bound(session, feed, there, names, (place, number)),
            }
            results = [call() for call in calls.values()]
            if any(_distance(one[1], results[0][1]) > TOLERANCE for one in results[1:]):
                self.failed.append("IO binding")
            times = _in_turns(calls, self.share / len(ROWS))
            figures[f"{rows} rows"] = {
                name: {"ms": round(1e3 * statistics.median(one), 3), "of run": round(ratio, 3)}
                for (name, one), ratio in zip(times.items(), _ratios(times, "run"), strict=True)
            }
        return figures

    def loop(self) -> dict[str, Any]:
        """Pictures a second of a loop over prepared batches, on the device and on the processor."""
        figures = {}
        for provider in dict.fromkeys((self.provider, "cpu")):
            explainer = self.open(provider)
            for rows in ROWS:
                x = self.batch(rows)
                for kind, call in (
                    ("predictions", lambda e=explainer, x=x: e.predict(x)),
                    ("maps", lambda e=explainer, x=x: e.attribute(x, size="layer")),
                ):
                    figures[f"{provider}, {kind}, {rows} rows"] = _rate(call, rows, self.share / 4)
        return figures

    def fleet(self) -> dict[str, Any]:
        """Encoded pictures a second through `onnxcam.fleet.Explain`."""
        batch = {"bytes": np.array([self.pictures[row % 3] for row in range(48)], object)}
        figures = {}
        for when in ("always", "never"):
            explain = Explain(self.model, providers=[self.provider], when=when)
            errors = [one for one in explain(batch)["error"] if one]
            if errors:
                raise RuntimeError(errors[0])
            figures[f"--when {when}"] = _rate(lambda e=explain: e(batch), 48, self.share)
        return figures

    def server(self) -> dict[str, Any]:
        """Requests a second of `onnxcam serve`, eight clients, with the raw map and with predictions alone."""
        figures = {}
        with _serving(self.model, self.provider) as port:
            for query in ("files=map", "when=never&files=map"):
                figures[query] = _load(port, f"/predict_with_gradcam?{query}", self.pictures, self.share)
        return figures

    def memory(self) -> dict[str, Any]:
        """What 300 runs leave behind: bytes of this process, and MiB of the GPU."""
        explainer, x = self.open(), self.batch(16)
        explainer.attribute(x, size="layer")
        before = _resident(), _gpu_memory() if self.cuda else None
        until = time.monotonic() + 2 * self.share
        runs = 0
        while runs < 300 and time.monotonic() < until:
            explainer.attribute(x, size="layer")
            runs += 1
        gc.collect()
        after = _resident(), _gpu_memory() if self.cuda else None
        grown = None if before[0] is None or after[0] is None else (after[0] - before[0]) >> 20
        figures: dict[str, Any] = {"runs": runs, "process grew by MiB": grown}
        if self.cuda:
            figures["GPU MiB"] = [before[1], after[1]]
        else:
            self.unmeasured["GPU memory"] = "no GPU"
        return figures


def _bound(
    session: Any, feed: str, value: Any, names: list[str], place: tuple[str, int]
) -> Callable[[], list[np.ndarray]]:
    """A run by IO binding: outputs on the device, then copied; the input an array, or there already."""

    def run() -> list[np.ndarray]:
        binding = session.io_binding()
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(feed, value)
        else:
            binding.bind_ortvalue_input(feed, value)
        for name in names:
            binding.bind_output(name, *place)
        session.run_with_iobinding(binding)
        outputs: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return outputs

    return run


def _distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """The worst row's ‖a - b‖ / ‖b‖."""
    a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (actual, expected))
    return float((np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)).max())


def _in_turns(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call; round by round, so that all meet the same noise."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    until = time.monotonic() + seconds
    for call in calls.values():
        call()
    while time.monotonic() < until or not next(iter(times.values())):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def _ratios(times: dict[str, list[float]], reference: str) -> Iterator[float]:
    for one in times.values():
        yield statistics.median(a / b for a, b in zip(one, times[reference], strict=True))


def _rate(call: Callable[[], Any], rows: int, seconds: float) -> float:
    """Rows a second."""
    call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not count:
        call()
        count += rows
    return round(count / (time.perf_counter() - start), 1)


@contextmanager
def _serving(model: str, provider: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    command = [sys.executable, "-m", "onnxcam", "serve", model, "--port", str(port), "--provider", provider]
    process = subprocess.Popen([*command, "--no-access-log"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(f"the server ended: {process.stderr.read().decode(errors='replace')[-300:]}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _load(port: int, path: str, pictures: list[bytes], seconds: float, clients: int = 8) -> dict[str, Any]:
    """Requests a second and their latency, with each client's next request right after the last answer."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    warm, until = time.monotonic() + seconds / 4, time.monotonic() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < until:
            start = time.perf_counter()
            connection.request("POST", path, pictures[number % len(pictures)], {"content-type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if time.monotonic() > warm:
                latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if set(statuses) != {200} or not latencies:
        raise RuntimeError(f"the server answered {dict(statuses)}")
    latencies.sort()
    spent = time.monotonic() - warm
    return {
        "requests a second": round(len(latencies) / spent, 1),
        "p50 ms": round(1e3 * latencies[len(latencies) // 2], 1),
        "p99 ms": round(1e3 * latencies[int(len(latencies) * 0.99)], 1),
    }


def _nvidia_smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _gpu_memory() -> list[int]:
    """MiB in use on each GPU, by all processes."""
    return [int(line) for line in _nvidia_smi("memory.used").splitlines()]


def _resident() -> int | None:
    """Resident bytes of this process, None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def usable(provider: str) -> str | None:
    """Why the provider cannot be used, None if it can."""
    try:
        runtime.open_session(str(models.path(models.MODEL)), [provider])
    except OnnxcamError as error:
        return str(error).splitlines()[0]
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the check; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--seconds", type=float, default=420.0, help="for all measurements together")
    parser.add_argument("--stand-in", action="store_true", help="run on the processor, to try the script itself")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= _DEADLINE:
        parser.error(f"--seconds {options.seconds:g}; expected 1 to {_DEADLINE:g}")
    provider = "cpu" if options.stand_in else f"cuda:{options.device}"
    reason = usable(provider)
    check = Check(provider, options.seconds)
    if reason is None:
        check.run()
    else:
        check.unmeasured["everything"] = f"{provider} cannot be used: {reason}"
    for name, why in check.unmeasured.items():
        print(f"not measured: {name}: {why}")
    for name in dict.fromkeys(check.failed):
        print(f"FAILED: {name}")
    if options.json is not None:
        document = {"figures": check.figures, "not measured": check.unmeasured, "failed": check.failed}
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return NO_GPU if reason is not None else int(bool(check.failed) or check.late)


if __name__ == "__main__":
    sys.exit(main())
