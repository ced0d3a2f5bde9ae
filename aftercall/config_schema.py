"""The JSON Schema of aftercall.toml, for completion and checks in an editor. `aftercall check` alone has the last word.

Its dialect is 2020-12, and it says the same in draft 7: no keyword beside a `$ref`, none that came later. Editors with
taplo (Even Better TOML) read it as that, and look for completions in `properties`, `anyOf` and `$ref`, not in
`if`/`then`: https://github.com/tamasfe/taplo/blob/master/crates/taplo-common/src/schema/mod.rs (2026-11).
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from aftercall.describe import Option, SinkType, description, options, sink_types, summary
from aftercall.errors import PluginError
from aftercall.plugins import PROVIDERS, installed_plugins, provider_class
from aftercall.providers.base import Provider
from aftercall.routing import REDACTIONS
from aftercall.settings import NAME
from aftercall.sink_settings import EVENTS, ClientOptions, CommonOptions
from aftercall.sinks.base import SinkConfig

Schema = dict[str, Any]

_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", "title": "text with ${NAME} in it"}
_DURATION: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", "title": 'a duration, as "30s"'}
_RATE: Schema = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?/(s|m|h))?$", "title": 'a rate, as "10/s"'}
_CLASS: Schema = {"type": "string", "pattern": ":", "title": '"module:Class"'}
_PATH: Schema = {"type": "string", "pattern": r"^[^.\s]+(\.[^.\s]+)+$", "title": "a path into the event, with dots"}
# Of the options that every sink has, those whose texts have a form.
_FORMS: dict[str, Schema] = {
    "events": {"type": "array", "items": {"type": "string", "enum": list(EVENTS)}},
    "redact": {"type": "array", "items": {"anyOf": [{"type": "string", "enum": list(REDACTIONS)}, _PATH]}},
    "timeout": _DURATION,
    "retry": {"type": "array", "items": _DURATION},
    "rate": _RATE,
}
_ACCOUNT = {
    "api_key": "the key of the provider's API, with which records are fetched",
    "webhook_secrets": "what webhooks are verified with; any may match, so keys can be rotated",
    "base_url": "another address of the provider's API: a proxy or a simulator",
    "tags": "copied to every event of the account",
}
_RETENTION = {
    "events": ("how long raw bodies, events and the history of deliveries are kept", "7d"),
    "settle_after": ("how long an ended call may wait for its analysis and bill", "10m"),
}


def config_schema(*, installed: bool = True) -> Schema:
    """The schema, with the built-in types and, unless told otherwise, those of installed packages."""
    types = list(sink_types(installed=installed))
    definitions: Schema = {"variable": _VARIABLE, "account": _account(installed), "sink": _sink(types)}
    definitions["client"] = _client(definitions)
    common = _of_fields(CommonOptions, definitions, "common")
    for option, schema in zip(options(CommonOptions), common, strict=True):
        definitions[f"common.{option.name}"] = _described(option, _FORMS.get(option.name, schema))
    for one in types:
        definitions |= _sink_type(one)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aftercall.toml",
        "type": "object",
        "properties": {
            "accounts": _tables("account", "a set of credentials at a provider; POST /webhooks/<name>") | _AT_LEAST_ONE,
            "clients": _tables("client", "whose calls these are, for those who run agents for others"),
            "sinks": _tables("sink", "a place that events go to"),
            "retention": {
                "type": "object",
                "properties": {
                    key: {**_or_variable(_DURATION), "description": words, "default": default}
                    for key, (words, default) in _RETENTION.items()
                },
                "additionalProperties": False,
            },
        },
        "required": ["accounts"],
        "additionalProperties": False,
        "$defs": definitions,
    }


_AT_LEAST_ONE = {"minProperties": 1}


def _tables(kind: str, words: str) -> Schema:
    return {
        "type": "object",
        "description": f"[{kind}s.<name>]: {words}",
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": _ref(kind),
    }


def _account(installed: bool) -> Schema:
    names = sorted({*PROVIDERS, *(installed_plugins("provider") if installed else ())})
    fields: Schema = {
        "api_key": {"type": "string"},
        "webhook_secrets": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        "base_url": _or_variable({"type": "string", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://|^$"}),
        "tags": {"type": "object", "additionalProperties": {"type": "string"}},
    }
    return {
        "type": "object",
        "properties": {
            "provider": {**_one_of(names), "description": 'a built-in provider, a plug-in\'s name, or "module:Class"'},
            **{key: {**schema, "description": _ACCOUNT[key]} for key, schema in fields.items()},
        },
        "required": ["provider"],
        "additionalProperties": False,
        "allOf": [
            _when("provider", name, {"required": needs, "properties": {key: {"minLength": 1} for key in needs}})
            for name in names
            if (needs := _needs(name))
        ],
    }


def _client(definitions: Schema) -> Schema:
    given = options(ClientOptions)
    schemas = _of_fields(ClientOptions, definitions, "client")
    return {
        "type": "object",
        "properties": {one.name: _described(one, schema) for one, schema in zip(given, schemas, strict=True)},
        "minProperties": 1,
        "additionalProperties": False,
    }


def _needs(name: str) -> list[str]:
    try:
        provider: type[Provider] = provider_class(name)
    except PluginError:
        return []
    return list(provider.needs)


def _sink(types: Iterable[SinkType]) -> Schema:
    """Each type's options are looked at when `type` says so. The `anyOf` always holds, and is there to be completed."""
    names = [one.name for one in types]
    return {
        "type": "object",
        "properties": {"type": {**_one_of(names), "description": description(_TYPE)}},
        "required": ["type"],
        "anyOf": [*(_ref(f"sink.{name}") for name in names), {}],
        "allOf": [_when("type", name, _ref(f"sink.{name}")) for name in names],
    }


