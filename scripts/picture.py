#!/usr/bin/env python3
"""Draw docs/report.png anew, and print sizes and times of pages as docs/report.md holds them.

usage: .venv/bin/python scripts/picture.py

Needs playwright and a chromium on PATH.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "report.png"
LLAMA = "llama-3-70b --nodes 8 --global-batch 512 --seq-len 8192"
PAGES = (
    f"{LLAMA} --target megatron",  # the one that is drawn
    LLAMA,
    "gpt3-175b --nodes 8 --global-batch 512 --seq-len 2048 --target megatron",
    "deepseek-v3 --nodes 256 --global-batch 8192 --seq-len 4096 --target megatron",
    "llama-3.1-405b --nodes 128 --global-batch 1024 --seq-len 8192 --target megatron",
)
SHOWN = ("memory", "timeline")  # cards on the picture, below the answer
READY = "document.documentElement.dataset.ready"
HIDE = """shown => document.querySelectorAll("section").forEach(
  card => { card.hidden = !shown.includes(card.id); })"""


def page(job: str, folder: Path) -> Path:
    """Return the page of a recommended plan."""
    plan, file = folder / "plan.json", folder / "report.html"
    words = ["recommend", *job.split(), "--cluster", "dgx-h100", "--output", str(plan), "--force"]
    for command in (words, ["report", str(plan), "--output", str(file), "--force"]):
        place = [sys.executable, "-m", "planner", *command]
        subprocess.run(place, cwd=ROOT, check=True, capture_output=True)
    return file


def slowest_s(browser: Any, file: Path) -> float:
    """Return the seconds until the page answers, the most of two widths and two schemes."""
    found = []
    for width in (400, 1280):
        for scheme in ("light", "dark"):
            shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            started = time.perf_counter()
            shown.goto(file.as_uri())
            shown.wait_for_function(f"{READY} !== undefined")
            found.append(time.perf_counter() - started)
            shown.close()
    return max(found)


def draw(browser: Any, file: Path) -> None:
    """Write the picture: the answer and the cards of ``SHOWN``."""
    shown = browser.new_page(viewport={"width": 1120, "height": 860}, color_scheme="light")
    shown.goto(file.as_uri())
    shown.wait_for_function(f"{READY} !== undefined")
    shown.evaluate(HIDE, list(SHOWN))
    last = shown.locator(f"#{SHOWN[-1]}").bounding_box()
    below = last["y"] + last["height"] + 12
    clip = {"x": 0, "y": 0, "width": 1120, "height": below}
    shown.screenshot(path=PICTURE, clip=clip, full_page=True)


def main() -> None:
    """Draw the picture and print the rows of the table."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as run, TemporaryDirectory() as folder:
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for place, job in enumerate(PAGES):
            file = page(job, Path(folder))
            if place == 0:
                draw(browser, file)
            size = f"{file.stat().st_size / 1000:.0f} kB"
            gpus = 8 * int(job.split("--nodes ")[1].split()[0])
            print(f"| `{job}` | {gpus:,} | {size} | {slowest_s(browser, file):.1f} s |", flush=True)


if __name__ == "__main__":
    main()
