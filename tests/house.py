"""The package's rooms, the imports (arrows) between them, and circles.

    python -m tests.house [FOLDER]

A room is a folder of `prunelab` that holds modules, or a module at its top. An arrow is a pair of
rooms of which one imports the other, whether when it is imported or in a function. What is only
imported for type checking makes no arrow.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "prunelab"
Arrow = tuple[str, str]


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every module of a source that it imports, and whether importing the source imports it.

    `from prunelab.a import b` gives both `prunelab.a` and `prunelab.a.b`: b may be a module.
    """

    def walk(node: ast.AST, now: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, now) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative import"
                module = child.module or ""
                for alias in child.names if module.startswith("prunelab") else ():
                    yield f"{module}.{alias.name}", now
                yield module, now
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, now and not lazy)

    yield from walk(tree, True)


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Dotted name to file, of every module of the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        words = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


def room(module: str, package: Path = PACKAGE) -> str:
    """The room of a module: its folder, or itself where it stands at the top."""
    words = module.split(".")
    folder = package.parent.joinpath(*words)
    if len(words) == 1:
        return words[0]
    inside = words[1:] if folder.is_dir() else words[1:-1]
    return "/".join(inside) if inside else words[-1]


def arrows(package: Path = PACKAGE) -> dict[Arrow, set[str]]:
    """From room to room, with the imports that make the arrow."""
    known = modules(package)
    found: dict[Arrow, set[str]] = {}
    for module, path in known.items():
        for name, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name in known and (pair := (room(module, package), room(name, package))):
                bare = name == package.name  # `from prunelab import x`: x is what is imported
                if pair[0] != pair[1] and not bare:
                    found.setdefault(pair, set()).add(f"{module} -> {name}")
    return found


def circles(found: dict[Arrow, set[str]]) -> list[Arrow]:
    """Pairs of rooms each of which reaches the other."""
    after: dict[str, set[str]] = {}
    for start, end in found:
        after.setdefault(start, set()).add(end)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for end in after.get(todo.pop(), set()) - seen:
                seen.add(end)
                todo.append(end)
        return seen

    reach = {start: reached(start) for start in after}
    return sorted((a, b) for a in reach for b in reach[a] if a < b and a in reach.get(b, ()))


def main(package: Path = PACKAGE) -> None:
    """Print it."""
    found = arrows(package)
    rooms = sorted({room(module, package) for module in modules(package)})
    for name in rooms:
        ends = sorted(end for start, end in found if start == name)
        print(f"{name:16} -> {', '.join(ends) or '-'}")
    round_trips = circles(found)
    print(f"\n{len(rooms)} rooms, {len(found)} arrows, {len(round_trips)} circles")
    for a, b in round_trips:
        for pair in ((a, b), (b, a)):
            print(f"  {pair[0]} -> {pair[1]}: {'; '.join(sorted(found.get(pair, ()))[:6])}")


if __name__ == "__main__":
    main(*(Path(given).resolve() for given in sys.argv[1:2]))