_TYPE = msgspec.structs.fields(CommonOptions)[0].type


def _sink_type(one: SinkType) -> Schema:
    """The definitions of one type. What cannot be loaded here may have any option."""
    key = f"sink.{one.name}"
    if one.sink is None:
        return {key: {"description": one.problem, "properties": {"type": {"const": one.name}}}}
    definitions: Schema = {}
    own, schemas = options(one.sink.Config), _of_fields(one.sink.Config, definitions, key)
    properties: Schema = {"type": {"const": one.name, "description": summary(one.sink)}}
    properties |= {name: _ref(f"common.{name}") for name in CommonOptions.__struct_fields__ if name != "type"}
    for option, schema in zip(own, schemas, strict=True):
        properties[option.name] = _described(option, schema)
    definitions[key] = {
        "properties": properties,
        "required": [option.name for option in own if option.required],
        "additionalProperties": False,
        **_instead(one.sink.Config),
    }
    return definitions


def _instead(config: type[SinkConfig]) -> Schema:
    """Of options that may be left out beside certain others: that there are these or those."""
    fields = config.__struct_encode_fields__
    instead = {name: [other for other in fields if name not in config.needed({other})] for name in config.needed(())}
    either = [
        {"anyOf": [{"required": [other]} for other in dict.fromkeys((name, *others))]}
        for name, others in instead.items()
    ]
    return {"allOf": either} if either else {}


def _of_fields(struct: type[msgspec.Struct], definitions: Schema, key: str = "") -> list[Schema]:
    """The schema of each field; the Structs in them go to `definitions`. A type that msgspec does not know is free."""
    fields = msgspec.structs.fields(struct)
    try:
        schemas, components = msgspec.json.schema_components(
            [field.type for field in fields], ref_template=f"#/$defs/{_pointer(key)}.{{name}}"
        )
    except (TypeError, NotImplementedError):
        return [{} for _ in fields]
    definitions |= {f"{key}.{name}": _or_variable(component) for name, component in components.items()}
    return list(schemas)


def _or_variable(schema: Schema) -> Schema:
    """The schema with `${NAME}` allowed in each of its texts, whatever their form, and without null: TOML has none."""
    schema = {
        key: (
            _or_variable(value)
            if key in ("items", "additionalProperties") and isinstance(value, dict)
            else {name: _or_variable(one) for name, one in value.items()}
            if key == "properties"
            else [_or_variable(one) for one in value if one != {"type": "null"}]
            if key in ("anyOf", "prefixItems")
            else value
        )
        for key, value in schema.items()
    }
    if len(schema.get("anyOf", ())) == 1:
        (only,) = schema.pop("anyOf")
        return {**only, **schema}
    has_form = {"enum", "pattern", "minLength", "maxLength", "format", "contentEncoding"} & {*schema}
    of_text = schema.get("type") == "string" or any(isinstance(word, str) for word in schema.get("enum", ()))
    if not (has_form and of_text):
        return schema
    outside: Schema = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    return {"anyOf": [schema, _ref("variable")], **outside}


def _one_of(names: list[str]) -> Schema:
    return {"anyOf": [{"type": "string", "enum": names}, _CLASS, _ref("variable")]}


def _when(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}


def _described(option: Option, schema: Schema) -> Schema:
    made = {**_or_variable(schema), "description": option.description}
    if option.default is not None and not (option.secret and option.default):
        made["default"] = msgspec.to_builtins(option.default, enc_hook=str)
    return made


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{_pointer(name)}"}


def _pointer(name: str) -> str:
    """A name as a part of a JSON pointer in a URL."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")
