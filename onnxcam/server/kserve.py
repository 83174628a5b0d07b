"""KServe's V1 protocol: `:predict` and `:explain` by the same process.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol. Instances are tensors, as nested
lists without the batch axis, or encoded pictures as `{"b64": …}`; options of the two habits come in `"parameters"`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnxcam.errors import InputError
from onnxcam.server import answers, bodies, classify, instances, responses, tensors
from onnxcam.server.models import Model
from onnxcam.server.refusals import Refusal

if TYPE_CHECKING:
    from onnxcam.explain.preparation import Prepared
    from onnxcam.server.scheduler import Attempt
    from onnxcam.server.state import State

B64 = "b64"
# names that an instance may call its picture by, as TensorFlow's and KServe's examples do
PICTURES = ("image", "image_bytes")
TARGETS = ("class_name", "class_index")
_OPTIONS = ("top_k", "layer", "method", "files", "when", "normalize", "colormap", "alpha", *TARGETS)
_VERBS = (":predict", ":explain")


def routes(state: State) -> list[BaseRoute]:
    """The routes of the protocol."""

    async def listing(request: Request) -> Response:
        return responses.json({"models": [model.name for model in state.models]})

    async def model_ready(request: Request) -> Response:
        name = request.path_params["model"]
        if name.endswith(_VERBS) and all(model.name != name for model in state.models):
            raise Refusal(405, f"{name[name.rindex(':') :]} takes POST alone", {"Allow": "POST"})
        model = state.models.find(name)
        return responses.json({"name": model.name, "ready": state.ready}, 200 if state.ready else 503)

    async def endpoint(answer: Callable[..., dict[str, Any]], request: Request) -> Response:
        model = state.models.classifier(request.path_params["model"])
        instances.check_encoding(request)
        body = await instances.body(state, request)
        identity = request.scope.get("request_id", "")

        def work(attempt: Attempt) -> bytes:
            return responses.to_json(answer(state, model, bodies.parse_json(body), attempt, identity))

        return responses.json(await state.scheduler.submit(work, size=len(body), receive=request.receive))

    return [
        Route("/v1/models", listing, methods=["GET"]),
        Route("/v1/models/{model}:predict", partial(endpoint, predict), methods=["POST"]),
        Route("/v1/models/{model}:explain", partial(endpoint, explain), methods=["POST"]),
        Route("/v1/models/{model}", model_ready, methods=["GET"]),
    ]


def predict(state: State, model: Model, content: Any, attempt: Attempt, identity: str) -> dict[str, Any]:
    """The answer to `:predict`: one prediction an instance."""
    items, options = _request(content)
    count = classify.read_count(options.get("top_k"), model)
    batch = read_instances(model, items, attempt, state.settings.max_pixels)
    tensors_in_order = [batch] if isinstance(batch, np.ndarray) else instances.joined(batch)
    predictions = []
    for tensor in tensors_in_order:
        for prediction, rows in instances.predicted(model, None, False, tensor, attempt):
            state.observe(model, prediction, rows, identity)
            predictions += [
                _prediction(model, scores, probabilities, count)
                for scores, probabilities in zip(prediction.scores, prediction.probabilities, strict=True)
            ]
    return {"predictions": predictions}


def explain(state: State, model: Model, content: Any, attempt: Attempt, identity: str) -> dict[str, Any]:
    """The answer to `:explain`: one prediction and one explanation an instance."""
    items, options = _request(content)
    count = classify.read_count(options.get("top_k"), model)
    files = classify.read_files(options.get("files", ["map"]))
    style = classify.read_style(options, files, state.settings.compress)
    when = options.get("when")
    condition = model.condition(model.when if when is None else when)
    values = {name: options[name] for name in ("layer", "method", "normalize") if options.get(name) is not None}
    values["seed"] = state.settings.seed
    named = [name for name in TARGETS if options.get(name) is not None]
    if len(named) > 1:
        raise InputError('both "class_name" and "class_index" are there; send one of them')
    if named:
        values["target"] = options[named[0]]
    if isinstance(values.get("method"), list):
        raise InputError('"method" is a list; one method a request')
    question = model.question(values)
    batch = read_instances(model, items, attempt, state.settings.max_pixels)
    if isinstance(batch, np.ndarray):
        batch = [model.prepare(batch[row : row + 1]) for row in range(len(batch))]
    question.check_rows(len(batch))
    predictions, explanations = [], []
    for row, prepared in enumerate(batch):
        attempt.check()
        of_row = question.of_rows(row, row + 1)
        prediction = model.predict(of_row, condition, prepared[1], attempt.check)
        state.observe(model, prediction, prepared[1], identity)
        answer = answers.answer(model, prepared, prediction, of_row, count, files, style)
        predictions.append(_prediction(model, prediction.scores[0], prediction.probabilities[0], count))
        explanations.append({name: value for name, value in answer.items() if name not in predictions[-1]})
    return {"predictions": predictions, "explanations": explanations}


def _request(content: Any) -> tuple[list[Any], dict[str, Any]]:
    """The instances and the options of a request.

    Raises:
        InputError: they are missing, or unknown. Refusal: 413, too many instances.
    """
    if not isinstance(content, dict):
        raise InputError('the body is not a JSON object; expected {"instances": [...]}')
    items = content.get("instances")
    if not isinstance(items, list) or not items:
        raise InputError(
            '"instances" is missing or empty; expected a list of tensors (nested lists without the batch axis) or of '
            'encoded pictures {"b64": ...}'
        )
    instances.check_count(len(items))
    options = content.get("parameters")
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise InputError('"parameters" is not an object')
    unknown = [name for name in content if name not in ("instances", "parameters", "signature_name")]
    unknown += [name for name in options if name not in _OPTIONS]
    if unknown:
        raise InputError(
            f'unknown {unknown[0][:100]!r}; a request has "instances" and "parameters" with {", ".join(_OPTIONS)}'
        )
    return items, options


def read_instances(model: Model, items: list[Any], attempt: Attempt, max_pixels: int) -> np.ndarray | list[Prepared]:
    """The batch that instances make, or the pictures that they are, prepared.

    Raises:
        InputError: neither tensors nor pictures, or a mixture. PictureError: one cannot be read. Refusal: 413 or 422.
    """
    if any(isinstance(item, dict) for item in items):
        encoded = [_picture(item, number) for number, item in enumerate(items)]
        return instances.prepared(model, encoded, attempt, max_pixels)
    shape, numbers = tensors.flatten(items, '"instances"')
    dtype = model.explainer.manifest["input"]["dtype"]
    if len(shape) == 1:
        raise InputError(f'"instances" holds no lists; expected tensors or {{"{B64}": ...}}')
    return instances.check_batch(model, tensors.from_json(numbers, dtype, '"instances"').reshape(shape))


def _picture(item: Any, number: int) -> bytes:
    where = f"instance {number}"
    if isinstance(item, dict) and len(item) == 1:
        ((name, value),) = item.items()
        if name == B64:
            return bodies.decode(value, f'"{B64}" of {where}')
        if name in PICTURES:
            if isinstance(value, dict) and list(value) == [B64]:
                value = value[B64]
            return bodies.decode(value, f'"{name}" of {where}')
    raise InputError(
        f'{where} is neither a tensor nor a picture; expected {{"{B64}": base64}} in each, or nested lists in each'
    )


def _prediction(model: Model, scores: np.ndarray, probabilities: np.ndarray, count: int) -> dict[str, Any]:
    top = model.top(probabilities, count)
    return {
        "prediction": top[0]["class_name"],
        "class_index": top[0]["class_index"],
        "confidence": top[0]["confidence"],
        "top_predictions": top,
        **model.calibrated(scores[None], count),
        "scores": scores,
    }
