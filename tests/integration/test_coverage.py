"""COVERAGE.md holds: every fault and bad input has its row, and every test that a row names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("COVERAGE.md")
EXPECTED = [f"F{number}" for number in range(1, 43)] + [f"B{number}" for number in range(1, 39)]
ROW = re.compile(r"^\| ([FB]\d+) \| ([^|]+) \| ([^|]+) \| ?([^|]*) ?\|$", re.MULTILINE)
HONEST = 10  # letters of a reason, at least


def rows() -> list[tuple[str, str, str, str]]:
    """(id, what, tests, what is not shown) as they stand."""
    return ROW.findall(TABLE.read_text(encoding="utf-8"))


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_fault_and_every_bad_input_has_one_row() -> None:
    """F1 to F42 and B1 to B38, in order, none twice, and no line that looks like a row and is none."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if re.match(r"\| [FB]\d", line)]

    assert [row[0] for row in rows()] == EXPECTED
    assert len(lines) == len(EXPECTED)


@pytest.mark.parametrize(("number", "what", "shown", "missing"), rows(), ids=[row[0] for row in rows()])
def test_every_test_of_a_row_is_there(number: str, what: str, shown: str, missing: str) -> None:
    """By file and name; a row without any test has a reason instead, and so has what is not shown."""
    named = re.findall(r"`([^`]+)`", shown)
    assert named or len(missing) >= HONEST, f"{number} ({what}) has neither a test nor a reason"
    assert not missing or len(missing) >= HONEST
    for name in named:
        path, _, function = name.partition("::")
        assert (TESTS / path).exists(), f"{number}: no {path}"
        assert function.startswith("test_"), f"{number}: {name} names no test"
        assert function in functions_of(TESTS / path), f"{number}: no {function} in {path}"
