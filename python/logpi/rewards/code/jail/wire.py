"""Values as data: what crosses between the judge, the program and the caller.

JSON whose lists say what they are, so that a tuple comes back a tuple. Reading it builds numbers,
texts and containers and can run nothing, which is why it is neither pickle nor marshal.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME = 4 << 20  # bytes; a list of half a million small numbers fits
_HEADER = struct.Struct("<I")


class Closed(Exception):
    """The other side is gone."""


def send(descriptor: int, message: Any) -> None:
    """One frame: a length and JSON."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise ValueError(f"expected at most {MAX_FRAME} bytes of data, got {len(body)}")
    data = memoryview(_HEADER.pack(len(body)) + body)
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except (BrokenPipeError, ConnectionError):
            raise Closed from None


def receive(descriptor: int) -> Any:
    """The message of one frame, read to its end and no further."""
    (length,) = _HEADER.unpack(_exactly(descriptor, _HEADER.size))
    if length > MAX_FRAME:
        raise Closed
    return json.loads(_exactly(descriptor, length))


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = os.read(descriptor, min(size, 1 << 16))
        except ConnectionError:
            raise Closed from None
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: Any, keep: Callable[[Any], int] | None = None) -> Any:
    """The value in JSON's terms. What is no data is kept here and crosses as a number."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 53 else ["int", hex(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else ["float", repr(float(value))]
    if isinstance(value, complex):
        return ["complex", repr(value.real), repr(value.imag)]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        return ["dict", *([encode(k, keep), encode(v, keep)] for k, v in value.items())]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(encode(item, keep) for item in value)]
    if keep is None:
        raise TypeError(f"a {type(value).__name__} is no data")
    return ["object", keep(value)]


def decode(coded: Any, kept: Callable[[int], Any] | None = None) -> Any:
    """The value again: built-in types only, whoever wrote the message. Nonsense is a ValueError."""
    if not isinstance(coded, (list, dict)):
        return coded
    if isinstance(coded, list) and coded and isinstance(coded[0], str):
        kind, *parts = coded
        if kind in _PLAIN:
            return _PLAIN[kind](*parts)
        if kind == "dict":
            return {decode(k, kept): decode(v, kept) for k, v in parts}
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](decode(part, kept) for part in parts)
        if kind == "object" and kept is not None and len(parts) == 1 and type(parts[0]) is int:
            return kept(parts[0])
    raise ValueError("expected data, got something else")


_PLAIN: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "bytes": bytes.fromhex,
}
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
