"""Nothing that can be pressed moves by itself."""

from __future__ import annotations

from typing import Any

import pytest
from lab import FIGURE, on, opened, press, run_all, settled, unfold

pytestmark = pytest.mark.browser

# The places of all that can be pressed, and of the figure, whenever they change: watched frame by
# frame into window.moves.
WATCH = """(() => {
  const screen = document.querySelector('.prunelab-screen');
  const places = () => {
    const top = screen.getBoundingClientRect(), found = {};
    for (const node of screen.querySelectorAll('button, input, select, summary')) {
      const box = node.getBoundingClientRect();
      if (node.id && box.width) found[node.id.split(' ').slice(1).join(' ')] =
        [box.left - top.left, box.top - top.top];
    }
    return found;
  };
  let before = places();
  window.moves = [];
  window.watching = true;
  const look = () => {
    const now = places();
    for (const [name, at] of Object.entries(now))
      if (before[name] && at.some((x, i) => Math.abs(x - before[name][i]) > 1))
        window.moves.push([name, before[name], at]);
    before = now;
    if (window.watching) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()"""


def moves(page: Any) -> list[Any]:
    """What has moved since it was watched."""
    found: list[Any] = page.evaluate("(window.watching = false, window.moves)")
    return found


@pytest.mark.parametrize("width", [1300, 800])
def test_nothing_that_can_be_pressed_moves_while_verbs_work(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 2400})
    page.evaluate("new Promise(done => setTimeout(done, 1500))")
    for name in ("history", "changes", "costs"):
        unfold(page, name)
    page.evaluate(WATCH)
    page.locator(on("propose")).first.click()
    page.wait_for_selector(on("approve"))
    settled(page)
    page.wait_for_selector(".pl-trial:not(.pl-hint) + .pl-trial:not(.pl-hint)")
    for verb in ("approve", "undo"):
        press(page, verb)
    assert moves(page) == []
    page.set_viewport_size({"width": 1400, "height": 2400})


def test_a_figure_that_was_put_anew_follows(page: Any) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.evaluate(
        """async () => {
             const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
             await kernel.requestExecute({ code: 'screen._draw_again()' }).done; }"""
    )
    page.wait_for_selector(FIGURE)
    for width, across in ((600, [0, 1]), (1400, [0.315, 0.73])):
        page.set_viewport_size({"width": width, "height": 2400})
        page.wait_for_function(
            """wanted => `${document.querySelector('.js-plotly-plot')?._fullLayout
                 ?.xaxis?.domain}` === `${wanted}`""",
            arg=across,
            timeout=60_000,
        )
    assert not [line for line in said if "Error setting state" in line]


def test_the_figure_comes_in_its_final_size(browser: Any, lab: str) -> None:
    page = opened(browser, lab, "plain.ipynb", width=1300, height=1000)
    page.evaluate(
        """() => { window.sizes = [];
             const look = () => {
               const drawn = document.querySelector('.js-plotly-plot .main-svg');
               const key = document.querySelector('.prunelab-screen .pl-key');
               if (drawn) window.sizes.push(drawn.getBoundingClientRect().width);
               if (key) window.keys = [...window.keys ?? [],
                 key.getBoundingClientRect().top
                 - document.querySelector('.prunelab-screen').getBoundingClientRect().top];
               requestAnimationFrame(look); };
             requestAnimationFrame(look); }"""
    )
    run_all(page)
    page.wait_for_selector(FIGURE)
    page.evaluate("new Promise(done => setTimeout(done, 1500))")
    sizes = page.evaluate("window.sizes.filter((x, i, all) => i === 0 || x !== all[i - 1])")
    assert len(sizes) == 1, "it is drawn once, in its place"
    tops = page.evaluate("window.keys")
    assert max(tops) - min(tops) <= 2, "what stands below it stays"
    page.close()
