"""HTML out of Python: text is always escaped, markup never twice."""

import json
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = frozenset({"meta", "link", "br"})


def tag(name: str, /, *inside: str, **attributes: object) -> Markup:
    """Return one element; plain text inside and every attribute value is escaped.

    ``class_`` becomes ``class`` and ``data_tip`` ``data-tip``; ``None`` and ``False`` leave an
    attribute out, ``True`` writes only its name.
    """
    words = [name]
    for key, value in attributes.items():
        written = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(written)
        elif value is not None and value is not False:
            words.append(f'{written}="{escape(_text(value))}"')
    opened = f"<{' '.join(words)}>"
    return Markup(opened if name in VOID else f"{opened}{join(*inside)}</{name}>")


def join(*parts: str) -> Markup:
    """Return the parts one behind the other, plain text escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def number(value: float, shown: str, **attributes: object) -> Markup:
    """Return a number as people read it, with the exact value for programs."""
    return tag("data", shown, value=repr(value), **attributes)


def percent_of(value: float, whole: float) -> str:
    """Return a length as CSS writes it."""
    return f"{100 * value / whole:.3f}%"


def data_script(name: str, value: object) -> Markup:
    """Return data for the page's script; nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def card(name: str, title: str, lead: str, *inside: str) -> Markup:
    """Return one part of the page under its heading, with a sentence that says what it shows."""
    heading = tag("h2", title, id=f"{name}-title")
    intro = tag("p", lead, class_="lead") if lead else Markup()
    return tag("section", heading, intro, *inside, id=name, aria_labelledby=f"{name}-title")


def table(caption: str, titles: list[str], rows: list[list[str]]) -> Markup:
    """Return a plain table that scrolls sideways on a small screen; first cells are headings."""
    head = tag("tr", *(tag("th", title, scope="col") for title in titles))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def details(summary: str, *inside: str) -> Markup:
    """Return something that opens on demand."""
    return tag("details", tag("summary", summary), *inside)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
