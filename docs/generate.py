"""Writes the reference pages from the code: `python docs/generate.py` fills `docs/reference/`.

Nothing on those pages is written by hand. `make docs` runs this before it builds the site.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import griffe
import typer

from service.audit.schema import PATH as CERTIFICATE
from service.cli import app
from service.config import Settings
from service.schemas.models import PRESETS, Policy

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
OPENAPI = ROOT / "tests" / "service" / "openapi.json"  # a test holds it to the running application
OPTIONS = "worker.engine.options", "Options"  # its docstring explains the policy's fields that the engine reads
FIRST = ("deletion requests", "jobs", "models", "versions")  # tags in the order that a reader wants; others follow
ALWAYS = {"400", "401", "403", "404", "409", "413", "422", "429", "503"}  # errors that every operation lists
Schema = Mapping[str, Any]


def row(*cells: object) -> str:
    """One line of a Markdown table; line ends and bars in a cell would break it."""
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A Markdown table, or nothing if it has no rows."""
    lines = [row(*cells) for cells in rows]
    if lines:
        yield from ("", row(*names), "|" + " --- |" * len(names), *lines, "")


def code(value: object) -> str:
    """A value as JSON, set as code; nothing where there is no value."""
    return f"`{json.dumps(value)}`" if value is not None else ""


def type_words(schema: Schema, page: str = "") -> str:
    """A JSON Schema as words: `integer (at least 1)`, `array of string`, a link to a named schema."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[`{name}`]({page}#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(type_words(part, page) for part in schema[key]))
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return " or ".join(code(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {type_words(schema.get('items', {}), page)}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {type_words(schema.get('propertyNames', {'type': 'string'}))}: {type_words(values, page)}"
    kind, bounds = str(schema.get("format") or schema.get("type", "any")), ", ".join(limits(schema))
    return f"{kind} ({bounds})" if bounds else kind


def limits(schema: Schema) -> Iterator[str]:
    """What a schema says of a value's range, length and form."""
    words = {
        "minimum": "at least {}", "exclusiveMinimum": "over {}", "maximum": "at most {}",
        "exclusiveMaximum": "under {}", "minLength": "at least {} characters", "maxLength": "at most {} characters",
        "pattern": "`{}`",
    }  # fmt: skip
    return (text.format(schema[key]) for key, text in words.items() if key in schema)


def properties(schema: Schema, page: str = "") -> Iterator[str]:
    """A table of an object's fields."""
    required = set(schema.get("required", ()))
    yield from table(
        ("field", "type", "default", "meaning"),
        (
            (
                f"`{name}`",
                type_words(field, page),
                "required" if name in required else code(field.get("default")),
                field.get("description", ""),
            )
            for name, field in schema.get("properties", {}).items()
        ),
    )


def http_page() -> Iterator[str]:
    """Every operation of the OpenAPI document by its tag, then the schemas that they name."""
    document = json.loads(OPENAPI.read_text())
    yield "# HTTP\n"
    yield document["info"]["description"]
    yield (
        "Send `Authorization: Bearer KEY` with every call. This page is made from the OpenAPI "
        "document, which a running service has at `/openapi.json`. [API keys and scopes](../guides/access.md) "
        "says what each key may do.\n\n## Errors\n\nAny operation may answer these:"
    )
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    errors = operations[0][2]["responses"]
    yield from table(("status", "meaning"), ((s, errors[s]["description"]) for s in sorted(ALWAYS & set(errors))))
    for tag in dict.fromkeys((*FIRST, *(operation["tags"][0] for _, _, operation in operations))):
        yield f"\n## {tag[0].upper()}{tag[1:]}\n"
        for path, method, operation in operations:
            if operation["tags"][0] == tag:
                yield from describe_operation(path, method, operation)
    yield "\n## Schemas\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"\n### `{name}`\n\n{schema.get('description', '')}\n"
        if "enum" in schema:
            yield type_words(schema)
        yield from properties(schema)


def describe_operation(path: str, method: str, operation: Schema) -> Iterator[str]:
    """One operation: what it does, what it takes, what it answers."""
    yield f"\n### `{method.upper()} {path}`\n\n{operation.get('description', '')}\n"
    yield from table(
        ("parameter", "in", "type", "meaning"),
        (
            (
                f"`{given['name']}`{' (required)' if given.get('required') else ''}",
                given["in"],
                type_words(given["schema"]),
                given.get("description", ""),
            )
            for given in operation.get("parameters", ())
        ),
    )
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body (`{media}`): {type_words(body['schema'])}\n"
    for status, answer in operation["responses"].items():
        if status not in ALWAYS:
            kinds = [f"`{media}`{described(body)}" for media, body in answer.get("content", {}).items()]
            yield f"Answers {status}{': ' if kinds else ''}{', '.join(kinds)}\n"


def described(body: Schema) -> str:
    """The schema of an answer in brackets, if it has one."""
    schema = body.get("schema")
    return f" ({type_words(schema)})" if schema else ""


