"""A monkey at the screen: whatever it does, text, figure, session and a fresh screen agree."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from lab import SECONDS, opened, ready, run_all, settled
from playwright.sync_api import TimeoutError

pytestmark = pytest.mark.browser

SCREEN = ".prunelab-screen"
TYPED = ("", "0", "-3", "0.02", "1", "7", "50", "63.5", "1e9", "abc", "0-4, 7", "50%", "layer2")
KEYS = ("p", "a", "e", "r", "u", "Tab", "Escape", "Enter", "x")
WIDTHS = (1400, 1000, 640)
CHECKED = 20  # actions between two comparisons
# A page that is too busy for two seconds while it loads: anywidget's limit, not the screen's. The
# screen then says that the kernel does not answer, and the page is to be loaded once more.
BUSY = "[anywidget] Failed to initialize model."

# One of the visible, enabled elements, brought into view: its name and its place.
PICK = """([selector, share]) => {
  const all = [...document.querySelectorAll(selector)].filter(
    n => n.getClientRects().length && !n.disabled);
  if (!all.length) return null;
  const node = all[Math.floor(share * all.length)];
  node.scrollIntoView({ block: 'center' });
  const { x, y, width, height } = node.getBoundingClientRect();
  const { do: verb, arg } = node.dataset;
  return { name: `${node.localName} ${verb ?? ''} ${arg ?? node.innerText.slice(0, 30)}`,
           x, y, width, height }; }"""

# What the kernel holds, and what a fresh screen on the same session would show.
ASK = """
def told():
    import json
    from prunelab.evidence.fingerprint import fingerprint
    from prunelab.notebook import Screen
    fresh = Screen(session)
    fresh.choice.look(screen.choice.group)
    with screen._ui:
        made = screen.choice.made is not None
        held = dict(
            parts={name: screen.part(name) for name in (*screen._above, *screen._below)},
            figure=screen.figure.sent,
            line=session.state.line(),
            whole=fingerprint(session.model) == session.state.now.event.fingerprint,
            fresh=made or fresh._info() == screen._info(),
        )
    fresh.close()
    return json.dumps(held)

