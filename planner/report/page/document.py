"""The whole page: one file, its style and script inside."""

import base64
import hashlib
from importlib import resources
from pathlib import Path

from planner.plan import Plan
from planner.report.page.answer import answer
from planner.report.page.candidates import candidates_card
from planner.report.page.facts import facts
from planner.report.page.grids import grids_card
from planner.report.page.markup import Markup, join, tag
from planner.report.page.memory import memory_card
from planner.report.page.offload import offload_card
from planner.report.page.placement import placement_card
from planner.report.page.sources import commands_card, footer, sources_card
from planner.report.page.step import waterfall_card
from planner.report.page.timeline import timeline_card


def html_page(plan: Plan, file: Path = Path("plan.json")) -> str:
    """Return the page of a plan; ``file`` is the plan's name in the commands to type.

    Raises ``SpecError`` if parts of the plan contradict each other.
    """
    found = facts(plan)
    parts = (
        ("memory", "Memory", memory_card(found)),
        ("step", "Step", waterfall_card(found)),
        ("timeline", "Timeline", timeline_card(found)),
        ("grids", "Ranks", grids_card(plan)),
        ("placement", "Machines", placement_card(plan)),
        ("offload", "Offload", offload_card(found)),
        ("candidates", "Other layouts", candidates_card(plan)),
        ("sources", "How sure", sources_card(plan)),
        ("commands", "Commands", commands_card(plan, file)),
    )
    links = [tag("a", title, href=f"#{name}") for name, title, part in parts if part]
    body = tag(
        "body",
        tag("a", "Skip to the answer", href="#answer", class_="skip"),
        tag("nav", tag("b", "planner"), *links, aria_label="Parts of this page"),
        tag("main", answer(found), *(part for _, _, part in parts), id="answer"),
        footer(),
        tag("div", id="tip", role="tooltip", hidden=True),
        tag("script", Markup(_text("page.js"))),
    )
    return f"<!doctype html>\n{tag('html', _head(plan), body, lang='en')}\n"


def _head(plan: Plan) -> Markup:
    # should any text ever get past the escaping, a browser still runs and loads nothing of it
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{_hash(_text('page.js'))}'; base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", join(f"{plan.model.name} on {len(plan.rank_map)} GPUs: planner")),
        tag("style", Markup(_text("page.css"))),
    )


def _text(name: str) -> str:
    return (resources.files("planner.report.page") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
