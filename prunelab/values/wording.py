"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def si(number: float) -> str:
    """`number` with three digits and a prefix: 31.4 M."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g}"


def many(count: int, thing: str) -> str:
    """`count` things in words: 1 unit, 2 units."""
    return f"{count} {thing}{'s' * (count != 1)}"


def listed(names: Iterable[str], most: int) -> str:
    """The first `most` names, and the number of others: a, b and 3 more."""
    every = list(names)
    shown = ", ".join(every[:most])
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"


def as_text(name: str, value: float) -> str:
    """A metric's value as text; accuracies are in percent."""
    return f"{value:.1%}" if "accuracy" in name else f"{value:.4g}"


def table(rows: Sequence[tuple[str, ...]], numbers: int = 2) -> str:
    """`rows` as lines with aligned columns: words to the left, then `numbers` to the right."""
    columns = range(max(len(row) for row in rows))
    filled = [row + ("",) * (len(columns) - len(row)) for row in rows]
    sizes = [max(len(row[column]) for row in filled) for column in columns]
    lines = []
    for row in filled:
        cells = [row[0].ljust(sizes[0])]
        right = slice(1, 1 + numbers)
        cells += [cell.rjust(size) for cell, size in zip(row[right], sizes[right], strict=True)]
        cells += row[1 + numbers :]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
