"""Text and figure show the same state, also on a page that is loaded anew at any instant."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from lab import FIGURE, SECONDS, drag, drawn, press, question, ready, settled, unfold

pytestmark = pytest.mark.browser


def asked(page: Any) -> int:
    """The channels that the question would remove."""
    counts = re.findall(r"(\d[\d,]*) (?:of [\d,]+ )?channel", question(page))
    return sum(int(count.replace(",", "")) for count in counts)


def hatched(page: Any) -> float:
    """The channels that the figure hatches."""
    return sum(drawn(page)["proposed to drop"][0])


def agree(page: Any) -> None:
    """Wait until the figure is the one that belongs to the text, and compare what both say."""
    page.wait_for_selector(FIGURE)
    settled(page)
    # a page that missed a redraw finds that out within a second, and is sent the figure again
    page.wait_for_function(
        """() => { const now = document.querySelector('.js-plotly-plot')?.layout?.meta;
             const same = now !== undefined && now === window.earlier;
             window.earlier = now; return same; }""",
        polling=2.5 * SECONDS,
    )
    assert hatched(page) == asked(page)


def reload(page: Any) -> None:
    page.reload()
    ready(page)


def test_text_and_figure_agree_after_a_reload_at_any_instant(page: Any) -> None:
    instant = random.Random(0)
    unfold(page, "method")
    press(page, "propose")
    agree(page)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")
    for turn in range(4):
        place = instant.uniform(0.4, 0.9)
        drag(page, "[data-do=theta]", 0.5, place)
        page.mouse.up()
        page.wait_for_timeout(instant.uniform(0, 300))
        reload(page)
        agree(page)
        page.wait_for_timeout(instant.uniform(0, 1000))
        if turn % 2:
            reload(page)
            page.wait_for_timeout(instant.uniform(0, 2000))
            reload(page)
            agree(page)
        unfold(page, "method")
    press(page, "reject")
