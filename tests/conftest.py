"""Test tiers: what a test may do follows from its markers; how much of a campaign runs; hypothesis profiles.

unit         no marker: starts no process and does not sleep; a test that does fails
slow         likewise, and takes more than a second or so
integration  the real service, child processes, signals, waiting
campaign     many faults at random; `--campaign-part 1/10` runs a tenth of each, another one for each commit
system       a real systemd in a container; RMBGD_REQUIRE_SYSTEM=1 turns its skips into failures
gpu          a CUDA device
"""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says more about the machine's other work than about us; every test has a limit anyway.
# `ci` has the same examples for everyone: a red test is red again. `explore` looks for new ones.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("dev", deadline=None, derandomize=True, max_examples=20)
settings.register_profile("explore", deadline=None)
settings.load_profile("ci")

# Started in the background, or by nohup, we ignore these, and so would every process that a test starts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

REQUIRE_SYSTEM = "RMBGD_REQUIRE_SYSTEM"
TESTS = Path(__file__).parent
MAY_START_PROCESSES = ("integration", "campaign", "system", "gpu")
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}  # audit events of Python
HYPOTHESIS = "_hypothesis_internal_use_settings"  # where @settings leaves itself
SLEEP_MAXIMUM = 0.05  # s that a unit test may sleep

# ------------------------------------------------------------------------------------------------ parts of campaigns


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign-part", default="1/1", help="how much of each campaign runs, such as 1/10")


@dataclass(frozen=True)
class CampaignPart:
    """Part `index` of `parts`; another index for each commit, so that ten commits run what one full campaign runs."""

    index: int
    parts: int

    def count(self, full: int, least: int = 1) -> int:
        return max(least, -(-full // self.parts))

    def of(self, items: list[pytest.Item]) -> list[pytest.Item]:
        return items[self.index % min(self.parts, len(items)) :: self.parts]

    def seed(self, base: int) -> int:
        return base + self.index


def _part(config: pytest.Config) -> CampaignPart:
    parts = Fraction(config.getoption("--campaign-part")).denominator
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False).stdout
    return CampaignPart(int(commit[:8] or "0", 16) % parts, parts)  # not a checkout: always the first part


@pytest.fixture(scope="session")
def campaign_part(pytestconfig: pytest.Config) -> CampaignPart:
    return _part(pytestconfig)


# ---------------------------------------------------------------------------------------------------- what runs when


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Folders are tiers; of a campaign's cases only this commit's part; slow files begin, so that no worker ends alone.

    With several workers a file's tests stay together, for they share what is dear; so do all with the container.
    """
    dev = config.getoption("--hypothesis-profile", None) == "dev"
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0] if TESTS in item.path.parents else ""
        if tier in ("system", "integration"):
            item.add_marker(tier)
        item.add_marker(pytest.mark.xdist_group("system" if tier == "system" else str(item.path)))
        test = getattr(item, "function", None)
        if dev and (own := getattr(test, HYPOTHESIS, None)):  # on every save the profile's bound wins over a test's own
            setattr(test, HYPOTHESIS, settings(own, max_examples=min(own.max_examples, settings().max_examples)))
    _leave_out_other_parts(config, items)
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "campaign")))}
    items.sort(key=lambda item: 0 if item.get_closest_marker("system") else 1 if item.path in slow else 2)


def _leave_out_other_parts(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cases of parametrized campaigns; a campaign that takes the fixture `campaign_part` divides itself."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("campaign") and "campaign_part" not in getattr(item, "fixturenames", ()):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    part = _part(config)
    left_out = [item for case in cases.values() for item in case if item not in part.of(case)]
    if part.parts > 1:
        left_out += [item for item in items if item.get_closest_marker("full") and item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


# ------------------------------------------------------------------------------------------- what a unit test may do

_unit_test = ""  # that runs now
_violations: list[str] = []


def _note(what: str) -> None:
    """Told at the test's end: an exception here would be lost in a thread whose waiter then waits for ever."""
    if _unit_test:
        _violations.append(f"{_unit_test}: {what}: mark it integration, or give it what it needs without that")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS:
        _note(f"starts a process ({event} {arguments[:2]!r:.200})")


def _sleep(seconds: float, real: Callable[[float], None] = time.sleep) -> None:
    if seconds > SLEEP_MAXIMUM:
        _note(f"sleeps {seconds:g} s")
    real(seconds)


def _spawn(*given: Any, real: Callable[..., int] = multiprocessing.util.spawnv_passfds) -> int:
    _note("starts a process (multiprocessing)")  # of which Python tells no audit hook
    return real(*given)


sys.addaudithook(_watch)
time.sleep = _sleep
multiprocessing.util.spawnv_passfds = _spawn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    global _unit_test  # noqa: PLW0603, the audit hook, which cannot be removed, must know
    _unit_test = "" if any(map(item.get_closest_marker, MAY_START_PROCESSES)) else item.nodeid
    try:
        return (yield)
    finally:
        _unit_test = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """Fixtures of a module or a session end with whichever test comes last: what they do is not that test's."""
    global _unit_test  # noqa: PLW0603
    if nextitem is None or nextitem.getparent(pytest.Module) is not item.getparent(pytest.Module):
        _unit_test = ""
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _violations:
        report.outcome, report.longrepr = "failed", "\n".join(_violations)
        _violations.clear()
    if report.skipped and item.get_closest_marker("system") and os.environ.get(REQUIRE_SYSTEM) == "1":
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_SYSTEM}=1, but this was skipped: {call.excinfo and call.excinfo.value}"
    return report
