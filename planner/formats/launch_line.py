"""Finds the training command in a launch script, its arguments and the GPUs it starts."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from planner.formats.shell import Command, Script, read_script
from planner.formats.shell_values import END, OPEN, UNSET, open_names

_MARKS = ("--num-layers", "--tensor-model-parallel-size", "--hidden-size", "--seq-length")
_SUBMIT = {"sbatch", "srun", "bash", "sh", "cat", "mpirun", "singularity", "docker", "eval"}
_PROCESSES = ("--nproc-per-node", "--nproc_per_node", "--ntasks-per-node", "--gpus-per-node")
_NODES = ("--nnodes", "--nodes", "-N")


@dataclass(frozen=True, slots=True)
class Launch:
    """The arguments of the training program, in order, and how many ranks are started."""

    arguments: tuple[str, ...]
    gpus: int | None
    exports: Mapping[str, str]
    remarks: tuple[str, ...]
    idle: tuple[str, ...]


def find_launch(path: Path, text: str, given: Mapping[str, str]) -> Launch | None:
    """Return the launch that the script at ``path`` makes; None where it makes none."""
    script = read_script(path, text, given)
    commands = _bare_joined([*script.commands, *_nested(script, 0)])
    found = [command for command in commands if _arguments(command.words)]
    if found:
        command = max(found, key=lambda one: len(_arguments(one.words)))
        arguments, before = _arguments(command.words), command.words
    else:
        arguments, before = _longest_variable(script), ()
        if not arguments:
            return None
    texts = [text, *(command.input for command in commands)]
    gpus = started_gpus([*before, *_directives(texts)])
    exports = {}
    for name in script.exported:
        value = script.variables.get(name)
        if isinstance(value, str):
            exports[name] = value
    return Launch(tuple(arguments), gpus, exports, tuple(script.remarks), _idle(script))


def _bare_joined(commands: list[Command]) -> list[Command]:
    """Join a bare list of arguments that runs over several lines into one command."""
    bare = [command for command in commands if command.words[0].startswith("--")]
    if len(bare) < 2:
        return commands
    words = tuple(word for command in bare for word in command.words)
    rest = [command for command in commands if command not in bare]
    return [*rest, Command(bare[0].line, words)]


def _nested(script: Script, depth: int) -> Iterable[Command]:
    """Yield the commands of scripts handed to another shell: ``bash -c "..."``, here-documents."""
    for command in script.commands:
        if depth > 3 or command.words[0].rsplit("/", 1)[-1] not in _SUBMIT:
            continue
        texts = [word for word in command.words if "\n" in word or re.search(r"\s--?\w", word)]
        for text in [*texts, command.input]:
            if not text.strip():
                continue
            inner = Script(script.path, dict(script.variables), script.fixed, text=text)
            read = read_script(script.path, _protected(text), _plain(inner.variables))
            yield from read.commands
            yield from _nested(read, depth + 1)


def _protected(text: str) -> str:
    """Keep blanks inside marks of open values from being read as the shell's."""
    return re.sub(f"([{UNSET}{OPEN}])([^{END}]*){END}", lambda m: f"'{m[0]}'", text)


def _plain(variables: Mapping[str, object]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if isinstance(value, str)}


def _arguments(words: Iterable[str]) -> list[str]:
    """Return what follows the program, where that is training; launchers' own words are before."""
    listed = list(words)
    programs = [at for at, word in enumerate(listed) if word.endswith(".py")]
    names = {word.partition("=")[0] for word in listed}
    if not names & set(_MARKS):
        return []
    if programs:
        return listed[programs[0] + 1 :]
    return listed if listed[0].startswith("--") else []


def _longest_variable(script: Script) -> list[str]:
    """Return the arguments that a script only collects, for another one to start."""
    found: list[str] = []
    for value in script.variables.values():
        words = value.split() if isinstance(value, str) else " ".join(value).split()
        if len(words) > len(found) and set(words) & set(_MARKS):
            found = words
    return found


def _directives(texts: Iterable[str]) -> list[str]:
    """Return the words of Slurm's ``#SBATCH`` lines."""
    words = []
    for text in texts:
        for line in re.findall(r"^\s*#SBATCH\s+([^#\n]*)", text, re.M):
            words += line.split()
    return words


def started_gpus(words: list[str]) -> int | None:
    """Return nodes times processes, where both are numbers."""
    nodes = per_node = None
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        value = value if equals else following
        if name == "--gres" and re.fullmatch(r"gpu:(\w+:)?\d+", value):
            value, name = value.rsplit(":", 1)[1], "--gpus-per-node"
        if not re.fullmatch(r"\d+", value):
            continue
        if name in _NODES and nodes is None:
            nodes = int(value)
        elif name in _PROCESSES and per_node is None:
            per_node = int(value)
    return nodes * per_node if nodes and per_node else None


def _idle(script: Script) -> tuple[str, ...]:
    """Return variables named like a degree that the script sets and never uses."""
    code = re.sub(r"(^|\s)#.*", "", script.text)
    named = re.compile(r"(TP|PP|CP|EP|ETP|VPP|DP)(_SIZE)?|\w*PARALLEL_SIZE")
    return tuple(
        name
        for name, value in script.variables.items()
        if named.fullmatch(name)
        and isinstance(value, str)
        and not open_names(value)
        and not re.search(rf"\$\{{?{name}\b|\b{name}\b(?!=)", code.replace(f"{name}=", ""))
    )
