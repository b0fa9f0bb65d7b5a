"""A settings class as a flat table: one entry per setting, with its dotted name, allowed values and help text."""

from dataclasses import dataclass
from typing import Any

from specedge.settings import SettingsGroup, unset_word


@dataclass(frozen=True, slots=True)
class SettingEntry:
    """One setting as users see it: `name` is dotted (`proactive.type`), `allowed` and `default` are text."""

    name: str
    allowed: str
    default: str
    description: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable without its prefix."""
        return self.name.replace(".", "__").upper()


def setting_table(settings_class: type[SettingsGroup]) -> dict[str, SettingEntry]:
    """Every setting of `settings_class` by dotted name, nested groups included, in the order they are declared."""
    return {entry.name: entry for entry in _entries(settings_class, prefix="")}


def _entries(group: type[SettingsGroup], prefix: str) -> list[SettingEntry]:
    schema = group.model_json_schema()
    entries: list[SettingEntry] = []
    for name, field in group.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup):
            entries += _entries(field.annotation, prefix=f"{prefix}{name}.")
            continue
        word = unset_word(field)
        default = word if field.default is None and word else str(field.default)
        if isinstance(field.default, bool):
            default = default.lower()
        allowed = describe_allowed(schema["properties"][name])
        entries.append(SettingEntry(prefix + name, allowed, default, field.description or ""))
    return entries


def describe_allowed(schema: dict[str, Any]) -> str:
    """What a JSON schema of one field allows, in words."""
    if "allowed" in schema:
        return str(schema["allowed"])
    alternatives = schema.get("anyOf", [schema])
    words = [_describe_plain(alternative) for alternative in alternatives if alternative.get("type") != "null"]
    if "unset_word" in schema:
        words.append(schema["unset_word"])
    return " or ".join(words)


def _describe_plain(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if schema["type"] == "boolean":
        return "true or false"
    kind = {"integer": "an integer", "number": "a number", "string": "text"}[schema["type"]]
    bounds = [
        (schema.get("minimum"), "from {:g}"),
        (schema.get("exclusiveMinimum"), "above {:g}"),
        (schema.get("maximum"), "to {:g}"),
    ]
    if schema["type"] == "integer":
        bounds = [(value, text.replace(":g", "")) for value, text in bounds]
    return " ".join([kind, *(text.format(value) for value, text in bounds if value is not None)])
