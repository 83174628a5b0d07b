"""`onnxcam serve`: answer requests for predictions and maps over HTTP."""

from __future__ import annotations

import ipaddress
from typing import Any

import click

from onnxcam import runtime
from onnxcam.cli import options, terminal
from onnxcam.targets import labels as label_files

EPILOG = """\
\b
Examples:
  onnxcam serve model.cam.onnx
  onnxcam serve model.cam.onnx --when "confidence < 0.6" --metrics --monitor records/
  onnxcam serve cats=cats.cam.onnx dogs=dogs.onnx --preprocess imagenet --port 9000
  onnxcam serve model.cam.onnx --host 0.0.0.0 --token-file tokens.txt --workers 4
  curl -s -F image=@cat.jpg http://127.0.0.1:8000/predict_with_gradcam
"""


# options of the command that are arguments of `Settings`
_LIMITS = (
    "max_body", "max_pixels", "queue", "queue_bytes", "timeout", "metrics", "threads", "connections", "drain", "seed",
)  # fmt: skip


@click.command("serve", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 for any that is free.",
)
@click.option(
    "--when",
    default="always",
    show_default=True,
    metavar="CONDITION",
    help='Which predictions are explained: always, never, or a condition such as "confidence < 0.6". A request may say '
    "otherwise.",
)
@click.option(
    "--max-body", default="20MiB", show_default=True, metavar="SIZE", help="Largest body of a request; else 413."
)
@click.option(
    "--max-pixels",
    default="50MP",
    show_default=True,
    metavar="PIXELS",
    help="Largest picture, judged by its header before it is decoded; else 413.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Requests that wait for a thread at most; others get 429.",
)
@click.option(
    "--queue-bytes",
    default="256MiB",
    show_default=True,
    metavar="SIZE",
    help="Bytes of the bodies of all requests in work at most.",
)
@click.option(
    "--timeout",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="Time for a body to arrive, and for its answer; else 408 and 504.",
)
@click.option(
    "--token-file", metavar="FILE", help="Tokens, one a line; a request needs one as Authorization: Bearer TOKEN."
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Origin whose pages may read answers, or *; repeat for several."
)
@click.option("--metrics", is_flag=True, help="Answer GET /metrics for Prometheus.")
@click.option("--monitor", metavar="DIR", help="Record predictions that meet --when in DIR, as onnxcam.Monitor does.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share the port; each has its own models, queue and threads.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of each process that read pictures and run models.  [default: one per core and one more]",
)
@click.option(
    "--rows",
    default="auto",
    show_default=True,
    metavar="N",
    help="Rows of several requests in one run of a model: a number, or auto to measure what pays. With 1 no answer "
    "depends on other requests, to the last bit.",
)
@click.option(
    "--connections", type=click.IntRange(min=1), default=1024, show_default=True, help="Open connections at most."
)
@click.option(
    "--drain",
    default="0.5s",
    show_default=True,
    metavar="TIME",
    help="After SIGTERM, time in which new requests get 503 before connections are closed.",
)
@click.option("--fast-png", is_flag=True, help="Do not compress the colours of overlays: faster, twice as large.")
@click.option("--no-access-log", is_flag=True, help="Do not log each request as a line of JSON on standard error.")
@options.layer_option("Target layer, where a request names none; several are fused.  [default: the model's own]")
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.range_option
@options.bands_option
@options.readout_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    when: str,
    token_file: str | None,
    cors: tuple[str, ...],
    monitor: str | None,
    workers: int,
    rows: str,
    fast_png: bool,
    no_access_log: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Answer requests for predictions and maps over HTTP.

    Serves each MODEL (a path, or NAME=PATH), an explainable file or any classifier, under routes of its own: POST
    /predict_with_gradcam and /analyze_class take a picture as JSON, multipart or body; GET /openapi.json describes
    every route. The first MODEL answers requests that name none.

    Listens on 127.0.0.1 unless --host says otherwise, and takes no URL in place of a picture. "Serve" in the
    documentation says what to set in production.

    Standard output gets one line, or with --json one document, when requests are answered. SIGTERM or Ctrl-C ends it
    after what was admitted is answered.

    Exit status: 0 ended by a signal, 2 wrong usage, an address that cannot be used or an unknown layer, 3 unusable
    model, 4 no usable runtime, execution provider or library of the server.
    """
    from onnxcam.server import missing
    from onnxcam.server.settings import Settings, read_tokens

    tokens = None if token_file is None else read_tokens(token_file)
    limits = {name: rest.pop(name) for name in _LIMITS}
    settings = Settings.of(when=when, tokens=tokens, cors=cors, rows=_rows(rows), compress=not fast_png, **limits)
    try:
        from onnxcam.server import run
    except ImportError as error:
        if (error.name or "").startswith("onnxcam"):
            raise
        raise missing(error) from error
    plan = run.Plan(list(models), settings, monitor, _opening(**rest), not no_access_log)
    if tokens is None and not _loopback(host):
        terminal.warn([f"whoever reaches {host} may use this server; --token-file FILE asks them for a token"])
    listener = run.bind(host, port)
    with listener:
        url = run.url_of(listener)

        def ready() -> None:
            if as_json:
                options.print_json({"url": url, "models": list(models), "workers": workers})
            else:
                terminal.echo(f"Serving on {url} (Ctrl-C ends it)")
            terminal.flush()

        if workers == 1:
            run.serve(plan, listener, ready)
        else:
            run.serve_with_workers(plan, listener, workers, ready)


def _opening(
    layers: tuple[str, ...],
    labels: str | None,
    value_range: list[float] | None,
    provider: str,
    **unchanged: Any,
) -> dict[str, Any]:
    """The arguments of each explainer."""
    return {
        "layers": list(dict.fromkeys(layers)) or None,
        "labels": None if labels is None else label_files.read(labels),
        "value_range": None if value_range is None else (value_range[0], value_range[1]),
        "providers": runtime.parse_provider(provider),
        **unchanged,
    }


def _rows(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
