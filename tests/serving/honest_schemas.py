"""Schemas of the kinds that customers send, none of them out to harm anybody: each of them must be taken."""

from typing import Any


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False, **more,
    }  # fmt: skip


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = _object({"value": {"type": "string"}, "count": {"type": "integer"}})
    for level in range(depth):
        schema = _object({"name": {"type": "string"}, f"level_{level}": schema, "tags": _list({"type": "string"})})
    return schema


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _text(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, **more}


_PATTERNS = {
    "email": _text(r"^[\w.+-]+@[\w-]+\.[\w.-]+$"),
    "phone": _text(r"^\+?[0-9]{7,15}$"),
    "iban": _text(r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"),
    "post_code": _text(r"^[0-9]{5}(-[0-9]{4})?$"),
    "slug": _text(r"^[a-z0-9]+(?:-[a-z0-9]+)*$"),
    "colour": _text(r"^#(?:[0-9a-fA-F]{3}){1,2}$"),
    "version": _text(r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$"),
    "uuid": _text(r"^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
    "date": _text(r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"),
    "username": _text(r"^[a-zA-Z][a-zA-Z0-9_]{2,31}$"),
    "address": _text(r"^(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)$"),
}
_FORMATS = ("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri")
_ADDRESS = _object({"street": {"type": "string"}, "city": {"type": "string"}, "zip": _text(r"^\d{5}$")})

HONEST: dict[str, dict[str, Any]] = {
    "a small model": _object({"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}}),
    "one long text": {"type": "string", "maxLength": 5_000},
    "a summary": _object({"title": {"type": "string", "maxLength": 200}, "body": {"type": "string", "maxLength": 5_000}}),
    "twenty texts": _object({f"field_{n}": {"type": "string", "maxLength": 500} for n in range(20)}),
    "texts with both ends": _object({f"f{n}": {"type": "string", "minLength": 10, "maxLength": 280} for n in range(8)}),
    "patterns": _object(_PATTERNS),
    "a line of any text": _object({"line": _text(r"^.{1,120}$"), "no_tags": _text(r"^[^<>]{1,100}$")}),
    "texts of at least a length": _object({"essay": {"type": "string", "minLength": 100, "maxLength": 1_000}}),
    "formats": _object({name: {"type": "string", "format": name} for name in _FORMATS}),
    "a list of a hundred": _list(_object({"a": {"type": "string"}, "b": {"type": "number"}}), minItems=1, maxItems=100),
    "a hundred short texts": _list({"type": "string", "maxLength": 64}, maxItems=100),
    "a list of exactly ten": _list(_ADDRESS, minItems=10, maxItems=10),
    "eight deep": _nested(8),
    "a thousand choices": {"type": "string", "enum": [f"category number {n}" for n in range(1_000)]},
    "choices of many kinds": _object({"kind": {"enum": ["a", "b", 3, None, True]}, "const": {"const": "fixed"}}),
    "countries": _object({"country": {"type": "string", "enum": ["Österreich", "中国", "日本", "España", "Ελλάδα", "🇨🇭"]}}),
    "unicode": _object({"名字": {"type": "string"}, "描述": {"type": "string", "maxLength": 300}, "größe": {"type": "number"}}),
    "numbers": _object({
        "percent": {"type": "number", "minimum": 0, "maximum": 100}, "year": {"type": "integer", "minimum": 1900},
        "any": {"type": "integer"}, "signed": {"type": "integer", "minimum": -40_000, "maximum": 40_000},
    }),
    "optional ones": _object({"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "b": {"type": ["integer", "null"]}}),
    "none required": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(12)}},
    "sixty required": _object({f"a_field_of_a_form_{n}": {"type": "string"} for n in range(60)}),
    "a tree": {
        "$defs": {"node": _object({"name": {"type": "string"}, "children": _list({"$ref": "#/$defs/node"})})},
        "$ref": "#/$defs/node",
    },
    "a linked list": {
        "$defs": {"node": _object({"value": {"type": "number"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})},
        **_object({"head": {"$ref": "#/$defs/node"}}),
    },
    "models of models": {
        "$defs": {"Address": _ADDRESS, "Person": _object({"name": {"type": "string"}, "home": {"$ref": "#/$defs/Address"}})},
        **_object({"people": _list({"$ref": "#/$defs/Person"}), "office": {"$ref": "#/$defs/Address"}}),
    },
    "one of five kinds": {
        "anyOf": [
            _object({"kind": {"const": f"kind_{n}"}, **{f"field_{m}": {"type": "string"} for m in range(6)}})
            for n in range(5)
        ]
    },
    "steps of reasoning": _object({
        "steps": _list(_object({"explanation": {"type": "string"}, "output": {"type": "string"}})), "answer": {"type": "string"},
    }),
    "arguments of a function": _object({
        "location": {"type": "string", "description": "City and country, such as Bogotá, Colombia"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "days": {"type": ["integer", "null"]},
    }),
    "a query": _object({
        "table": {"type": "string", "enum": ["orders", "customers", "products"]},
        "columns": _list({"type": "string", "enum": ["id", "status", "expected_delivery_date", "shipped_at", "ordered_at"]}),
        "conditions": _list(_object({
            "column": {"type": "string"}, "operator": {"type": "string", "enum": ["=", ">", "<", ">=", "<=", "!="]},
            "value": {"anyOf": [{"type": "string"}, {"type": "number"}]},
        })),
        "order": {"type": "string", "enum": ["asc", "desc"]},
    }),
    "a user interface": {
        "$defs": {"ui": _object({
            "type": {"type": "string", "enum": ["div", "button", "header", "section", "field", "form"]},
            "label": {"type": "string"}, "children": _list({"$ref": "#/$defs/ui"}),
            "attributes": _list(_object({"name": {"type": "string"}, "value": {"type": "string"}})),
        })},
        **_object({"root": {"$ref": "#/$defs/ui"}}),
    },
    "any object": {"type": "object"},
    "values of any name": {"type": "object", "additionalProperties": {"type": "integer"}},
    "names by a pattern": {"type": "object", "patternProperties": {"^[a-z]{1,20}$": {"type": "number"}}},
    "a pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
}  # fmt: skip
