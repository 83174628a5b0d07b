"""Schemas of requests and answers about models that are no classifiers: boxes, regions, vectors and values."""

from __future__ import annotations

from onnxcam.server.answers import FILES
from onnxcam.server.scalars import MOST
from onnxcam.server.schema_parts import DATA_URL, NUMBER, STRING, Schema, closed_object, ref
from onnxcam.targets.scalars import PARTS
from onnxcam.targets.tasks import TASKS

_INDEX: Schema = {"type": "integer", "minimum": 0}
_POINT: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_EDGES: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_VECTOR: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_CLASS: Schema = {"type": ["string", "integer"], "description": "a label or an index"}
_NULL: Schema = {"type": "null"}


def _either(*kinds: Schema, description: str) -> Schema:
    return {"anyOf": [*kinds, _NULL], "description": description}


def option_schemas() -> dict[str, Schema]:
    """What a request in JSON may name in place of a class; null is as if left out."""
    box: Schema = {
        "anyOf": [
            _INDEX,
            {"type": "string", "minLength": 1},
            closed_object(
                {"index": _INDEX, "label": _CLASS, "at": _POINT, "rank": _INDEX, "part": {"enum": list(PARTS)}}, ()
            ),
        ]
    }
    value = closed_object({"output": STRING, "index": _INDEX, "sign": {"enum": [1, -1]}}, ("output",))
    return {
        "target": _either(
            _CLASS,
            {"type": "object"},
            description='a class: of a detector its best box, of a segmentation its own cells; or {"minus": [a, b]}',
        ),
        "box": _either(
            box,
            {"type": "array", "items": box, "minItems": 1, "maxItems": MOST},
            description="a box, or several: the candidate's index, or a text such as rank:0, label:cat or at:120,80",
        ),
        "part": {"enum": [*PARTS, None], "description": "which number of the box; score by default"},
        "region": _either(_EDGES, STRING, description="x0, y0, x1, y1 in the picture's pixels"),
        "like": _either(_VECTOR, description="the embedding that the picture's own is compared with"),
        "output": _either(STRING, value, description="one of several values: NAME, NAME[INDEX], or -NAME"),
        "contrast": _either(box, _VECTOR, description="what the box, class, vector or value is compared with"),
        "top": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST, "description": "the best boxes or classes"},
    }


def option_texts() -> dict[str, Schema]:
    """The same in a form or a URL; `box` may be repeated in a form."""
    texts: dict[str, Schema] = {
        name: {"type": "string", "description": schema["description"]} for name, schema in option_schemas().items()
    }
    text = {"type": "string", "minLength": 1}
    texts["box"] = {
        "anyOf": [text, {"type": "array", "items": text, "minItems": 1}], "description": texts["box"]["description"]
    }  # fmt: skip
    texts["part"] |= {"enum": list(PARTS)}
    texts["top"] |= {"type": "integer", "minimum": 1, "maximum": MOST}
    return texts


def task_schemas() -> dict[str, Schema]:
    """Schemas of an answer about a model that is no classifier."""
    one_class = {"class_name": STRING, "class_index": {"type": "integer"}, "confidence": NUMBER}
    box = {"index": _INDEX, "label": STRING, "class_index": {"type": "integer"}, "score": NUMBER, "box": _EDGES}
    target = {
        **one_class,
        "value": {"type": ["number", "null"], "description": "the cosine, or the value"},
        "objective": {"type": "string", "description": "kind of the number that is explained"},
        "scalar": {"type": ["object", "null"], "description": "what is explained, every index resolved"},
        "box": {"anyOf": [ref("ReportedBox"), _NULL]},
    }
    pictures = {f"gradcam_{name}": DATA_URL for name in FILES if name != "map"}
    pictures["gradcam_map"] = {
        "anyOf": [{"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, _NULL],
        "description": "the map at the layer's own size, rows of numbers",
    }
    layer: Schema = {"anyOf": [STRING, {"type": "array", "items": STRING}]}
    statistics = {"anyOf": [ref("Statistics"), _NULL]}
    one_map = {
        "target": ref("TaskTarget"),
        "layer": layer,
        "statistics": statistics,
        "blank": {"type": ["string", "null"], "description": "why the map is zero everywhere"},
        **pictures,
    }
    ranked = {"rank": {"type": "integer", "minimum": 1}, **one_class, "value": NUMBER}
    answer = {
        "model": STRING,
        "task": {"enum": list(TASKS)},
        "prediction": {"type": ["string", "null"], "description": "label of the best box, or name of the best class"},
        "confidence": NUMBER,
        "top_predictions": {
            "type": "array", "items": closed_object(ranked, ("rank", *one_class)),
            "description": "classes by their best box or share of cells, or the values",
        },
        "boxes": {"type": "array", "items": ref("ReportedBox"), "description": "what a detector reports, best first"},
        "fired": {"type": "boolean", "description": "whether there is a map"},
        "target": {"anyOf": [ref("TaskTarget"), _NULL]},
        "layer": layer,
        "method": STRING,
        "statistics": statistics,
        "visible": {"anyOf": [{"type": "array", "items": ref("Rectangle")}, _NULL]},
        "warnings": {"type": "array", "items": STRING},
        "maps": {"type": "array", "items": ref("TaskMap"), "description": "one for each thing that is explained"},
        **pictures,
        "gradcam_map_box": _NULL,
    }  # fmt: skip
    optional = {*pictures, "gradcam_map_box"}
    return {
        "ReportedBox": closed_object(box, tuple(box)),
        "TaskTarget": closed_object(target, tuple(one_class)),
        "TaskMap": closed_object(one_map, tuple(name for name in one_map if name not in optional)),
        "TaskAnswer": closed_object(answer, tuple(name for name in answer if name not in optional)),
    }
