"""Code lines by room, without blanks, comments and docstrings.

    python -m tests.code_lines [FOLDER]

A line counts where a token of code stands on it; rooms are those of `tests.house`.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

from tests import house

EMPTY = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
)


def code_lines(source: str) -> int:
    """How many lines of a module hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in EMPTY:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def main(package: Path = house.PACKAGE) -> None:
    """Print it."""
    found: Counter[str] = Counter()
    for module, path in house.modules(package).items():
        found[house.room(module, package)] += code_lines(path.read_text(encoding="utf-8"))
    for name, count in sorted(found.items()):
        print(f"{name:16} {count:6,}")
    print(f"{'together':16} {found.total():6,}")


if __name__ == "__main__":
    main(*(Path(given).resolve() for given in sys.argv[1:2]))
