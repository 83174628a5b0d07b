"""`POST /predict_with_gradcam` and `POST /analyze_class`: one picture in; prediction, maps and statistics out.

An endpoint of any protocol looks like this: read the body within limits, check what was asked before anything is
decoded, and submit one piece of work that does the rest in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnxcam.errors import listing
from onnxcam.explain.question import Question
from onnxcam.explain.saving import MAPS, Drawing
from onnxcam.image import COLORMAPS
from onnxcam.server import bodies, responses, scalars
from onnxcam.server.answers import DEFAULT_FILES, FILES, answer
from onnxcam.server.bodies import Submission
from onnxcam.server.models import Model, Prediction
from onnxcam.server.refusals import Refusal
from onnxcam.server.scheduler import Attempt
from onnxcam.server.state import State
from onnxcam.targets.conditions import Condition

PREDICT, ANALYZE = "/predict_with_gradcam", "/analyze_class"
_TOP = 5
_UNTOLD = 1 << 31  # classes of a detector that does not tell how many it has
_OPTIONS = ("model", "top_k", "layer", "method", "files", "when", "normalize", "colormap", "alpha")
_CLASS = ("class_name", "class_index")
_ASKS, _LONGEST_ASK = 256, 1000  # in memory: most requests ask the same few; characters of one


@dataclass(frozen=True)
class Ask:
    """What a request asks about one picture.

    Attributes:
        model: which answers.
        question: about the picture.
        when: whether or when it is explained.
        count: classes in `top_predictions`.
        files: which pictures and maps are returned.
        style: of the pictures.
    """

    model: Model
    question: Question
    when: Condition | bool
    count: int
    files: tuple[str, ...]
    style: Drawing


def routes(state: State) -> list[BaseRoute]:
    """The routes of the two habits."""
    readers = [Reader(state, of_class) for of_class in (False, True)]
    return [
        Route(path, partial(_endpoint, state, reader), methods=["POST"], name=path[1:])
        for path, reader in zip((PREDICT, ANALYZE), readers, strict=True)
    ]


class Reader:
    """What requests of one route ask; equal options that are texts, as in URLs and forms, are read once.

    Arguments:
        state: of the server.
        of_class: whether the class is named that is explained.
    """

    def __init__(self, state: State, of_class: bool) -> None:
        self._state, self._of_class = state, of_class
        self._read = lru_cache(_ASKS)(
            lambda options: read_options(state, Submission(b"", dict(options), True), of_class)
        )

    def __call__(self, submission: Submission) -> Ask:
        """As `read_options`."""
        options = submission.options
        plain = submission.textual and all(type(value) is str for value in options.values())
        if not plain or sum(map(len, options)) + sum(map(len, options.values())) > _LONGEST_ASK:
            return read_options(self._state, submission, self._of_class)
        return self._read(tuple(options.items()))


async def _endpoint(state: State, read: Reader, request: Request) -> Response:
    state.scheduler.check()
    settings = state.settings
    body = await bodies.read(request, settings.max_body, settings.timeout)
    size = len(body)
    content_type, query = request.headers.get("content-type", ""), request.query_params
    parse: Callable[[], tuple[Submission, Ask]] = partial(_parse, state, read, body, content_type, query)
    parsed = parse() if bodies.is_small(body) else None
    del body
    scope = request.scope

    def work(attempt: Attempt) -> bytes:
        submission, ask = parsed or parse()
        return _answer(state, submission, ask, scope, attempt)

    return responses.json(await state.scheduler.submit(work, size=size, receive=request.receive))


def _parse(
    state: State, read: Reader, body: bytes, content_type: str, query: Mapping[str, str]
) -> tuple[Submission, Ask]:
    submission = bodies.take_apart(body, content_type, query, state.settings.max_pixels)
    return submission, read(submission)


def _answer(state: State, submission: Submission, ask: Ask, scope: MutableMapping[str, Any], attempt: Attempt) -> bytes:
    """Read, predict, explain and draw, in a worker thread."""
    model, picture = ask.model, submission.picture
    prepared = model.prepare(picture, state.settings.max_pixels, submission.header)
    attempt.check()
    if model.task is not None:
        prediction, explanation = scalars.predict(model, prepared, ask.question, ask.when, attempt.check)
        state.observe(model, prediction, picture, scope.get("request_id", ""))
        content = scalars.answer(
            model, prepared, prediction, explanation, ask.question, ask.count, ask.files, ask.style
        )
        scope["noted"] = _noted(model, prediction, attempt)
        return responses.to_json(content)
    prediction = model.predict(ask.question, ask.when, prepared[1], attempt.check)
    state.observe(model, prediction, picture, scope.get("request_id", ""))
    scope["noted"] = _noted(model, prediction, attempt)
    return responses.to_json(answer(model, prepared, prediction, ask.question, ask.count, ask.files, ask.style))


def _noted(model: Model, prediction: Prediction, attempt: Attempt) -> dict[str, Any]:
    """What the access log says of an answer."""
    return {"model": model.name, "fired": bool(prediction.fired[0]), "waited": round(attempt.waited, 6)}


def read_options(state: State, submission: Submission, of_class: bool) -> Ask:
    """What the options of a request ask.

    Raises:
        Refusal: 404 or 422. TargetError, MethodError, LayerError, InputError, SettingError: as their names say.
    """
    options, textual = submission.options, submission.textual
    model = state.models.find(options.get("model"))
    allowed = (*_OPTIONS, *_CLASS) if of_class else _OPTIONS
    if model.task is not None:
        if of_class:
            raise Refusal(422, f"{ANALYZE} explains a class, and this model's task is {model.task!r}; use {PREDICT}")
        allowed = (*allowed, *scalars.OPTIONS)
    unknown = [name for name in options if name not in allowed]
    if unknown:
        hint = f"; POST {ANALYZE} explains a class by name" if unknown[0] in _CLASS else ""
        hint = "; that is of models that are no classifiers" if unknown[0] in scalars.OPTIONS else hint
        raise Refusal(422, f"no option {unknown[0][:100]!r}; there are {', '.join(('image', *allowed))}{hint}")
    values = {name: options[name] for name in ("method", "layer", "normalize") if options.get(name) is not None}
    values["seed"] = state.settings.seed
    if of_class:
        values["target"] = _class(options, textual)
    if model.task is not None:
        values |= scalars.values(options, textual)
    if isinstance(values.get("method"), list):
        raise Refusal(422, '"method" is a list; one method a request')
    if values.get("layer") == []:
        raise Refusal(422, '"layer" is an empty list; leave it out for the model\'s own layer')
    question = model.question(values)
    if model.task is not None:
        question.check_rows(1)
    _check_layers(model, question)
    when = options.get("when")
    condition = model.condition(model.when if when is None else when)
    files = read_files(options.get("files"))
    style = read_style(options, files, state.settings.compress)
    return Ask(model, question, condition, read_count(options.get("top_k"), model), files, style)


def _check_layers(model: Model, question: Question) -> None:
    """Refuse layers that the model has not got, before a worker is asked."""
    known_layers = {entry["name"] for entry in model.explainer.manifest["layers"]}
    for name in question.layers:
        if name not in known_layers:
            model.explainer.sessions.cut(name)


def _class(options: Mapping[str, Any], textual: bool) -> Any:
    name, index = options.get("class_name"), options.get("class_index")
    if (name is None) == (index is None):
        both = "both are there" if name is not None else "neither is there"
        raise Refusal(422, f'"class_name" or "class_index" says which class is explained, and {both}; send one of them')
    if name is not None:
        if not isinstance(name, str):
            raise Refusal(422, f'"class_name" is {str(name)[:100]!r}; expected a text, or send "class_index"')
        return name
    return _number(index, "class_index", textual)


def _number(value: Any, name: str, textual: bool = True) -> int:
    if isinstance(value, str) and textual and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refusal(422, f'"{name}" is {str(value)[:100]!r}; expected a whole number from 0')
    return value


def read_count(value: Any, model: Model) -> int:
    """How many of the best classes are named: `"top_k"`, 5 for None, never more than there are.

    Raises:
        Refusal: 422, no whole number from 1.
    """
    classes = model.explainer.classes or _UNTOLD
    if value is None:
        return min(_TOP, classes)
    count = _number(value, "top_k")
    if count < 1:
        raise Refusal(422, '"top_k" is 0; expected how many of the best classes to name, from 1')
    return min(count, classes)


def read_files(value: Any) -> tuple[str, ...]:
    """The names in `"files"`: a list, or a text separated by commas; the heatmap and the overlay for None.

    Raises:
        Refusal: 422, another name.
    """
    if value is None:
        return DEFAULT_FILES
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        names = [item.strip() for text in items for item in text.split(",")]
        names = [name for name in names if name]
        unknown = [name for name in names if name not in FILES]
        if not unknown:
            return tuple(dict.fromkeys(names))
        raise Refusal(422, f'"files" has {listing(unknown, 3)[:200]}; there are {", ".join(FILES)}')
    raise Refusal(422, f'"files" is a {type(value).__name__}; expected a list of {", ".join(FILES)}')


def read_style(options: Mapping[str, Any], files: tuple[str, ...], compress: bool) -> Drawing:
    """How pictures are drawn: `"colormap"` and `"alpha"`.

    Raises:
        Refusal: 422, one that does not exist.
    """
    alpha, colormap = options.get("alpha"), options.get("colormap")
    if colormap is not None and (not isinstance(colormap, str) or colormap not in COLORMAPS):
        raise Refusal(422, f'"colormap" is {str(colormap)[:100]!r}; expected one of {", ".join(COLORMAPS)}')
    if alpha is not None:
        try:
            alpha = float(alpha)
        except (TypeError, ValueError):
            alpha = -1.0
        if not 0 <= alpha <= 1:
            raise Refusal(422, f'"alpha" is {str(options["alpha"])[:100]!r}; expected a number from 0 to 1')
    style = Drawing.of(alpha, colormap, compress)
    return Drawing(style.alpha, style.colormap, compress, frozenset(files) & MAPS)
