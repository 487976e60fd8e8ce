"""The chat page in headless Chromium: what a user does with it, what it shows, and what it never does."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_py.package import Package
from runtime_py.server.app import App
from runtime_py.server.settings import ServerSettings
from tests.runtime_py.server.live import serving

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: make browser installs it")
CHAT = "**/v1/chat/completions"
DONE = {"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}, "choices": []}
TIMINGS = {"predicted_n": 3, "predicted_per_second": 41.7}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    settings = ServerSettings(port=0)
    with Package.load(folder) as package, serving(App({"toy": package}, settings), settings) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:
    """Opens the page. Requests to other hosts, errors and violations of its policy fail the test."""
    problems: list[str] = []
    contexts = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda entry: entry.type == "error" and problems.append(entry.text))
        page.on("request", lambda one: one.url.startswith((address, "data:")) or problems.append(one.url))
        page.goto(address)
        page.wait_for_selector("#welcome-text:not(:empty)")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [one for one in problems if "Failed to load resource" not in one] == []  # of errors on purpose


def answer(
    page: Any, text: str = "Hello!", finish: str = "stop", reasoning: str = "", **more: Any
) -> list[Any]:
    """Let the server answer with a text, in two parts. Returns the bodies of the requests."""
    bodies: list[Any] = []
    half = len(text) // 2
    deltas = [{"reasoning_content": reasoning}, {"content": text[:half]}, {"content": text[half:]}]
    parts: list[Any] = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    parts += [{"choices": [{"delta": {}, "finish_reason": finish}]}, DONE | {"timings": TIMINGS} | more]
    stream = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"

    def fulfil(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=200, content_type="text/event-stream", body=stream)

    page.unroute(CHAT)
    page.route(CHAT, fulfil)
    return bodies


def refuse(page: Any, status: int, message: str, code: str | None = None) -> None:
    body = json.dumps({"error": {"message": message, "code": code}})
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.fulfill(status=status, content_type="application/json", body=body))


def send(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#send:not([hidden])")


def texts(page: Any) -> list[str]:
    return [one.strip() for one in page.locator(".message .body").all_inner_texts()]


def test_the_server_answers(open_page: Open) -> None:
    """Without any pretence: the toy model generates, and the answer is stored."""
    page = open_page()
    send(page, "a b c")
    shown = texts(page)
    assert shown[0] == "a b c"
    assert len(shown) == 2
    assert "tokens" in page.inner_text(".message.assistant .facts")
    page.reload()
    page.wait_for_selector(".message")
    assert texts(page) == shown


def test_what_a_request_has(open_page: Open) -> None:
    page = open_page()
    bodies = answer(page)
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0.7")
    page.fill("#max_tokens", "9")
    page.click("#settings .primary")
    send(page, "One")
    send(page, "Two")
    assert bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Two"},
    ]
    assert (bodies[1]["temperature"], bodies[1]["max_tokens"], bodies[1]["model"]) == (0.7, 9, "toy")
    assert "top_p" not in bodies[1]
    assert page.inner_text(".message:last-child .facts") == "3 tokens · 42 tokens/s"
    assert page.inner_text("#context-text").startswith("10 / ")


def test_edit_regenerate_and_copy(open_page: Open) -> None:
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer(page, "First")
    send(page, "One")
    bodies = answer(page, "Second")
    page.click("[aria-label='Regenerate the answer']")
    page.wait_for_selector("text=Second")
    assert bodies[0]["messages"] == [{"role": "user", "content": "One"}]
    answer(page, "Third")
    page.press("#prompt", "ArrowUp")  # edits the last message
    page.fill(".editor textarea", "Uno")
    page.press(".editor textarea", "Enter")
    page.wait_for_selector("text=Third")
    assert texts(page) == ["Uno", "Third"]
    page.locator("[aria-label='Copy the message']").last.click()
    page.wait_for_selector("#status:has-text('Copied')", state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == "Third"


def test_stop_keeps_what_is_there(open_page: Open) -> None:
    page = open_page()
    endless = """
        window.fetch = (real => (path, options) => path.includes('completions')
          ? Promise.resolve(new Response(new ReadableStream({ start(controller) {
              const part = {choices: [{delta: {content: 'Some text'}, finish_reason: null}]};
              controller.enqueue(new TextEncoder().encode('data: ' + JSON.stringify(part) + '\\n\\n'));
              options.signal.addEventListener('abort', () => controller.error(options.signal.reason));
            }})))
          : real(path, options))(window.fetch);
        null"""
    page.evaluate(endless)
    page.fill("#prompt", "Go")
    page.press("#prompt", "Enter")
    page.wait_for_selector("text=Some text")
    page.press("#prompt", "Escape")
    page.wait_for_selector("#send:not([hidden])")
    assert texts(page) == ["Go", "Some text"]


def test_several_conversations(open_page: Open) -> None:
    page = open_page()
    answer(page)
    send(page, "The first")
    page.press("#prompt", "Alt+n")
    send(page, "The second")
    names = page.locator("#conversations .name")
    assert names.all_inner_texts() == ["The second", "The first"]
    names.nth(1).click()
    assert texts(page) == ["The first", "Hello!"]
    page.click("[aria-label='Delete The first']")
    page.click("#confirm .danger")
    page.wait_for_selector(".message >> text=The second")
    assert names.all_inner_texts() == ["The second"]


MARKDOWN = """# Title
A *slanted*, **bold** and `code` text with a [link](https://example.org) and ![picture](https://example.org/x.png).

- one
  1. deep

| a | b |
|---|---|
| 1 | 2 |

> quoted

```python
print("<b>")
```
"""


def test_markdown(open_page: Open) -> None:
    page = open_page()
    answer(page, MARKDOWN)
    send(page, "Format")
    body = page.locator(".message.assistant .body")
    for selector in (
        "h3",
        "em",
        "strong",
        "p > code",
        "ul ol > li",
        "table td",
        "blockquote",
        ".code pre code",
    ):
        assert body.locator(selector).count(), selector
    link = body.locator("a").first
    assert (link.get_attribute("href"), link.get_attribute("rel")) == (
        "https://example.org",
        "noopener noreferrer",
    )
    assert body.locator("img").count() == 0  # it would be loaded from elsewhere
    assert body.locator(".code-head span").inner_text() == "python"
    assert body.locator("pre code").inner_text() == 'print("<b>")'


HTML = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "<a href='javascript:alert(1)'>x</a>",
    "![x](javascript:alert(1))",
    "```<img src=x onerror=alert(1)>\n<svg onload=alert(1)>\n```",
    "<style>body { display: none }</style>",
    "| <iframe src=//example.org></iframe> |\n|---|\n",
]


def test_output_is_never_html(open_page: Open) -> None:
    page = open_page()
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for text in HTML:
        answer(page, text, reasoning=text)
        send(page, text)
    assert page.locator(".message").count() == 2 * len(HTML)
    for selector in ("img", "script", "iframe", "style", "svg[onload]", "a"):
        assert page.locator(f".message .body {selector}").count() == 0
    assert page.evaluate("getComputedStyle(document.body).display") == "grid"


def test_reasoning_is_apart(open_page: Open) -> None:
    page = open_page()
    bodies = answer(page, "4", reasoning="2 and 2 is 4")
    send(page, "Add")
    assert page.text_content("details.reasoning div") == "2 and 2 is 4"
    send(page, "Again")
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": "4"}


def test_a_full_context_is_named(open_page: Open) -> None:
    page = open_page()
    refuse(page, 400, "too long", "context_length_exceeded")
    send(page, "Very long")
    assert "The context is full" in page.inner_text("#notice")
    page.click("#notice button")
    assert page.locator(".message").count() == 0
    assert page.is_hidden("#notice")


def test_errors_say_what_to_do(open_page: Open) -> None:
    page = open_page()
    refuse(page, 429, "all slots are in use: try again")
    send(page, "One")
    assert "all slots are in use" in page.inner_text("#notice")
    answer(page, "At last")
    page.click("#notice button")
    page.wait_for_selector("text=At last")
    assert texts(page) == ["One", "At last"]
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.abort())
    send(page, "Two")
    assert "The server does not answer" in page.inner_text("#notice")


def test_an_api_key_is_asked_for(browser: Any, folder: Path) -> None:
    settings = ServerSettings(port=0, api_keys=("secret",))
    with Package.load(folder) as package, serving(App({"toy": package}, settings), settings) as (host, port):
        page = browser.new_page()
        page.goto(f"http://{host}:{port}/")
        page.wait_for_selector("#settings[open]")
        assert "API key" in page.inner_text("#settings-notice")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("#welcome-text:not(:empty)")
        page.close()


def test_damaged_storage_is_left_out(open_page: Open) -> None:
    page = open_page()
    page.evaluate('localStorage.setItem(\'o2o.conversations\', \'[{"id": 3}, null, {"id": "a"\')')
    page.reload()
    page.wait_for_selector("#welcome-text:not(:empty)")
    page.evaluate("localStorage.setItem('o2o.conversations', '[{\"id\": 3}, null]')")
    page.evaluate("localStorage.setItem('o2o.settings', '7')")
    page.reload()
    page.wait_for_selector("#welcome-text:not(:empty)")
    assert page.locator("#conversations li").count() == 0


def test_a_full_storage_loses_the_oldest(open_page: Open) -> None:
    page = open_page()
    page.evaluate("localStorage.setItem('filler', 'x'.repeat(5_100_000))")
    answer(page, "x" * 50_000)
    for number in range(4):
        page.press("body", "Alt+n")
        send(page, f"Number {number}")
    assert "oldest conversation was removed" in page.inner_text("#notice")
    names = page.locator("#conversations .name").all_inner_texts()
    assert names[0] == "Number 3"
    assert "Number 0" not in names


SIZES = {"desktop": (1200, 800), "phone": (360, 640)}


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_accessibility(size: str, scheme: str, open_page: Open) -> None:
    """Axe's rules, and nothing wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    width, height = SIZES[size]
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": height}, bypass_csp=True)
    answer(page, MARKDOWN, reasoning="thought")
    page.fill("#prompt", "A message")
    page.click("#send")
    page.wait_for_selector("#send:not([hidden])")
    violations = {"conversation": axe.run(page).response["violations"]}
    page.click("#open-settings")
    violations["settings"] = axe.run(page).response["violations"]
    assert {
        where: [(one["id"], one["nodes"][0]["html"]) for one in of_page]
        for where, of_page in violations.items()
        if of_page
    } == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything(open_page: Open) -> None:
    page = open_page()
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"skip", "new", "open-settings", "prompt"} <= set(reached)


def test_the_phone_has_a_list(open_page: Open) -> None:
    page = open_page(viewport={"width": 360, "height": 640})
    answer(page)
    page.fill("#prompt", "Hi")
    page.click("#send")
    page.wait_for_selector("text=Hello!")
    assert not page.is_visible("#new")
    page.click("#open-sidebar")
    page.wait_for_selector("#sidebar.open")
    assert page.locator("#conversations .name").all_inner_texts() == ["Hi"]
    page.click("#new")
    page.wait_for_selector("#sidebar:not(.open)", state="attached")
    assert page.locator(".message").count() == 0


def test_headers(address: str) -> None:
    for path in ("", "page/main.js"):
        with urllib.request.urlopen(address + path) as response:
            assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
    for path in ("page/%2e%2e/app.py", "page/../app.py", "page/", "page/vendor"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)
