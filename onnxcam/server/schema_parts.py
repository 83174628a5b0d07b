"""JSON schemas that several descriptions of requests and answers are made of."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": ["number", "null"], "description": "null where it is not finite"}
DATA_URL: Schema = {"type": ["string", "null"], "pattern": "^data:image/png;base64,", "description": "a PNG"}


def array(items: Schema, **more: Any) -> Schema:
    """An array whose items all have one schema."""
    return {"type": "array", "items": items, **more}


def closed_object(properties: dict[str, Schema], required: tuple[str, ...] | None = None) -> Schema:
    """An object of these properties and no other; all are required unless some are named."""
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def ref(name: str) -> Schema:
    """A schema of the document, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}
