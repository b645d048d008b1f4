"""The form of a body in JSON, for the error about a body of another form: an example, or a sketch of the fields."""

import json
import types
from collections.abc import Sequence
from typing import Annotated, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel

SKETCHES: dict[object, object] = {bool: True, int: 0, float: 0.0}
Location = Sequence[int | str]


def form_at(body: type[BaseModel], location: Location) -> str | None:
    """The form of what is at a location of a body; None if the body has no such place."""
    kind: object = body
    for step in location:
        kind = _step_into(_plain(kind), step)
        if kind is None:
            return None
    return json.dumps(_sketch(kind), ensure_ascii=False)


def _step_into(kind: object, step: int | str) -> object | None:
    """The type of a field of a model, or of an item of a list or mapping."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(step))
        return field.annotation if field else None
    arguments = get_args(kind)
    return arguments[-1] if get_origin(kind) in (list, dict) and arguments else None


def _plain(kind: object) -> object:
    """A type without annotations; of a union its first member that is not None."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, types.UnionType):
            kind = next(member for member in get_args(kind) if member is not types.NoneType)
        else:
            return kind


def _sketch(kind: object) -> object:
    """A value of a type: the example of a model, or its required fields, or all of them if none is required."""
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        extra = kind.model_config.get("json_schema_extra")
        if isinstance(extra, dict) and "examples" in extra:
            return cast(list[object], extra["examples"])[0]
        required = {name: field for name, field in kind.model_fields.items() if field.is_required()}
        return {name: _sketch(field.annotation) for name, field in (required or kind.model_fields).items()}
    if get_origin(kind) is list:
        return [_sketch(get_args(kind)[0])]
    if get_origin(kind) is dict:
        return {"...": _sketch(get_args(kind)[1])}
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    return SKETCHES.get(kind, "...")
