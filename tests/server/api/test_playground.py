"""The playground in a real browser, against a real server. Nothing may leave the origin, and nothing complain."""

import itertools
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import tiny
import tiny_ensemble
import tiny_scripted
import tiny_server
from fusionroute import Router, Team

pytest.importorskip("fastapi", reason="needs the extra fusionroute[server]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from fusionroute.server.api import pages  # noqa: E402
from fusionroute.server.api.app import create_app  # noqa: E402
from fusionroute.server.metrics import Metrics  # noqa: E402
from fusionroute.server.offer import Offer  # noqa: E402
from fusionroute.server.run import bind, make_server  # noqa: E402
from fusionroute.server.settings import ServerSettings  # noqa: E402
from fusionroute.server.worker import Worker  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium browser")
KEY = "a-key-of-the-test"
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
HOSTILE = ("<svg onload=h()>", "<script>h()</script>", "<img src=x onerror=h()>", "\x1b[31m\u202e")  # a token each
COLOURS = range(7)
MOST = 12  # tokens of an answer, where nothing else is said
WEB = Path(pages.__file__).parents[1] / "web"


@dataclass
class Site:
    url: str
    worker: Worker

    def wait_until_idle(self) -> None:
        tiny_server.wait_until(lambda: not any(tiny_server.gauges(self.worker).values()), "a slot is still taken")


@contextmanager
def serving(offered: Team | Offer, **options: Any) -> Iterator[Site]:
    settings = ServerSettings.parse(options)
    offer = offered if isinstance(offered, Offer) else tiny_server.offer(offered)
    worker = Worker(offer, settings, Metrics())
    with bind("127.0.0.1", 0) as listening:
        server = make_server(create_app(worker, settings), worker, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        worker.start()
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}/", worker)
        finally:
            server.should_exit = True
            worker.stop(0)
            thread.join()


def scripted_team(texts: tuple[str, ...]) -> Team:
    """Every model writes these texts, a token each, whatever it is asked."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(texts))
    size = len(tokenizer) + len(tokenizer) % 2
    table = torch.full((size, size), 1e-6)
    ids = tokenizer.convert_tokens_to_ids(["<assistant>", *texts])
    for here, following in zip(ids, [*ids[1:], tiny.EOS], strict=True):
        table[here, following] = 1.0
    options = {"max_position_embeddings": tiny.CONTEXT, "eos_token_id": tiny.EOS}
    models = [tiny_scripted.bigram(table.tolist(), **options) for _ in range(3)]
    experts = dict(zip(("math", "code"), models[1:], strict=True))
    return Team(router=Router(models[0], 2), experts=experts, tokenizer=tokenizer, prompt="chat_template")


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team(prompt="chat_template")


@pytest.fixture(scope="module")
def site(team: Team) -> Iterator[Site]:
    with serving(team) as served:
        yield served


@pytest.fixture
def slowly(team: Team, request: pytest.FixtureRequest) -> Iterator[None]:
    """The site's team writes slowly enough to be watched, on a busy machine too: seconds for each token."""
    hook = team.router.lm.register_forward_hook(lambda *_: time.sleep(request.param))
    yield
    hook.remove()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        quick = ["--disable-gpu", "--in-process-gpu"]  # nothing is drawn by a GPU, and a process less is started
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *quick])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def desk(browser: Any) -> Any:
    """A browser's window of the usual size. A context costs more than all that most tests do in it."""
    return browser.new_context(reduced_motion="reduce")


