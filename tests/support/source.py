"""The source of rmbgd as syntax trees, for tests that hold rules against it. Runs nothing of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "rmbgd"


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by dotted name, as it is on disk."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports, at its top or inside functions, also through importlib.import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else node.module or ""
        elif isinstance(node, ast.Call) and _called(node) == "import_module":
            yield from (word.value for word in node.args if isinstance(word, ast.Constant))


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name that is called, without what stands before the last dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield _called(node), node
