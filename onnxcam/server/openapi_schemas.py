"""The schemas of `/openapi.json`: JSON Schema (draft 2020-12) of every body."""

from __future__ import annotations

from onnxcam.image import COLORMAPS, NORMALIZATIONS
from onnxcam.server.answers import FILES
from onnxcam.server.instances import MOST_ROWS
from onnxcam.server.schema_parts import DATA_URL, NUMBER, STRING, Schema, array, closed_object, ref
from onnxcam.server.task_schemas import option_schemas, option_texts, task_schemas
from onnxcam.server.tensors import BYTES, DATATYPES

_BOX: Schema = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 4,
    "maxItems": 4,
    "description": "[x0, y0, x1, y1] in the picture's pixels",
}
_STATISTICS = ("centroid", "spread", "entropy", "gini", "half_area", "border", "peaks")


def schemas(names: list[str], tasks: bool = False) -> dict[str, Schema]:
    """Every schema by name.

    Arguments:
        names: of the models.
        tasks: whether one of them is no classifier, so that requests may name boxes, regions, vectors and values.
    """
    options = _options(names)
    of_class: dict[str, Schema] = {
        "class_name": {"type": ["string", "null"], "description": "a label or a synonym, in any case"},
        "class_index": {"type": ["integer", "null"], "minimum": 0},
    }
    image: Schema = {"type": "string", "minLength": 1, "description": "the encoded picture: base64 or a data URL"}
    without_model = {name: schema for name, schema in options.items() if name != "model"}
    texts = {name: _as_text(schema) for name, schema in options.items()}
    class_texts = {name: _as_text(schema) for name, schema in of_class.items()}
    upload: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    return {
        "Error": closed_object({"error": {"type": "string", "minLength": 1, "description": "one sentence"}}),
        "PictureRequest": closed_object({"image": image, **options, **(option_schemas() if tasks else {})}, ("image",)),
        "ClassRequest": closed_object({"image": image, **options, **of_class}, ("image",)) | _ONE_CLASS,
        "PictureForm": closed_object({"image": upload, **texts, **(option_texts() if tasks else {})}, ("image",)),
        "ClassForm": closed_object({"image": upload, **texts, **class_texts}, ("image",)) | _ONE_CLASS,
        "Answer": _answer(),
        **(task_schemas() if tasks else {}),
        **_predictions(),
        "Health": closed_object({"status": {"const": "ok"}, "models": array(STRING)}),
        "Readiness": closed_object({"status": {"const": "ready"}}),
        "ModelList": closed_object({"models": array(STRING)}),
        "ModelReady": closed_object({"name": STRING, "ready": {"type": "boolean"}}),
        "InstancesRequest": _instances({**without_model, **of_class}),
        "Predictions": closed_object({"predictions": array(ref("V1Prediction"))}),
        "Explanations": closed_object(
            {"predictions": array(ref("V1Prediction")), "explanations": array(ref("V1Explanation"))}
        ),
        **_inference(),
    }


_ONE_CLASS: Schema = {
    "oneOf": [
        {"required": ["class_name"], "properties": {"class_index": {"type": "null"}, "class_name": STRING}},
        {
            "required": ["class_index"],
            "properties": {"class_name": {"type": "null"}, "class_index": {"not": {"type": "null"}}},
        },
    ]
}  # fmt: skip


def _options(names: list[str]) -> dict[str, Schema]:
    """The options of a request about pictures; null is as if left out."""
    file_names = {"type": "string", "enum": list(FILES)}
    one_of_files = "|".join(FILES)
    listed = {"type": "string", "pattern": rf"^\s*({one_of_files})\s*(,\s*({one_of_files})\s*)*$"}
    return {
        "model": {"enum": [*names, None], "description": "the first one by default"},
        "top_k": {"type": ["integer", "null"], "minimum": 1, "description": "classes in top_predictions; 5 by default"},
        "layer": {"anyOf": [STRING, array(STRING), {"type": "null"}], "description": "target layer"},
        "method": {"type": ["string", "null"], "description": "CAM method; gradcam by default"},
        "files": {
            "anyOf": [array(file_names), listed, {"type": "null"}],
            "description": "which maps are returned; heatmap and overlay by default",
        },
        "when": {"type": ["string", "null"], "description": "always, never or a condition: confidence < 0.6"},
        "normalize": {"enum": [*NORMALIZATIONS, None]},
        "colormap": {"enum": [*COLORMAPS, None]},
        "alpha": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "opacity of overlays"},
    }


