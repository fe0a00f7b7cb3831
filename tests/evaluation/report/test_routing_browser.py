"""The page about a router in a real browser: no script error, no request, every control used; needs Chromium."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from fusionroute.evaluation.report.routing import write_routing_report
from fusionroute.evaluation.report.routing_projection import available
from tiny_pathways import pathways

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

# Uses every control of the page and writes down what it saw where a test can read it.
DRIVER = """
const seen = {tabs: [], tips: [], shown: [], chosen: [], dimmed: [], pressed: [], experts: []};
const point = (element, x, y) => element.dispatchEvent(
  new PointerEvent("pointermove", {bubbles: true, clientX: x, clientY: y}));
const tip = document.getElementById("tip");
for (const button of document.querySelectorAll(".tab-buttons button")) {
  button.click();
  seen.tabs.push([...document.querySelectorAll(".tab:not([hidden])")].map((tab) => tab.dataset.tab).join());
}
for (const mark of document.querySelectorAll(".tab:not([hidden]) .cloud path")) {
  point(mark, 300, 300);
  seen.tips.push(tip.textContent);
  seen.shown.push([...document.querySelectorAll("path.shown")].every((each) => each.dataset.q === mark.dataset.q)
    ? document.querySelectorAll("path.shown").length : -1);
}
for (const map of document.querySelectorAll(".tab:not([hidden]) .heatmap svg")) {
  const box = map.getBoundingClientRect();
  point(map, box.left + 1, box.top + 1);
  seen.experts.push(tip.textContent);
  point(map, box.right - 1, box.bottom - 1);
  seen.experts.push(tip.textContent);
}
point(document.body, 0, 0);
seen.hidden = tip.hidden && !document.querySelector("path.shown");
for (const button of [...document.querySelectorAll(".task-legend button")]) {
  button.click();
  seen.chosen.push(document.querySelectorAll("path.chosen").length);
  seen.dimmed.push(document.querySelectorAll(".cloud.some").length);
  seen.pressed.push(document.querySelectorAll('.task-legend [aria-pressed="true"]').length);
}
seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
document.body.append(result);
"""


def opened(page: Path, tmp_path: Path, size: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """What the driver saw, what the console said, and what the page asked the network for."""
    text = page.read_text(encoding="utf-8")
    allowed = re.sub(r"script-src '(sha256-[^']+)'", "script-src 'unsafe-inline'", text)
    driven, log = page.with_name("driven.html"), tmp_path / "net.json"
    driven.write_text(allowed.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--window-size={size}",
        f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
        "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", driven.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    asked = [event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"]
    found = re.search(r'<pre id="seen">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found is not None, console
    return json.loads(unescape(found.group(1))), console, [url for url in asked if url.startswith("http")]


@pytest.mark.parametrize("size", ["1300,900", "500,900"])
def test_every_control_works(tmp_path: Path, size: str) -> None:
    before, after = pathways(40, ("sums", "words", "mmlu_college_electrical_engineering_and_some_more_words"))
    page = write_routing_report(before, after, tmp_path / "page.html", title="RoMA", neighbours=5)
    seen, console, requests = opened(page, tmp_path, size)
    assert console == []
    assert requests == []
    projections = available(40)
    assert seen["tabs"][-1] == f"{projections[-1]},Weight"
    assert len(seen["tips"]) == 3 * 40
    assert set(seen["shown"]) == {3 * len(projections)}
    for question, right, again in zip(before.questions, before.correct, after.correct, strict=True):
        marks = ["✓ right" if each else "✗ wrong" for each in (right, again)]
        said = f"{question.task}before {marks[0]} · after {marks[1]}{question.text}wanted: {question.answer}"
        assert seen["tips"].count(said) == 3
    first, last = (
        f"before {100 * a:.1f} % · after {100 * b:.1f} %"
        for a, b in (
            (round(float(each.routing.double().mean(0)[at]), 4) for each in (before, after))
            for at in ((0, 0), (-1, -1))
        )
    )
    assert seen["experts"] == [f"layer 3, expert 0{first}", f"layer 4, expert 7{last}"] * 3
    assert seen["hidden"] is True
    tasks = list(dict.fromkeys(before.tasks))
    counts = [3 * len(projections) * before.tasks.count(task) for task in tasks]
    assert seen["chosen"] == [counts[0], counts[0] + counts[1], 0]  # all tasks chosen is none chosen
    assert seen["pressed"] == [1, 2, 0]
    assert seen["dimmed"] == [3 * len(projections)] * 2 + [0]
    assert seen["overflow"] == 0
