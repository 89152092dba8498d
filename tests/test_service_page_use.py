"""The search page as people use it: keyboard, dropped pictures, links, narrow and dark screens."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from serve_jobs import Running, png, serving, small_model

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

DROP = """
async ([name, content]) => {
  const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(small_model()) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any, running: Running) -> Iterator[Any]:
    """An empty search page; what goes wrong in its script fails the test."""
    tab = browser.new_page()
    errors: list[Any] = []
    tab.on("pageerror", lambda error: errors.append(error))
    tab.goto(running.url)
    playwright.expect(tab.locator("#empty strong")).to_have_text("Look for pictures")
    yield tab
    tab.close()
    assert errors == []


def captions_of(tab: Any) -> list[str]:
    """Of the hits, once they are there."""
    playwright.expect(tab.locator("#status")).to_have_text(re.compile(r"^\d+ results? in "))
    found: list[str] = tab.locator("#grid .caption").all_text_contents()
    return found


def test_by_keyboard_alone(tab: Any) -> None:
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("/")
    tab.keyboard.type("a red star")
    tab.keyboard.press("Enter")
    first = captions_of(tab)
    assert first[0] == "a red star"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    focused = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"More like {first[1]}"
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("document.activeElement.id") == "q"
    tab.keyboard.press("Escape")
    playwright.expect(tab.locator("#empty strong")).to_have_text("Look for pictures")
    playwright.expect(tab.locator("#grid li")).to_have_count(0)


def test_what_is_typed_before_the_service_has_answered_stays(browser: Any, running: Running) -> None:
    tab = browser.new_page()
    answers: list[Any] = []
    tab.route("**/indexes", lambda route: answers.append(route))
    tab.goto(running.url)
    tab.fill("#q", "a red star")
    while not answers:
        tab.wait_for_timeout(20)
    answers[0].continue_()
    playwright.expect(tab.locator("#grid .caption").first).to_have_text("a red star")
    assert tab.input_value("#q") == "a red star"
    tab.close()


def test_more_like_this_and_the_way_back(tab: Any) -> None:
    tab.fill("#q", "a blue ring")
    tab.click("#go")
    assert captions_of(tab)[0] == "a blue ring"
    tab.locator("button.like").first.click()
    playwright.expect(tab.locator("#likeName")).to_have_text(re.compile(r"Like row \d+"))
    playwright.expect(tab.locator("#grid .caption").first).not_to_have_text("a blue ring")
    tab.go_back()
    playwright.expect(tab.locator("#grid .caption").first).to_have_text("a blue ring")
    assert tab.input_value("#q") == "a blue ring"


def test_a_dropped_picture(tab: Any) -> None:
    tab.evaluate(DROP, ["sky.png", base64.b64encode(png("blue")).decode()])
    assert len(captions_of(tab)) == 24
    playwright.expect(tab.locator("#pictureName")).to_have_text("sky.png")
    alone = tab.locator("#grid .score").first.text_content()
    tab.fill("#q", "a red star")
    tab.press("#q", "Enter")
    playwright.expect(tab.locator("#mix")).to_be_visible()
    playwright.expect(tab.locator("#grid .score").first).not_to_have_text(alone)
    tab.click("#dropPicture")
    playwright.expect(tab.locator("#parts")).to_be_hidden()
    playwright.expect(tab.locator("#grid .caption").first).to_have_text("a red star")


def test_a_dropped_file_that_is_no_picture_is_named(tab: Any) -> None:
    tab.evaluate(DROP, ["notes.png", base64.b64encode(b"only text").decode()])
    playwright.expect(tab.locator("#status")).to_have_text(re.compile("not an image"))
    playwright.expect(tab.locator("#status")).to_have_class(re.compile("bad"))


def test_a_link_shows_the_same_search(tab: Any, running: Running) -> None:
    tab.fill("#q", "a green cross")
    tab.fill("#where", "size < 12")
    tab.select_option("#k", "12")
    tab.click("#go")
    captions = captions_of(tab)
    assert len(captions) == 12
    link = tab.url
    tab.goto(running.url)
    tab.goto(link)
    assert captions_of(tab) == captions
    assert tab.input_value("#where") == "size < 12"


def test_a_wrong_filter_is_explained(tab: Any) -> None:
    tab.fill("#q", "a green cross")
    tab.fill("#where", "colour = 'red'")
    tab.click("#go")
    playwright.expect(tab.locator("#status")).to_have_text(re.compile("no column|has no|colour"))
    tab.fill("#where", "size > 99")
    tab.click("#go")
    playwright.expect(tab.locator("#empty strong")).to_have_text("Nothing matches")


def test_captions_are_text_and_never_markup(browser: Any, tab: Any) -> None:
    tab.fill("#q", "<img src=x onerror=alert(1)>")
    tab.click("#go")
    captions_of(tab)
    assert tab.locator("#grid img[src='x']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_in_light_and_dark(browser: Any, running: Running, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(f"{running.url}/?q=a+red+star")
    captions_of(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    colours = tab.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    background, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (background > 500 > ink) if scheme == "light" else (background < 250 < ink)
    context.close()
