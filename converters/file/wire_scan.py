"""What a protobuf file would cost to parse, found without parsing it.

Two bytes of wire format (an empty submessage) become up to 200 bytes in memory (measured on protobuf 7, upb: 76 to 97
times the file's size), so a file of 2 GiB could take 200 GiB. This walks the wire format along the message
descriptors, skips every string and tensor by its length, and adds up a bound before the real parser runs. Its time is
linear in the number of fields, and it stops at the limit.

Encoding: https://protobuf.dev/programming-guides/encoding (tags, varints, length-delimited fields).
"""

from __future__ import annotations

from typing import BinaryIO

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import readable_bytes

# Upper bounds of what upb holds for one field, in bytes (measured at most 193 for a message, 26 for a string).
_MESSAGE_BYTES = 224
_STRING_BYTES = 32
_SCALAR_BYTES = 16  # a one-byte varint becomes eight bytes, and a growing array holds up to twice that
_MAX_DEPTH = 100  # the recursion limit of protobuf's own parsers
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_Schema = dict[
    int, tuple[int, "Descriptor | None", bool]
]  # field number -> bytes per element, submessage, whether text


class Damaged(OnnxspectError):
    """The bytes are not a protobuf message of the expected type."""


def parse_bound(data: bytes, descriptor: Descriptor, limit: int, most: int = 5_000_000) -> int:
    """An upper bound, in bytes, of the memory that parsing `data` as `descriptor` takes (its tensors included).

    Raises:
        Damaged: where the wire format is broken, with the offset.
        OnnxspectError: where the bound exceeds `limit`, or there are more than `most` fields (a large classifier has some
            10^5; five million take this function about four seconds).
    """
    fields = 0
    schemas: dict[str, _Schema] = {}
    total = len(data)  # every string and every tensor is copied once
    stack: list[tuple[int, int, _Schema, int]] = [(0, len(data), _schema(descriptor, schemas), 0)]
    while stack:
        position, end, schema, depth = stack.pop()
        while position < end:
            fields += 1
            if fields > most:
                raise OnnxspectError(f"has more than {most} fields", "no image classifier needs that many")
            start = position
            tag, position = _varint(data, position, end)
            wire, number = tag & 7, tag >> 3
            if number == 0:
                raise Damaged(f"damaged at byte {start}: a field without a number")
            cost, message, text = schema.get(number, (_STRING_BYTES, None, False))
            if wire == _VARINT:
                _, position = _varint(data, position, end)
                total += _SCALAR_BYTES
            elif wire == _LENGTH:
                length, position = _varint(data, position, end)
                stop = position + length
                if stop > end:
                    raise Damaged(f"damaged at byte {start}: a field of {length} bytes in {end - position}")
                # A packed array costs by its length; a message or a string costs once.
                total += length * cost if message is None and cost != _STRING_BYTES else cost
                if message is not None:
                    if depth >= _MAX_DEPTH:
                        raise OnnxspectError(f"nested deeper than {_MAX_DEPTH} messages")
                    stack.append((stop, end, schema, depth))
                    end, schema, depth = stop, _schema(message, schemas), depth + 1
                else:
                    if text and not _is_text(data[position:stop]):
                        raise Damaged(f"damaged at byte {start}: a name that is not UTF-8")
                    position = stop
            elif wire in (_FIXED32, _FIXED64):
                position += 4 if wire == _FIXED32 else 8
                total += _SCALAR_BYTES
                if position > end:
                    raise Damaged(f"damaged at byte {start}: the file ends inside a number")
            else:  # groups were abandoned before ONNX existed; 6 and 7 never meant anything
                raise Damaged(f"damaged at byte {start}: wire type {wire}")
            if total > limit:
                raise OnnxspectError(
                    f"reading it would take more than {readable_bytes(limit)} of memory", "raise the memory limit"
                )
    return total


def outer_fields(file: BinaryIO, size: int, most: int = 10_000) -> dict[int, int] | None:
    """Field number -> wire type of the outermost message, with the contents skipped; None where it is no protobuf.

    Args:
        file: at its start; only tags and lengths are read.
        size: of the file, in bytes.
        most: fields to read, at most.
    """
    found: dict[int, int] = {}
    position = 0
    for _ in range(most):
        if position >= size:
            break
        file.seek(position)
        head = file.read(20)
        try:
            tag, used = _varint(head, 0, len(head))
            wire, number = tag & 7, tag >> 3
            if wire == _VARINT:
                _, used = _varint(head, used, len(head))
            elif wire == _LENGTH:
                length, used = _varint(head, used, len(head))
                used += length
            elif wire in (_FIXED32, _FIXED64):
                used += 4 if wire == _FIXED32 else 8
            else:
                return None
        except Damaged:
            return None
        if number == 0:
            return None
        found.setdefault(number, wire)  # the first counts: a real file of CNTK's has stray bytes at its end
        position += used
    return found if found and position <= size else None


def _schema(descriptor: Descriptor, cache: dict[str, _Schema]) -> _Schema:
    schema = cache.get(descriptor.full_name)
    if schema is None:
        schema = {}
        for field in descriptor.fields:
            if field.message_type is not None:
                schema[field.number] = (_MESSAGE_BYTES, field.message_type, False)
            elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                # Where it is no text, protobuf gives bytes for it, and whoever wanted a name trips.
                text = field.type == FieldDescriptor.TYPE_STRING and field.name != "doc_string"
                schema[field.number] = (_STRING_BYTES, None, text)
            elif field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
                schema[field.number] = (
                    2,
                    None,
                    False,
                )  # packed: as long in memory as in the file, twice while it grows
            else:
                schema[field.number] = (_SCALAR_BYTES, None, False)
        cache[descriptor.full_name] = schema
    return schema


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise Damaged(f"damaged at byte {position}: a number of more than ten bytes")
    raise Damaged(f"damaged at byte {position}: the file ends inside a number")
