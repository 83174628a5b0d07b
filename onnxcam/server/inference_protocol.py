"""Open Inference Protocol v2 over REST: metadata, readiness, inference with JSON tensors and with binary data.

https://github.com/kserve/open-inference-protocol. The map is an ordinary output tensor, `heatmap`, at the layer's own
resolution, not negative and not normalised, as in the file; `fired` says which rows were explained. Inputs are the
model's own tensor or encoded pictures (`image`, BYTES), and the class to explain (`target`, INT64, -1 for the top-1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnxcam.errors import InputError
from onnxcam.explain.conditional import fires
from onnxcam.explain.question import Question
from onnxcam.network.layout import Layout
from onnxcam.server import bodies, instances, responses, tensors
from onnxcam.server.models import Model, Prediction
from onnxcam.server.refusals import Refusal
from onnxcam.targets.classes import TOP1

if TYPE_CHECKING:
    from onnxcam.server.scheduler import Attempt
    from onnxcam.server.state import State

HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "onnxruntime_onnx"
IMAGE, TARGET, HEATMAP, FIRED = "image", "target", "heatmap", "fired"
# parameters of a request: the question's; those of schedulers and codecs change nothing here
OPTIONS = ("layer", "method", "when", "contrast", "probability", "option", "seed")
BINARY_OUTPUT = "binary_data_output"
_IGNORED = frozenset({"priority", "timeout", "content_type", "headers"})
_ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear", "Round"})
_OUTPUTS = 16  # named in one request


class Tensors(NamedTuple):
    """A request for inference.

    Attributes:
        id: of the request, None for none.
        inputs: by name: arrays; of BYTES lists of texts or bytes.
        outputs: whether in binary, by name, in order; None for all.
        binary: whether outputs are binary that do not say.
        options: of `OPTIONS`.
    """

    id: str | None
    inputs: dict[str, Any]
    outputs: dict[str, bool] | None
    binary: bool
    options: dict[str, Any]


class Names(NamedTuple):
    """The tensors of a model, by what they are; a model may use our usual names itself."""

    input: str
    image: str
    target: str
    scores: str
    probabilities: str | None
    heatmap: str
    fired: str

    @classmethod
    def of(cls, model: Model) -> Names:
        """The names of a model's tensors."""
        manifest = model.explainer.manifest
        scores = manifest["scores"]
        # an output that rounds is not the probabilities that are computed here: it is left out
        rounded = not _ROUNDING.isdisjoint(scores.get("stepped_over", ()))
        probabilities = None if rounded else scores.get("probabilities")
        taken_names = {manifest["input"]["name"], scores["name"], scores.get("probabilities")}

        def free(name: str) -> str:
            return f"onnxcam.{name}" if name in taken_names else name

        target = manifest["target"].get("name") or free(TARGET)
        return cls(
            manifest["input"]["name"], free(IMAGE), target, scores["name"], probabilities, free(HEATMAP),
            free(FIRED),
        )  # fmt: skip

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        own_outputs = (self.scores, self.probabilities)
        return (*(name for name in own_outputs if name is not None), self.heatmap, self.fired)


def server_metadata() -> dict[str, Any]:
    """The answer to `GET /v2`."""
    from onnxcam import __version__

    return {"name": "onnxcam", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: Model) -> dict[str, Any]:
    """The answer to `GET /v2/models/{model}`: its tensors, -1 for a dimension of any size."""
    explainer, names = model.explainer, Names.of(model)
    entry, readout = explainer.manifest["input"], explainer.terms.readout
    rows = entry["shape"][0] if isinstance(entry["shape"][0], int) else -1
    shape = [-1, *(side if isinstance(side, int) else -1 for side in entry["shape"][1:])]
    grid = _grid(model, explainer.layers[-1])
    outputs = [_tensor(names.scores, "FP32", [-1, readout.columns or -1])]
    if names.probabilities is not None:
        outputs.append(_tensor(names.probabilities, "FP32", [-1, readout.columns or -1]))
    outputs.append(_tensor(names.heatmap, "FP32", [-1, *(grid or (-1, -1))]))
    outputs.append(_tensor(names.fired, "BOOL", [-1]))
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": [
            _tensor(names.input, tensors.datatype(entry["dtype"]), shape),
            _tensor(names.target, "INT64", [-1]),
        ],
        "outputs": outputs,
        "parameters": {
            "when": model.when,
            "layers": explainer.layers,
            "methods": explainer.methods,
            "rows_per_run": rows,
            "optional_inputs": [names.target],
            "picture_input": names.image,
        },
    }


