"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from fastgen_vllm.api import engine as api_engine
from tests.api.fake import Client, make_app

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH: apt install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

KEY = "secret"
WIDTHS = (400, 1600)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with an API key."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as listening:
        patch.setattr(api_engine, "get_prometheus_registry", CollectorRegistry)
        listening.bind(("127.0.0.1", 0))
        app = make_app(Client("full"), api_key=[KEY])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/fastgen/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Any]:
    """Started after the server, because Playwright keeps an event loop in this thread."""
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    """The page after the key was given; fails if the console shows an error."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    made = context.new_page()
    problems: list[str] = []

    def console(message: Any) -> None:
        # What the tests provoke: an answer without the key, and one to a mistake.
        if message.type == "error" and not any(n in message.text for n in ("401", "400")):
            problems.append(message.text)

    def requested(asked: Any) -> None:
        if not asked.url.startswith((url, "data:")):
            problems.append(asked.url)

    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", console)
    made.on("request", requested)
    made.goto(url)
    made.get_by_label("This server wants its API key").fill(KEY)
    made.keyboard.press("Enter")
    made.locator("#heads td").first.wait_for()
    yield made
    assert problems == []
    context.close()


def test_everything_is_shown(page: Any) -> None:
    assert "preset full" in page.locator("#about").inner_text()
    cell = page.locator("#heads td")
    assert cell.inner_text() == "50"
    assert "recovered 90 %; full 2x" in cell.get_attribute("title")
    page.get_by_label("Show").select_option("recovery")
    assert page.locator("#heads td").inner_text() == "90"
    row = page.locator("#requests tbody tr")
    assert row.inner_text().split() == [
        "cmpl-1",
        "700",
        "710",
        "30",
        "%",
        "9",
        "2",
        "23",
        "coverage",
        "6",
    ]
    assert page.locator("#pool polyline").get_attribute("points")


def test_a_prompt_is_coloured_by_the_keyboard_alone(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("The quick brown fox")
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    tokens = page.locator("#tokens span")
    tokens.first.wait_for()
    assert "".join(tokens.all_inner_texts()) == "The quick brown fox"
    assert tokens.first.get_attribute("title") == "token 0: kept by 6 of 6 heads"
    assert "Policies: full 6" in page.locator("#result").inner_text()


def test_a_mistake_is_told(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("The quick brown fox")
    page.get_by_label("Recovery").fill("0.5")
    page.get_by_label("or kept share").fill("0.5")
    page.get_by_role("button", name="Profile").click()
    page.locator("#result .problem").wait_for()
    assert "not both" in page.locator("#result").inner_text()


def test_nothing_overflows_and_all_has_names(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, textarea, select, button, svg")]
        .filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.id)"""
    )
    assert nameless == []


def test_dark_and_light_differ(page: Any) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(22, 24, 29)"]
