"""The chat page in Chromium, driven by Playwright: type, stream, stop, compare, see alternatives, lose nothing."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.environments import make_environment
from support.served import Served, serving

pytestmark = pytest.mark.long
Page = Any  # mypy does not see Playwright
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
MARKUP = "<img src=x onerror=\"document.title='it ran'\"><b>bold</b>"


@pytest.fixture(scope="module")
def server(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that asks for a key, with a model that chats and one that is only pretrained."""
    models = [str(finished_run), str(finished_run / "pretrain"), "--name", "tuned", "--name", "base"]
    with serving(*models, "--api-key", "sesame", cwd=tmp_path_factory.mktemp("server")) as served:
        yield served


@pytest.fixture(scope="module")
def playwright() -> Any:
    """Playwright's interface, from an environment that has it."""
    python = make_environment("playwright", "playwright")
    sys.path += map(str, python.parent.parent.glob("lib/python*/site-packages"))
    return import_module("playwright.sync_api")


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    if not (chromium := shutil.which("chromium")):
        pytest.skip("needs chromium, from Debian's package of that name")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=FLAGS)


@pytest.fixture
def page(browser: Any, server: Served, playwright: Any) -> Iterator[Page]:
    """The page with the key. It asks no other server, and no script of it fails."""
    playwright.expect.set_options(timeout=10_000)
    context, faults, addresses = browser.new_context(), list[str](), set[str]()
    context.set_default_timeout(10_000)
    context.add_init_script("sessionStorage.getItem('key') ?? sessionStorage.setItem('key', 'sesame')")
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: addresses.add(request.url.split("/")[2]))
    page.goto(f"http://127.0.0.1:{server.port}/")
    playwright.expect(page.locator("#first option")).to_have_count(2)
    yield page
    context.close()
    assert (faults, addresses) == ([], {f"127.0.0.1:{server.port}"})


@pytest.fixture
def expect(playwright: Any) -> Any:
    return playwright.expect


def choose(page: Page, first: str, second: str = "") -> None:
    page.locator("#first").select_option(first)
    page.locator("#second").select_option(second)


def say(page: Page, text: str) -> None:
    """Send a text, and wait for the end of the answers."""
    page.locator("#box").fill(text)
    page.keyboard.press("Enter")
    page.locator("#send", has_text="Send").wait_for()


def see(page: Page, selector: str) -> list[str]:
    texts: list[str] = page.locator(selector).all_text_contents()
    return texts


def never_end(page: Page) -> None:
    """Have the server give answers that do not end by themselves."""

    def pass_on(route: Any) -> None:
        asked = route.request.post_data_json | {"ignore_eos": True, "max_tokens": 16384}
        route.continue_(post_data=json.dumps(asked))

    page.route("**/*completions", pass_on)


def make_chunk(text: str, logprob: float) -> dict[str, Any]:
    """Return a chunk of a chat: a token without alternatives."""
    entry = {"token": text, "logprob": logprob, "top_logprobs": []}
    return {"choices": [{"delta": {"content": text}, "logprobs": {"content": [entry]}}]}


def answer_with(page: Page, *events: Any, **response: Any) -> None:
    """Have the browser get this instead of the server's answer."""
    body = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    response = {"content_type": "text/event-stream", "body": body} | response
    page.route("**/*completions", lambda route: route.fulfill(**response))


def test_a_chat_streams_with_the_settings_and_goes_on(page: Page, expect: Any) -> None:
    choose(page, "tuned")
    page.get_by_label("Max tokens").fill("12")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("System message").fill("Be brief.")
    say(page, "hi")
    (answer,) = see(page, ".text")
    assert answer == "".join(see(page, ".text .token")) and see(page, ".question") == ["hi"]
    assert "tokens/s" in see(page, ".meta")[0] and "context " in see(page, ".meta")[0]
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "why?")
    asked = sent.value.post_data_json
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", answer), ("user", "why?")]
    assert asked["messages"] == [{"role": role, "content": content} for role, content in turns]
    assert (asked["temperature"], asked["top_k"], asked["max_tokens"], asked["seed"]) == (0.7, 50, 12, 7)
    answers = see(page, ".text")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#send")).to_have_text("Send")
    assert see(page, ".text") == answers  # the seed is the same
    page.get_by_role("button", name="Clear").click()
    assert see(page, "article") == [] and page.locator("#box").input_value() == ""


