"""What holds for every test: tests of a real systemd may be required, and then do not get away with skipping."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about the machine's other work than about us; every test has a limit anyway. The
# same examples for everyone: a red test is red again. Who looks for new ones says --hypothesis-profile explore.
settings.register_profile("rmbgd", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("rmbgd")

REQUIRE_SYSTEM = "RMBGD_REQUIRE_SYSTEM"


SYSTEM = Path(__file__).parent / "system"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, a file's tests stay together, for they share what is dear; so do all with the container.

    The slow files begin, so that no worker is left with one at the end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def rank(item: pytest.Item) -> int:
        return 0 if SYSTEM in item.path.parents else 1 if item.path in slow else 2

    for item in items:
        group = "system" if SYSTEM in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.get_closest_marker("system") and os.environ.get(REQUIRE_SYSTEM) == "1":
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_SYSTEM}=1, but this was skipped: {call.excinfo and call.excinfo.value}"
    return report
