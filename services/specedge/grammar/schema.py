"""Makes a JSON schema mean to the grammar compiler what it says, or refuses it.

The compiler passes over what it cannot express: constraints beside a reference or an anyOf, `minimum` without a type,
`not`, and more. An answer bound by such a grammar would follow the grammar and break the schema. What can be said in
other words is rewritten here; what cannot is refused by name. What the compiler itself warns about (`oneOf` with
branches that overlap, a pattern beside a length, ...) is refused where it warns.

A rewritten schema may allow less than the given one, never more: properties that it does not name are left out unless
`additionalProperties` allows them, properties come in the order given, and a pattern spans the whole string.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from specedge.errors import InvalidRequest

Schema = dict[str, Any]

MAX_WHITESPACE: Final = 8
"""Blank characters in a row between the tokens of JSON; without a limit, a model may write nothing else to the end."""

_OBJECT: Final = frozenset(
    {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties"}
    | {"minProperties", "maxProperties"}
)
_ARRAY: Final = frozenset(("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"))
_STRING: Final = frozenset(("minLength", "maxLength", "pattern", "format"))
_NUMBER: Final = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_FAMILIES: Final = {"object": _OBJECT, "array": _ARRAY, "string": _STRING, "number": _NUMBER}
_COMBINING: Final = ("$ref", "anyOf", "oneOf", "allOf")
_VALUES: Final = ("enum", "const")
_CONSTRAINTS: Final = _OBJECT | _ARRAY | _STRING | _NUMBER | {"type", *_COMBINING, *_VALUES}
_CONDITIONAL: Final = ("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies")
_COUNTING: Final = ("uniqueItems", "contains", "minContains", "maxContains", "additionalItems")
_REFUSED: Final = (*_CONDITIONAL, *_COUNTING, "$dynamicRef", "$recursiveRef")
_DEFINITIONS: Final = ("$defs", "definitions")
_OUTSIDE_STRINGS: Final = re.compile(r'"|\\[\\nrtfv0cxu]')
_CHARACTER_CLASS: Final = re.compile(r"\[(?:\\.|[^\]\\])*\]")


def enforceable_schema(schema: object, param: str) -> Schema | bool:
    """The schema in the words that the grammar compiler follows to the letter.

    Raises:
        InvalidRequest: names the keyword that cannot be enforced, and where it is.
    """
    return _Rewriter(param).rewrite(schema, "#")


def enforceable_tags(tag: object, param: str) -> Any:
    """A structural tag with each JSON schema in it rewritten, and blank space limited."""
    if isinstance(tag, list):
        return [enforceable_tags(item, param) for item in tag]
    if not isinstance(tag, dict):
        return tag
    limits = {"max_whitespace_cnt": MAX_WHITESPACE} if tag.get("type") == "json_schema" else {}
    return limits | {
        key: enforceable_schema(value, param) if key == "json_schema" else enforceable_tags(value, param)
        for key, value in tag.items()
    }


class _Rewriter:
    def __init__(self, param: str) -> None:
        self._param = param

    def rewrite(self, schema: object, where: str) -> Schema | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            self._refuse(where, "must be an object or a boolean")
        for keyword in _REFUSED:
            if schema.get(keyword, False) is not False:
                self._refuse(where, f"uses {keyword}, which cannot be enforced")
        rewritten = {key: value for key, value in schema.items() if key not in _REFUSED}
        for keyword in _DEFINITIONS:
            if keyword in rewritten:
                rewritten[keyword] = self._each(rewritten[keyword], f"{where}/{keyword}")
        used = [key for key in rewritten if key in _CONSTRAINTS]
        if any(key in _COMBINING for key in used):
            return self._combined(rewritten, used, where)
        if any(key in _VALUES for key in used):
            return self._listed(rewritten, used, where)
        return self._typed(rewritten, used, where)

    def _combined(self, schema: Schema, used: list[str], where: str) -> Schema:
        if len(used) > 1:
            self._refuse(where, f"uses {used[0]} beside {used[1]}, which cannot be enforced together")
        keyword = used[0]
        if keyword == "$ref":
            if not isinstance(schema["$ref"], str) or not re.match(r"#(/|$)", schema["$ref"]):
                self._refuse(where, f"refers to {schema['$ref']!r}; references must begin with '#/'")
            return schema
        branches = schema[keyword]
        if not isinstance(branches, list) or not branches:
            self._refuse(where, f"{keyword} must be a list of at least one schema")
        if keyword == "allOf" and len(branches) > 1:
            self._refuse(where, "uses allOf with several schemas, which cannot be enforced")
        schema[keyword] = [self.rewrite(branch, f"{where}/{keyword}/{i}") for i, branch in enumerate(branches)]
        return schema

    def _listed(self, schema: Schema, used: list[str], where: str) -> Schema:
        """An enum of the values that the type, the enum and the const leave."""
        for keyword in used:
            if keyword not in ("type", *_VALUES):
                self._refuse(where, f"uses {keyword} beside enum or const, which cannot be enforced together")
        values = schema.pop("enum") if "enum" in schema else [schema["const"]]
        if not isinstance(values, list):
            self._refuse(where, "enum must be a list")
        if "const" in schema:
            const = schema.pop("const")
            values = [
                value for value in values if value == const and isinstance(value, bool) == isinstance(const, bool)
            ]
        if "type" in schema:
            types = self._types(schema.pop("type"), where)
            values = [value for value in values if any(_is_of_type(value, name) for name in types)]
        if not values:
            self._refuse(where, "admits no value")
        schema["enum"] = values
        return schema

    def _typed(self, schema: Schema, used: list[str], where: str) -> Schema:
        families = {name for name, keywords in _FAMILIES.items() if any(key in keywords for key in used)}
        if "type" in schema:
            types = self._types(schema["type"], where)
        else:
            if len(families) > 1:
                self._refuse(where, f"has no type and uses {', '.join(k for k in used)}, of several types")
            types = sorted(families)
            if types:
                schema["type"] = types[0]
        if "object" in types:
            self._object(schema, where)
        if "array" in types:
            self._array(schema, where)
        if "string" in types:
            self._string(schema, where)
        return schema

    def _object(self, schema: Schema, where: str) -> None:
        properties = dict(self._each(schema.get("properties", {}), f"{where}/properties"))
        is_named = bool(properties or "patternProperties" in schema or "propertyNames" in schema)
        if "patternProperties" in schema:
            if properties or schema.get("required") or schema.get("additionalProperties", False) is not False:
                self._refuse(where, "uses patternProperties beside other properties, which cannot be enforced together")
            schema["patternProperties"] = self._each(schema["patternProperties"], f"{where}/patternProperties")
            for pattern in schema["patternProperties"]:
                self._pattern(pattern, where)
        if "propertyNames" in schema:
            if properties or schema.get("required"):
                self._refuse(where, "uses propertyNames beside properties, which cannot be enforced together")
            schema["propertyNames"] = self.rewrite(schema["propertyNames"], f"{where}/propertyNames")
        if "unevaluatedProperties" in schema and not isinstance(schema["unevaluatedProperties"], bool):
            self._refuse(where, "uses unevaluatedProperties with a schema, which cannot be enforced")
        if "additionalProperties" in schema:
            schema["additionalProperties"] = self.rewrite(
                schema["additionalProperties"], f"{where}/additionalProperties"
            )
        elif not is_named and not schema.get("required") and "unevaluatedProperties" not in schema:
            schema["additionalProperties"] = True
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._refuse(where, "required must be a list of strings")
        for name in required:
            properties.setdefault(name, schema.get("additionalProperties", True))
            if properties[name] is False:
                self._refuse(where, f"requires {name!r} and forbids it")
        if properties:
            schema["properties"] = properties

    def _array(self, schema: Schema, where: str) -> None:
        if "prefixItems" in schema:
            items = schema["prefixItems"]
            if not isinstance(items, list):
                self._refuse(where, "prefixItems must be a list of schemas")
            schema["prefixItems"] = [self.rewrite(item, f"{where}/prefixItems/{i}") for i, item in enumerate(items)]
        if "unevaluatedItems" in schema and not isinstance(schema["unevaluatedItems"], bool):
            self._refuse(where, "uses unevaluatedItems with a schema, which cannot be enforced")
        if "items" in schema:
            schema["items"] = self.rewrite(schema["items"], f"{where}/items")
        elif "prefixItems" not in schema and "unevaluatedItems" not in schema:
            schema["items"] = True

    def _string(self, schema: Schema, where: str) -> None:
        if "pattern" in schema:
            if "format" in schema:
                self._refuse(where, "uses pattern beside format, which cannot be enforced together")
            self._pattern(schema["pattern"], where)

    def _pattern(self, pattern: object, where: str) -> None:
        """The compiler copies what a pattern spells out into the string, so that must need no escape in JSON.

        From classes, and from a dot, it leaves out what would need one.
        """
        if not isinstance(pattern, str):
            self._refuse(where, "pattern must be a string")
        found = _OUTSIDE_STRINGS.search(_CHARACTER_CLASS.sub("", pattern))
        if found or any(ord(char) < 32 for char in pattern):
            what = found[0] if found else "a control character"
            self._refuse(where, f"has a pattern with {what}, which cannot be enforced inside a JSON string")

    def _each(self, schemas: object, where: str) -> Schema:
        if not isinstance(schemas, Mapping):
            self._refuse(where, "must be an object")
        return {name: self.rewrite(schema, f"{where}/{name}") for name, schema in schemas.items()}

    def _types(self, value: object, where: str) -> list[str]:
        types = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
        if not types or (isinstance(value, list) and len(types) < len(value)):
            self._refuse(where, "type must be a string or a list of strings")
        return types

    def _refuse(self, where: str, reason: str) -> NoReturn:
        raise InvalidRequest(f"JSON schema at {where[:120]} {reason}", param=self._param)


def _is_of_type(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return name in ("integer", "number")
    kinds: dict[str, type] = {"number": float, "string": str, "array": list, "object": dict, "null": type(None)}
    return name in kinds and isinstance(value, kinds[name])
