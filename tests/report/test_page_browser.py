"""The HTML page in a browser: what people see, hear and can do. Needs playwright and chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.plan import Plan
from planner.report.page.document import html_page
from planner.report.words import gib, seconds
from tests.report.pages import JOBS, plan
from tests.report.test_page import HOSTILE, changed

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")

CHARTS = ["dense", "interleaved", "experts", "offload", "placed", "mixed"]  # every kind of part
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
# Things to press or to stop at whose name a screen reader could not say.
STOPS = "a, button, summary, [tabindex], section, nav, table"
NAMELESS = """(stops) => [...document.querySelectorAll(stops)]
  .filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim()
    || document.getElementById(element.getAttribute("aria-labelledby"))?.textContent))
  .map((element) => element.outerHTML.slice(0, 120))"""


class Opened:
    """A page in a browser, with everything it complained of and asked the network for."""

    def __init__(self, browser: Any, one: Plan, folder: Path, **options: Any) -> None:
        file = folder / "report.html"
        file.write_text(html_page(one), encoding="utf-8")
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.file = file.as_uri()

    def number(self, name: str) -> float:
        """Return the exact value of a number on the page."""
        return float(self.page.locator(f"#{name}").get_attribute("value"))

    def tip(self) -> str:
        """Return what the tooltip says."""
        return str(self.page.locator("#tip").inner_text())

    def shown(self) -> tuple[float, float]:
        """Return start and width of the part of the step that the timeline shows."""
        self.page.wait_for_timeout(60)  # drawn at the next frame
        host = self.page.locator("#passes")
        return float(host.get_attribute("data-from")), float(host.get_attribute("data-width"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", JOBS)
def test_it_opens_in_silence_and_fits_the_screen(
    browser: Any, tmp_path: Path, name: str, width: int
) -> None:
    opened = Opened(browser, plan(name), tmp_path, viewport={"width": width, "height": 800})

    assert opened.complaints == []
    assert opened.requests == [opened.file]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    names = ("memory", "step", "timeline", "grids", "candidates", "sources", "commands")
    assert all(opened.page.locator(f"section#{part}").is_visible() for part in names)


@pytest.mark.parametrize("name", JOBS)
def test_numbers_are_those_of_the_plan(browser: Any, tmp_path: Path, name: str) -> None:
    opened, estimate = Opened(browser, plan(name), tmp_path), plan(name).estimate

    assert opened.number("step-time") == estimate.step_time_s
    assert opened.number("mfu") == estimate.mfu
    assert opened.number("tokens-per-gpu") == estimate.tokens_per_s_per_gpu
    assert opened.number("memory-peak") == estimate.memory_bytes
    assert opened.number("tokens") == estimate.tokens_per_s_per_gpu * len(plan(name).rank_map)
    parts = opened.page.locator(".steps tr:not(.total) data").evaluate_all(
        "all => all.map((one) => Number(one.value))"
    )
    assert sum(parts) == pytest.approx(estimate.step_time_s)


def test_a_bar_is_as_long_as_its_memory(browser: Any, tmp_path: Path) -> None:
    opened, estimate = Opened(browser, plan("dense"), tmp_path), plan("dense").estimate

    bar = opened.page.locator(".full .bar")
    parts = bar.locator(".part").evaluate_all(
        "all => all.reduce((sum, one) => sum + one.getBoundingClientRect().width, 0)"
    )
    start, line = (one.bounding_box()["x"] for one in (bar, bar.locator(".capacity")))
    share = estimate.memory_bytes / estimate.capacity_bytes
    assert parts / (line - start) == pytest.approx(share, abs=0.005)


def test_a_hostile_name_is_only_text(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, changed(plan("tiny"), "model", name=HOSTILE), tmp_path)

    assert opened.complaints == []
    assert HOSTILE in opened.page.locator(".asked").inner_text()
    assert opened.page.locator("img").count() == 0
    assert opened.page.evaluate("document.scripts.length") == 2


def test_no_other_script_would_run(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("tiny"), tmp_path)
    opened.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); }"
    )

    assert opened.page.evaluate("window.ran") is None
    assert "Content Security Policy" in opened.complaints[0]


@pytest.mark.parametrize("name", ["dense", "interleaved", "tiny"])
def test_pointing_at_a_pass_names_it(browser: Any, tmp_path: Path, name: str) -> None:
    opened = Opened(browser, plan(name), tmp_path)
    host = opened.page.locator("#passes")
    host.scroll_into_view_if_needed()
    box = host.bounding_box()

    opened.page.mouse.move(box["x"] + 59, box["y"] + 30)

    assert "rank 0" in opened.tip()
    assert "forward of micro-batch 0: " in opened.tip()
    assert "compute " in opened.tip()
    assert "layers 0-" in opened.tip() or "layer 0" in opened.tip()


def test_the_timeline_zooms_and_moves(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("dense"), tmp_path)
    host = opened.page.locator("#passes")
    whole = opened.shown()

    opened.page.get_by_role("button", name="Zoom in").click()
    half = opened.shown()
    box = host.bounding_box()
    opened.page.mouse.move(box["x"] + 500, box["y"] + 40)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 300, box["y"] + 40)
    opened.page.mouse.up()
    moved = opened.shown()
    opened.page.get_by_role("button", name="Show the whole step").click()

    assert half == pytest.approx((whole[1] / 4, whole[1] / 2))
    assert moved[0] > half[0]
    assert moved[1] == half[1]
    assert opened.shown() == whole
    said = opened.page.locator("#passes-said").inner_text()
    assert said == f"showing 0 s to {plan('dense').estimate.step_time_s:.4g} s"


def test_the_timeline_works_by_keyboard(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("interleaved"), tmp_path)
    said = opened.page.locator("#passes-said")
    opened.page.locator("#passes").focus()
    heard = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"):
        opened.page.keyboard.press(key)
        heard.append(said.inner_text().partition(":")[0])
    whole = opened.shown()
    opened.page.keyboard.press("+")

    assert heard[0] == heard[4] == "rank 0, chunk 0, forward of micro-batch 0"
    assert heard[1] == heard[3] == "rank 0, chunk 0, forward of micro-batch 1"
    assert heard[2].startswith("rank 1, chunk 0, forward")
    assert opened.shown()[1] == pytest.approx(whole[1] / 2)


def test_the_critical_path_can_be_hidden(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("dense"), tmp_path)
    path, button = opened.page.locator("svg .t-critical"), opened.page.locator("#critical")
    before = path.count()

    button.click()
    opened.shown()

    assert (before, path.count()) == (1, 0)
    assert button.get_attribute("aria-pressed") == "false"


def test_every_layout_is_named_by_pointer_and_by_keyboard(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("dense"), tmp_path)
    best, label = opened.page.locator(".area .d-best"), plan("dense").to_layout().label()

    best.hover()
    pointed = opened.tip()
    best.focus()
    opened.page.keyboard.press("ArrowRight")
    walked = opened.page.evaluate("document.activeElement.dataset.tip")

    estimate = plan("dense").estimate
    shown = f"{seconds(estimate.step_time_s)}, {gib(estimate.memory_bytes)} GiB"
    assert pointed.startswith(f"{label}: {shown}")
    assert label not in walked
    assert opened.tip() == walked
    assert opened.page.locator(".area .dot[tabindex='0']").count() == 1


@pytest.mark.parametrize("grid", ["attention", "expert"])
def test_a_gpu_shows_its_group(browser: Any, tmp_path: Path, grid: str) -> None:
    opened = Opened(browser, plan("experts"), tmp_path)
    drawn = opened.page.locator(f"#{grid}-grid")
    axis = {"attention": "dp data", "expert": "ep expert"}[grid]

    drawn.get_by_role("button", name=axis).click()
    drawn.get_by_role("gridcell").first.focus()
    peers = drawn.locator(".peer")
    marked = peers.all_inner_texts()
    opened.page.keyboard.press("ArrowRight")

    assert marked == [str(rank) for rank in range(1, 8)]
    assert opened.page.evaluate("document.activeElement.textContent") == "1"
    assert "rank 1: " in opened.tip()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_text_can_be_read(browser: Any, tmp_path: Path, name: str, scheme: str) -> None:
    opened = Opened(browser, plan(name), tmp_path, color_scheme=scheme)

    found = opened.page.evaluate(CONTRAST)

    assert found["bad"] == []
    assert found["seen"] > 300


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
@pytest.mark.parametrize("name", CHARTS)
def test_axe_finds_no_violation(
    browser: Any, tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
    size = {"width": width, "height": 900}
    opened = Opened(browser, plan(name), tmp_path, viewport=size, color_scheme=scheme)

    found = axe.Axe().run(opened.page).response

    assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found["violations"]] == []
    assert len(found["passes"]) > 20


def test_a_dark_page_is_dark(browser: Any, tmp_path: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (
        Opened(browser, plan("tiny"), tmp_path, color_scheme=scheme).page.evaluate(colour)
        for scheme in ("light", "dark")
    )

    assert (light, dark) == ("rgb(246, 247, 249)", "rgb(16, 21, 27)")


def test_a_screen_reader_finds_names_and_order(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("experts"), tmp_path)
    levels = opened.page.locator("h1, h2, h3").evaluate_all("all => all.map((one) => one.tagName)")

    assert opened.page.evaluate(NAMELESS, STOPS) == []
    assert levels[0] == "H1"
    assert levels.count("H1") == 1
    assert levels[1] == "H2"
    assert opened.page.locator("html").get_attribute("lang") == "en"
    assert opened.page.locator("table:not(:has(caption))").count() == 0
    assert opened.page.locator("th:not([scope])").count() == 0
    ids = opened.page.locator("[id]").evaluate_all("all => all.map((one) => one.id)")
    assert len(set(ids)) == len(ids)


def test_the_first_tab_stop_skips_to_the_answer(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("tiny"), tmp_path)

    opened.page.keyboard.press("Tab")

    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to the answer"


def test_without_scripts_the_answer_is_there(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("dense"), tmp_path, java_script_enabled=False)

    assert opened.number("step-time") == plan("dense").estimate.step_time_s
    assert opened.page.locator("section#memory .bar").first.is_visible()
    assert "drawn by a script" in opened.page.locator("section#timeline").inner_text()


def test_a_page_of_1024_gpus_is_ready_soon(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, plan("large"), tmp_path)

    assert float(opened.page.locator("html").get_attribute("data-ready")) < 3000
