"""Damage: to bytes, to the fields of a model, to the chunks of a picture, to JSON and to text."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.message import DecodeError

Mutate = Callable[[bytes, bytes, random.Random], bytes]

WILD = (0, 1, -1, 2, 3, 7, 255, 65535, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, -(2**63))
SIZES = (*WILD, 10_000, 2**16, 2**20, 2**24, 2**28, 2**30)
WORDS = ("", " ", "x" * 300, "\0", "ünïcödé 猫", "a/b:c", "../../etc/passwd", "%s%n", "input", "logits", "ai.onnx.ml")


def raw(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage that knows nothing of the format."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not content:
            break
        at = rng.randrange(len(content))
        end = min(len(content), at + rng.choice((1, 2, 4, 8, 64, 1024)))
        match rng.randrange(8):
            case 0 | 1:
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                content[at:end] = rng.randbytes(end - at)
            case 3:
                content[at:end] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (end - at)
            case 4:
                del content[at:end]
            case 5:
                content[at:at] = content[at:end] * rng.choice((1, 2, 50))
            case 6:
                start = rng.randrange(max(len(other), 1))
                content[at:end] = other[start : start + rng.choice((4, 32, 512))]
            case 7:
                del content[at if rng.random() < 0.5 else max(at, len(content) - 40) :]
    return bytes(content)


# ---- models


def model(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Half of the damage to bytes, half to fields."""
    if rng.random() < 0.4:
        return raw(data, other, rng)
    model_proto, donor = onnx.ModelProto(), onnx.ModelProto()
    try:
        model_proto.ParseFromString(data)
        donor.ParseFromString(other)
    except DecodeError:
        return raw(data, other, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(FIELDS)(model_proto, donor, rng)
    return bytes(model_proto.SerializeToString())


def _dims(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(proto, rng)
    if tensor is None:
        return
    dims = list(tensor.dims)
    if dims and rng.random() < 0.8:
        dims[rng.randrange(len(dims))] = rng.choice(WILD)
    else:
        dims = dims + [rng.choice(WILD)] * rng.choice((1, 3, 200))
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _element_type(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(proto, rng)
    if tensor is not None:
        tensor.data_type = rng.choice((*range(32), 2**31 - 1, -1))


def _content(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(proto, rng)
    if tensor is None:
        return
    match rng.randrange(4):
        case 0:
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        case 1:
            tensor.raw_data = rng.randbytes(len(tensor.raw_data))
        case 2:
            tensor.ClearField("raw_data")
            tensor.float_data.extend([1.0] * rng.randrange(20))
        case 3:
            tensor.data_location = 1
            tensor.external_data.add(key="location", value=rng.choice(WORDS))
            tensor.external_data.add(key="offset", value=str(rng.choice(WILD)))


def _whole_number(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    """A shape, an axis, an amount of padding: what others are made as large as."""
    tensors = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT64 and len(t.raw_data) >= 8]
    if tensors:
        tensor = rng.choice(tensors)
        at = 8 * rng.randrange(len(tensor.raw_data) // 8)
        tensor.raw_data = tensor.raw_data[:at] + struct.pack("<q", rng.choice(SIZES)) + tensor.raw_data[at + 8 :]


def _tensor(proto: onnx.ModelProto, rng: random.Random) -> onnx.TensorProto | None:
    tensors = list(proto.graph.initializer)
    tensors += [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
    return rng.choice(tensors) if tensors else None


def _attribute(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    attributes = [(node, a) for node in proto.graph.node for a in node.attribute]
    if not attributes:
        return
    node, attribute = rng.choice(attributes)
    match rng.randrange(6):
        case 0:
            attribute.i = rng.choice(WILD)
        case 1 if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(WILD)
        case 2:
            attribute.ints.extend([rng.choice(WILD)] * rng.choice((1, 9)))
        case 3:
            attribute.type = rng.randrange(15)
        case 4:
            attribute.s = rng.randbytes(5)
            attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan")))
        case 5:
            node.attribute.remove(attribute)


def _node(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    nodes = proto.graph.node
    if not nodes:
        return
    node = rng.choice(nodes)
    values = [name for each in nodes for name in (*each.input, *each.output)] + list(WORDS)
    match rng.randrange(9):
        case 0:
            node.op_type = rng.choice([each.op_type for each in (*nodes, *donor.graph.node)] + ["If", "Loop", "Scan"])
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(values)
        case 2 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice(values)
        case 3:
            node.input.append(rng.choice(values))
        case 4 if node.input:
            del node.input[rng.randrange(len(node.input)) :]
        case 5:
            nodes.remove(node)
        case 6 if donor.graph.node:
            nodes.insert(rng.randrange(len(nodes) + 1), rng.choice(donor.graph.node))
        case 7:
            node.domain = rng.choice((*WORDS, "com.microsoft"))
        case 8:
            node.output.append(rng.choice(values))


def _public(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    """What is fed and fetched."""
    infos = rng.choice((proto.graph.input, proto.graph.output, proto.graph.value_info))
    if not infos:
        return
    info = rng.choice(infos)
    tensor = info.type.tensor_type
    match rng.randrange(7):
        case 0 if tensor.shape.dim:
            rng.choice(tensor.shape.dim).dim_value = rng.choice(WILD)
        case 1 if tensor.shape.dim:
            rng.choice(tensor.shape.dim).dim_param = rng.choice(WORDS)
        case 2:
            tensor.elem_type = rng.choice((*range(25), 2**31 - 1))
        case 3:
            info.type.ClearField("value")
        case 4:
            infos.remove(info)
        case 5:
            infos.append(info)
        case 6:
            info.name = rng.choice((*WORDS, *(name for node in proto.graph.node for name in node.output)))


def _versions(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            proto.ir_version = rng.choice((*WILD, 3, 4, 14))
        case 1 if proto.opset_import:
            proto.opset_import[0].version = rng.choice((*WILD, *range(5, 28)))
        case 2:
            del proto.opset_import[:]
        case 3:
            proto.opset_import.add(domain=rng.choice(("", "ai.onnx", "com.microsoft")), version=rng.choice(WILD))


def _body(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    """A graph within the graph."""
    if not proto.graph.node:
        return
    node = rng.choice(proto.graph.node)
    if rng.random() < 0.5:
        name = rng.choice(("then_branch", "else_branch", "body"))
        attribute = node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
        whole = onnx.GraphProto()  # nothing is copied into itself
        whole.CopyFrom(rng.choice((proto, donor)).graph)
        attribute.g.CopyFrom(whole)
    else:
        function = proto.functions.add(name=node.op_type, domain=node.domain)
        function.node.extend(donor.graph.node)
        function.input.extend(node.input)
        function.output.extend(node.output)
        function.opset_import.extend(proto.opset_import)


def _manifest(proto: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    for entry in proto.metadata_props:
        if entry.key == "onnxcam":
            entry.value = structure(entry.value.encode(), b"", rng).decode("utf-8", "replace")


FIELDS = (_dims, _whole_number, _element_type, _content, _attribute, _node, _node, _public, _versions, _body, _manifest)


# ---- pictures


def picture(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage to bytes, most of it within the headers; sums of a PNG are made right again, or its damage ends there."""
    head = min(len(data), rng.choice((40, 120, 800)))
    if rng.random() < 0.6:
        result = raw(data[:head], other[:1000], rng) + data[head:]
    else:
        result = raw(data, other, rng)
    return _checksums(result) if data.startswith(b"\x89PNG") and rng.random() < 0.8 else result


def _checksums(data: bytes) -> bytes:
    result, at = bytearray(data), 8
    while at + 12 <= len(result):
        end = at + 8 + int.from_bytes(result[at : at + 4], "big")
        if end + 4 > len(result):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(result[at + 4 : end]))
        at = end + 4
    return bytes(result)


# ---- JSON and text


def structure(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage to a JSON document: some to its bytes, most to its values."""
    if rng.random() < 0.2:
        return raw(data, other or data, rng)
    try:
        document = json.loads(data)
    except ValueError:
        return raw(data, other or data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _places(document, places)
        if not places:
            break
        owner, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del owner[key]
            case 1:
                other_owner, other_key = rng.choice(places)
                owner[key] = json.loads(json.dumps(other_owner[other_key]))
            case 2 if isinstance(owner[key], list):
                owner[key] = owner[key] * rng.choice((0, 2, 20))
            case _:
                owner[key] = rng.choice((*ODD, *ODD, *WILD, *WORDS))
    return json.dumps(document).encode()


ODD = (None, True, False, [], {}, [[]], [None], {"a": 1}, 1.5, float("nan"), float("inf"), 1e308, "7", [1, 2], [-1])


def _places(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        places.append((value, key))
        if isinstance(value[key], (dict, list)):
            _places(value[key], places)


def text(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage to lines and signs."""
    if rng.random() < 0.5:
        return structure(data, other, rng)
    signs = (
        "\n",
        "\r",
        "\0",
        ",",
        ";",
        "\t",
        '"',
        "[",
        "{",
        "]",
        "}",
        ":",
        "0",
        "1",
        "999999999999",
        "\ufeff",
        "²",
        "٣",
    )
    content = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        content = (
            content[:at] + rng.choice(signs) * rng.choice((1, 1, 2, 5000)) + content[at + rng.choice((0, 0, 1, 9)) :]
        )
    return content.encode(rng.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")), "replace")


BY_READER: dict[str, Mutate] = {"model": model, "picture": picture, "manifest": structure, "labels": text}
