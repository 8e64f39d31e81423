"""The screen's colours have enough contrast on every background, light and dark."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from prunelab.figures.style import COUPLED, DROP, GHOST, KEEP, TARGET

CSS = (files("prunelab") / "assets" / "screen.css").read_text(encoding="utf-8")
THEMES = {
    name: dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block))
    for name, block in zip(
        ("light", "dark"), re.findall(r"\{([^{}]*--ink: #[^{}]*)\}", CSS), strict=True
    )
}
PAIRS = [  # text on ground
    *[(ink, paper) for ink in ("ink", "soft", "alarm") for paper in ("paper", "card")],
    ("ink", "mark"),
    ("on-first", "first"),
    ("on-yes", "yes"),
    ("on-stop", "stop"),
]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_what_the_standard_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("ink", "paper"), PAIRS)
def test_text_stands_out(theme: str, ink: str, paper: str) -> None:
    colours = THEMES[theme]
    assert contrast(colours[ink], colours[paper]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("mark", ["first", "kept", "going"])
def test_bars_and_focus_stand_out(theme: str, mark: str) -> None:
    assert contrast(THEMES[theme][mark], THEMES[theme]["paper"]) >= 3


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("mark", [KEEP, DROP, TARGET, COUPLED, GHOST])
def test_marks_of_the_figure_can_be_told_from_the_ground(theme: str, mark: str) -> None:
    assert contrast(mark, THEMES[theme]["paper"]) >= 2.5


def test_colours_stand_in_the_two_themes_only_and_no_text_is_small() -> None:
    rest = CSS[CSS.index("background: var(--paper)") :]
    assert set(re.findall(r"color:\s*(#\w+)", rest)) <= {TARGET.lower()}
    sizes = re.findall(r"font(?:-size)?:[^;]*?(\d+)px", CSS)
    assert min(map(int, sizes)) >= 12
    assert {*THEMES["light"]} == {*THEMES["dark"]}
