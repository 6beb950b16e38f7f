"""JSON Schemas as Gemini takes them, in ``parametersJsonSchema`` and ``responseJsonSchema``.

It knows a part of JSON Schema only and answers some of the rest with 400. What can be said in its words is, what
cannot is left out: a looser schema than the client's still gives arguments of the right shape.
https://ai.google.dev/api/generate-content#FIELDS.response_json_schema
"""

from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

_KEPT = frozenset(
    "$id $defs $ref $anchor type format title description enum minItems maxItems minimum maximum required "
    "propertyOrdering items prefixItems anyOf oneOf properties additionalProperties".split()
)
# Words about a schema: without them the same values fit.
_REMARKS = frozenset("$schema $comment default example examples deprecated readOnly writeOnly discriminator".split())
_BY_NAME = ("properties", "$defs")
_IN_A_ROW = ("anyOf", "oneOf", "prefixItems")
_INNER = ("items", "additionalProperties")


class Translation:
    """One schema's translation. ``lost`` are the words that could not be said and narrow what fits."""

    def __init__(self) -> None:
        self.lost: set[str] = set()

    def translate(self, schema: Schema) -> Schema:
        """The schema in Gemini's words."""
        plain = _gather(schema)
        if "$ref" in plain:
            # "If $ref is set on a sub-schema, no other properties, except for than those starting as a $, may be set."
            plain = {name: value for name, value in plain.items() if name.startswith("$") or name not in _KEPT}
        translated: Schema = {}
        for name, value in plain.items():
            if name in _KEPT:
                translated[name] = self._inner(name, value)
            elif name == "const":
                translated.setdefault("enum", [value])
            elif name == "nullable" or name in _REMARKS:
                continue
            else:
                self.lost.add(name)
        return translated

    def _inner(self, name: str, value: Any) -> Any:
        if name in _BY_NAME and isinstance(value, dict):
            return {key: self._maybe(inner) for key, inner in value.items()}
        if name in _IN_A_ROW and isinstance(value, list):
            return [self._maybe(inner) for inner in value]
        return self.translate(value) if name in _INNER and isinstance(value, dict) else value

    def _maybe(self, value: Any) -> Any:
        """A schema may also be ``true`` or ``false``."""
        if isinstance(value, dict):
            return self.translate(value)
        return {} if value is True else value


def _gather(schema: Schema) -> Schema:
    """The schema without ``allOf`` and with ``definitions`` under their newer name."""
    gathered = {name: value for name, value in schema.items() if name not in ("allOf", "definitions")}
    if isinstance(schema.get("definitions"), dict):
        gathered["$defs"] = {**schema["definitions"], **gathered.get("$defs", {})}
    if isinstance(gathered.get("$ref"), str):
        gathered["$ref"] = gathered["$ref"].replace("#/definitions/", "#/$defs/")
    members = schema.get("allOf")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict):
            _merge(gathered, _gather(member))
    return gathered


def _merge(into: Schema, member: Schema) -> None:
    for name, value in member.items():
        present = into.get(name)
        if isinstance(present, dict) and isinstance(value, dict):
            into[name] = {**present, **value}
        elif name == "required" and isinstance(present, list) and isinstance(value, list):
            into[name] = list(dict.fromkeys((*present, *value)))
        else:
            into.setdefault(name, value)


def translate(schema: Schema) -> Schema:
    """A schema in Gemini's words."""
    return Translation().translate(schema)


def loses(schema: Schema | None) -> bool:
    """Whether more would fit the translation than the schema."""
    if schema is None:
        return False
    translation = Translation()
    translation.translate(schema)
    return bool(translation.lost)