def _tensor(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def _grid(model: Model, name: str) -> tuple[int, int] | None:
    """Rows and columns of a layer's maps, None where the model leaves them open."""
    entries = {entry["name"]: entry for entry in model.explainer.manifest["layers"]}
    if name not in entries:
        return None
    entry = entries[name]
    sides = entry["grid"] if entry.get("grid") else Layout.of(entry).size(entry["shape"])
    return (int(sides[0]), int(sides[1])) if all(isinstance(side, int) for side in sides) else None


def parse(body: bytes, header_length: str | None) -> Tensors:
    """Read a request for inference.

    Arguments:
        body: JSON, followed by binary data where there is a `header_length`.
        header_length: the header `Inference-Header-Content-Length`: bytes of the JSON.

    Raises:
        Refusal: 400, not JSON, or another length. InputError: a request that contradicts the protocol or itself.
    """
    view = memoryview(body)
    size = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or int(header_length) > len(body):
            raise Refusal(
                400, f"{HEADER} is {header_length[:50]!r}; expected the bytes of the JSON, at most those of the body "
                f"({len(body)})",
            )  # fmt: skip
        size = int(header_length)
    content = bodies.parse_json(body if size == len(body) else body[:size])
    if not isinstance(content, dict):
        raise InputError('the body is not a JSON object; expected {"inputs": [...]}')
    parameters = _parameters(content, "the request")
    options, binary = _options(parameters)
    values: dict[str, Any] = {}
    start = size
    for entry in _entries(content, "inputs"):
        what = f"input {entry['name'][:100]!r}"
        if entry["name"] in values:
            raise InputError(f"{what} is there twice; give each input once")
        length = _parameters(entry, what).get("binary_data_size")
        blob = None
        if length is not None:
            if type(length) is not int or not 0 <= length <= len(view) - start:
                raise InputError(
                    f"{what} has binary_data_size {str(length)[:50]}; {len(view) - start} bytes follow the JSON and "
                    f"the inputs before it ({HEADER} says how long the JSON is)"
                )
            if "data" in entry:
                raise InputError(f"{what} has `data` and binary data; give one of them")
            blob = view[start : start + length]
            start += length
        values[entry["name"]] = tensors.decode(entry, blob, what)
    if start != len(view):
        raise InputError(f"{len(view) - start} bytes after the JSON belong to no input (binary_data_size)")
    outputs = None
    if content.get("outputs"):
        outputs = {}
        for entry in _entries(content, "outputs"):
            what = f"output {entry['name'][:100]!r}"
            if entry["name"] in outputs:
                raise InputError(f"{what} is there twice; name each output once")
            outputs[entry["name"]] = _wants_binary(_parameters(entry, what), binary, what)
    identity = content.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InputError('"id" is not a text; leave it out, or send a text')
    return Tensors(identity or None, values, outputs, binary, options)


def _entries(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        raise InputError(f'"{key}" is missing or empty; expected a list of objects with a name')
    if len(entries) > _OUTPUTS:
        raise InputError(f'"{key}" has {len(entries)} entries; at most {_OUTPUTS} are read')
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InputError(f'"{key}" holds something else than objects with a "name"')
    return entries


def _parameters(content: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f'{what} has "parameters" that are not an object')
    for key in ("shared_memory_region", "classification", "sequence_id"):
        if parameters.get(key):
            raise InputError(f"{what} has the parameter {key!r}, an extension that this server does not have")
    return parameters


def _options(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The question's options in a request's parameters, and whether its outputs are binary."""
    binary = parameters.get(BINARY_OUTPUT, False)
    if not isinstance(binary, bool):
        raise InputError(f'the parameter "{BINARY_OUTPUT}" is not true or false')
    options = {key: value for key, value in parameters.items() if value is not None}
    options.pop(BINARY_OUTPUT, None)
    unknown = [key for key in options if key not in OPTIONS and key not in _IGNORED]
    if unknown:
        raise InputError(
            f"unknown parameter {unknown[0][:100]!r}; a request has {', '.join(OPTIONS)} and {BINARY_OUTPUT}"
        )
    return {key: value for key, value in options.items() if key in OPTIONS}, binary


def _wants_binary(parameters: Mapping[str, Any], default: bool, what: str) -> bool:
    binary = parameters.get("binary_data", default)
    if not isinstance(binary, bool):
        raise InputError(f'{what} has a "binary_data" that is not true or false')
    return binary


def infer(
    state: State, model: Model, request: Tensors, attempt: Attempt, identity: str
) -> tuple[dict[str, Any], list[bytes], bool]:
    """Answer a request for inference.

    Returns:
        the response's JSON; the binary data that follows it; whether an output is binary.

    Raises:
        InputError, TargetError, LayerError, MethodError, PictureError, SettingError, Refusal: it cannot be answered.
    """
    names = Names.of(model)
    outputs = request.outputs
    if outputs is None:
        outputs = dict.fromkeys(names.outputs, request.binary)
    unknown = [name for name in outputs if name not in names.outputs]
    if unknown:
        raise InputError(f"model {model.name!r} has no output {unknown[0][:100]!r}; it has {', '.join(names.outputs)}")
    batch = _batch(model, names, request.inputs, attempt, state.settings.max_pixels)
    options = dict(request.options)
    when = model.condition(options.pop("when", model.when))
    question = model.question(
        {"seed": state.settings.seed, **options, **_target(request.inputs.get(names.target), len(batch), names)}
    )
    if len(question.layers) > 1 or len(question.methods) > 1:
        raise InputError(f"output {names.heatmap!r} is the map of one layer by one method; name one of each")
    explain = question if names.heatmap in outputs else None
    parts = []
    for prediction, rows in instances.predicted(model, explain, when, batch, attempt):
        state.observe(model, prediction, rows, identity)
        parts.append(prediction)
    # FP32 whatever the file's own type is: what the metadata says holds, and JSON has no FP16
    scores = np.concatenate([part.scores for part in parts]).astype(np.float32, copy=False)
    values: dict[str, np.ndarray] = {names.scores: scores}
    probabilities = np.concatenate([part.probabilities for part in parts])
    if names.probabilities is not None:
        values[names.probabilities] = _own_probabilities(model, probabilities)
    if explain is not None:
        if names.scores not in outputs:
            _require_finite(parts)
        values[names.heatmap] = _heatmaps(model, question, parts)
        values[names.fired] = np.concatenate([part.fired for part in parts])
    elif isinstance(when, bool):
        values[names.fired] = np.full(len(batch), when)
    elif names.fired in outputs:
        readout = model.explainer.terms.readout
        values[names.fired] = fires(when, probabilities, readout, model.calibration, scores)
    entries, blobs = [], []
    for name, binary in outputs.items():
        entry, blob = tensors.encode(name, values[name], binary)
        entries.append(entry)
        blobs.append(blob)
    content: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": entries}
    if request.id is not None:
        content["id"] = request.id
    return content, blobs, any(outputs.values())


def _batch(model: Model, names: Names, inputs: Mapping[str, Any], attempt: Attempt, max_pixels: int) -> np.ndarray:
    """The batch that a request is about: its tensor, or its pictures prepared."""
    unknown = [name for name in inputs if name not in (names.input, names.image, names.target)]
    if unknown:
        raise InputError(
            f"model {model.name!r} has no input {unknown[0][:100]!r}; it takes {names.input!r} (or encoded pictures "
            f"as {names.image!r}) and {names.target!r}"
        )
    if (names.input in inputs) == (names.image in inputs):
        raise InputError(f"give either {names.input!r} (a tensor) or {names.image!r} (encoded pictures, BYTES)")
    if names.input in inputs:
        batch = inputs[names.input]
        if not isinstance(batch, np.ndarray):
            raise InputError(
                f"input {names.input!r} is {tensors.BYTES}; encoded pictures are the input {names.image!r}"
            )
        return instances.check_batch(model, batch)
    pictures = inputs[names.image]
    if not isinstance(pictures, list):
        raise InputError(f"input {names.image!r} is not {tensors.BYTES}; send encoded pictures")
    instances.check_count(len(pictures))
    encoded = [
        picture if isinstance(picture, bytes) else bodies.decode(picture, f"input {names.image!r}")
        for picture in pictures
    ]
    batches = instances.joined(instances.prepared(model, encoded, attempt, max_pixels))
    if len(batches) > 1:
        raise InputError(
            "the pictures of this request become inputs of different sizes, and a tensor of outputs has one size; send "
            "them one by one"
        )
    return batches[0]


def _target(value: Any, rows: int, names: Names) -> dict[str, Any]:
    """The question's target: a class for all rows, or one a row."""
    if value is None:
        return {}
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.size not in (1, rows):
        actual = f"shape {list(value.shape)}, {value.dtype}" if isinstance(value, np.ndarray) else tensors.BYTES
        raise InputError(
            f"input {names.target!r} is {actual}; expected INT64 of shape [1] or [{rows}]: a class's index, {TOP1} for "
            "each row's best"
        )
    indices = [int(index) for index in value.ravel()]
    return {"target": indices[0] if len(indices) == 1 else indices}


def _own_probabilities(model: Model, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as the model's output has them: of a binary classifier that of class 1 alone, or percentages."""
    readout = model.explainer.terms.readout
    values = probabilities[:, 1:] if readout.signed else probabilities
    return values * np.float32(readout.scale) if readout.scale != 1 else values


def _require_finite(parts: Sequence[Prediction]) -> None:
    """Refuse a map alone of a row whose scores are not finite: it is often zero, and nothing else would tell.

    Raises:
        InputError: there is such a row.
    """
    fired = np.concatenate([part.fired for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    broken = fired & ~(np.isfinite(scores) | np.isneginf(scores)).all(axis=1)
    if broken.any():
        raise InputError(
            f"the scores of row {int(broken.argmax())} are not finite, so its map means nothing; look at the values of "
            "the row, or request the scores beside the map"
        )


def _heatmaps(model: Model, question: Question, parts: Sequence[Prediction]) -> np.ndarray:
    """The maps `[N, h, w]`, zero in rows that were not explained; h and w are 0 where none was and they are open."""
    maps = [None if part.explained is None else instances.raw_maps(part.explained) for part in parts]
    sizes = {one.shape[1:] for one in maps if one is not None}
    grid = sizes.pop() if sizes else _grid(model, question.layers[0]) or (0, 0)
    rows = []
    for part, explained in zip(parts, maps, strict=True):
        of_part = np.zeros((len(part.fired), *grid), np.float32)
        if explained is not None:
            of_part[part.fired] = explained
        rows.append(of_part)
    return np.concatenate(rows)


def routes(state: State) -> list[BaseRoute]:
    """The routes of the protocol."""

    def find(request: Request) -> Model:
        model = state.models.find(request.path_params["model"])
        version = request.path_params.get("version")
        if version is not None and version != model.version:
            raise Refusal(404, f"model {model.name!r} has no version {version[:100]!r}; it has {model.version!r}")
        return model

    async def server(request: Request) -> Response:
        return responses.json(server_metadata())

    async def live(request: Request) -> Response:
        return responses.json({"live": True})

    async def ready(request: Request) -> Response:
        is_ready = state.ready
        return responses.json({"ready": is_ready}, 200 if is_ready else 503)

    async def listing(request: Request) -> Response:
        return responses.json({"models": [model.name for model in state.models]})

    async def metadata(request: Request) -> Response:
        return responses.json(model_metadata(state.models.classifier(find(request).name)))

    async def model_ready(request: Request) -> Response:
        model = find(request)
        is_ready = state.ready
        return responses.json({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)

    async def inference(request: Request) -> Response:
        model = state.models.classifier(find(request).name)
        header_length = request.headers.get(HEADER)
        instances.check_encoding(request)
        body = await instances.body(state, request)
        identity = request.scope.get("request_id", "")

        def work(attempt: Attempt) -> Response:
            content, blobs, binary = infer(state, model, parse(body, header_length), attempt, identity)
            head = responses.to_json(content)
            if not binary:
                return responses.json(head)
            headers = {HEADER: str(len(head))}
            return Response(b"".join([head, *blobs]), headers=headers, media_type="application/octet-stream")

        return await state.scheduler.submit(work, size=len(body), receive=request.receive)

    one = "/v2/models/{model}"
    listed: list[BaseRoute] = [
        Route("/v2", server), Route("/v2/", server), Route("/v2/health/live", live), Route("/v2/health/ready", ready),
        Route("/v2/models", listing),
    ]  # fmt: skip
    for path in (one, f"{one}/versions/{{version}}"):
        listed += [
            Route(f"{path}/infer", inference, methods=["POST"]), Route(f"{path}/ready", model_ready),
            Route(path, metadata),
        ]  # fmt: skip
    return listed
