"""Values of a shell script that may stay open, its sums and its tests."""

import ast
import operator
import re

UNSET, OPEN, END = "\ue000", "\ue001", "\ue002"  # private characters: no script holds them
_SUMS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARES = {"-eq": "eq", "-ne": "ne", "-gt": "gt", "-ge": "ge", "-lt": "lt", "-le": "le"}


def open_names(text: str) -> list[str]:
    """Return what a value still depends on: unset variables and things only a run can tell."""
    return re.findall(f"[{UNSET}{OPEN}]([^{END}]*){END}", text)


def evaluate_sum(text: str) -> int | None:
    """Return the whole number that ``4 * (8 - 1)`` comes to; None where it is no such sum."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return int(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
            return int(_SUMS[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(text)

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def split_words(text: str) -> list[str]:
    """Split at blanks outside marks of open values."""
    marks = re.findall(f"[{UNSET}{OPEN}][^{END}]*{END}", text)
    for number, mark in enumerate(marks):
        text = text.replace(mark, f"\ue003{number}\ue004")
    back = {f"\ue003{number}\ue004": mark for number, mark in enumerate(marks)}
    return [re.sub("\ue003\\d+\ue004", lambda m: back[m[0]], word) for word in text.split()]


def holds(words: list[str]) -> bool | None:
    """Return whether ``[ a = b ]`` holds; unset variables are empty, as in the shell."""
    if words[0] not in ("[", "[[", "test"):
        return None
    inner = [word for word in words[1:] if word not in ("]", "]]")]
    negated = bool(inner) and inner[0] == "!"
    inner = [re.sub(f"{UNSET}[^{END}]*{END}", "", word) for word in inner[negated:]]
    if any(open_names(word) for word in inner):
        return None
    found: bool | None = None
    if len(inner) == 2 and inner[0] in ("-z", "-n"):
        found = (inner[1] == "") == (inner[0] == "-z")
    elif len(inner) == 3 and inner[1] in ("=", "==", "!="):
        found = (inner[0] == inner[2]) == (inner[1] != "!=")
    elif len(inner) == 3 and inner[1] in _COMPARES:
        left, right = evaluate_sum(inner[0]), evaluate_sum(inner[2])
        if left is not None and right is not None:
            found = bool(getattr(operator, _COMPARES[inner[1]])(left, right))
    return found if found is None or not negated else not found