def test_escape_stops_an_answer_and_shift_enter_begins_a_line(page: Page, expect: Any) -> None:
    choose(page, "tuned")
    never_end(page)
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    page.keyboard.press("Enter")
    expect(page.locator(".text .token").nth(5)).to_be_attached()
    expect(page.locator("#send")).to_have_text("Stop")
    page.keyboard.press("Escape")
    expect(page.locator(".error")).to_have_text("Stopped.")
    assert re.search("context (full, the oldest left out|[1-6]?[0-9] of 64)$", see(page, ".meta")[0])
    count = page.locator(".text .token").count()
    expect(page.locator("#send")).to_have_text("Send")
    page.wait_for_timeout(300)
    assert page.locator(".text .token").count() == count and see(page, ".question") == ["first\nsecond"]


def test_two_models_stream_side_by_side_and_continue_their_own_texts(page: Page, expect: Any) -> None:
    assert page.locator("#second").input_value() == "" and page.locator("#continues").is_enabled()
    choose(page, "tuned", "base")
    expect(page.locator("#why")).to_have_text("base is only pretrained, so both continue a text")
    never_end(page)
    page.locator("#box").fill("Once")
    page.get_by_role("button", name="Send").click()
    for column in range(2):
        expect(page.locator("section").nth(column).locator(".token").nth(5)).to_be_attached()
    expect(page.locator("#send")).to_have_text("Stop")  # neither has ended
    boxes = "sections => sections.map(section => section.getBoundingClientRect().toJSON())"
    left, right = page.locator("section").evaluate_all(boxes)  # at one moment, as the page scrolls
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".error").nth(1)).to_have_text("Stopped.")
    page.unroute("**/*completions")
    page.get_by_label("Max tokens").fill("4")
    texts = see(page, ".text")
    prompts = dict[str, str]()
    page.on("request", lambda sent: prompts.update({sent.post_data_json["model"]: sent.post_data_json["prompt"]}))
    say(page, " upon")
    assert see(page, "h2") == ["tuned", "base"] * 2 and texts[0] != texts[1]
    assert prompts == {"tuned": texts[0] + " upon", "base": texts[1] + " upon"}


def test_keyboard_and_pointer_show_the_alternatives_to_a_token(page: Page, expect: Any) -> None:
    choose(page, "tuned")
    page.get_by_label("Seed").fill("7")
    say(page, "hi")
    while not page.locator(".text .token:focus").count():
        page.keyboard.press("Shift+Tab")
    popup = page.get_by_role("tooltip")
    for n in range(2):
        # A character may have several tokens, each with a table.
        rows = [row.split("\t") for row in popup.locator("table").first.locator("tr").all_inner_texts()]
        shares = [float(share.strip("<% ")) for *_, share in rows]
        assert len(rows) in (6, 7) and shares[:6] == sorted(shares[:6], reverse=True) and sum(shares) <= 100.1
        assert popup.locator(".chosen").count() == popup.locator("table").count()
        assert page.locator(".text .token").nth(n).evaluate("token => token === document.activeElement")
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(popup).to_be_hidden()
    next(token for token in page.locator(".text .token").all() if token.inner_text().strip()).hover()
    expect(popup).to_be_visible()


def test_likelier_tokens_are_shaded_less_and_shading_can_be_switched_off(page: Page) -> None:
    choose(page, "tuned")
    answer_with(page, make_chunk("a", 0.0), make_chunk("b", -1.0), make_chunk("c", -9.0), "[DONE]")
    say(page, "hi")
    shade = "token => Number(getComputedStyle(token).backgroundColor.split('/')[1]?.replace(')', '') ?? 0)"
    first, second, third = (token.evaluate(shade) for token in page.locator(".text .token").all())
    assert first == 0 < second < third <= 1
    page.get_by_label("Shade by probability").uncheck()
    assert page.locator(".text .token").last.evaluate(shade) == 0


