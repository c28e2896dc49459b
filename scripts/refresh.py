#!/usr/bin/env python3
"""Write the numbers of README.md and of pages under docs/ anew, from the commands.

usage: .venv/bin/python scripts/refresh.py FOLDER     (FOLDER holds the CSV files of measured runs)

hardware/comm_fits.csv beside FOLDER, where it is, holds curves of collectives.
What stands between ``<!-- name -->`` and ``<!-- /name -->`` is replaced; all else stays.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from quoted import Step, fresh, sections, steps

from planner.report.accuracy import share
from planner.validate.cases import read_rows
from planner.validate.table import ErrorTable, error_table, estimates, yardsticks

ROOT = Path(__file__).resolve().parents[1]
LLAMA = (
    "recommend llama-3-70b --cluster dgx-h100 --nodes 8 --global-batch 512 --seq-len 8192 "
    "--output plan.json"
)
ONE_LAYOUT = "llama-3-70b --cluster dgx-h100 --nodes 8 --global-batch 512 --seq-len 8192"
SPEED = f"explain speed {ONE_LAYOUT} --tp 4 --pp 4 --recompute full"
CHECKS = (
    ("check", f"check {ONE_LAYOUT} --tp 8 --pp 4", 3),
    ("rules", f"check {ONE_LAYOUT} --tp 16 --pp 4 --vpp 24", 1),
    ("explain", f"explain memory {ONE_LAYOUT} --tp 4 --pp 4", 0),
)
SCRIPT = """\
TP=8
PP=${PP:-4}
MODEL_ARGS="--num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64 \\
  --group-query-attention --num-query-groups 8 --swiglu --normalization RMSNorm \\
  --untie-embeddings-and-output-weights --disable-bias-linear --position-embedding-type rope"
torchrun --nproc-per-node 8 --nnodes 1 pretrain_gpt.py $MODEL_ARGS --seq-length 8192 \\
  --vocab-size 128256 --bf16 --attention-dropout 0 --hidden-dropout 0 --lr 1e-4 \\
  --tensor-model-parallel-size ${TP} --pipeline-model-parallel-size ${PP} --sequence-parallel \\
  --cp-comm-type p2p --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \\
  --micro-batch-size 1 --global-batch-size 512
"""
FILES = (
    ("starts", "check train.sh --set PP=6", 1),
    ("file", "check train.sh --cluster dgx-h100 --nodes 8", 0),
    ("convert", "convert train.sh --to nanotron --gpus 64 --set PP=1", 0),
)
SPEEDS = (("speed", SPEED, 0), ("measured", f"{SPEED} --measured 95s", 0))
SIMULATED = (
    "recommend llama-3-70b --cluster dgx-h100 --nodes 4 --global-batch 64 --seq-len 4096 "
    "--target megatron --output plan32.json"
)
TINY = (
    "recommend tiny-llama --cluster dgx-h100 --nodes 1 --global-batch 16 --seq-len 64 "
    "--output tiny.json"
)


def run(command: list[str], folder: str, code: int = 0) -> str:
    """Return what a command prints on stdout, 100 columns wide; it must exit with ``code``."""
    place = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{' '.join(command)} exits with {done.returncode}, not {code}\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def planner(words: str, folder: str, code: int = 0) -> str:
    """Return a command and what it prints, as a terminal shows them."""
    printed = run([sys.executable, "-m", "planner", *words.split()], folder, code)
    return f"$ planner {words}\n{printed}"


def block(text: str) -> str:
    """Return text as a fenced block."""
    return f"```text\n{text}\n```"


def headline(table: ErrorTable) -> str:
    """Return the table of the README."""
    times, sources, memory = table.all_rows, table.source_medians, table.memory_all
    ranking, yardstick = table.ranking, table.yardstick_ranking
    if not (times and sources and memory and ranking and yardstick):
        sys.exit("these files hold no timed runs with memory in sweeps; give all of them")
    rows: list[tuple[str, str | float | None, str | float | None]] = [
        ("rows estimated", f"{share(table.coverage)} of {table.rows:,}", ""),
        ("step time, median of the sources' medians", sources.median, sources.yardstick_median),
        ("step time, median of all rows", times.median, times.yardstick_median),
        ("memory, mean of all rows", memory.mean, None),
        ("fit or out of memory, balanced accuracy", table.fit.balanced_accuracy, None),
        (f"top-1 regret, mean of {ranking.sweeps} sweeps", ranking.regret_mean,
         yardstick.regret_mean),
        ("Kendall's tau, mean", f"{ranking.tau_mean:.2f}", f"{yardstick.tau_mean:.2f}"),
    ]  # fmt: skip
    lines = ["| | planner | yardstick |", "| --- | ---: | ---: |"]
    for name, *values in rows:
        cells = [value if isinstance(value, str) else share(value) for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replace(path: Path, name: str, text: str) -> None:
    """Put text between the two markers of a name."""
    found = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    new, count = pattern.subn(lambda match: f"{match[1]}{text}\n{match[2]}", found)
    if count != 1:
        sys.exit(f"{path}: {count} places marked {name}, not one")
    path.write_text(new, encoding="utf-8")


def measure_peers(fits: Path) -> None:
    """Write what the benchmarks of collectives and of other people's kernels print."""
    page = ROOT / "docs/accuracy.md"
    for name in ("simumax", "sailor", "llama3"):
        replace(page, name, run([sys.executable, "-m", f"benchmarks.{name}"], str(ROOT)))
    if fits.is_file():
        command = [sys.executable, "-m", "benchmarks.collectives", str(fits)]
        replace(page, "collectives", run(command, str(ROOT)))


