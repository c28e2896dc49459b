"""The words of a shell script: quoting, expansions and operators, without running anything."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

OPERATORS = ("&&", "||", ";;", ";", "&", "|", "(", ")", "\n")
_REDIRECTION = re.compile(r"\d*(?:>>?|<)(?:&\d|&-)?|&>>?")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_PLAIN = re.compile(r"[^ \t\n;&|()\\'\"`$]+")
_NAME = re.compile(r"\w+|[@*#?$!-]")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word. ``kind``: text, variable (``${...}`` or ``$name``), sum or command."""

    kind: str
    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Token:
    """A word (``parts``), an operator, or the body of a here-document."""

    line: int
    parts: tuple[Part, ...] = ()
    operator: str = ""
    heredoc: str | None = None

    def plain(self) -> str | None:
        """Return the word where nothing in it is quoted or expanded."""
        if all(part.kind == "text" and not part.quoted for part in self.parts):
            return "".join(part.text for part in self.parts)
        return None


def closing(text: str, start: int, opened: str, closed: str) -> int:
    """Return the place of the bracket that closes the one before ``start``; the end if none."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text.startswith(closed, at):
            depth -= 1
            if depth == 0:
                return at
        elif text.startswith(opened, at):
            depth += 1
        at += 1
    return len(text)


def _expansion(text: str, at: int, quoted: bool) -> tuple[Part, int]:
    """Return the expansion that starts with the ``$`` at ``at``, and the place behind it."""
    for opened, inner, closed, kind in (
        ("$((", "(", "))", "sum"),
        ("$(", "(", ")", "command"),
        ("${", "{", "}", "variable"),
    ):
        if text.startswith(opened, at):
            start = at + len(opened)
            end = text.find("))", start) if kind == "sum" else closing(text, start, inner, closed)
            end = len(text) if end < 0 else end
            return Part(kind, text[start:end], quoted), end + len(closed)
    name = _NAME.match(text, at + 1)
    if name is None:
        return Part("text", "$", quoted), at + 1
    found = name[0][0] if name[0][0].isdigit() else name[0]
    return Part("variable", found, quoted), at + 1 + len(found)


def parts_of(text: str, quoted: bool) -> list[Part]:
    """Return the parts of text inside double quotes, of a default or of a here-document."""
    parts, at, plain = [], 0, ""
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text) and text[at + 1] in '$`"\\\n':
            plain += "" if text[at + 1] == "\n" else text[at + 1]
            at += 2
        elif text[at] in "$`":
            parts.append(Part("text", plain, quoted))
            plain = ""
            if text[at] == "`":
                end = text.find("`", at + 1)
                end = len(text) if end < 0 else end
                part, at = Part("command", text[at + 1 : end], quoted), end + 1
            else:
                part, at = _expansion(text, at, quoted)
            parts.append(part)
        else:
            plain += text[at]
            at += 1
    parts.append(Part("text", plain, quoted))
    return [part for part in parts if part.text or part.kind != "text"]


def _end_of_quote(text: str, at: int) -> int:
    """Return the place of the double quote that ends the text from ``at`` on."""
    while at < len(text) and text[at] != '"':
        if text[at] == "\\":
            at += 1
        elif text.startswith("$(", at):
            at = closing(text, at + 2, "(", ")")
        elif text.startswith("${", at):
            at = closing(text, at + 2, "{", "}")
        at += 1
    return min(at, len(text))


def _word(text: str, at: int) -> tuple[list[Part], int]:
    """Return the parts of the word at ``at`` and the place behind it."""
    parts: list[Part] = []
    while at < len(text):
        char = text[at]
        if char in " \t\n;&|()":
            break
        if char == "\\":
            if text[at + 1 : at + 2] != "\n":
                parts.append(Part("text", text[at + 1 : at + 2], True))
            at += 2
        elif char == "'" or text.startswith("$'", at):
            start = at + 1 + (char == "$")
            end = text.find("'", start)
            end = len(text) if end < 0 else end
            parts.append(Part("text", text[start:end], True))
            at = end + 1
        elif char == '"':
            end = _end_of_quote(text, at + 1)
            parts += parts_of(text[at + 1 : end], True) or [Part("text", "", True)]
            at = end + 1
        elif char == "`":
            end = text.find("`", at + 1)
            end = len(text) if end < 0 else end
            parts.append(Part("command", text[at + 1 : end], False))
            at = end + 1
        elif char == "$":
            part, at = _expansion(text, at, False)
            parts.append(part)
        else:
            plain = _PLAIN.match(text, at)
            end = plain.end() if plain else at + 1
            parts.append(Part("text", text[at:end], False))
            at = end
    return parts, at


def tokens(text: str) -> Iterator[Token]:
    """Yield words and operators; comments and redirections are left out."""
    at, line, waiting = 0, 1, []
    while at < len(text):
        start = at
        heredoc, redirection = _HEREDOC.match(text, at), _REDIRECTION.match(text, at)
        if text[at] in " \t\r":
            at += 1
        elif text.startswith("\\\n", at):
            at += 2
        elif text[at] == "#" and (at == 0 or text[at - 1] in " \t\n;()"):
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif heredoc and not text.startswith("<<<", at):
            waiting.append((heredoc[2], bool(heredoc[1])))
            at = heredoc.end()
        elif redirection:
            _, at = _word(text, _skip_blanks(text, redirection.end()))
        elif text[at] == "\n" and waiting:
            yield Token(line, operator="\n")
            bodies, at = _heredocs(text, at + 1, waiting)
            yield from (Token(line, heredoc=body) for body in bodies)
            waiting = []
        else:
            operator = next((one for one in OPERATORS if text.startswith(one, at)), "")
            if operator:
                yield Token(line, operator=operator)
                at += len(operator)
            else:
                parts, at = _word(text, at)
                yield Token(line, tuple(parts))
        line += text.count("\n", start, at)


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t":
        at += 1
    return at


def _heredocs(text: str, at: int, waiting: list[tuple[str, bool]]) -> tuple[list[str], int]:
    """Return the bodies of the here-documents that start at ``at``, and the place behind them."""
    bodies = []
    for word, _ in waiting:
        end = re.compile(rf"^\t*{re.escape(word)}[ \t]*$", re.M).search(text, at)
        stop, after = (end.start(), end.end()) if end else (len(text), len(text))
        bodies.append(text[at:stop])
        at = min(after + 1, len(text))
    return bodies, at
