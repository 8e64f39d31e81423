"""The exported report in a real browser: it steps through the session without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunelab as pl

pytestmark = pytest.mark.browser


def test_the_report_steps_through_the_session_without_a_network(
    browser: Any, session: pl.Session, tmp_path: Path
) -> None:
    session.propose()
    session.approve()
    address = session.export(tmp_path / "run.html").as_uri()
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text))
    page.goto(address)
    seen = []

    def look(step: int) -> None:
        page.wait_for_function(
            "step => document.querySelector('#place').textContent.startsWith(`step ${step} `)",
            arg=step,
        )
        seen.append(page.inner_html("#steps"))

    look(1)
    page.click("#next")
    look(2)
    page.keyboard.press("ArrowRight")
    look(3)
    assert len(set(seen)) == 3, "the page changes with every step"
    page.keyboard.press("ArrowLeft")
    look(2)
    assert seen[3] == seen[1]
    for width in (1200, 500):
        page.set_viewport_size({"width": width, "height": 1400})
        page.wait_for_function(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
    assert (asked, errors) == ([address], [])
    page.close()
