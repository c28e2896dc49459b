"""The top of the page: the answer in one look."""

from planner.memory.interval import memory_interval
from planner.report.page.facts import Facts
from planner.report.page.markup import Markup, join, number, percent_of, tag
from planner.report.words import (
    gib,
    interval,
    layout_words,
    peak_name,
    percent,
    recomputed,
    schedule_words,
    seconds,
)


def answer(facts: Facts) -> Markup:
    """Return job, layout and the four numbers people compare."""
    plan = facts.plan
    job, cluster = plan.job, plan.cluster
    asked = (
        f"{plan.model.name} on {cluster.gpu_words(len(plan.rank_map))} ({cluster.name}), "
        f"{job.global_batch} sequences of {job.seq_len:,} tokens, {job.precision}, "
        f"run by {job.software.name}"
    )
    words = f"{layout_words(plan.layout)}{schedule_words(plan)}, {recomputed(plan)}"
    unbroken = [tag("span", word) for word in (words[0].upper() + words[1:]).split(", ")]
    title = join(*(part for word in unbroken for part in (", ", word)))
    return tag(
        "header",
        tag("p", asked, class_="asked"),
        tag("h1", Markup(title[2:])),
        tag("p", tag("code", plan.to_layout().label()), class_="label"),
        tag("dl", *_tiles(facts), class_="tiles"),
        _differences(facts),
    )


def _tiles(facts: Facts) -> list[Markup]:
    plan, estimate = facts.plan, facts.plan.estimate
    low_s, high_s = estimate.step_time_low_s, estimate.step_time_high_s
    free = estimate.capacity_bytes - estimate.memory_bytes
    low, high = memory_interval(facts.fullest)
    side = "free" if free >= 0 else "short"
    return [
        _tile(
            "Step time",
            number(estimate.step_time_s, seconds(estimate.step_time_s), id="step-time"),
            f"{interval(low_s, high_s)}: about four of five measured runs",
            _range(low_s, estimate.step_time_s, high_s),
        ),
        _tile(
            "Tokens per second",
            number(_tokens_per_s(facts), f"{_tokens_per_s(facts):,.0f}", id="tokens"),
            join(
                number(
                    estimate.tokens_per_s_per_gpu,
                    f"{estimate.tokens_per_s_per_gpu:,.0f}",
                    id="tokens-per-gpu",
                ),
                " per GPU",
            ),
        ),
        _tile(
            "MFU",
            number(estimate.mfu, percent(estimate.mfu), id="mfu"),
            f"of {peak_name(plan.cluster.gpu, estimate.peak_flops)}",
        ),
        _tile(
            "Memory of the fullest GPU",
            number(estimate.memory_bytes, f"{gib(estimate.memory_bytes)} GiB", id="memory-peak"),
            join(
                f"{gib(abs(free))} GiB {side} of ",
                number(estimate.capacity_bytes, f"{gib(estimate.capacity_bytes)} GiB"),
                f"; {gib(low)} to {gib(high)} in four of five runs",
            ),
        ),
    ]


def _tokens_per_s(facts: Facts) -> float:
    return facts.plan.estimate.tokens_per_s_per_gpu * len(facts.plan.rank_map)


def _tile(name: str, value: Markup, note: str, *more: Markup) -> Markup:
    return tag(
        "div",
        tag("dt", name),
        tag("dd", value, class_="value"),
        tag("dd", note, *more, class_="note"),
    )


def _range(low: float, value: float, high: float) -> Markup:
    """Return the estimate as a mark on its interval."""
    dot = tag("i", style=f"left:{percent_of(value - low, high - low)}")
    return tag("span", dot, class_="range", aria_hidden="true")


def _differences(facts: Facts) -> Markup:
    """Say so where the plan was written by a planner that computes otherwise."""
    if not (names := facts.differences()):
        return Markup()
    text = (
        f"This version of planner computes another {' and '.join(names)} than the plan says, so "
        "the bars and the timeline below differ from the numbers above. Write the plan again."
    )
    return tag("p", text, class_="warning", role="note")
