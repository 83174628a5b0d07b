"""`onnxcam page`: write a page that explains pictures in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.export import read_labels

EPILOG = """\
\b
Examples:
  onnxcam page model.onnx -o page --serve
  onnxcam page classifier.onnx -o page --preprocess imagenet --labels labels.txt --pictures photos/
  onnxcam page model.onnx -o page --runtime node_modules/onnxruntime-web
"""


@click.command("page", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder for the page; it is made if need be.")
@click.option(
    "--pictures",
    metavar="DIR",
    help="Examples that the page offers: a folder or a file; copied as they are, with their metadata.",
)
@click.option(
    "--runtime",
    metavar="DIR",
    help="Folder with the files of onnxruntime-web (its package, or a folder with node_modules).  [default: fetched "
    "once by npm, and kept]",
)
@click.option(
    "--webgpu",
    is_flag=True,
    help="Use the graphics processor where it is faster and gives the same numbers as the processor, which is checked "
    "on the first picture: 27 MB more.",
)
@click.option("--name", metavar="NAME", help="The model's name on the page.  [default: that of its file]")
@options.layer_option("Layer whose maps the page shows; repeatable.  [default: those of the file]")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="CAM method that the file computes; repeatable.  [default: those of the file, or gradcam]",
)
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.readout_options
@click.option("--serve", is_flag=True, help="Then serve the page on 127.0.0.1, with the headers that threads need.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Of --serve; 0: any that is free."
)
@options.json_option
def page(
    model: str,
    output: str,
    pictures: str | None,
    runtime: str | None,
    webgpu: bool,
    name: str | None,
    layers: tuple[str, ...],
    methods: tuple[str, ...],
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    serve: bool,
    port: int,
    as_json: bool,
) -> None:
    """Write a page that explains pictures in the browser.

    The page is a folder of static files: the model, and onnxruntime-web, which runs it (WebAssembly) on the computer of
    whoever opens the page. Pictures are read, prepared and explained there, and never leave it; after the first visit
    it works offline. Any host of static files will do, but not a double click: browsers run no modules from files.

    MODEL is an explainable file or any classifier .onnx, as for `onnxcam explain`; other explainable files can be
    dropped on the page. It is as large as the model and 14 MB more. The licence of onnxruntime-web is beside it.

    Exit status: 0 written, 1 DIR cannot be written or served, 2 wrong usage or unknown layer or method, 3 bad model, 4
    onnxruntime-web is not there and cannot be fetched.
    """
    from onnxcam.errors import LayerError
    from onnxcam.server import static_page, web_runtime

    try:
        file = static_page.browser_model(
            model,
            layers=list(dict.fromkeys(layers)) or None,
            methods=tuple(dict.fromkeys(methods)) or ("gradcam",),
            labels=read_labels(labels, preprocess),
            preprocess=preprocess,
            input_size=input_size,
            scores=scores,
            kind=kind,
        )
    except LayerError as error:
        raise options.not_explainable(error, layers) from error
    web = web_runtime.find(runtime, webgpu=webgpu)
    title = name or Path(model).name.removesuffix(".onnx").removesuffix(".cam")
    written = static_page.write_page(output, file, title, web, _examples(pictures, output), note=_note)
    if not web.tested:
        _note(f"onnxruntime-web {web.version} was taken as it is; tested is {web_runtime.VERSION}")
    size = sum((Path(output) / one).stat().st_size for one in written)
    record: dict[str, Any] = {
        "folder": output, "model": title, "files": written, "bytes": size,
        "runtime": {"name": web_runtime.PACKAGE, "version": web.version, "tested": web.tested},
    }  # fmt: skip
    if as_json:
        options.print_json(record)
    else:
        terminal.echo(f"Page: {Path(output) / 'index.html'} and {len(written) - 1} more files, {size / 1e6:.1f} MB")
    if serve:
        _serve(output, written, port)
    elif not as_json:
        _note("it needs a web server, as browsers run no modules from files: onnxcam page … --serve")


def _examples(pictures: str | None, output: str) -> list[Path]:
    if pictures is None:
        return []
    from onnxcam.explain.pictures import collect

    collection = collect([pictures], Path(output))
    for failed, error in collection.failures:
        _note(f"{failed}: {error}")
    return [item.source for item in collection.items if isinstance(item.source, Path)]


def _serve(output: str, names: list[str], port: int) -> None:
    from onnxcam.server import file_server

    server = file_server.listen(output, names, port)
    terminal.echo(f"The page is at http://{file_server.HOST}:{server.server_port}/ until Ctrl-C.", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:  # the way to end it
        terminal.echo("Stopped.", err=True)
    finally:
        server.server_close()


def _note(text: str) -> None:
    terminal.echo(f"Note: {text}", err=True)
