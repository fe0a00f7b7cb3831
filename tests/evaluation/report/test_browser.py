"""The page in a real browser: no script error, no request, every control used; skipped where there is no Chromium."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fusionroute.evaluation.report import write_report

Comparison = tuple[dict[str, Any], list[dict[str, Any]]]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

# Uses every control of the page and writes down what it saw where a test can read it.
DRIVER = """
const seen = {tasks: 0, answers: 0, tokens: 0, sorted: [], filters: [], failures: 0, opened: [], keys: [], html: 0};
const pick = (id, value) => {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const position = () => document.getElementById("position").textContent;
const firsts = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.textContent.trim());
for (const button of document.querySelectorAll(".tab-buttons button")) button.click();
for (const table of document.querySelectorAll("table.sortable"))
  for (const button of table.querySelectorAll("thead button")) for (let at = 0; at < 3; at++) button.click();
const table = document.getElementById("accuracy-table");
table.querySelector("th.average button").click();
seen.sorted = firsts(table);
document.getElementById("examples").scrollIntoView({behavior: "instant"});
press("ArrowRight"); seen.keys.push(position()); press("ArrowLeft"); seen.keys.push(position());
const options = (id) => [...document.getElementById(id).options].map((option) => option.value);
for (const task of options("task")) {
  pick("task", task);
  seen.tasks++;
  for (const left of options("left")) {
    pick("left", left);
    const next = document.getElementById("next");
    do {
      seen.answers += document.querySelectorAll(".answers article:not([hidden]) h4").length;
      for (const token of document.querySelectorAll(".token")) {
        token.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
        seen.tokens++;
      }
      seen.html += document.querySelectorAll(".viewer img, .viewer script, .viewer iframe").length;
      if (next.disabled) break;
      next.click();
    } while (true);
    for (const filter of options("filter")) pick("filter", filter);
    const count = (option) => Number(option.text.match(/\\((\\d+)\\)/)[1]);
    seen.filters.push([...document.getElementById("filter").options].map(count));
    pick("filter", "all");
  }
}
for (const method of options("failed-method")) {
  pick("failed-method", method);
  for (const row of document.querySelectorAll("#failed-rows tr")) {
    seen.failures++;
    row.click();
    seen.opened.push(document.querySelector("#answer-left .mark").textContent);
  }
}
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
document.body.append(result);
"""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address that hostile pages can ask, and what they have asked it for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Path], tuple[str, list[str], list[str]]]:
    """Open a page; what it looks like afterwards, what the console said, and what it asked the network for."""

    def open_page(page: Path) -> tuple[str, list[str], list[str]]:
        log = tmp_path / "net.json"
        command = [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
            "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
        events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
        # what the browser asks for on its own behalf has no origin; what a page asks for has, "null" for a file
        asked = [event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"]
        return run.stdout, console, [url for url in asked if url.startswith("http")]

    return open_page


def driven(page: Path, driver: str = DRIVER) -> Path:
    """A copy whose policy lets the driver run too; all else is the page's own."""
    text = page.read_text(encoding="utf-8")
    policy = re.search(r"script-src '(sha256-[^']+)'", text)
    assert policy is not None
    copy = page.with_name("driven.html")
    allowed = text.replace(policy.group(), "script-src 'unsafe-inline'")
    copy.write_text(allowed.replace("</body>", f"<script>{driver}</script></body>"), encoding="utf-8")
    return copy


def test_the_page_opens_without_errors_or_requests(whole: Comparison, opened: Any, tmp_path: Path) -> None:
    write_report(*whole, tmp_path / "report.html")
    page, console, requests = opened(tmp_path / "report.html")
    assert console == []
    assert requests == []
    assert '<html lang="en" class="js">' in page
    assert "1 of 20" in page
    assert page.count('class="token') > 10


def test_every_control_works(small: Comparison, opened: Any, tmp_path: Path) -> None:
    record, cells = small
    write_report(record, cells, tmp_path / "report.html", examples=6)
    page, console, requests = opened(driven(tmp_path / "report.html"))
    assert console == []
    assert requests == []
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', page, re.DOTALL).group(1))
    averages = {method: record["accuracy"][method]["average"]["value"] for method in record["methods"]}
    assert seen["sorted"] == sorted(averages, key=lambda method: -averages[method])
    assert seen["keys"] == ["2 of 6", "1 of 6"]
    assert (seen["tasks"], seen["answers"]) == (2, 2 * 3 * 6 * 2)
    assert all(counts[0] == sum(counts[1:]) == 6 for counts in seen["filters"])
    assert seen["failures"] > 0
    assert set(seen["opened"]) == {"✗ wrong"}
    assert seen["tokens"] > 100


