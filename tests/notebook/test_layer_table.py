"""The table of layers: costs, sorting, typed widths, several rows at once, multiples of 8."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page import Page

import prunelab as pl
from prunelab.errors import InvalidValue
from prunelab.notebook import Screen, text
from prunelab.notebook.view import Table


@pytest.fixture(scope="module")
def screen() -> Iterator[Screen]:
    model, data = pl.zoo.load("resnet20"), pl.data.load("fashion", subset=True)
    val = [next(iter(data.val))]
    made = Screen(pl.Session(model, pl.Data(train=data.train, val=val), pl.AOFP(images=64)))
    made.session.measure()
    yield made
    made.close()


@pytest.fixture
def page(screen: Screen) -> Iterator[Page]:
    """The screen with the table open and nothing selected."""
    made = Page(screen)
    made.unfold("layers")
    yield made
    screen.choice._back()
    screen.choice.table = Table()


def rows(page: Page) -> list[str]:
    return [e["data-row"] for e in page.elements if "data-row" in e]


def test_a_row_has_the_costs_of_its_layers(page: Page, screen: Screen) -> None:
    costs, seconds = screen.session.costs(), screen.session.seconds()
    total = sum(cost.macs for cost in costs.values())
    told = [e.text for e in page.elements if e.has("pl-cost")]
    assert len(told) == 3 * len(rows(page))
    place = rows(page).index("layer3.0.conv1")
    cost = costs["layer3.0.conv1"]
    assert told[3 * place] == f"{cost.macs / total:.1%}"
    assert seconds is not None
    assert told[3 * place + 2] == text.ms(seconds["layer3.0.conv1"])
    coupled = screen.choice.layers["conv1"]
    assert len(coupled) == 4
    assert told[0] == f"{sum(costs[layer].macs for layer in coupled) / total:.1%}"


def test_a_click_on_a_heading_sorts_and_another_restores_the_order(page: Page) -> None:
    order = rows(page)
    page.click("sort", "macs")
    told = [e.text for e in page.elements if e.has("pl-cost")][::3]
    shares = [float(share.rstrip("%")) for share in told]
    assert shares == sorted(shares, reverse=True)
    assert rows(page) != order
    page.click("sort", "macs")
    assert rows(page) == order


def test_a_width_is_typed(page: Page, screen: Screen) -> None:
    page.put("typed", "layer3.0.conv1", 50)
    assert len(screen.choice.drop["layer3.0.conv1"]) == 14
    assert screen.choice.group == "layer3.0.conv1"
    assert page.value("typed", "layer3.0.conv1") == "50"


def test_several_rows_are_set_at_once(page: Page, screen: Screen) -> None:
    assert "disabled" in page.find("several")
    for name in ("layer2.0.conv1", "layer3.0.conv1"):
        page.put("tick", name, True)
    assert "Keep in 2 ticked layers" in page.html
    page.put("several", None, "75%")
    assert {n: len(gone) for n, gone in screen.choice.drop.items()} == {
        "layer2.0.conv1": 8,
        "layer3.0.conv1": 16,
    }
    page.put("tick", "layer2.0.conv1", False)
    page.put("several", None, "40")
    assert len(screen.choice.drop["layer3.0.conv1"]) == 24
    assert len(screen.choice.drop["layer2.0.conv1"]) == 8


def test_multiples_of_8_on_demand(page: Page, screen: Screen) -> None:
    page.put("typed", "layer3.0.conv1", 50)
    page.put("typed", "layer1.0.conv1", 3)
    page.put("multiples", None, True)
    widths = {n: screen.session.state.widths()[n] - len(g) for n, g in screen.choice.drop.items()}
    assert widths == {"layer3.0.conv1": 48, "layer1.0.conv1": 8}
    page.put("typed", "layer2.0.conv1", 21)
    assert len(screen.choice.drop["layer2.0.conv1"]) == 32 - 24


@pytest.mark.parametrize(
    ("typed", "now", "width"), [("48", 64, 48), ("75%", 64, 48), ("99", 64, 64), (" 0 ", 64, 1)]
)
def test_widths_are_numbers_or_shares(typed: str, now: int, width: int) -> None:
    assert text.parse_width(typed, now) == width


def test_another_text_is_no_width(page: Page) -> None:
    with pytest.raises(InvalidValue, match=r"'half' is not a width; write a number such as 48"):
        text.parse_width("half", 64)
    page.put("tick", "conv1", True)
    page.put("several", None, "half")
    assert "'half' is not a width" in page.said("error")
    page.screen._choose(lambda: None)
