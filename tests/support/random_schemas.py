"""Random JSON schemas whose smallest instances are short, of the keywords that structured output honours."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["name", "age", "ok", "tags", "size", "über", "a b", "x", 'quo"te', "2nd"]
_PATTERNS = ["^[a-z]{2,6}$", r"^\d{3}-\d{2}$", "^(red|green|blue)$", "^[A-Z][a-z]+$"]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]


def random_schema(seed: int) -> dict[str, Any]:
    """The schema of this seed: three levels deep at most, half of them with definitions."""
    rng = random.Random(seed)
    schema = _schema(rng, 3)
    if rng.random() < 0.5 and "properties" in schema:
        schema["$defs"] = {"part": _schema(rng, 1)}
        schema["properties"]["part"] = {"$ref": "#/$defs/part"}
        schema["required"] = [*schema.get("required", []), "part"]
    return schema


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _integer, _number, _boolean, _enum, _const]
    if depth:
        makers += [_object, _object, _object, _array, _any_of]
    return rng.choice(makers)(rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 12}
    if kind == 1:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    low = rng.randrange(4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(12)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(-1000, 1000)
    if rng.random() < 0.7:
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1000)}
    return {"type": "integer", "exclusiveMinimum": low, "maximum": low + 50}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": rng.randrange(10) / 4, "maximum": 10 + rng.randrange(100) / 8}


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["red", "", 'with "quotes"', "\\", "é\n", 3, -1.5, None, True, ["x", 1], {"a": {}}], rng.randint(1, 5))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(["fixed", 42, None, {"k": [1, 2]}, "日本"])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    properties = {name: _schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if rng.random() < 0.1:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": "array", "prefixItems": [_schema(rng, depth - 1) for _ in range(2)], "items": False, "minItems": 2}
    low = rng.randrange(3)
    return {"type": "array", "items": _schema(rng, depth - 1), "minItems": low, "maxItems": low + rng.randrange(3)}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
