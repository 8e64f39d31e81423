"""A notebook that is opened again without the kernel that made its screen."""

from __future__ import annotations

from typing import Any

import pytest
from lab import SECONDS, opened, ready, run_all

pytestmark = pytest.mark.browser


def test_a_notebook_without_its_kernel_shows_the_picture(browser: Any, lab: str) -> None:
    page = opened(browser, lab, "still.ipynb")
    run_all(page)
    assert page.locator(".prunelab-still").count() == 1
    assert not page.locator(".prunelab-still").is_visible(), "the screen lives"
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    # Not `reload()`: that brings back the notebooks of other pages too, whose pictures are hidden.
    page.goto(f"{lab}/lab/tree/still.ipynb?reset")
    ready(page)
    page.wait_for_selector(".prunelab-still", timeout=60 * SECONDS)
    page.wait_for_timeout(3 * SECONDS)
    assert page.locator(".prunelab-still").is_visible()
    assert page.evaluate("document.querySelector('.prunelab-still').naturalWidth") > 500
    assert not page.get_by_text("model not found").is_visible()
    page.close()
