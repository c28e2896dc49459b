"""One sentence for each thing that is wrong in a spec file: field, value, why, what is right."""

import types
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic_core import ErrorDetails

_REMEDIES = {
    "greater_than": "write a number greater than {gt}",
    "greater_than_equal": "write a number of at least {ge}",
    "less_than": "write a number below {lt}",
    "less_than_equal": "write a number of at most {le}",
    "int_type": "write a whole number, like 8",
    "int_parsing": "write a whole number, like 8",
    "int_from_float": "write a whole number, like 8",
    "float_type": "write a number, like 0.9",
    "float_parsing": "write a number, like 0.9",
    "finite_number": "write a finite number",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "string_type": "write text",
    "string_pattern_mismatch": "write text that matches {pattern}",
    "literal_error": "write one of {expected}",
    "too_short": "write at least {min_length} of them",
    "enum": "write one of {expected}",
    "model_type": "write one field per line below it",
    "model_attributes_type": "write one field per line below it",
    "dict_type": "write one 'name: value' per line below it",
    "tuple_type": "write a list",
    "list_type": "write a list",
}


def explain(record: type[BaseModel], data: object, details: ErrorDetails) -> str:
    """Return ``field: value ...; remedy`` for one error that pydantic found in ``data``."""
    location, kind = details["loc"], details["type"]
    field = ".".join(str(part) for part in location if part != "[key]")
    if kind == "extra_forbidden":
        return f"{field}: {_unknown(record, location)}"
    if kind == "missing":
        return f"{field}: missing; add it{_described(record, location)}"
    value = _value(data, location, details["input"])
    if kind in {"value_error", "assertion_error"}:
        sentence = str(details["ctx"]["error"]) if "ctx" in details else details["msg"]
        return f"{field}: {sentence}" if field else sentence
    remedy = _REMEDIES.get(kind)
    if remedy is None:
        return f"{field}: {value} is not accepted ({details['msg']}); see the field's description"
    return f"{field}: {value} is not accepted; {remedy.format(**details.get('ctx', {}))}"


def _unknown(record: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return the complaint about a field nobody knows, with the nearest one that exists."""
    parent = _record_at(record, location[:-1])
    names = list(parent.model_fields) if parent else []
    near = get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown field; {hint}Known here: {', '.join(names)}"


def _described(record: type[BaseModel], location: tuple[int | str, ...]) -> str:
    parent = _record_at(record, location[:-1])
    name = str(location[-1])
    field = parent.model_fields.get(name) if parent else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


def _value(data: object, location: tuple[int | str, ...], fallback: object) -> str:
    """Return the value as it stands in the file; pydantic may hold a converted one."""
    for part in location:
        try:
            data = data[part]  # type: ignore[index]
        except (TypeError, LookupError):
            data = fallback
            break
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _record_at(record: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the record that holds the fields at ``location`` inside ``record``."""
    here: Any = record
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = _field(here, str(part))
            here = field.annotation if field else None
        else:
            here = next(iter(_element(here)), None)
        here = next(iter(_records(here)), here)
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _field(record: type[BaseModel], name: str) -> Any:
    for own, field in record.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        if name == own or name in choices:
            return field
    return None


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the record types of an annotation such as ``MoESpec | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {Union, types.UnionType, Annotated}:
        for part in get_args(annotation):
            yield from _records(part)


def _element(annotation: Any) -> Iterator[Any]:
    """Yield the element type of a tuple or dict annotation."""
    arguments = [part for part in get_args(annotation) if part is not Ellipsis]
    if get_origin(annotation) in {tuple, list, dict} and arguments:
        yield arguments[-1]
