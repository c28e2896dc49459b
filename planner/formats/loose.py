"""Reads YAML, JSON and TOML as frameworks' users write them: tolerant, and saying what it saw.

Duplicate keys (the last wins), comments in JSON, ``True``, ``1_000``, keys with blanks around them,
``${VAR}``, ``${VAR:default}`` and ``${a.b}`` are all met in published files.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import SpecError

MOST_SETTINGS = 20_000
_HOLE = re.compile(r"\$\{([\w.]+)(?::-?([^${}]*))?\}")
_PRODUCT = re.compile(r"\$\{mul:\s*(\d+)\s*,\s*(\d+)\s*\}")
_PASSES = 4  # holes inside holes


@dataclass(frozen=True, slots=True)
class Loose:
    """The settings of a file, nested ones with dots between their names, and remarks on them."""

    settings: dict[str, Any]
    remarks: tuple[str, ...]


def load_loose(path: Path, text: str, given: Mapping[str, str]) -> Loose:
    """Return the settings of a YAML, JSON or TOML file; ``given`` fills its ``${VAR}`` holes."""
    remarks: list[str] = []
    if path.suffix == ".toml":
        data: Any = _toml(path, text)
    else:
        data = _yaml(path, text, remarks)
    if not isinstance(data, dict):
        raise SpecError(f"{path}: holds no settings; write one per line, like 'name: value'")
    settings = dict(_flat(data, ""))
    if len(settings) > MOST_SETTINGS:
        raise SpecError(f"{path}: holds {len(settings)} settings; name a configuration file")
    for name in [name for name in settings if name != _stripped(name)]:
        remarks.append(f"{name!r} has a blank in its name and is another setting than "
                       f"{_stripped(name)!r}: the framework ignores it")  # fmt: skip
    return Loose(fill_holes(settings, given), tuple(remarks))


def fill_holes(settings: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return settings with ``${...}`` filled: by ``given``, another setting, or its default."""
    filled = dict(settings)
    for _ in range(_PASSES):
        filled = {name: _filled(value, filled, given) for name, value in filled.items()}
    return filled


def _stripped(name: str) -> str:
    return ".".join(part.strip() for part in name.split("."))


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}; correct it there") from None


def _yaml(path: Path, text: str, remarks: list[str]) -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                name = str(key.value)
                if name in seen and name != "<<":
                    line = key.start_mark.line + 1
                    remarks.append(f"line {line}: {name!r} stands twice; the last one wins")
                seen.add(name)
            return super().construct_mapping(node, deep)

    def unknown(loader: Any, suffix: str, node: Any) -> Any:  # !!python/... and other tags
        return str(getattr(node, "value", ""))[:200]

    Loader.add_multi_constructor("", unknown)
    try:
        if text.lstrip().startswith("{"):
            return _json(text, remarks) or yaml.load(text.expandtabs(1), Loader)
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise SpecError(f"{place}: not valid YAML or JSON: {error.problem}; correct it") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise SpecError(f"{path}: not valid YAML or JSON: {error}; correct it") from None


def _json(text: str, remarks: list[str]) -> Any:
    """Return what JSON says, ``//`` comments left out; None where it is not JSON."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in found]
        twice = {name for name in names if names.count(name) > 1}
        remarks.extend(f"{name!r} stands twice; the last one wins" for name in sorted(twice))
        return dict(found)

    try:
        return json.loads(re.sub(r"(?m)^\s*//.*$", "", text), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return None


def _flat(data: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves; a list is a leaf."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        elif value != {}:
            yield name, value


def _filled(value: Any, settings: Mapping[str, Any], given: Mapping[str, str]) -> Any:
    """Return a value with its holes filled: by the user, by another setting, by its default."""
    if not isinstance(value, str) or "${" not in value:
        return value

    def fill(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name in given:
            return given[name]
        if name == "mul":
            return match[0]
        found = settings.get(name)
        if found is not None and "${" not in str(found) and not isinstance(found, list | dict):
            return str(found)
        return default if default is not None else match[0]

    return _PRODUCT.sub(lambda match: str(int(match[1]) * int(match[2])), _HOLE.sub(fill, value))


def holes(value: Any) -> list[str]:
    """Return the names of the holes that nothing fills."""
    return [match[1] for match in _HOLE.finditer(str(value))]


def without_holes(
    settings: Mapping[str, Any], names: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that are decided, and a problem for each known one that is not."""
    decided = {name: value for name, value in settings.items() if not holes(value)}
    problems = [
        f"{place}: {name}: depends on {holes(value)[0]}, which is not set; "
        f"add --set {holes(value)[0]}=VALUE"
        for name, value in settings.items()
        if name in names and holes(value)
    ]
    return decided, problems