def _as_text(schema: Schema) -> Schema:
    """The same option where it is text, in a form or a URL."""
    if "enum" in schema:
        return {**schema, "enum": [value for value in schema["enum"] if value is not None]}
    if "anyOf" in schema:
        kinds = [one for one in schema["anyOf"] if one.get("type") == "string"]
        return {**kinds[0], "description": schema["description"]}
    if "integer" in schema["type"] or "number" in schema["type"]:
        return {**schema, "type": schema["type"][0]}
    return {**schema, "type": "string"}


def _answer() -> Schema:
    fields = _explanation_fields()
    required = ("model", "prediction", "confidence", "top_predictions", *_EXPLAINED)
    prediction = {
        "prediction": {"type": "string", "description": "name of the best class"},
        "confidence": NUMBER,
        "top_predictions": array(ref("RankedClass"), minItems=1),
        **_calibrated(),
    }
    return closed_object({"model": fields.pop("model"), **prediction, **fields}, required)


def _calibrated() -> dict[str, Schema]:
    member = closed_object({"class_name": STRING, "class_index": {"type": "integer", "minimum": 0}})
    return {
        "calibrated": array(ref("RankedClass"), minItems=1)
        | {"description": "top_predictions at the temperature of a calibrated file; absent of any other"},
        "prediction_set": array(member)
        | {"description": "classes of a calibrated file's set, best first; empty where none fits, which is unsure"},
    }


_EXPLAINED = ("fired", "target", "layer", "method", "statistics", "visible", "warnings")


def _explanation_fields() -> dict[str, Schema]:
    maps = {f"gradcam_{name}": DATA_URL for name in FILES if name != "map"}
    return {
        "model": STRING,
        "fired": {"type": "boolean", "description": "whether the condition holds; without, maps are null"},
        "target": {"anyOf": [ref("ExplainedClass"), {"type": "null"}]},
        "layer": {"anyOf": [STRING, array(STRING)]},
        "method": STRING,
        "statistics": {"anyOf": [ref("Statistics"), {"type": "null"}]},
        "visible": {
            "anyOf": [array(ref("Rectangle")), {"type": "null"}],
            "description": "the parts of the picture that the map covers",
        },
        "warnings": array(STRING),
        **maps,
        "gradcam_map": {
            "anyOf": [array(array({"type": "number"})), {"type": "null"}],
            "description": "the map at the layer's own size, rows of numbers",
        },
        "gradcam_map_box": {"anyOf": [_BOX, {"type": "null"}]},
    }


def _predictions() -> dict[str, Schema]:
    """What answers of several routes have in common."""
    one_class = {"class_name": STRING, "class_index": {"type": "integer", "minimum": 0}, "confidence": NUMBER}
    statistics: dict[str, Schema] = {"zero": {"type": "boolean"}, **dict.fromkeys(_STATISTICS, NUMBER)}
    statistics["centroid"] = {"anyOf": [array(NUMBER, minItems=2, maxItems=2), {"type": "null"}]}
    fields = _explanation_fields()
    return {
        "RankedClass": closed_object(
            {"rank": {"type": "integer", "minimum": 1}, **one_class, "value": NUMBER},
            ("rank", *one_class),
        ),
        "ExplainedClass": closed_object({**one_class, "value": NUMBER}, tuple(one_class)),
        "Statistics": closed_object(statistics),
        "Rectangle": closed_object({name: {"type": "integer", "minimum": 0} for name in ("x0", "y0", "x1", "y1")}),
        "V1Prediction": closed_object({
            "prediction": STRING,
            "class_index": {"type": "integer", "minimum": 0},
            "confidence": NUMBER,
            "top_predictions": array(ref("RankedClass"), minItems=1),
            **_calibrated(),
            "scores": array(NUMBER, minItems=1),
        }, ("prediction", "class_index", "confidence", "top_predictions", "scores")),
        "V1Explanation": closed_object(fields, ("model", *_EXPLAINED)),
    }  # fmt: skip