def cli_page() -> Iterator[str]:
    """Every command of `unlearnd`, with its arguments and options."""
    yield "# Command line\n"
    yield "`UNLEARND_URL` and `UNLEARND_API_KEY` tell the client commands which service to call, and as whom.\n"
    yield "`unlearnd --install-completion` installs completion for your shell.\n"
    yield from describe_commands("unlearnd", typer.main.get_command(app))


def describe_commands(name: str, command: Any) -> Iterator[str]:
    """A command, or a group and its commands, in order."""
    for part, inner in getattr(command, "commands", {}).items():
        yield from describe_commands(f"{name} {part}", inner)
    if hasattr(command, "commands"):
        return
    arguments = [given for given in command.params if given.param_type_name == "argument"]
    shown = " ".join([name, "[OPTIONS]", *(written(given) for given in arguments)])
    yield f"\n## `{name}`\n\n{command.help}\n\n```text\n{shown}\n```\n"
    yield from table(
        ("argument or option", "default", "meaning"),
        (
            (f"`{', '.join(option_names(given))}`", default_text(given), given.help or "")
            for given in command.params
            if given.name != "help"
        ),
    )


def written(argument: Any) -> str:
    """An argument as the usage line has it."""
    return str(argument.metavar or argument.name).upper()


def option_names(given: Any) -> list[str]:
    """A parameter as one types it."""
    return [*given.opts, *given.secondary_opts] if given.param_type_name == "option" else [written(given)]


def default_text(given: Any) -> str:
    """A parameter's default, as one types it."""
    if given.required:
        return "required"
    value = given.default
    return "" if value in (None, False, ()) or callable(value) else f"`{value}`"


def settings_page() -> Iterator[str]:
    """Every setting with its environment variable."""
    yield "# Settings\n"
    yield (
        "Each part of the service reads its settings from the environment once, at its start. Durations are "
        "seconds and sizes are bytes. `unlearnd settings` prints the values that count on a host, without secrets."
    )
    schema = Settings.model_json_schema()
    yield from table(
        ("variable", "type", "default", "meaning"),
        (
            (f"`UNLEARND_{name.upper()}`", type_words(field), code(shown_default(field)), field.get("description", ""))
            for name, field in schema["properties"].items()
        ),
    )
    for name, part in schema.get("$defs", {}).items():
        yield f"\n## `{name}`\n\n{part.get('description', '')}\n"
        yield from properties(part)


def shown_default(field: Schema) -> object:
    """A setting's default; None where it is an empty path, which pydantic writes as `.`."""
    default = field.get("default")
    return None if field.get("format") == "path" and default == "." else default


def policy_page() -> Iterator[str]:
    """Every field of a model's policy, and the presets."""
    yield "# Policy\n"
    yield (
        "A policy says how a model is unlearned. It is JSON, given with `unlearnd models add --policy FILE` or in "
        "`POST /v1/models`. Every field has a default. [The engine's options](../python.md#worker.engine.Options) "
        "explain the fields that the engine reads."
    )
    schema = Policy.model_json_schema()
    explained, defaults = engine_options(), Policy().model_dump()
    for name, field in schema["properties"].items():
        field.setdefault("description", explained.get(name, ""))
        field.setdefault("default", defaults[name])
    yield from properties(schema)
    yield "## Presets\n\nA preset sets other defaults for some fields. A field that you name yourself still wins."
    for name, values in PRESETS.items():
        yield f"\n### `{name}`\n"
        yield from table(("field", "value"), ((f"`{field}`", code(value)) for field, value in values.items()))


def engine_options() -> dict[str, str]:
    """What the engine's docstring says of each of its options; the module is read, not imported."""
    module, name = OPTIONS
    docstring = griffe.load(module, search_paths=[ROOT])[name].docstring
    sections = docstring.parse("google") if docstring else []
    return {
        attribute.name: attribute.description
        for section in sections
        if section.kind is griffe.DocstringSectionKind.attributes
        for attribute in section.value
    }


def certificate_page() -> Iterator[str]:
    """Every field of the certificate's closed schema, by its path."""
    schema = json.loads(CERTIFICATE.read_text())
    yield "# Certificate\n"
    yield (
        f"A certificate is an in-toto Statement in a DSSE envelope. Its schema is `{schema['$id']}`. The schema is "
        "closed: a certificate with any other field is malformed. [What a certificate says](../explanation/"
        "certificate.md) explains it."
    )
    yield from table(("field", "type"), list_fields(schema, ""))
    yield "\n## Named types\n"
    for name, definition in schema.get("$defs", {}).items():
        yield f"\n### `{name}`\n\n{type_words(definition)}\n"
        yield from table(("field", "type"), list_fields(definition, ""))


def list_fields(schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    """(path, type) of every field under an object; the items of an array are `path[]`."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        inner, place = (field["items"], f"{here}[]") if field.get("type") == "array" else (field, here)
        yield f"`{here}`", type_words(field)
        yield from list_fields(inner, place)
        for part in inner.get("anyOf", ()):
            yield from list_fields(part, place)


PAGES = {
    "http": http_page, "cli": cli_page, "settings": settings_page, "policy": policy_page,
    "certificate": certificate_page,
}  # fmt: skip


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / f"{name}.md").write_text("\n".join(page()) + "\n")


if __name__ == "__main__":
    main()
