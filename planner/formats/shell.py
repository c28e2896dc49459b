"""Reads a launch script as if started without arguments: its variables and its commands.

Nothing is run. Assignments, arrays, defaults (``${VAR:-x}``), sums, ``if`` over known values and
here-documents are followed. What only a run can tell (``$(...)``, loops, tests of files) stays
open: a value that depends on it says so, instead of taking one branch in silence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner.formats.shell_values import END, OPEN, UNSET, evaluate_sum, holds, split_words
from planner.formats.shell_words import Part, Token, parts_of, tokens

_ASSIGNMENT = re.compile(r"(\w+)(\+?)=(.*)", re.S)
_DEFAULT = re.compile(r"(\w+|@)(:?[-=+?])(.*)", re.S)
_DECLARES = {"export", "declare", "local", "readonly", "typeset"}
_STARTS = {"if": "fi", "while": "done", "until": "done", "for": "done", "case": "esac"}
_BEFORE_COMMANDS = {"then", "else", "do", "elif", "if", "while", "until", "{"}
DEEPEST = 8  # scripts inside scripts

Value = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """One command with its words expanded; here-documents that feed it in ``input``."""

    line: int
    words: tuple[str, ...]
    input: str = ""


@dataclass(slots=True)
class Script:
    """What a script came to: variables, exported names, commands in order, open questions."""

    path: Path
    variables: dict[str, Value] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    exported: set[str] = field(default_factory=set)
    commands: list[Command] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    text: str = ""


def read_script(path: Path, text: str, given: Mapping[str, str] | None = None) -> Script:
    """Return what the script at ``path`` comes to; ``given`` overrides its variables."""
    values: dict[str, Value] = dict(given or {})
    script = Script(path, values, frozenset(values), text=text)
    _Reader(script).block(text)
    return script


class _Reader:
    """Walks the tokens of a script and keeps its variables up to date."""

    def __init__(self, script: Script, depth: int = 0) -> None:
        self.script, self.depth = script, depth

    def block(self, text: str) -> None:
        if self.depth < DEEPEST:
            self._walk(list(tokens(text)))

    def _walk(self, found: Sequence[Token]) -> None:
        at = 0
        while at < len(found):
            plain = found[at].plain() if found[at].parts else None
            if plain in _STARTS:
                end = _matching(found, at)
                self._compound(plain or "", found[at + 1 : end], found[at].line)
                at = end + 1
            elif _is_function(found, at):
                at = _function_end(found, at)
            else:
                at = self._simple(found, at)

    def _compound(self, kind: str, body: Sequence[Token], line: int) -> None:
        if kind == "if":
            return self._branches(body, line)
        condition, rest = _until(body, "do")
        if kind == "while" and self._test(condition) is False:
            return None
        return self._leave_open(rest if kind != "case" else body, f"the {kind} of line {line}")

    def _branches(self, body: Sequence[Token], line: int) -> None:
        """Follow the branch whose test is true; leave all of them open where one is unknown."""
        at_then, rest = _until(body, "then")
        while True:
            inside, rest, word = _until_branch(rest)
            known = True if not at_then and word == "" else self._test(at_then)
            if known is None:
                return self._leave_open([*inside, *rest], f"the if of line {line}")
            if known:
                return self._walk(inside)
            if word == "elif":
                at_then, rest = _until(rest, "then")
            else:
                return self._walk(rest) if word == "else" else None

    def _leave_open(self, body: Sequence[Token], what: str) -> None:
        """Mark every variable that is assigned in ``body``: its value depends on ``what``."""
        names = []
        for token in body:
            first = token.parts[0] if token.parts else None
            match = _ASSIGNMENT.match(_start(token)) if first and not first.quoted else None
            if match and match[1] not in self.script.fixed:
                names.append(match[1])
                self.script.variables[match[1]] = f"{OPEN}{match[1]}, set in {what}{END}"
        if names:
            listed = ", ".join(dict.fromkeys(names))
            self.script.remarks.append(f"{what} is not followed; it decides {listed}")

    def _simple(self, found: Sequence[Token], at: int) -> int:
        """Take one simple command from ``at``; return the place behind it."""
        words: list[str] = []
        line, heredoc, depth = found[at].line, "", 0
        while at < len(found):
            token = found[at]
            if token.heredoc is not None:
                heredoc += self._text(parts_of(token.heredoc, True))
            elif token.operator and depth == 0:
                break
            elif token.parts:
                array = at + 1 < len(found) and found[at + 1].operator == "("
                match = _ASSIGNMENT.fullmatch(_start(token))
                declares = all(word in _DECLARES or word.startswith("-") for word in words)
                if match and declares and len(token.parts) >= 1:
                    at = self._assign(match, token, found, at, array)
                    if "export" in words:
                        self.script.exported.add(match[1])
                    continue
                words += self._expand(token.parts)
            at += 1
        following = at + 1
        while following < len(found) and found[following].heredoc is not None:
            heredoc += self._text(parts_of(found[following].heredoc or "", True))
            following += 1
        if words:
            self._command(Command(line, tuple(words), heredoc))
        return following if found[at : at + 1] else at + 1

    def _assign(
        self, match: re.Match[str], token: Token, found: Sequence[Token], at: int, array: bool
    ) -> int:
        """Set a variable; return the place behind the assignment."""
        name, adds = match[1], bool(match[2])
        before = self.script.variables.get(name, ())
        value: Value
        if array and not match[3]:
            items, at = [], at + 2
            while at < len(found) and found[at].operator != ")":
                items += self._expand(found[at].parts) if found[at].parts else []
                at += 1
            old = before if isinstance(before, tuple) else (before,)
            value = (*old, *items) if adds else tuple(items)
        else:
            value = self._text(_after_equals(token))
            if adds:
                value = (before if isinstance(before, str) else " ".join(before)) + value
        if name not in self.script.fixed:
            self.script.variables[name] = value
        return at + 1

    def _command(self, command: Command) -> None:
        first, variables = command.words[0], self.script.variables
        if first == "unset":
            for name in command.words[1:]:
                variables.pop(name, None)
                self.script.exported.discard(name)
        elif first == "export":
            self.script.exported.update(command.words[1:])
        elif first in (".", "source") and len(command.words) > 1:
            self._source(command)
        else:
            self.script.commands.append(command)

    def _source(self, command: Command) -> None:
        name = command.words[1]
        file = self.script.path.parent / Path(re.sub(f"[{UNSET}{OPEN}][^{END}]*{END}/?", "", name))
        if file.is_file() and file.resolve() != self.script.path.resolve():
            _Reader(self.script, self.depth + 1).block(file.read_text("utf-8", "replace"))
        else:
            self.script.remarks.append(f"line {command.line}: {file.name} is not there to be read")

    def _lookup(self, name: str) -> Value:
        if name in ("@", "*"):
            return ()
        if name == "#":
            return "0"
        return self.script.variables.get(name, f"{UNSET}{name}{END}")

    def _variable(self, text: str) -> Value:
        """Return what stands between ``${`` and ``}`` comes to."""
        if re.fullmatch(r"\w+|[@*#]", text):
            found = self._lookup(text)
            return found if isinstance(found, str) else (found[0] if found else "")
        if re.fullmatch(r"\w+\[[@*]\]", text):
            found = self._lookup(text[:-3])
            return (found,) if isinstance(found, str) else found
        match = _DEFAULT.fullmatch(text)
        if match is None:
            return f"{OPEN}${{{text}}}{END}"
        name, sign, default = match.groups()
        known = self.script.variables.get(name)
        there = known is not None and (known not in ("", ()) or ":" not in sign)
        if "+" in sign:
            return self._text(parts_of(default, True)) if there else ""
        if there:
            assert known is not None
            return known if isinstance(known, str) else " ".join(known)
        if "?" in sign:
            return f"{UNSET}{name}{END}"
        value = self._text([part for token in tokens(default) for part in token.parts])
        if "=" in sign:
            self.script.variables[name] = value
        return value

    def _part(self, part: Part) -> Value:
        if part.kind == "text":
            return part.text
        if part.kind == "variable":
            return self._variable(part.text)
        if part.kind == "command":
            return f"{OPEN}$({part.text.strip()}){END}"
        inner = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda m: str(self._lookup(m[1])), part.text)
        found = evaluate_sum(inner)
        return str(found) if found is not None else f"{OPEN}$(({part.text.strip()})){END}"

    def _text(self, parts: Sequence[Part]) -> str:
        """Return the text of parts; an array is joined by blanks."""
        values = (self._part(part) for part in parts)
        return "".join(value if isinstance(value, str) else " ".join(value) for value in values)

    def _expand(self, parts: Sequence[Part]) -> list[str]:
        """Return the words that one word becomes: unquoted expansions are split at blanks."""
        words, current = [], ""
        started = False
        for part in parts:
            value = self._part(part)
            items = [value] if isinstance(value, str) else list(value)
            if part.kind != "text" and not part.quoted:
                items = [word for item in items for word in split_words(item)]
                if not items:
                    continue
            started = True
            if not items:
                continue
            current += items[0]
            for item in items[1:]:
                words.append(current)
                current = item
        return [*words, current] if started and (current or any(p.quoted for p in parts)) else words

    def _test(self, condition: Sequence[Token]) -> bool | None:
        """Return whether tests joined by ``&&`` and ``||`` hold; None where a run must tell."""
        result: bool | None = None
        joined, words = "", []
        for token in [*condition, Token(0, operator=";")]:
            if token.parts:
                words.append(self._text(token.parts))
            elif token.operator and words:
                value = holds(words)
                if joined == "&&":
                    result = None if None in (result, value) else bool(result and value)
                elif joined == "||":
                    result = True if True in (result, value) else (
                        None if None in (result, value) else False
                    )  # fmt: skip
                else:
                    result = value
                joined, words = token.operator, []
        return result


def _start(token: Token) -> str:
    """Return the unquoted text that a word starts with."""
    text = ""
    for part in token.parts:
        if part.kind != "text" or part.quoted:
            break
        text += part.text
    return text


def _after_equals(token: Token) -> list[Part]:
    """Return the parts of ``NAME=value`` behind the equals sign."""
    skipped, rest = "", list(token.parts)
    while rest and "=" not in skipped:
        skipped += rest.pop(0).text
    tail = skipped.partition("=")[2]
    return [Part("text", tail, True), *rest] if tail else rest


def _matching(found: Sequence[Token], at: int) -> int:
    """Return the place of the word that closes the compound command at ``at``."""
    depth = 0
    for place in range(at, len(found)):
        plain = found[place].plain() if found[place].parts else None
        if plain in _STARTS and _is_first(found, place):
            depth += 1
        elif _is_first(found, place) and plain in set(_STARTS.values()):
            depth -= 1
            if depth == 0:
                return place
    return len(found)


def _is_first(found: Sequence[Token], at: int) -> bool:
    """Return whether the word at ``at`` stands where a command begins."""
    if at == 0 or found[at - 1].operator:
        return True
    before = found[at - 1]
    return bool(before.parts) and before.plain() in _BEFORE_COMMANDS


def _until(body: Sequence[Token], word: str) -> tuple[list[Token], list[Token]]:
    for place, token in enumerate(body):
        if token.parts and token.plain() == word:
            return list(body[:place]), list(body[place + 1 :])
    return list(body), []


def _until_branch(body: Sequence[Token]) -> tuple[list[Token], list[Token], str]:
    """Return the tokens of this branch, those behind it, and the word between them."""
    place = 0
    while place < len(body):
        plain = body[place].plain() if body[place].parts else None
        if plain in _STARTS and _is_first(body, place):
            place = _matching(body, place)
        elif plain in ("elif", "else"):
            return list(body[:place]), list(body[place + 1 :]), plain or ""
        place += 1
    return list(body), [], ""


def _is_function(found: Sequence[Token], at: int) -> bool:
    if found[at].parts and found[at].plain() == "function":
        return True
    name = found[at].plain() if found[at].parts else None
    bare = name is not None and "=" not in name
    return bare and [token.operator for token in found[at + 1 : at + 3]] == ["(", ")"]


def _function_end(found: Sequence[Token], at: int) -> int:
    depth = 0
    for place in range(at, len(found)):
        plain = found[place].plain() if found[place].parts else None
        depth += (plain == "{") - (plain == "}")
        if plain == "}" and depth == 0:
            return place + 1
    return len(found)