def _instances(parameters: dict[str, Schema]) -> Schema:
    b64: Schema = {"type": "string", "minLength": 1, "description": "the encoded picture: base64 or a data URL"}
    encoded = closed_object({"b64": b64})
    named: list[Schema] = [closed_object({name: {"anyOf": [b64, encoded]}}) for name in ("image", "image_bytes")]
    tensor: Schema = {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "array"}]}, "minItems": 1}
    bounds = {"minItems": 1, "maxItems": MOST_ROWS}
    properties: dict[str, Schema] = {
        "instances": {
            "anyOf": [array({"anyOf": [encoded, *named]}, **bounds), array(tensor, **bounds)],
            "description": "encoded pictures, or tensors without the batch axis",
        },
        "parameters": {"anyOf": [closed_object(parameters, ()), {"type": "null"}]},
        "signature_name": {"description": "of TensorFlow Serving; ignored"},
    }
    return closed_object(properties, ("instances",))


def _inference() -> dict[str, Schema]:
    """Schemas of the Open Inference Protocol, under its own names."""
    shape = array({"type": "integer", "minimum": 0}, maxItems=16)
    datatype: Schema = {"enum": [*DATATYPES, BYTES]}
    parameters: Schema = {"type": "object"}
    tensor = closed_object({"name": STRING, "datatype": datatype, "shape": array({"type": "integer", "minimum": -1})})
    data: Schema = {
        "type": "array",
        "items": {"type": ["number", "boolean", "string", "array"]},
        "description": "row by row, flat or nested; left out where binary data follows the JSON",
    }
    size = {"binary_data_size": {"type": "integer", "minimum": 0}}
    binary: Schema = {"type": "object", "properties": {"binary_data": {"type": "boolean"}}}
    options = {
        "layer": STRING,
        "method": STRING,
        "when": STRING,
        "contrast": {"type": ["string", "integer"]},
        "probability": {"type": "boolean"},
        "seed": {"type": "integer", "minimum": 0},
        "binary_data_output": {"type": "boolean"},
    }
    inputs = {"name": STRING, "shape": shape, "datatype": datatype, "data": data}
    outputs = {"name": STRING, "shape": shape, "datatype": datatype, "data": data}
    return {
        "metadata_server_response": closed_object({"name": STRING, "version": STRING, "extensions": array(STRING)}),
        "metadata_tensor": tensor,
        "metadata_model_response": closed_object({
            "name": STRING,
            "versions": array(STRING),
            "platform": STRING,
            "inputs": array(ref("metadata_tensor")),
            "outputs": array(ref("metadata_tensor")),
            "parameters": parameters,
        }),
        "live_server_response": closed_object({"live": {"type": "boolean"}}),
        "ready_server_response": closed_object({"ready": {"type": "boolean"}}),
        "request_input": closed_object(
            {**inputs, "parameters": {"type": "object", "properties": size}}, ("name", "shape", "datatype")
        ),
        "request_output": closed_object({"name": STRING, "parameters": binary}, ("name",)),
        "inference_request": {
            "type": "object",
            "properties": {
                "id": STRING,
                "parameters": {"type": "object", "properties": options},
                "inputs": array(ref("request_input"), minItems=1, maxItems=16),
                "outputs": array(ref("request_output"), maxItems=16),
            },
            "required": ["inputs"],
        },
        "response_output": closed_object(
            {**outputs, "parameters": {"type": "object", "properties": size}}, ("name", "shape", "datatype")
        ),
        "inference_response": closed_object(
            {
                "model_name": STRING,
                "model_version": STRING,
                "id": STRING,
                "outputs": array(ref("response_output"), minItems=1),
            },
            ("model_name", "outputs"),
        ),
    }  # fmt: skip
