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


def imports(tree: ast.Module, *, typing_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, at its top or inside functions, also through importlib.import_module.

    Imports under `if TYPE_CHECKING` do not happen at run time and count only with `typing_only`.
    """
    skipped = set() if typing_only else set(_typing_blocks(tree))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in modules() else module
        elif isinstance(node, ast.Call) and _called(node) == "import_module":
            yield from (word.value for word in node.args if isinstance(word, ast.Constant))


def _typing_blocks(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                yield from ast.walk(statement)


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def docstring(tree: ast.Module) -> str:
    return ast.get_docstring(tree) or ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name that is called, without what stands before the last dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield _called(node), node
