"""The manifest: read and written along with foreign metadata, refused where it is damaged."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

import onnxcam
from onnxcam.errors import LayerError, ModelError
from onnxcam.network import manifest
from tests.support import models


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    result = manifest.read(onnxcam.augment(models.tiny_cnn(), ["relu1", "relu2"]))
    assert result is not None
    return result


def test_no_manifest() -> None:
    assert manifest.parse(None) is None
    assert manifest.read(models.tiny_cnn()) is None


def test_written_and_read_again(whole: dict[str, Any]) -> None:
    model = models.tiny_cnn()
    for key in ("author", "zebra"):
        model.metadata_props.add(key=key, value="kept")
    value = whole | {"labels": ["Käse", "猫", "a", "b", "c"]}
    manifest.write(model, {"format": 1})
    manifest.write(model, value)
    assert manifest.read(model) == value
    assert [p.key for p in model.metadata_props] == ["author", "zebra", "onnxcam"]
    assert "猫" in model.metadata_props[-1].value
    manifest.write(model, None)
    assert [p.key for p in model.metadata_props] == ["author", "zebra"]


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "1", '"x"', "{}", '{"format": "1"}', "[" * 100_000])
def test_damaged(text: str) -> None:
    with pytest.raises(ModelError, match=r"manifest .*export the model again"):
        manifest.parse(text)


def test_of_a_newer_format(whole: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"format 2, .* up to 1; update onnxcam"):
        manifest.parse(json.dumps(whole | {"format": 2}))


PLACES = [("input",), ("scores",), ("target",), ("layers",), ("input", "name"), ("input", "shape"), ("input", "dtype"),
          ("scores", "kind"), ("scores", "classes"), ("target", "mode"), ("layers", 0), ("layers", 1, "name"),
          ("layers", 0, "heatmaps"), ("layers", 0, "layout")]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [None, 7.5, [None]])
def test_every_field_a_reader_needs_is_required(whole: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    entry: Any = copy.deepcopy(whole)
    inside = entry
    for key in place[:-1]:
        inside = inside[key]
    if place == ("input", "shape") and value == [None]:
        value = {}
    inside[place[-1]] = value
    with pytest.raises(ModelError, match=f"lacks .*{place[0]}"):
        manifest.parse(json.dumps(entry))


def test_layers_by_name(whole: dict[str, Any]) -> None:
    assert manifest.layer(whole, None)["name"] == "relu2"
    assert manifest.layer(whole, "relu1")["gradients"] == "gradients/relu1"
    with pytest.raises(LayerError, match=r"no layer 'relu3'; it has 'relu2', 'relu1'"):
        manifest.layer(whole, "relu3")