def test_a_missing_answer_is_neither_right_nor_wrong(small: Comparison, opened: Any, tmp_path: Path) -> None:
    record, cells = small
    cells = [cell for cell in cells if (cell["method"], cell["task"]) != ("Collab", "zoo_sums")]
    write_report(record, cells, tmp_path / "report.html", examples=6)
    page, console, _ = opened(driven(tmp_path / "report.html"))
    assert console == []
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', page, re.DOTALL).group(1))
    sums = dict(zip(record["methods"], seen["filters"][:3], strict=True))
    assert sums["Collab"] == [6, 0, 0, 0, 0]
    assert sum(sums["math expert"][1:]) == 6


def test_what_a_model_wrote_neither_runs_nor_loads(
    small: Comparison, opened: Any, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = server
    hostile = (
        f"</script><script>console.error('ran')</script><img src='{address}/img' onerror=\"console.error('ran')\">"
    )
    record, cells = small
    record |= {"title": hostile, "settings": {"name": hostile}}
    for cell in cells:
        for example in cell["examples"]:
            example |= {"prompt": hostile, "target": hostile, "answer": hostile}
            example["tokens"] = {"text": [hostile] * 2, "expert": ["math", hostile], "decided_by": ["both"] * 2}
    write_report(record, cells, tmp_path / "report.html", examples=3)
    page, console, requests = opened(driven(tmp_path / "report.html"))
    assert (console, requests, asked) == ([], [], [])
    assert '"html":0' in page


def test_errors_and_requests_would_be_seen(opened: Any, server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    page = tmp_path / "bad.html"
    page.write_text(f"<img src='{address}/planted'><script>missing()</script>", encoding="utf-8")
    _, console, requests = opened(page)
    assert "missing is not defined" in console[0]
    assert requests == [f"{address}/planted"]
    assert asked == ["/planted"]


@pytest.mark.parametrize("methods", [("Fine-tuned",), ("math expert", "code expert")])
def test_a_comparison_of_little_opens_too(
    methods: tuple[str, ...], build: Callable[..., Comparison], opened: Any, tmp_path: Path
) -> None:
    record, cells = build(methods, ("words",))
    for cell in cells:
        for example in cell["examples"]:
            example |= {"tokens": None, "finish_reason": None}  # as of a multiple-choice task
    write_report(record, cells, tmp_path / "report.html")
    page, console, requests = opened(driven(tmp_path / "report.html"))
    assert (console, requests) == ([], [])
    assert '<pre id="seen">' in page
    write_report(record, [], tmp_path / "report.html")
    page, console, _ = opened(tmp_path / "report.html")
    assert console == []
    assert "No examples were recorded." in page


# Points at every token and writes down what the page says of it.
POINTING = """
const seen = [...document.querySelectorAll("#answer-right .token")].map((token) => {
  token.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const tip = document.getElementById("tip");
  const rows = [...tip.querySelectorAll("tr")].map((row) => [...row.cells].slice(0, 2).map((cell) => cell.textContent));
  return {text: token.textContent, classes: [...token.classList], said: tip.textContent, rows};
});
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify({tokens: seen, legend: document.getElementById("token-legend").textContent,
  split: document.querySelector("#answer-right .split").textContent});
document.body.append(result);
"""


def test_a_token_says_its_verdict_and_each_model_s_probability(
    checked: Comparison, opened: Any, tmp_path: Path
) -> None:
    write_report(*checked, tmp_path / "report.html")
    page, console, requests = opened(driven(tmp_path / "report.html", POINTING))
    assert (console, requests) == ([], [])
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', page, re.DOTALL).group(1)))
    kinds = {"replaced": {"ensembled", "against"}, "kept": set()}
    for token in seen["tokens"][:-1]:
        is_replaced = token["text"].startswith(" ")
        assert {"ensembled", "against"} & set(token["classes"]) == kinds["replaced" if is_replaced else "kept"]
        verdict = "the ensemble chose another token" if is_replaced else "every verifier's first choice"
        assert verdict in token["said"]
        assert token["rows"] == [["math", "0.25" if is_replaced else "0.9"], ["code", "0.5" if is_replaced else "–"]]
    end = seen["tokens"][-1]
    assert end["text"] == ""
    assert {"end", "ensembled"} <= set(end["classes"])
    replaced = sum(token["text"].startswith(" ") for token in seen["tokens"])
    assert f"ensembled {replaced + 1} of {len(seen['tokens'])}, {replaced} of them replaced" in seen["split"]
    assert "framed: the ensemble was asked" in seen["legend"]
    assert "underlined: the drafter alone would have written something else" in seen["legend"]
