"""Reading and writing of spec files: YAML or JSON in, a checked record out.

An error names file, line, field and value and says what would be right; a file's errors are
reported all at once. Files are written whole: a temporary file beside the target, then a rename.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from planner.errors import SpecError
from planner.spec.problems import explain

if TYPE_CHECKING:
    import yaml

Record = TypeVar("Record", bound=BaseModel)
FILE_SUFFIXES = {".yaml", ".yml", ".json", ".toml", ".sh", ".slurm", ".sbatch", ".py", ".csv"}


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a spec file and the plain data it holds."""

    path: Path
    text: str
    data: dict[str, Any]

    def line(self, location: tuple[int | str, ...]) -> int | None:
        """Return the 1-based line of a field, or of its deepest parent that exists.

        The text is parsed a second time, which only happens on the way to an error message.
        """
        import yaml

        try:
            # JSON may be indented by tabs, which YAML does not take
            node = yaml.compose(self.text.expandtabs(1))
        except yaml.YAMLError:
            return None
        return _line(node, location)


def _line(node: "yaml.Node | None", location: tuple[int | str, ...]) -> int:
    import yaml

    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = next(((v, v) for v in node.value[part : part + 1]), None)
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def data_path(kind: str) -> Path:
    """Return the folder of shipped data: ``kind`` is ``cluster_specs`` or ``profiles``.

    A wheel holds it inside the package; a checkout keeps it beside the package.
    """
    package = Path(str(resources.files("planner")))
    inside = package / "_data" / kind
    return inside if inside.is_dir() else package.parent / kind


def read_document(path: str | Path) -> Document:
    """Read a YAML or JSON file whose top level is a mapping of fields."""
    path = Path(path)
    text = read_text(path)
    data = _parse_json(path, text) if path.suffix == ".json" else _parse_yaml(path, text)
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise SpecError(f"{path}:1: the file {found}; write one field per line, like 'name: value'")
    return Document(path, text, data)


def read_text(path: Path) -> str:
    """Return the text of a file, or say which of the usual reasons stopped it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = _near_names(path)
        raise SpecError(f"{path}: no such file; {near or 'check the path'}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}; name a readable file") from None


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix]
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else ""


def _parse_json(path: Path, text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique_fields)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip())
        remedy = "the file is cut short; copy it again" if cut else "correct the JSON there"
        place = f"{path}:{error.lineno}:{error.colno}"
        raise SpecError(f"{place}: not valid JSON: {error.msg}; {remedy}") from None
    except _TwiceError as error:
        raise SpecError(f"{path}: {error.args[0]}: given twice; keep one of them") from None
    except ValueError as error:  # a number of thousands of digits
        raise SpecError(f"{path}: not valid JSON: {error}; write a shorter number") from None


class _TwiceError(Exception):
    """A field stands twice in one mapping; the last one would win in silence."""


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return fields


def _parse_yaml(path: Path, text: str) -> object:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: "yaml.MappingNode", deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                    place = f"{path}:{key.start_mark.line + 1}"
                    raise SpecError(f"{place}: {key.value}: given twice; keep one of them")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise SpecError(f"{place}: not valid YAML: {error.problem}; correct it there") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}; save it as plain text") from None
    except ValueError as error:  # 2024-13-45 looks like a date and is none
        raise SpecError(f"{path}: not valid YAML: {error}; put that value in quotes") from None


def check(record: type[Record], document: Document, at: tuple[str, ...] = ()) -> Record:
    """Return the record that a document, or its part ``at``, describes.

    All errors are raised at once.
    """
    data: Any = document.data
    for name in at:
        data = data[name]
    try:
        return record.model_validate(data)
    except ValidationError as error:
        problems = []
        for details in error.errors(include_url=False):
            line = document.line((*at, *details["loc"]))
            place = str(document.path) if line is None else f"{document.path}:{line}"
            problems.append(f"{place}: {explain(record, data, details)}")
        raise SpecError(problems) from None


def load(record: type[Record], path: str | Path) -> Record:
    """Read one record from a YAML or JSON file."""
    return check(record, read_document(path))


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file completely or not at all; a reader never sees half of it."""
    target = Path(path).resolve()  # a link stays a link: its target is replaced
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(_mode(target))
        Path(temporary).replace(target)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise SpecError(f"{path}: {reason}; name a file in a writable folder") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _mode(target: Path) -> int:
    """Return the permissions a new file would get, or those of the file it replaces."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def shipped(kind: str, pattern: str) -> dict[str, Path]:
    """Return the shipped files of a kind by name, in alphabetical order."""
    return {path.stem: path for path in sorted(data_path(kind).glob(pattern))}


def is_path(path: Path) -> bool:
    """Whether a name is meant as a file, be it there or not."""
    return path.exists() or path.suffix in FILE_SUFFIXES or len(path.parts) > 1


def shipped_or_file(what: str, name: str | Path, known: dict[str, Path]) -> Path:
    """Return the file behind a shipped name or a path; ``what`` names the kind in messages."""
    path = Path(name)
    if is_path(path):
        return path
    found = {stem.lower(): file for stem, file in known.items()}.get(str(name).lower())
    if found is None:
        near = get_close_matches(str(name).lower(), [stem.lower() for stem in known], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        remedy = (
            f"{hint}{'G' if hint else 'g'}ive the path of a file, or one of: {', '.join(known)}"
        )
        raise SpecError(f"{what} {str(name)!r} is not shipped; {remedy}")
    return found