@pytest.fixture
def visit(browser: Any, desk: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page. In the end no request may have left the origin, and the console must be empty.

    What ``may_fail`` matches may stand there: browsers themselves report a reply of 4xx.
    """
    problems: list[str] = []
    with ExitStack() as opening:

        def opened(url: str, *, may_fail: str | None = None, **options: Any) -> Any:
            context = opening.enter_context(browser.new_context(**options)) if options else desk
            page = opening.enter_context(context.new_page())
            page.set_default_timeout(20_000)
            page.on("request", lambda request: request.url.startswith(url) or problems.append(request.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda said: (may_fail and re.search(may_fail, said.text)) or problems.append(said.text))
            page.goto(url)
            return page

        yield opened
    assert problems == []


def ask(page: Any, text: str = "hi", most: int = MOST) -> None:
    page.fill("#max-tokens", str(most))
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ask_in_vain(page: Any, team: Team) -> None:
    """A model fails when a few tokens are written."""
    calls = itertools.count()

    def fail(*_: Any) -> None:
        if next(calls) > 4:
            raise RuntimeError("broken on purpose")

    hook = team.router.lm.register_forward_hook(fail)
    ask(page, "in vain")
    page.wait_for_selector(".answer .error")
    hook.remove()


def wait_for_answers(page: Any, count: int = 1) -> None:
    """Of one model or two, complete or not."""
    page.wait_for_function(
        "(count) => document.querySelectorAll('.answer:not(.writing) .foot:not(:empty)').length === count",
        arg=count,
        polling=50,  # milliseconds; else every frame is drawn to look at it
    )


def middle(page: Any, at: int, answer: int = 0) -> tuple[float, float]:
    """Where a token is, as a mouse or a finger finds it."""
    token = page.locator(".answer").nth(answer).locator(".token").nth(at)
    token.scroll_into_view_if_needed()
    return token.evaluate("(e) => { const r = e.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]; }")


def records(
    site: Site, text: str = "hi", most: int = MOST, model: str = tiny_server.NAME, candidates: int | None = 5
) -> list[dict[str, Any]]:
    """What the API says of the answer that the page shows."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": most, "temperature": 0}
    told = {"provenance": True, "candidates": candidates}
    reply = httpx.post(site.url + "v1/chat/completions", json={**body, **told})
    return reply.raise_for_status().json()["choices"][0]["provenance"]


def overflows(page: Any) -> bool:
    return page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")


def test_the_files_are_served_with_their_types_and_a_strict_policy(site: Site) -> None:
    with httpx.Client(base_url=site.url) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == pages.POLICY
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
        assert client.get("/", headers={"If-None-Match": '"another"'}).status_code == 200
        assert client.head("/").headers["content-length"] == str(len(page.content))
        files = re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text)
        assert len(files) > 4
        for file in files:
            reply = client.get(file)
            assert reply.status_code == 200
            assert reply.headers["content-security-policy"] == pages.POLICY
            kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
            assert reply.headers["content-type"].startswith(kinds[file.rpartition(".")[2]])


def test_the_files_can_be_read_in_a_window_of_120_columns() -> None:
    for file in WEB.iterdir():
        wide = [at for at, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 120]
        assert wide == [], f"{file.name}: lines {wide}"
        if file.suffix == ".css":
            many = [line for line in file.read_text(encoding="utf-8").splitlines() if line.count(";") > 3]
            assert many == [], f"{file.name}: a rule of many declarations has a line for each"


