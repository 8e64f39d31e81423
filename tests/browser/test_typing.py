"""Typing into every box of the screen, slowly, while the kernel answers."""

from __future__ import annotations

from typing import Any

import pytest
from lab import on, press, question, settled, unfold

pytestmark = pytest.mark.browser

SLOWLY = 180  # ms between two keys


def typed(page: Any, selector: str, words: str) -> str:
    """What stands in a box after `words` were typed over its contents, before it is left."""
    box = page.locator(selector).first
    box.scroll_into_view_if_needed()
    box.click(click_count=3)
    page.keyboard.type(words, delay=SLOWLY)
    return box.input_value()


@pytest.mark.parametrize(
    ("section", "box", "words"),
    [
        ("", "[data-do=aim][data-arg=macs]", "63.5"),
        ("", "[data-do=aim][data-arg=lose]", "1.5"),
        ("settings", "[data-do=aim][data-arg=reason]", "conv1 feeds every block, so it stays"),
        ("settings", "[data-do=aim][data-arg=steps]", "125"),
        ("method", "[data-do=parameter][data-arg=theta]", "0.0125"),
        ("layers", "[data-do=units]", "0-4, 7, 11"),
        ("layers", "[data-filter=layers]", "layer3"),
        ("compare", "[data-do=plan]", "no/such/plan.json"),
        ("export", "input[data-do=export]", "deep/run.txt"),
    ],
)
def test_slow_typing_keeps_every_key_while_the_kernel_answers(
    page: Any, section: str, box: str, words: str
) -> None:
    if section:
        unfold(page, section)
    assert typed(page, box, words) == words
    page.evaluate("document.activeElement.blur()")
    settled(page)
    if "filter" in box:
        page.locator(box).fill("")
    if page.locator("[data-do=back]").count():
        page.locator("[data-do=back]").click()
        settled(page)


def test_an_aim_typed_slowly_is_the_aim_that_is_answered(page: Any) -> None:
    assert typed(page, "[data-do=aim][data-arg=macs]", "60") == "60"
    page.keyboard.press("Enter")
    settled(page)
    page.wait_for_function(
        "document.querySelector('.pl-tile').innerText.includes('→ 60%')"
    )  # at once, or as soon as evidence is there
    assert page.evaluate("document.activeElement.dataset.arg") == "macs", "the focus stays"
    page.locator("[data-do=back]").click()
    settled(page)


@pytest.mark.parametrize("words", ["-3", "1e", "2e9"])
def test_a_refused_number_gives_way_to_the_one_that_holds(page: Any, words: str) -> None:
    unfold(page, "settings")
    box = page.locator("[data-do=aim][data-arg=steps]")
    held = box.input_value()
    typed(page, "[data-do=aim][data-arg=steps]", words)
    page.keyboard.press("Enter")
    settled(page)
    assert "steps is a number from 1 to" in page.locator(".pl-told .pl-error").inner_text()
    box.blur()
    page.wait_for_function(
        "held => document.querySelector('[data-arg=steps]').value === held", arg=held
    )
    page.locator("[data-do=aim][data-arg=steps]").fill(held)
    page.keyboard.press("Tab")
    settled(page)
    assert page.locator(".pl-told .pl-error").count() == 0


@pytest.mark.parametrize("part", ["summary", "[data-do=group]", "[data-arg=steps]", ".pl-told"])
def test_keys_are_the_screens_wherever_it_has_the_keyboard(page: Any, part: str) -> None:
    """In JupyterLab x cuts the cell, and a inserts one."""
    cells = "jupyterapp.shell.currentWidget.content.widgets.length"
    count = page.evaluate(cells)
    unfold(page, "settings")
    node = page.locator(f".prunelab-screen {part}").first
    node.evaluate("node => { if (node.tabIndex < 0) node.tabIndex = 0; node.focus(); }")
    for key in ("Escape", "x", "a", "b"):
        page.keyboard.press(key)
    assert page.evaluate(cells) == count
    assert page.evaluate("document.activeElement.closest('.prunelab-screen') !== null")
    page.locator(".prunelab-screen").focus()
    settled(page)


def test_shortcuts_work_after_every_click(page: Any) -> None:
    page.locator(on("propose")).click()
    settled(page)
    asked = question(page)
    page.keyboard.press("r")
    page.wait_for_selector(on("propose"))
    settled(page)
    assert question(page) != asked
    page.keyboard.press("p")
    page.wait_for_selector(on("approve"))
    settled(page)
    assert question(page) == asked
    press(page, "reject")
