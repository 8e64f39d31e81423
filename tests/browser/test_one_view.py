"""At 1300 x 800 what is asked, what decides it and what it moves are in view at once."""

from __future__ import annotations

from typing import Any

import pytest
from lab import on, opened, press, run_all

pytestmark = pytest.mark.browser

SIZE = {"width": 1300, "height": 800}
LOOKED_AT = (
    ".pl-tiles", ".pl-question", ".pl-told", "[data-arg=macs]", "[data-arg=lose]",
    "[data-do=theta]", "[data-do=group]", ".pl-does", ".pl-key",
    *(f"[data-do=press][data-arg={verb}]" for verb in (
        "propose", "approve", "adjust", "reject", "undo", "repair", "tune", "run", "stop")),
)  # fmt: skip


@pytest.fixture(scope="module", params=["open", "closed"])
def view(request: pytest.FixtureRequest, browser: Any, lab: str) -> Any:
    """The screen at the top of the notebook's window; JupyterLab's side bar is open by default."""
    page = opened(browser, lab, "plain.ipynb", **SIZE)
    if request.param == "closed":
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    run_all(page)
    yield page
    page.close()


def outside(page: Any) -> list[str]:
    """What of the first view is not wholly inside the notebook's window."""
    page.evaluate("document.querySelector('.prunelab-screen').scrollIntoView()")
    found: list[str] = page.evaluate(
        """wanted => {
             const window_ = document.querySelector('.prunelab-screen')
               .closest('.jp-WindowedPanel-outer').getBoundingClientRect();
             const inside = box => box.width && box.top >= window_.top - 1
               && box.bottom <= window_.bottom + 1 && box.left >= window_.left
               && box.right <= window_.right;
             const out = wanted.filter(s => !inside(
               document.querySelector('.prunelab-screen ' + s).getBoundingClientRect()));
             const figure = document.querySelector('.prunelab-figure').getBoundingClientRect();
             // the search, its lower part, is cut off
             const cut = parseFloat(getComputedStyle(document.querySelector('.prunelab-figure'))
               .marginBottom);
             if (!inside(new DOMRect(figure.x, figure.y, figure.width, figure.height + cut)))
               out.push('figure');
             return out; }""",
        list(LOOKED_AT),
    )
    return found


def clipped(page: Any, selector: str) -> bool:
    """Whether what is told does not fit into its place."""
    return bool(
        page.evaluate(
            """selector => { const told = document.querySelector(selector);
                 return told.scrollHeight > told.clientHeight + 1; }""",
            selector,
        )
    )


def buttons(page: Any) -> dict[str, list[float]]:
    """The places of the verbs' buttons."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.pl-buttons button')].map(
             b => { const { x, y, width, height } = b.getBoundingClientRect();
                    return [b.dataset.arg, [x, y, width, height]]; }))"""
    )


def test_one_view_holds_question_aims_verbs_and_figure_and_no_button_moves(view: Any) -> None:
    assert outside(view) == []
    before = buttons(view)
    assert len(before) == 9
    view.locator(on("propose")).first.click()
    view.wait_for_selector(on("approve"))
    view.wait_for_selector(".pl-trial:not(.pl-hint) + .pl-trial:not(.pl-hint)")
    assert outside(view) == []
    assert not clipped(view, ".pl-told"), "proposal and both verdicts are read without scrolling"
    view.wait_for_selector(".pl-proved")
    assert not clipped(view, ".pl-does"), "so is how far the move is from the best one"
    assert not clipped(view, ".pl-how"), "and how the channels were chosen"
    for verb, place in buttons(view).items():
        assert place == pytest.approx(before[verb], abs=1), verb
    press(view, "reject")
