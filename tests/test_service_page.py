"""The search page, as text and in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from typing import Any
from urllib.parse import urlencode

import pytest
from clipkit.retrieval.service.page_routes import PAGE, page_policy
from serve_jobs import KEY, Running, serving, small_model

CHROMIUM = shutil.which("chromium")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def page() -> str:
    return (resources.files("clipkit.retrieval.service") / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def running(model: Any) -> Iterator[Running]:
    with serving(model) as running:
        yield running


def dom(running: Running, query: dict[str, str], milliseconds: int = 20_000) -> str:
    """The page after its script has run."""
    assert CHROMIUM is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--virtual-time-budget={milliseconds}",
        "--dump-dom",
    ]
    found = subprocess.run(
        [CHROMIUM, *flags, f"{running.url}/?{urlencode(query)}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return found.stdout


def test_the_page_is_one_file_that_its_policy_lets_run(page: str, running: Running) -> None:
    assert not re.search(r"https?://", page)
    assert not re.search(r"<[^>]*\son\w+\s*=", page)
    assert not re.search(r"<[^>]*\sstyle\s*=", page)
    assert "innerHTML" not in page
    assert "eval(" not in page
    with running.client() as client:
        response = client.get("/")
    assert response.text == page
    policy = response.headers["content-security-policy"]
    assert policy == page_policy(page)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_the_policy_is_of_this_page_alone(page: str) -> None:
    changed = page.replace('"use strict";', '"use strict"; ')
    assert page_policy(changed) != page_policy(page)


@in_browser
def test_results_in_a_browser(running: Running) -> None:
    html = dom(running, {"q": "a red star", "k": "12"})
    cards = re.findall(r'<li class="hit">.*?</li>', html, re.DOTALL)
    assert len(cards) == 12
    assert '<p class="caption">a red star</p>' in cards[0]
    assert "similarity 1.000" in cards[0]
    assert "12 results in" in html
    like = dom(running, {"id": "2", "where": "size < 5"})
    assert re.findall(r'<p class="caption">(.*?)</p>', like)
    assert "a red star" not in re.findall(r'<p class="caption">(.*?)</p>', like)  # the row itself
    assert "Like row 2" in like


@in_browser
def test_what_the_page_says_when_there_is_nothing_to_show(running: Running, model: Any) -> None:
    assert "Nothing matches" in dom(running, {"q": "a red star", "where": "size > 99"})
    with running.engine.admitted(running.engine.settings.max_waiting):
        assert "The service is busy" in dom(running, {"q": "a red star"}, 500)
    with serving(model, keys=(KEY,)) as locked:
        assert "This service needs an API key." in dom(locked, {"q": "a red star"})