print(told())
"""
RUN = """async code => {
  const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
  const future = kernel.requestExecute({ code, store_history: false }); let said = '';
  future.onIOPub = ({ content }) => { said += content.text ?? content.traceback?.join('') ?? ''; };
  await future.done;
  return said; }"""

# Where the page says another thing than the kernel's HTML, and where it draws another figure.
COMPARE = """held => {
  const screen = document.querySelector('.prunelab-screen'), differ = [];
  const words = root => root.textContent.replace(/\\s+/g, ' ').trim();
  const states = root => [...root.querySelectorAll('[data-do]')].map(n => [n.dataset.do,
    n.dataset.arg, n.disabled, n.type === 'checkbox' ? n.checked : n.value ?? null].join('|'));
  for (const [name, html] of Object.entries(held.parts)) {
    if (name === 'picture') continue;
    const shown = screen.querySelector(`:scope > .pl-part > .pl-${name}`);
    const ought = document.createElement('div');
    ought.innerHTML = html;
    if (words(shown) !== words(ought)) differ.push([name, words(shown), words(ought)]);
    const [is, should] = [states(shown), states(ought)];
    is.forEach((one, i) => { if (one !== should[i]) differ.push([name, one, should[i]]); });
  }
  const plot = screen.querySelector('.js-plotly-plot'), { data, layout } = held.figure;
  const plain = value => JSON.stringify(value ?? null);
  data.forEach((trace, i) => {
    for (const key of ['x', 'y', 'text', 'customdata', 'hovertext', 'visible', 'opacity', 'name'])
      if (plain(trace[key]) !== plain(plot.data[i][key])) differ.push([trace.name, key]);
  });
  layout.annotations.forEach((one, i) => {
    if (one.text !== plot.layout.annotations[i].text) differ.push(['annotation', one.text]);
  });
  for (const axis of ['xaxis', 'yaxis', 'xaxis3', 'yaxis3', 'xaxis4', 'yaxis4'])
    for (const key of ['domain', 'tickvals', 'ticktext'])
      if (plain(layout[axis][key]) !== plain(plot.layout[axis][key])) differ.push([axis, key]);
  if (plot.layout.meta !== layout.meta) differ.push(['number', plot.layout.meta, layout.meta]);
  return differ; }"""


class Monkey:
    """Acts at random, and remembers what it did."""

    def __init__(self, page: Any, seed: int) -> None:
        self.page, self.chance = page, random.Random(seed)
        self.did: list[str] = []
        self.acts: list[tuple[int, Callable[[], str]]] = [
            (8, self.press), (4, self.unfold), (4, self.type), (3, self.choose), (4, self.drag),
            (6, self.key), (4, self.click_figure), (1, self.resize), (1, self.wait),
        ]  # fmt: skip

    def act(self) -> None:
        """Do one thing; what comes too late for it is no fault."""
        weights, acts = zip(*self.acts, strict=True)
        (chosen,) = self.chance.choices(acts, weights)
        self.did.append(f"{chosen.__name__}: {chosen()}")
        self.page.wait_for_timeout(self.chance.choice((0, 0, 30, 150, 600)))

    def inside(self, selector: str) -> bool:
        """Whether the keyboard is with such an element of the screen."""
        found: bool = self.page.evaluate(
            "selector => document.activeElement.matches(`.prunelab-screen ${selector}`)", selector
        )
        return found

    def pick(self, selector: str) -> Any:
        return self.page.evaluate(PICK, [f"{SCREEN} {selector}", self.chance.random()])

    def _click(self, found: Any) -> str:
        if found is None:
            return "nothing"
        self.page.mouse.click(
            found["x"] + found["width"] / 2,
            found["y"] + min(found["height"] / 2, 10),
            click_count=self.chance.choice((1, 1, 1, 2)),
        )
        return str(found["name"])

    def press(self) -> str:
        return self._click(self.pick(":is(button, input[type=checkbox])"))

    def unfold(self) -> str:
        return self._click(self.pick("summary"))

    def type(self) -> str:
        found = self.pick("input:is([type=number], [type=text]):not([data-do=export])")
        if found is None:
            return "nothing"
        words = self.chance.choice(TYPED)
        self.page.mouse.click(found["x"] + 9, found["y"] + found["height"] / 2, click_count=3)
        if not self.inside("input"):  # the table was sorted meanwhile
            return "missed"
        self.page.keyboard.type(words or "8", delay=self.chance.choice((0, 60)))
        if not words:
            self.page.keyboard.press("Backspace")
        self.page.keyboard.press(self.chance.choice(("Enter", "Tab", "Enter", "Escape")))
        return f"{found['name']} := {words}"

    def choose(self) -> str:
        found = self.page.evaluate(
            """([selector, share]) => {
                 const all = [...document.querySelectorAll(selector)].filter(
                   n => n.getClientRects().length);
                 if (!all.length) return null;
                 const node = all[Math.floor(share * all.length)];
                 const { options } = node;
                 node.value = options[Math.floor((share * 7919) % 1 * options.length)].value;
                 for (const event of ['input', 'change'])
                   node.dispatchEvent(new Event(event, { bubbles: true }));
                 return `${node.dataset.do} ${node.dataset.arg ?? ''} := ${node.value}`; }""",
            [f"{SCREEN} select", self.chance.random()],
        )
        return str(found)

    def drag(self) -> str:
        found = self.pick("input[type=range]")
        if found is None:
            return "nothing"
        y = found["y"] + found["height"] / 2
        self.page.mouse.move(found["x"] + found["width"] * self.chance.random(), y)
        self.page.mouse.down()
        for _ in range(4):
            self.page.mouse.move(found["x"] + found["width"] * self.chance.random(), y)
            self.page.wait_for_timeout(self.chance.choice((0, 40)))
        self.page.mouse.up()
        return str(found["name"])

    def key(self) -> str:
        # elsewhere they are the notebook's: x cuts a cell
        if self.chance.random() < 0.5 or not self.inside("*"):
            self.page.locator(SCREEN).focus()
        pressed = self.chance.choice(KEYS)
        self.page.keyboard.press(pressed)
        return pressed

    def click_figure(self) -> str:
        found = self.pick(".prunelab-figure")
        if found is None:
            return "nothing"
        x = found["x"] + found["width"] * self.chance.random()
        y = found["y"] + min(found["height"], 314) * self.chance.random()
        self.page.mouse.move(x - 2, y)
        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(80)
        self.page.mouse.click(x, y)
        return f"{x:.0f}, {y:.0f}"

    def resize(self) -> str:
        width = self.chance.choice(WIDTHS)
        self.page.set_viewport_size({"width": width, "height": 1500})
        return str(width)

    def wait(self) -> str:
        self.page.wait_for_timeout(1500)
        return ""


def reload(monkey: Monkey) -> None:
    """Load the page anew, until its screen is drawn."""
    for _ in range(3):
        monkey.page.reload()
        monkey.did.append("reload")
        ready(monkey.page)
        try:
            monkey.page.wait_for_selector(f"{SCREEN}.pl-drawn", timeout=40 * SECONDS)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"the screen is not drawn after {monkey.did}")


def rest(page: Any) -> None:
    """Leave the boxes and end what is at work."""
    page.evaluate("document.activeElement?.blur()")
    stop = page.locator(f"{SCREEN} .pl-buttons [data-arg=stop]:not(:disabled)")
    if stop.count():
        stop.first.evaluate("node => node.click()")
    settled(page)


def differences(page: Any) -> list[Any]:
    """Where page, session and a fresh screen disagree."""
    told = page.evaluate(RUN, ASK)
    held = json.loads(told.strip().splitlines()[-1])
    found: list[Any] = page.evaluate(COMPARE, held)
    if page.locator(".pl-state p").inner_text() != held["line"]:
        found.append(["line", held["line"]])
    found += [[name] for name in ("whole", "fresh") if not held[name]]
    return found


def agree(monkey: Monkey) -> None:
    """Wait until background work has ended and all agree."""
    page = monkey.page
    found: list[Any] = []
    try:
        rest(page)
        page.wait_for_selector(f"{SCREEN}.pl-drawn")
        for _ in range(40):
            found = differences(page)
            if not found:
                return
            page.wait_for_timeout(1 * SECONDS)
        raise AssertionError(found)
    except Exception as error:
        raise AssertionError(f"after {monkey.did}") from error


@pytest.mark.parametrize("actions", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_after_random_actions_text_figure_session_and_a_fresh_screen_agree(
    browser: Any, lab: str, request: pytest.FixtureRequest, actions: int
) -> None:
    if actions > 100 and "slow" not in request.config.option.markexpr:
        pytest.skip("takes minutes: pytest -m 'browser and slow'")
    page = opened(browser, lab, "monkey.ipynb", height=1500)
    run_all(page)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")
    said: list[str] = []
    page.on("console", lambda told: said.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: said.append(f"{error}\n{error.stack}"))
    monkey = Monkey(page, seed=actions)
    for turn in range(1, actions + 1):
        monkey.act()
        if turn % CHECKED == 0:
            agree(monkey)
        if turn % 30 == 0:  # at any instant, also while something is at work
            monkey.act()
            reload(monkey)
    agree(monkey)
    assert [line for line in said if BUSY not in line] == []
    page.close()