def test_nothing_is_lost_on_an_error_and_words_say_which(page: Page, expect: Any) -> None:
    choose(page, "tuned")
    page.get_by_label("Max tokens").fill("4")
    say(page, "hi")
    before = see(page, ".text")

    def fail(text: str, message: str) -> None:
        say(page, text)
        expect(page.locator("#problem")).to_contain_text(message)
        assert page.locator("#box").input_value() == text and see(page, ".text") == before
        page.get_by_role("button", name="Retry").click()
        expect(page.locator("#send")).to_have_text("Send")
        assert see(page, ".text") == before

    answer_with(page, status=429, headers={"Retry-After": "3"})
    fail("busy", "The server is busy. Send it again in 3 s.")
    page.unroute("**/*completions")
    answer_with(page, {"error": {"message": "it broke"}})
    fail("broken", "it broke")
    page.unroute("**/*completions")
    answer_with(page)
    fail("cut", "The server ended the answer too early.")
    page.unroute("**/*completions")
    page.context.set_offline(True)
    fail("gone", "The server does not answer. Is it still running?")
    page.context.set_offline(False)
    say(page, "x" * (1 << 20))
    expect(page.locator("#problem")).to_contain_text("The server refused this (413): the body is larger")
    say(page, "again")
    expect(page.locator("#problem")).to_be_hidden()
    assert len(see(page, ".text")) == 2


def test_the_page_asks_for_the_key_and_keeps_it(page: Page, expect: Any) -> None:
    page.evaluate("() => sessionStorage.setItem('key', '')")
    page.reload()
    for problem, key in {"needs an API key": "wrong", "does not accept this API key": "sesame"}.items():
        expect(page.locator("#problem")).to_contain_text(problem)
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#first option")).to_have_count(2)
    page.reload()
    expect(page.locator("#first option")).to_have_count(2)
    assert page.get_by_label("API key").is_hidden() and page.locator("#problem").is_hidden()


def test_what_models_and_people_write_is_text(page: Page) -> None:
    choose(page, "tuned")
    answer_with(page, make_chunk(MARKUP, -1.0), "[DONE]")
    say(page, MARKUP)
    page.locator(".text .token").hover()
    assert see(page, ".question") == see(page, ".text") == [MARKUP]
    assert see(page, "#popup .chosen td:nth-child(2)") == [MARKUP.replace(" ", "␣")]
    assert page.locator("img").count() == 0 and page.title() == "niels_gpt"


def test_the_end_of_a_long_answer_stays_in_view_unless_the_reader_scrolls_up(page: Page, expect: Any) -> None:
    choose(page, "tuned")
    never_end(page)
    for question in ("first", "second"):
        page.locator("#box").fill(question)
        page.keyboard.press("Enter")
        expect(page.locator("article:last-child .token").nth(400)).to_be_in_viewport()
        expect(page.locator("article:last-child .meta")).to_contain_text("context full, the oldest left out")
        page.keyboard.press("Escape")
        expect(page.locator("article:last-child .error")).to_be_in_viewport()
    page.locator("#box").fill("third")
    page.keyboard.press("Enter")
    page.locator(".question").first.scroll_into_view_if_needed()
    expect(page.locator("article:last-child .token").nth(100)).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator(".question").first).to_be_in_viewport()


def test_a_phone_scrolls_down_only(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    choose(page, "tuned", "base")
    page.get_by_label("Max tokens").fill("300")
    say(page, "word" * 300)
    page.locator(".text .token").last.hover()
    wide = "() => [document.documentElement, log, settings].map(part => part.scrollWidth - part.clientWidth)"
    assert page.evaluate(wide) == [0, 0, 0]
    left, right = (page.locator("section").nth(column).bounding_box() for column in range(2))
    assert left["x"] == right["x"] and left["width"] > 340 and left["y"] + left["height"] <= right["y"]
