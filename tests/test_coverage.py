"""COVERAGE.md holds: every fault and bad input has its row, and every test that a row names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLE = TESTS / "integration" / "COVERAGE.md"
TIERS = ("campaign", "system", "gpu", "integration")  # the first that marks a test is its tier; none: unit
EXPECTED = [f"F{number}" for number in range(1, 43)] + [f"B{number}" for number in range(1, 39)]
ROW = re.compile(r"^\| ([FB]\d+) \| ([^|]+) \| ([a-z, ]+) \| ([^|]+) \| ?([^|]*) ?\|$", re.MULTILINE)
HONEST = 10  # letters of a reason, at least


def rows() -> list[tuple[str, str, str, str, str]]:
    return ROW.findall(TABLE.read_text(encoding="utf-8"))


@cache
def tiers_of(path: Path) -> dict[str, str]:
    """Test -> its tier: the marks of its folder, of its file and its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    common = {folder for folder in ("system", "integration") if TESTS / folder in path.parents}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            common |= marks(node.value)
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    found = {test.name: common.union(*map(marks, test.decorator_list)) for test in tests}
    return {name: next((tier for tier in TIERS if tier in marked), "unit") for name, marked in found.items()}


def marks(node: ast.expr) -> set[str]:
    return set(re.findall(r"pytest\.mark\.(\w+)", ast.unparse(node)))


def test_every_fault_and_every_bad_input_has_one_row() -> None:
    """F1 to F42 and B1 to B38, in order, none twice, and no line that looks like a row and is none."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if re.match(r"\| [FB]\d", line)]
    assert [row[0] for row in rows()] == EXPECTED
    assert len(lines) == len(EXPECTED)


@pytest.mark.parametrize(("number", "what", "tiers", "shown", "missing"), rows(), ids=[row[0] for row in rows()])
def test_every_test_of_a_row_is_there(number: str, what: str, tiers: str, shown: str, missing: str) -> None:
    """By file and name, in the tiers that the row says, one of which runs in full with every push."""
    assert not missing or len(missing) >= HONEST
    found = set()
    for name in re.findall(r"`([^`]+)`", shown):
        path, _, function = name.partition("::")
        assert (TESTS / path).exists(), f"{number}: no {path}"
        assert function in tiers_of(TESTS / path), f"{number}: no {function} in {path}"
        found.add(tiers_of(TESTS / path)[function])
    assert found & {"unit", "integration"}, f"{number} ({what}) is shown by no unit or integration test"
    assert sorted(found) == tiers.split(", "), f"{number}: its tests are {', '.join(sorted(found))}"
