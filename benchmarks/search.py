"""How the search grows: ``python -m benchmarks.search`` prints a table, ``--docs`` writes it.

Each line is one ``recommend`` in a process of its own: CPU seconds without start-up, the largest
resident memory, what was covered and proved.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- growth -->\n", "<!-- /growth -->"
# model, sequences per GPU of 8192 tokens (4096 for DeepSeek-V3), nodes of eight H100, target
JOBS: dict[str, tuple[str, int, int, str, tuple[int, ...]]] = {
    "Llama-3-70B": ("llama-3-70b", 512, 8192, "torch", (8, 32, 128, 512)),
    "Llama-3.1-405B": ("llama-3.1-405b", 2048, 8192, "torch", (16, 64, 256, 1024, 2048)),
    "DeepSeek-V3": ("deepseek-v3", 15360, 4096, "megatron", (32, 64, 128, 256)),
}
COLOURS = ("#1b6ca8", "#c8553d", "#3d8c40")
Line = dict[str, float | str]


def run(name: str, nodes: int) -> Line:
    """Return the numbers of one search, made in a fresh process."""
    words = [sys.executable, "-m", "benchmarks.search", "--one", name, "--nodes", str(nodes)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    line: Line = json.loads(done.stdout)
    return line


def one(name: str, nodes: int) -> Line:
    """Search in this process."""
    import resource
    import time

    from planner.plan import Plan
    from planner.search.answer import recommend
    from planner.search.targets import TARGETS
    from planner.spec.cluster import load_cluster
    from planner.spec.huggingface import load_model
    from planner.spec.job import JobSpec

    model, batch, seq_len, target, _ = JOBS[name]
    machines = load_cluster("dgx-h100").model_copy(update={"nodes": nodes})
    job = JobSpec(global_batch=batch, seq_len=seq_len)
    spec, began = load_model(model), time.process_time()
    plan = recommend(spec, machines, job, TARGETS[target])
    seconds = time.process_time() - began
    assert isinstance(plan, Plan)
    return {
        "model": name,
        "gpus": machines.gpus,
        "cpu_s": seconds,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "layouts": plan.search.layouts,
        "fitting": plan.search.fitting,
        "simulated": plan.search.simulated,
        "gap": plan.search.gap,
        "gap_any_stages": plan.search.gap_any_stages,
        "layout": plan.to_layout().label(),
        "step_time_s": plan.estimate.step_time_s,
        "mfu": plan.estimate.mfu,
    }


def table(lines: Sequence[Line]) -> str:
    """Return the lines as a Markdown table."""
    head = ("model", "GPUs", "CPU", "memory", "layouts", "fit", "simulated", "gap",
            "gap, any stages", "best", "MFU")  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 8 + " --- | ---: |"]
    rows += [
        f"| {one['model']} | {one['gpus']:,} | {one['cpu_s']:.1f} s | {one['rss_mib']:.0f} MiB "
        f"| {one['layouts']:,} | {one['fitting']:,} | {one['simulated']:,} "
        f"| {100 * float(one['gap']):.1f} % | {100 * float(one['gap_any_stages']):.1f} % "
        f"| {one['layout']} | {100 * float(one['mfu']):.1f} % |"
        for one in lines
    ]
    return "\n".join(rows) + "\n"


def plot(lines: Sequence[Line]) -> str:
    """Return CPU seconds over GPUs, both logarithmic, as an SVG of its own."""
    width, height, left, top = 640, 320, 56, 20

    def at(gpus: float, seconds: float) -> tuple[float, float]:
        x = left + (math.log2(gpus) - 5) / 10 * (width - left - 110)
        y = height - 40 - (math.log10(seconds) + 1) / 2.3 * (height - 40 - top)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>CPU seconds of planner recommend over the number of GPUs</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for seconds in (0.1, 0.3, 1, 3, 10):
        (x, y), (end, _) = at(32, seconds), at(2**15, seconds)
        parts.append(f'<path d="M{x} {y}H{end}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{seconds:g} s</text>')
    for power in range(6, 15, 2):
        x, y = at(2**power, 0.1)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{2**power:,}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">GPUs</text>')
    for name, colour in zip(JOBS, COLOURS, strict=True):
        points = [at(float(one["gpus"]), float(one["cpu_s"])) for one in lines
                  if one["model"] == name]  # fmt: skip
        path = "L".join(f"{x} {y}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(f'<text x="{x + 8}" y="{y + 4}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Print the table; with ``--docs`` write it and the plot into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=JOBS)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--docs", action="store_true", help="write docs/search.md and its plot")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked.nodes)))
        return
    lines = [run(name, nodes) for name, job in JOBS.items() for nodes in job[-1]]
    print(table(lines))
    if asked.docs:
        page = DOCS / "search.md"
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        page.write_text(before + BEGIN + table(lines) + END + rest.partition(END)[2])
        (DOCS / "search.svg").write_text(plot(lines))


if __name__ == "__main__":
    main()
