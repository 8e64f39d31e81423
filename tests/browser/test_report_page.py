"""The exported report in a real browser: it steps through the session without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunelab as pl

pytestmark = pytest.mark.browser


def test_the_report_steps_through_the_session_without_a_network(
    browser: Any, session: pl.Session, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
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
    page.wait_for_selector(".pictures svg")
    seen = []

    def look(step: int) -> None:
        page.wait_for_function(
            "step => document.querySelector('#place').textContent.startsWith(`step ${step} `)",
            arg=step,
        )
        seen.append((page.locator(".line").inner_text(), page.inner_html(".pictures")))

    look(1)
    page.click("#next")
    look(2)
    page.keyboard.press("ArrowRight")
    look(3)
    assert len(set(seen)) == 3, "line and figure change with every step"
    assert len({picture for _, picture in seen}) == 3
    assert page.locator("#next").is_disabled()
    page.keyboard.press("ArrowLeft")
    look(2)
    assert seen[3][0] == seen[1][0]
    page.locator("#history tbody tr").last.click()
    look(1)
    page.click("#play")
    look(3)
    assert page.locator("#play").inner_text() == "Play", "it ends by itself"

    page.keyboard.press("Home")
    page.get_by_text("Costs by layer", exact=True).click()
    assert page.locator("details[open] svg").count() == 3
    page.click("#every")
    assert page.locator("article").count() == 3, "all steps under each other"
    page.click("#every")
    assert page.locator("details[open] svg").count() == 3, "what was unfolded stays so"
    page.focus("#history tbody tr:first-child")
    page.keyboard.press("Enter")
    assert page.locator("#place").inner_text() == "step 3 of 3"

    def fits() -> bool:
        return page.evaluate(
            """() => {
                 const wide = document.documentElement.clientWidth;
                 const drawn = [...document.querySelectorAll('.pictures svg')]
                   .map((one) => one.getBoundingClientRect()).filter((box) => box.width);
                 return document.documentElement.scrollWidth <= wide
                   && drawn.every((box) => box.left >= 0 && box.right <= wide && box.width >= 480);
               }"""
        )

    target = tmp_path_factory.mktemp("report")
    for width in (1500, 700, 600):
        page.set_viewport_size({"width": width, "height": 1400})
        assert fits(), f"{width} px"
        page.screenshot(path=target / f"{width}px.png", full_page=True)
        print(f"\nscreenshot: {target / f'{width}px.png'}")
        page.click("#theme")
    assert (asked, errors) == ([address], [])
    page.close()


def test_the_report_answers_what_if_as_the_session_does(
    browser: Any, session: pl.Session, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    session.propose()
    session.approve()
    address = session.export(tmp_path / "run.html").as_uri()
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text))
    page.goto(address)
    group = max((g for g in session.graph.groups if g.prunable), key=lambda g: len(g.units))
    page.select_option("#if-group", label=f"{group.name} ({len(group.units)} channels)")
    bars = page.locator("#if-bars g")
    assert bars.count() == len(group.units)

    def lost() -> float:
        return float(page.inner_text("#if-sentence").split("lose ")[1].split("%")[0])

    def dropped() -> list[int]:
        names = page.locator("#if-bars g.gone title").all_text_contents()
        return sorted(int(name.split()[1].rstrip(":")) for name in names)

    for place in (0, len(group.units) - 1, 2):
        bars.nth(place).click()
    found = session.foresee({group.name: dropped()})
    assert len(dropped()) == 3
    assert lost() == pytest.approx(100 * found.damage[group.name], rel=0.01)
    macs = page.inner_text("#if-costs").split("(")[1].split("%")[0]
    share = found.after.macs / session.state.base.cost.macs
    assert float(macs) == pytest.approx(100 * share, abs=0.06)

    page.check("#if-every-layer")
    took = page.evaluate(
        """() => [-3, -1, -2, -1.2].map((value) => {
             const slide = document.querySelector("#if-share"), from = performance.now();
             slide.value = value;
             slide.dispatchEvent(new Event("input"));
             return document.body.offsetHeight && performance.now() - from;
           })"""
    )
    print("\nmilliseconds of a drag:", took)
    rows = page.locator("#if-table tbody tr").all_inner_texts()
    limit = float(page.inner_text("#if-share-text").rstrip("%"))
    assert rows and all(float(row.split()[-1].rstrip("%")) <= limit for row in rows)
    page.click("#if-none")
    assert page.locator("#if-table tr").count() == 0

    page.locator("#if-network").evaluate(
        "slide => { slide.value = 0; slide.dispatchEvent(new Event('input')); }"
    )
    assert page.inner_text("#if-network-line").startswith("Event 0: ")
    page.locator("#if-network").press("End")
    assert page.inner_text("#if-network-line").startswith(f"Event {session.state.head}: ")
    target = tmp_path_factory.mktemp("what-if") / "page.png"
    page.screenshot(path=target, full_page=True)
    print("screenshot:", target)
    assert (asked, errors) == ([address], [])
    page.close()