@pytest.mark.parametrize(
    "path", ["../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "/etc/passwd", "", "index.html/.."]
)
def test_nothing_else_of_the_disk_can_be_had(site: Site, path: str) -> None:
    address = httpx.URL(site.url)
    reply = httpx.request("GET", address.copy_with(raw_path=b"/playground/" + path.encode()))
    assert reply.status_code == 404


def test_the_page_can_be_switched_off() -> None:
    with serving(tiny.team(prompt="chat_template"), playground=False) as site:
        assert httpx.get(site.url).status_code == 404
        assert httpx.get(site.url + "playground/app.js").status_code == 404
        assert httpx.get(site.url + "v1/models").status_code == 200


@needs_browser
@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize("slowly", [0.05], indirect=True)
def test_tokens_get_their_colours_while_they_are_written(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url)
    assert "write one answer together" in page.inner_text("#welcome")
    assert page.locator("#examples button:enabled").count() == 3
    ask(page, most=20)
    page.wait_for_selector(".answer.writing .token:nth-child(3)")
    seen = page.evaluate(
        "() => [document.querySelectorAll('.token').length, document.querySelector('.names').innerText]"
    )
    assert page.locator(".answer.writing").count() == 1
    assert 3 <= seen[0] < 20
    assert "%" in seen[1]  # shares stand there before the end
    wait_for_answers(page)
    wanted = records(site, most=20)
    shown = page.eval_on_selector_all(".token", "(all) => all.map((e) => e.className)")
    colour = {name: f"by-{at}" for at, name in enumerate(("math", "code", "chat"))}
    assert [next(c for c in names.split() if c.startswith("by-")) for names in shown] == [
        colour[record["expert"]] for record in wanted
    ]
    assert ["against" in names.split() for names in shown] == [
        record["decided_by"] in ("router", "neither") for record in wanted
    ]
    bar = page.eval_on_selector_all(".shares i", "(all) => all.map((e) => getComputedStyle(e).flexGrow)")
    assert bar == [str(sum(record["expert"] == name for record in wanted)) for name in colour]
    tints = page.eval_on_selector_all(".token", "(all) => all.map((e) => getComputedStyle(e).backgroundColor)")
    assert len(set(tints)) == len({record["expert"] for record in wanted}) > 1
    counts = {name: sum(record["expert"] == name for record in wanted) for name in colour}
    legend = page.inner_text(".names")
    for name, count in counts.items():
        assert re.search(rf"{name}\s+[<>]?\s*{100 * count / len(wanted):.0f} % · {count}\b", legend), legend
    assert re.search(
        r"20 tokens · [\d.e+]+ tokens/s · first after [\d.]+ s · prompt \d+ tokens", page.inner_text(".foot")
    )
    said = page.inner_text("#status")
    assert said.startswith(f"{tiny_server.NAME}: answer cut off at the token limit, 20 tokens: ")
    assert all(name in said for name, count in counts.items() if count)


@needs_browser
def test_pointing_at_a_token_shows_weights_and_candidates(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url)
    ask(page)
    wait_for_answers(page)
    at = 5
    wanted = records(site)[at]
    page.mouse.move(*middle(page, at))
    page.wait_for_selector("#inspector.open")
    assert f"token {at + 1} of {MOST}" in page.inner_text("#inspector .by").replace("\n", " ")
    rows = page.locator(".weights tr").all_inner_texts()
    for name, weight in wanted["weights"].items():
        assert any(name in row and _percent(weight) in row for row in rows), (rows, wanted["weights"])
    headings = [heading.split()[-1] for heading in page.locator(".candidates h3").all_inner_texts()]
    assert headings == ["router", wanted["expert"], "fused"]
    for column, best in enumerate(wanted["candidates"].values()):
        section = page.locator(".candidates section").nth(column)
        titles = section.locator("li").evaluate_all("(all) => all.map((e) => e.title)")
        assert titles[:5] == [candidate["token"] for candidate in best]
        assert section.locator("li.written").count() == 1
        assert section.locator("li.written").get_attribute("title") == wanted["token"]
    page.keyboard.press("Escape")
    page.wait_for_selector("#inspector:not(.open)")
    page.mouse.click(*middle(page, 2))  # a token that was chosen stays when the mouse goes on
    page.mouse.move(*middle(page, 9))
    assert f"token 3 of {MOST}" in page.inner_text("#inspector .by").replace("\n", " ")
    page.click("#inspector .close")
    page.wait_for_selector("#inspector:not(.open)")
    assert page.evaluate("() => document.activeElement.dataset.at") == "2"


def _percent(share: float) -> str:
    if 0 < 100 * share < 0.05:
        return "< 0.1 %"
    return "> 99.9 %" if share < 1 and 100 * share > 99.95 else f"{100 * share:.1f} %"


@needs_browser
def test_the_keyboard_reaches_everything(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url)
    page.wait_for_selector("#examples button:enabled")
    assert page.evaluate("() => document.activeElement.id") == "prompt"
    ask(page)
    wait_for_answers(page)
    page.focus("#theme")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.className"))
    assert [each for each in reached if each.startswith("token")] == [next(e for e in reached if e.startswith("token"))]
    for control in ("prompt", "send", "temperature", "max-tokens", "seed", "remember", "conversation"):
        assert control in reached
    page.focus(".token[tabindex='0']")
    for key, at in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", MOST - 1),
        ("ArrowRight", MOST - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert page.evaluate("() => Number(document.activeElement.dataset.at)") == at
        assert f"token {at + 1} of {MOST}" in page.inner_text("#inspector .by").replace("\n", " ")
    assert page.locator(".token[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    page.wait_for_selector("#inspector:not(.open)")
    page.keyboard.press("Enter")
    page.wait_for_selector("#inspector.open")
    assert "by " in page.evaluate("() => document.activeElement.getAttribute('aria-label')")


@needs_browser
def test_two_models_side_by_side_on_one_prompt(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url)
    page.check("#compare")
    assert page.input_value("#second") == f"{tiny_server.NAME}/math"
    assert "the expert math alone" in page.inner_text("#second-is")
    ask(page)
    wait_for_answers(page, 2)
    assert page.locator(".answer h2").all_inner_texts() == [tiny_server.NAME, f"{tiny_server.NAME}/math"]
    assert page.locator(".answer").nth(1).locator(".names").inner_text().split() == [
        "M",
        "math",
        "100",
        "%",
        "·",
        str(MOST),
    ]
    left, right = (page.locator(".answer").nth(at).bounding_box() for at in range(2))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    page.mouse.move(*middle(page, 3, answer=1))
    assert "One model wrote it alone." in page.inner_text("#inspector")
    texts = page.locator(".whole").evaluate_all("(all) => all.map((e) => e.textContent)")
    assert texts[0] == "".join(record["text"] for record in records(site))
    assert texts[1] == "".join(record["text"] for record in records(site, model=f"{tiny_server.NAME}/math"))


@needs_browser
def test_every_colour_can_be_read_in_both_themes(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url, color_scheme="dark")
    ask(page)
    wait_for_answers(page)
    for theme in ("dark", "light"):
        paper = _rgb(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        assert (_luminance(paper) < 0.1) == (theme == "dark")
        for at in COLOURS:
            look = """(at) => {
                const [token] = document.querySelectorAll('.token'), [letter] = document.querySelectorAll('.letter');
                token.className = `token by-${at}`;
                letter.className = `letter by-${at}`;
                return [token, letter].flatMap((e) => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]);
            }"""
            ink, tint, on, by = map(_rgb, page.evaluate(look, at))
            assert _contrast(ink, tint) >= 4.5
            assert _contrast(on, by) >= 4.5
        for place in (".foot", ".about", ".settings label", ".marks", "#inspector dd", "#send", ".question"):
            front, back = page.eval_on_selector(place, COLOURS_OF)
            assert _contrast(_rgb(front), _rgb(back)) >= 4.5, (theme, place)
        page.click("#theme")
    page.click("#theme")
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "light"  # as chosen, not as the system


# the colour of a text, and of the first thing behind it that has one
COLOURS_OF = """(e) => {
    const front = getComputedStyle(e).color;
    while (getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)") e = e.parentElement;
    return [front, getComputedStyle(e).backgroundColor];
}"""


def _rgb(colour: str) -> tuple[float, ...]:
    """0 to 1, of ``rgb(…)`` or of ``color(srgb …)``, as mixtures are told."""
    values = [float(each) for each in re.findall(r"[\d.]+", colour)][:3]
    return tuple(values) if colour.startswith("color(") else tuple(value / 255 for value in values)


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@needs_browser
def test_a_phone_needs_no_sideways_scrolling_and_taps_open_the_panel(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url, **PHONE)
    page.wait_for_selector("#examples button:enabled")
    assert not overflows(page)
    page.check("#compare")
    ask(page, "a_very_long_word_that_has_no_place_to_break_" * 2, most=24)
    wait_for_answers(page, 2)
    assert not overflows(page)
    assert page.locator("#inspector").is_hidden()
    page.touchscreen.tap(*middle(page, 20, answer=1))
    page.wait_for_selector("#inspector.open .candidates")
    assert not overflows(page)
    panel, token = page.locator("#inspector").bounding_box(), page.locator(".token.shown").bounding_box()
    assert token["y"] + token["height"] <= panel["y"] + 1  # the panel does not lie over what it is about
    page.touchscreen.tap(*_centre(page.locator("#inspector .close")))
    assert page.locator("#inspector").is_hidden()


def _centre(place: Any) -> tuple[float, float]:
    box = place.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@needs_browser
@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize("slowly", [0.05], indirect=True)
def test_stopping_frees_the_slot(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url)
    ask(page, most=120)
    page.wait_for_selector(".answer.writing .token")
    page.click("#stop")
    wait_for_answers(page)
    assert page.inner_text(".foot").startswith("stopped · ")
    assert 0 < page.locator(".token").count() < 120
    site.wait_until_idle()
    assert page.locator("#send").is_visible()
    assert "answer stopped" in page.inner_text("#status")
    page.click("#new")
    assert page.locator(".answer").count() == 0
    assert page.locator("#welcome").is_visible()
    assert page.inner_text("#status") == ""


@needs_browser
def test_what_was_said_goes_along_unless_it_is_switched_off(team: Team, site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url)
    ask_in_vain(page, team)
    assert page.locator(".token").count() > 0
    assert page.locator(".answer button").inner_text() == "Try again"
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    page.fill("#temperature", "0.5")
    page.fill("#seed", "7")
    ask(page, "one", most=4)
    wait_for_answers(page, 2)
    ask(page, "two", most=4)
    wait_for_answers(page, 3)
    page.uncheck("#remember")
    ask(page, "three", most=4)
    wait_for_answers(page, 4)
    first = page.locator(".whole").nth(1).evaluate("(e) => e.textContent")
    said = [[(each["role"], each["content"]) for each in body["messages"]] for body in bodies]
    assert said == [
        [("user", "one")],  # and nothing of the answer that failed
        [("user", "one"), ("assistant", first), ("user", "two")],
        [("user", "three")],
    ]
    assert [(body["temperature"], body["seed"], body["max_tokens"]) for body in bodies] == [(0.5, 7, 4)] * 3


@needs_browser
def test_what_the_server_refuses_is_told_in_words_and_not_lost(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url, may_fail="status of 400")
    too_long = "x" * 200
    ask(page, too_long)
    page.wait_for_selector(".answer .error")
    assert "maximum context length" in page.inner_text(".answer .error")
    assert "answer failed, This model's maximum" in page.inner_text("#status")
    assert page.locator(".answer button").count() == 0, "the same again would be refused again"
    assert page.input_value("#prompt") == too_long
    for part in (".legend", ".tokens", ".foot"):  # of nothing
        assert page.locator(f".answer {part}").is_hidden()
    page.fill("#temperature", "5")  # refused by the page itself
    ask(page)
    assert page.locator(".answer").count() == 1
    page.fill("#temperature", "0")
    ask(page, most=10**6)
    page.wait_for_selector("li:nth-child(2) .error")
    assert page.input_value("#prompt") == "hi"
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    ask(page, most=4)
    wait_for_answers(page, 3)
    assert page.input_value("#prompt") == ""
    assert [message["content"] for message in bodies[0]["messages"]] == ["hi"], "what failed was never said"


@needs_browser
def test_a_conversation_that_has_grown_too_long_can_go_on(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.url, may_fail="status of 400")
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    ask(page, "x" * 60, most=4)
    wait_for_answers(page)
    ask(page, "y" * 90, most=4)
    page.wait_for_selector(".answer .error")
    assert "New chat" in page.inner_text(".error")
    assert page.input_value("#prompt") == "y" * 90, "what is meant for a new chat need not be written again"
    page.click("text=Ask without earlier turns")
    page.wait_for_selector(".answer:not(.writing) .foot:visible >> nth=1")
    assert page.locator(".error").count() == 0
    assert page.locator(".answer").nth(1).locator(".token").count() == 4
    assert page.input_value("#prompt") == ""
    assert [len(body["messages"]) for body in bodies] == [1, 3, 1]


@needs_browser
def test_a_model_without_a_prompt_format_goes_on_with_a_text(visit: Callable[..., Any]) -> None:
    with serving(tiny.team()) as site:
        page = visit(site.url)
        ask(page, "once upon a", most=4)
        wait_for_answers(page)
        body = {"model": tiny_server.NAME, "prompt": "once upon a", "max_tokens": 4, "temperature": 0}
        (choice,) = httpx.post(site.url + "v1/completions", json=body).json()["choices"]
        assert page.locator(".whole").evaluate("(e) => e.textContent") == choice["text"] != ""
        chat = {"model": tiny_server.NAME, "messages": [{"role": "user", "content": "hi"}]}
        refused = httpx.post(site.url + "v1/chat/completions", json=chat)
        assert refused.status_code == 400
        assert "/v1/completions" in refused.json()["error"]["message"]


@needs_browser
def test_a_token_with_line_breaks_is_one_thing_to_point_at(visit: Callable[..., Any]) -> None:
    lines = ("if", "\n    so", ":\n", "\n", "\n\n", "end")
    with serving(scripted_team(lines)) as site:
        page = visit(site.url)
        ask(page)
        wait_for_answers(page)
        boxes = page.eval_on_selector_all(".token", "(all) => all.map((e) => [...e.getClientRects()].map((r) => r.y))")
        assert [len(each) for each in boxes] == [1] * (len(lines) + 1)
        tops = [y for (y,) in boxes]
        line = page.eval_on_selector(".tokens", "(e) => parseFloat(getComputedStyle(e).lineHeight)")
        assert [round((y - tops[0]) / line) for y in tops] == [0, 1, 1, 2, 3, 5, 5]
        left = page.eval_on_selector_all(".token", LEFT_OF_TEXT)
        assert left[0] == pytest.approx(left[5], abs=0.5)
        assert left[1] == pytest.approx(left[0], abs=0.5), "the ↵ stands before the column where lines begin"
        assert page.locator(".tokens").evaluate("(e) => e.textContent") == "".join(lines)


# where the text of a token begins, its ↵ left out
LEFT_OF_TEXT = """(all) => all.map((e) => {
    const text = document.createRange();
    text.selectNodeContents(e);
    return text.getBoundingClientRect().x;
})"""


@needs_browser
def test_a_server_that_is_gone_is_told_and_asked_again(visit: Callable[..., Any]) -> None:
    with serving(tiny.team(prompt="chat_template")) as site:
        page = visit(site.url, may_fail="ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|status of 503")
        page.wait_for_selector("#examples button:enabled")
    ask(page)
    page.wait_for_selector(".answer .error")
    assert "cannot be reached" in page.inner_text(".answer .error")
    page.click(".answer .error button")
    page.wait_for_selector(".answer .error")
    assert page.locator(".answer").count() == 1


@needs_browser
def test_a_key_is_asked_for_and_kept_for_the_tab_alone(visit: Callable[..., Any]) -> None:
    with serving(tiny.team(prompt="chat_template"), api_keys=[KEY]) as site:
        page = visit(site.url, may_fail="status of 401")
        page.wait_for_selector("#key:not([hidden])")
        assert page.locator("#send").is_disabled()
        page.fill("#key-field", "wrong")
        page.press("#key-field", "Enter")
        page.wait_for_function("() => document.querySelector('#key-says').textContent.includes('Incorrect')")
        page.fill("#key-field", KEY)
        page.click("#key button")
        page.wait_for_selector("#examples button:enabled")
        assert page.locator("#key").is_hidden()
        ask(page)
        wait_for_answers(page)
        assert page.locator(".answer .error").count() == 0
        kept = "() => [JSON.stringify({...sessionStorage}), JSON.stringify({...localStorage}), document.cookie]"
        session, local, cookie = page.evaluate(kept)
        assert KEY in session
        assert KEY not in local + cookie


@needs_browser
def test_models_that_check_each_other_show_where_they_were_asked(visit: Callable[..., Any], tmp_path: Path) -> None:
    file = tiny_ensemble.write_file(tmp_path, tiny_ensemble.save(tmp_path, ("bytes", "pieces")))
    with serving(Offer.open(file, "pair", max_batch=2)) as site:
        page = visit(site.url)  # this method names no candidates: a request for them would be a 400
        ask(page)
        wait_for_answers(page)
        assert page.locator(".answer .error").count() == 0
        wanted = records(site, model="pair", candidates=None)
        asked = [at for at, record in enumerate(wanted) if record["ensembled"] or record["verdict"] == "continued"]
        marked = [at for at, record in enumerate(wanted) if record["verdict"] == "replaced"]
        assert asked, "nobody was asked, so there is nothing to see"
        shown = page.eval_on_selector_all(".token", "(all) => all.map((e) => e.className.split(' '))")
        assert [at for at, names in enumerate(shown) if "asked" in names] == asked
        assert [at for at, names in enumerate(shown) if "against" in names] == marked
        assert "the models were asked" in page.inner_text(".marks")
        page.focus(f".token[data-at='{asked[0]}']")
        assert "How likely each model finds it" in page.inner_text("#inspector")
        assert page.locator("#inspector .weights tr").count() == 2


@needs_browser
def test_what_models_and_people_write_stays_text(visit: Callable[..., Any]) -> None:
    prompt = "<script>h()</script><img src=x onerror=h()>"
    with serving(scripted_team(HOSTILE)) as site:
        page = visit(site.url)
        page.evaluate("() => { window.h = () => { window.wasRun = true; }; }")
        ask(page, prompt)
        wait_for_answers(page)
        assert page.inner_text(".question") == prompt
        shown = [*HOSTILE[:3], "␛[31m⟨U+202E⟩"]
        assert page.locator(".token").evaluate_all("(all) => all.map((e) => e.textContent)") == [*shown, ""]
        for at in range(len(HOSTILE)):
            page.mouse.move(*middle(page, at))
            assert page.locator("#inspector .candidates li").count() >= 5
        assert page.locator("#conversation svg, #turns img, #turns script, #inspector svg").count() == 0
        assert page.evaluate("() => window.wasRun") is None