def answered(step: Step, folder: str) -> str:
    """Return the lines that a page shows below a command, with the numbers of today."""
    words = step.command.split()
    if words[0] == "cat":
        (Path(folder) / words[1]).write_text(step.shown, encoding="utf-8")
        return step.shown
    place = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True)
    shown = fresh(step.shown, done.stdout)
    if shown is None:
        sys.exit(f"questions.md: {step.command} prints other words\n{done.stdout}{done.stderr}")
    return shown


def refresh_questions() -> None:
    """Write the numbers of docs/questions.md anew; its words are a person's."""
    page = ROOT / "docs/questions.md"
    text = page.read_text(encoding="utf-8")
    for part in sections(text).values():
        new = part
        with TemporaryDirectory() as folder:
            for step in steps(part):
                shown = answered(step, folder)  # also of a command without lines: it writes a plan
                new = new.replace(step.shown, shown, 1) if shown else new
        text = text.replace(part, new)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Refresh all of them."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    files = sorted(Path(sys.argv[1]).resolve().glob("*.csv"))
    rows = [row for file in files for row in read_rows(file)]
    table = error_table(rows, estimates(rows), yardsticks(rows))
    readme = ROOT / "README.md"
    with TemporaryDirectory() as folder:
        replace(readme, "session", block(planner(LLAMA, folder)))
        planner(TINY, folder)
        plan = "$ planner " + TINY.replace(" --output", " \\\n    --output") + "\n..."
        export = planner("export tiny.json --target torch --output tiny", folder)
        shown = run(["bash", "tiny/launch.sh", "--backend", "gloo", "--steps", "3"], folder)
        text = f"{plan}\n{export}\n$ bash tiny/launch.sh --backend gloo --steps 3\n{shown}"
        replace(readme, "tiny", block(text))
        replace(readme, "accuracy", headline(table))
        for page, shown in (("check", CHECKS), ("speed", SPEEDS)):
            for name, words, code in shown:
                file = ROOT / f"docs/{page}.md"
                replace(file, name, block(planner(words, folder, code)))
        planner(SIMULATED, folder)
        trace = "simulate plan32.json --trace step.json.gz"
        shown = planner(trace, folder).replace("plan32.json", "plan.json")
        replace(ROOT / "docs/simulate.md", "simulate", block(shown))
        refresh_questions()
        (Path(folder) / "train.sh").write_text(SCRIPT, encoding="utf-8")
        formats = ROOT / "docs/formats.md"
        replace(formats, "script", block(f"$ cat train.sh\n{SCRIPT.rstrip()}"))
        for name, words, code in FILES:
            replace(formats, name, block(planner(words, folder, code)))
        names = " ".join(file.name for file in files)
        printed = run([sys.executable, "-m", "planner", "validate", *map(str, files)], folder)
        page = block(f"$ planner validate {names}\n{printed}")
        replace(ROOT / "docs/accuracy.md", "accuracy", page)
        reports = run([sys.executable, "-m", "benchmarks.reports"], str(ROOT))
        replace(ROOT / "docs/reports.md", "reports", reports)
        measure_peers(files[0].parent.parent / "hardware" / "comm_fits.csv")
        ablate = [sys.executable, str(ROOT / "scripts/ablate.py"), str(files[0].parent)]
        replace(ROOT / "docs/accuracy.md", "ablation", run(ablate, folder))
        split = [sys.executable, str(ROOT / "scripts/halves.py"), str(files[0].parent)]
        replace(ROOT / "docs/accuracy.md", "halves", run(split, folder))


if __name__ == "__main__":
    main()
