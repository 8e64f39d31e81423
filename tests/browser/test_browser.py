"""The screen in a real JupyterLab: clicks, drags and typed text, and their effects.

Run with `pytest -m browser`; needs Playwright and a chromium (`apt-get install chromium`).
Every test leaves the session with nothing pending. Waits are for conditions, never for a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import (
    FIGURE,
    SECONDS,
    click_bar,
    drag,
    drawn,
    on,
    opened,
    press,
    question,
    ready,
    settled,
    type_into,
    unfold,
    wait_for_drawn,
)

pytestmark = pytest.mark.browser


def shoot(page: Any, folder: Path, name: str) -> None:
    """A picture for a person to look at; nothing is asserted on it."""
    target = folder / f"{name}.png"
    page.locator(".prunelab-screen").screenshot(path=target)
    print(f"\nscreenshot: {target}")


# ---------------------------------------------------------------- propose, adjust, approve, undo


def test_clicks_reach_the_session_and_the_figure_follows(
    page: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shots")
    start = drawn(page)
    assert start["path"][0] == [100]
    assert not start["search"][0]
    shoot(page, folder, "1-start")

    press(page, "propose")
    wait_for_drawn(page, "t => t.drop.x.length > 0")
    proposed = drawn(page)
    count = len(proposed["drop"][0])
    assert len(proposed["search"][0]) >= 1, "ladder: at least one halving"
    assert max(proposed["proposed to drop"][0]) > 0, "widths"
    assert proposed["proposed"][0][1] < 100, "trajectory: the question mark"
    assert page.locator(on("propose")).count() == 0
    page.wait_for_selector(".pl-trial:not(.pl-hint)")
    assert "1,000 validation images" in page.locator(".pl-trial").first.inner_text()
    shoot(page, folder, "2-proposed")

    asked = question(page)
    click_bar(page, len(proposed["channel"][0]) - 1)
    wait_for_drawn(page, "(t, n) => t.drop.x.length === n", count + 1)
    assert question(page).endswith("instead?")
    assert page.locator(on("approve")).count() == 0, "only what is shown can be approved"
    click_bar(page, len(proposed["channel"][0]) - 1)
    wait_for_drawn(page, "(t, n) => t.drop.x.length === n", count)
    page.locator("[data-do=back]").click()
    settled(page)
    assert question(page) == asked

    unfold(page, "layers")
    group = page.locator("[data-do=group][aria-pressed=true]").get_attribute("data-arg")
    type_into(page, "[data-do=units]", "0-4, 7")
    wait_for_drawn(page, "(t, n) => t.drop.x.length === n", 6)
    assert f"Remove 6 of 64 channels in {group}" in question(page)
    press(page, "adjust")
    assert question(page).startswith(f"Remove 6 of 64 channels in {group}")

    press(page, "approve")
    wait_for_drawn(page, "t => t.path.x.length >= 2 && t.path.x.at(-1) < 100")
    approved = drawn(page)
    assert len(approved["gone"][0]) == 6
    assert sum(approved["kept"][0]) < sum(start["kept"][0])
    shoot(page, folder, "3-approved")

    press(page, "undo")
    wait_for_drawn(page, "t => t.path.x.length === 1 && t.undone.x.length > 0")
    assert drawn(page)["kept"][0] == start["kept"][0]


def test_the_figure_fills_the_screen_and_nothing_sticks_out(
    page: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("widths")
    page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    for width in (1900, 1000, 600, 1400):
        page.set_viewport_size({"width": width, "height": 2400})
        # the browser redraws when it finds the time: it must come to fit, and stay so
        page.wait_for_function(
            """stacked => { const [screen, place, drawn] =
                 ['.prunelab-screen', '.js-plotly-plot', '.js-plotly-plot .main-svg']
                 .map(s => document.querySelector(s).getBoundingClientRect());
                 return screen.width - drawn.width < 50 && drawn.width < screen.width
                   && Math.abs(place.height - drawn.height) < 2
                   && stacked === drawn.height > drawn.width; }""",
            arg=width == 600,
            timeout=60 * SECONDS,
        )
        sticking = page.evaluate(
            """() => { const screen = document.querySelector('.prunelab-screen');
                 const right = screen.getBoundingClientRect().right;
                 return [...screen.querySelectorAll('.pl-part *')].filter(
                   e => e.getBoundingClientRect().right > right + 1).map(e => e.className); }"""
        )
        assert sticking == []
        small = page.evaluate(
            """() => [...document.querySelectorAll('.prunelab-screen *')].filter(
                 e => e.childNodes.length && [...e.childNodes].some(
                   n => n.nodeType === 3 && n.data.trim())
                   && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.textContent)"""
        )
        assert small == [], "text of less than 12 px"
        shoot(page, folder, f"{width}px")


# ---------------------------------------------------------------- what if


def test_a_dragged_theta_is_answered_while_it_moves(page: Any) -> None:
    unfold(page, "method")
    before = drawn(page)["proposed to drop"][0]
    drag(page, "[data-do=theta]", 0.5, 0.7)
    assert question(page).startswith("Remove ")
    assert "with theta" in page.locator(".pl-reason").inner_text().lower()
    wait_for_drawn(page, "(t, before) => `${t['proposed to drop'].x}` !== `${before}`", before)
    page.mouse.up()
    settled(page)
    foreseen = question(page)
    theta = page.get_by_label("theta", exact=True).first.input_value()
    press(page, "propose")
    assert question(page) == foreseen, "the search goes as it was foreseen"
    assert f"theta {float(theta):g}" in page.locator("[data-section=method] summary").inner_text()
    press(page, "reject")
    type_into(page, "[data-do=parameter][data-arg=theta]", "0.01")
    assert page.get_by_text("0.010 = stop where a layer would lose more than 1.0%").is_visible()
    if page.locator("[data-do=back]").count():
        page.locator("[data-do=back]").click()
        settled(page)


def test_a_dragged_width_shows_what_is_lost_and_what_the_images_say(page: Any) -> None:
    unfold(page, "layers")
    drag(page, "[data-do=width][data-arg='layer3.0.conv1']", 0.99, 0.5)
    page.mouse.up()
    settled(page)
    width = int(page.locator("[data-do=width][data-arg='layer3.0.conv1']").input_value())
    assert f"Remove {64 - width} of 64 channels in layer3.0.conv1" in question(page)
    assert "% of the signal entering layer3.0.conv2" in page.locator(".pl-reason").inner_text()
    page.wait_for_selector(".pl-trial:not(.pl-hint)")
    unfold(page, "changes")
    page.wait_for_selector(".pl-changes table")
    assert page.locator(".pl-changes tbody tr").count() == 10
    assert page.locator(on("approve")).count() == 0
    page.locator("[data-do=back]").click()
    settled(page)


def test_widths_are_typed_in_the_table_for_several_layers_and_sorted(page: Any) -> None:
    unfold(page, "layers")
    for name in ("layer2.0.conv1", "layer3.0.conv1"):
        page.locator(f"[data-do=tick][data-arg='{name}']").check()
        settled(page)
    type_into(page, "[data-do=several]", "75%")
    page.locator("[data-do=multiples]").check()
    settled(page)
    typed = {
        name: page.locator(f"[data-do=typed][data-arg='{name}']").input_value()
        for name in ("layer2.0.conv1", "layer3.0.conv1")
    }
    assert typed == {"layer2.0.conv1": "24", "layer3.0.conv1": "48"}
    type_into(page, "[data-do=typed][data-arg='layer3.1.conv1']", "50")
    page.locator("[data-do=typed][data-arg='layer3.1.conv1']").blur()
    settled(page)  # a box is a person's own until they leave it
    page.wait_for_function(
        "document.querySelector('[data-do=typed][data-arg=\"layer3.1.conv1\"]').value === '48'"
    )
    page.locator("[data-do=sort][data-arg=macs]").click()
    settled(page)
    first = page.locator(".pl-row[data-row]").first
    assert first.get_attribute("data-row") == "conv1", "four coupled layers"
    page.locator("[data-do=sort][data-arg=macs]").click()
    page.locator("[data-do=multiples]").uncheck()
    page.locator("[data-do=back]").click()
    settled(page)


def test_a_typed_budget_spreads_over_the_layers(page: Any) -> None:
    box = page.locator("[data-do=aim][data-arg=macs]")
    box.fill("60")
    settled(page)
    wait_for_drawn(page, "t => t['proposed to drop'].x.filter(n => n > 0).length > 5")
    assert "→ 60%" in page.locator(".pl-tile").first.inner_text().replace("\n", " ")
    page.locator("[data-do=back]").click()
    settled(page)


def test_one_channel_is_looked_at_closely(page: Any) -> None:
    unfold(page, "channel")
    page.locator("[data-do=unit]").select_option("5")
    page.wait_for_selector(".pl-channel img")
    assert page.locator(".pl-channel img").count() >= 12


# ---------------------------------------------------------------- stop, keys, reload, restart


@pytest.mark.parametrize("keep", [False, True])
def test_a_tune_is_stopped_and_discarded_or_kept(page: Any, keep: bool) -> None:
    unfold(page, "settings")
    unfold(page, "history")
    events = page.locator(".pl-history tbody tr").count()
    type_into(page, "[data-do=aim][data-arg=steps]", "5000")
    page.locator(on("tune")).click()
    page.wait_for_selector("text=tuning: ")
    page.locator("[data-do=keep]" if keep else on("stop")).first.click()
    settled(page)
    assert page.locator(".pl-history tbody tr").count() == events + 1
    assert page.locator(".pl-error").count() == 0
    told = page.locator(".pl-history tbody tr").first.inner_text()
    assert ("Tuned" if keep else "Tuning was stopped after ") in told
    if keep:
        press(page, "undo")


def test_a_key_presses_the_button_and_a_reload_shows_the_same(page: Any) -> None:
    page.locator(".prunelab-screen").focus()
    page.keyboard.press("p")
    page.wait_for_selector(on("approve"))
    settled(page)
    wait_for_drawn(page, "t => t.drop.x.length > 0")
    before, asked = drawn(page), question(page)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function(
        "!jupyterapp.shell.currentWidget.context.model.dirty", timeout=30 * SECONDS
    )
    page.reload()
    ready(page)
    page.wait_for_selector(FIGURE)
    settled(page)
    assert question(page) == asked
    assert drawn(page) == before
    press(page, "reject")


def test_a_session_lives_on_after_the_kernel_was_restarted(page: Any) -> None:
    press(page, "propose")
    wait_for_drawn(page, "t => t['proposed to drop'].x.some(x => x > 0)")
    proposed, widths = (
        page.locator("p.pl-line[role=status]").inner_text(),
        drawn(page)["proposed to drop"],
    )
    assert "proposed: drop" in proposed
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    ready(page)
    page.locator(".prunelab-screen [data-do=press][data-arg=reject]").click()
    page.wait_for_selector(".pl-waiting .pl-no-reply")
    page.evaluate(
        """() => { const cell = jupyterapp.shell.currentWidget.content.widgets[0];
             cell.model.sharedModel.setSource(cell.model.sharedModel.getSource().replace(
               /session = .*/,
               'session = pl.Session.open("run.prunelab", model=model, data=data)')); }"""
    )
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".prunelab-screen:not(.pl-waiting) .pl-question")
    page.wait_for_selector(FIGURE)
    settled(page)
    assert page.locator("p.pl-line[role=status]").inner_text() == proposed
    wait_for_drawn(page, "t => t['proposed to drop'].x.some(x => x > 0)")
    assert drawn(page)["proposed to drop"] == widths
    assert question(page).startswith("Remove ")  # it speaks of the layer that is looked at
    press(page, "reject")


def test_without_the_figure_the_screen_says_why_and_works(browser: Any, lab: str) -> None:
    page = opened(browser, lab, "poor.ipynb")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector("text=The interactive figure could not be loaded")
    assert "DecompressionStream" in page.locator("p.pl-error").inner_text()
    press(page, "propose")
    assert question(page).startswith("Remove ")
    hatched = page.locator(".pl-picture path[fill='url(#prunelab-hatch)']")
    assert hatched.count() > 0, "the picture follows"
    page.close()
