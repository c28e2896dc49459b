"""The order of nodes on measured links in words: what it gains, and which links it avoids."""

from collections.abc import Iterable, Sequence

from rich.text import Text

from planner.plan import PlacementRecord, SlowLinkRecord
from planner.report.words import percent, seconds
from planner.search.placed import SlowLink

MOST_HOSTS = 32


def placement_text(placement: PlacementRecord, hosts: Sequence[str]) -> Text:
    """Return the gain in communication and step time, the slow links and the hosts in order."""
    lines = [gain_words(placement), *link_lines(placement.slow_links), *_hosts(hosts)]
    return Text("\n".join(lines))


def gain_words(placement: PlacementRecord) -> str:
    """Return what the order of nodes saves in communication, and both step times."""
    listed, now = placement.listed_communication_s, placement.communication_s
    if now >= listed:
        return "As listed: no other order of nodes has less communication."
    found = "the best of all orders" if placement.exact else "the best order found"
    return (
        f"{percent(1 - now / listed)} less communication than in the order of the measurement "
        f"({seconds(now)} for {seconds(listed)} of a step, hidden or not; {found}); the step there "
        f"takes {seconds(placement.listed_step_time_s)}, and "
        f"{seconds(placement.healthy_step_time_s)} if no link were slow."
    )


def link_lines(links: Iterable[SlowLinkRecord | SlowLink]) -> list[str]:
    """Return one line for each slow link: how slow, and what crosses it."""
    lines = []
    for link in links:
        rate = "broken" if link.share < 1e-5 else f"{percent(link.share)} of a healthy link"
        names = ", ".join(link.carries[:3])
        more = f" and {len(link.carries) - 3} more" if len(link.carries) > 3 else ""
        carries = f"carries {names}{more}" if names else "avoided, carries nothing"
        lines.append(f"{link.first} - {link.second}: {rate}; {carries}")
    return lines


def _hosts(hosts: Sequence[str]) -> list[str]:
    shown = ", ".join(hosts[:MOST_HOSTS])
    return [f"hosts: {shown}" + (", ... (all in --json)" if len(hosts) > MOST_HOSTS else "")]
