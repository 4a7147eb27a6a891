"""The state machine of device health: its numbers at their boundaries, and its promises over random histories."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmbgd import events
from rmbgd.config.load import HealthSettings
from rmbgd.engine import health_types
from rmbgd.engine.failover import cooldown, step
from rmbgd.engine.health_types import Changed, Decision, DeviceState, EndProcess, Fault, FaultKind, Finding, Phase
from rmbgd.engine.sensors.base import Problem, Reading, Throttle
from rmbgd.engine.types import MemoryTestPass
from tests.engine.test_selftest import PROVED

HEALTH = HealthSettings()
OK, SUSPECT, COOLING, QUARANTINED = Phase.OK, Phase.SUSPECT, Phase.COOLING, Phase.QUARANTINED
SHORT = Phase.SHORT
LOST, PROBING = Phase.LOST, Phase.PROBING
MEMORY, STICKY = FaultKind.MEMORY, FaultKind.STICKY
WELL = Reading(
    source="fake", temperature=60.0, throttle=frozenset(), ecc_uncorrected=0, remap_failed=False, recovery="none"
)
UNKNOWN = Reading(source="fake", problem=Problem.TIMEOUT)
SLOWED = replace(WELL, throttle=frozenset({Throttle.SOFTWARE_THERMAL}))
GONE, NO_SOURCE = (Reading("fake", problem) for problem in (Problem.GPU_IS_LOST, Problem.NO_SOURCE))
RESET_WANTED = replace(WELL, recovery="gpu_reset")
DAMAGED = replace(WELL, xids=(48,))
PENDING = Finding("recovery_pending", "gpu_reset")
MISMATCH = Finding("golden_mismatch", 0.5, 0.1)
NO_TEMPERATURE = replace(WELL, temperature=None)
ONE_BAD = MemoryTestPass(16_384, 1)
NO_ROWS = replace(WELL, remap_failed=True)
NO_THERMOMETER = replace(WELL, temperature=None, unsupported=frozenset({"temperature"}))
BAD_BLOCKS = replace(PROVED, canary_bad=1)


def hot(temperature: float) -> Reading:
    return replace(WELL, temperature=temperature)


TOO_HOT, COOL = hot(86.0), hot(70.0)


class Device:
    """A device and its machine on simulated time; probes are answered at once with `probe`, if there is one."""

    def __init__(self, health: HealthSettings = HEALTH, probe: health_types.ProbeReport | None = PROVED) -> None:
        self.state, self.now = DeviceState(), 0.0
        self.health, self.probe = health, probe
        self.log: list[tuple[float, Decision]] = []

    def tell(self, sample: health_types.Sample) -> list[Decision]:
        self.state, decisions = step(self.state, sample, self.now, self.health)
        self.log += [(self.now, decision) for decision in decisions]
        return decisions

    def check(self, reading: Reading = WELL) -> None:
        self.now += self.health.interval
        starts = any(isinstance(decision, health_types.StartProbe) for decision in self.tell(reading))
        if starts and self.probe is not None:
            self.tell(health_types.Probed(self.state.process, self.probe))

    def until(self, phase: Phase) -> Device:
        end = self.now + 1e6
        while self.state.phase is not phase:
            assert self.now < end, f"still {self.state.phase}"
            self.check()
        return self

    def play(self, *history: Step) -> Device:
        """A reading is a health check, a kind of fault is one of the newest process. A phase is asserted, and so is a
        number of images that are to go one by one."""
        for number, told in enumerate(history):
            match told:
                case Phase() | int():
                    assert told in (self.state.phase, self.state.trial_left), f"step {number} of the history"
                case Reading():
                    self.check(told)
                case FaultKind():
                    self.tell(Fault(told, self.state.process))
                case MemoryTestPass():
                    self.tell(told)
                case _:
                    told(self)
        return self

    def all(self, kind: type) -> list:
        """Decisions of one kind so far."""
        return [decision for _, decision in self.log if isinstance(decision, kind)]


Step = Phase | int | Reading | FaultKind | MemoryTestPass | Callable[[Device], object]


def wait(seconds: float) -> Step:
    return lambda device: setattr(device, "now", device.now + seconds)


def until(phase: Phase) -> Step:
    return lambda device: device.until(phase)


def golden(passed: bool, *, late: int = 0) -> Step:
    return lambda device: device.tell(health_types.GoldenChecked(passed, device.state.process - late))


def answered(images: int, *, late: int = 0) -> Step:
    return lambda device: device.tell(health_types.Answered(device.state.process - late, images))


def passed(device: Device) -> None:
    device.tell(health_types.Probed(device.state.process, PROVED))


SHORT_TWICE: list[Step] = [MEMORY, passed, MEMORY, passed, OK]


def unanswered(device: Device) -> None:
    """Its next probes are."""
    device.probe = None


def histories(table: dict[str, list[Step]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("history", list(table.values()), ids=list(table))


@pytest.fixture
def device() -> Device:
    return Device().until(OK)


@histories(
    {
        "85.0 °C is allowed": [hot(85.0), OK],
        "85.1 °C trips on the first sample": [hot(85.1), COOLING],
        "cooling takes a minute: twelve samples of 75 °C": [TOO_HOT, *[hot(75.0)] * 11, COOLING, hot(75.0), PROBING],
        "75.1 °C starts the minute anew": [TOO_HOT, *[COOL] * 11, hot(75.1), *[COOL] * 11, COOLING],
        "a silent sensor starts it anew": [TOO_HOT, *[COOL] * 11, UNKNOWN, *[COOL] * 11, COOLING],
        "a missing temperature starts it anew": [TOO_HOT, *[COOL] * 11, NO_TEMPERATURE, *[COOL] * 11, COOLING],
        "a slowed device is not cool": [TOO_HOT, *[SLOWED] * 20, COOLING],
        "a cool device waits for the end of its dwell": [
            TOO_HOT, until(OK), TOO_HOT, *[COOL] * 23, COOLING, COOL, PROBING
        ],
        "a board without a thermometer cools while it runs freely": [
            *[replace(NO_THERMOMETER, throttle=SLOWED.throttle)] * 14, COOLING, *[NO_THERMOMETER] * 12, PROBING
        ],
        "a cooling device whose memory is damaged is quarantined": [TOO_HOT, DAMAGED, QUARANTINED],
        "throttling for 60 s is suspect and not more": [SLOWED, SUSPECT, *[SLOWED] * 12, SUSPECT, SLOWED, COOLING],
        "OK needs a minute of running freely": [SLOWED, *[WELL] * 12, SUSPECT, WELL, OK],
        "throttling anew starts both minutes anew": [
            SLOWED, *[WELL] * 12, *[SLOWED] * 13, SUSPECT, *[WELL] * 12, SUSPECT, WELL, WELL, OK
        ],
        "unknown throttling is no change": [SLOWED, *[replace(WELL, throttle=None)] * 12, SUSPECT, SLOWED, COOLING],
        "ten minutes of SIGSTOP are no throttling": [SLOWED, wait(600), SLOWED, SUSPECT, *[SLOWED] * 13, COOLING],
        "ten minutes of SIGSTOP are no running freely": [SLOWED, WELL, wait(600), WELL, SUSPECT, *[WELL] * 12, OK],
        "ten seconds between two checks are no standstill": [SLOWED, *[wait(10), SLOWED] * 4, SUSPECT, SLOWED, COOLING],
    }
)  # fmt: skip
def test_heat_and_throttling(device: Device, history: list[Step]):
    device.play(*history)


@histories(
    {
        "three bad checks stay, the fourth trips": [UNKNOWN, SUSPECT, *[UNKNOWN] * 2, SUSPECT, UNKNOWN, QUARANTINED],
        "one good check resets the count": [*[UNKNOWN] * 3, WELL, OK, *[UNKNOWN] * 3, SUSPECT],
        "a board without a thermometer is not bad for it": [*[NO_THERMOMETER] * 10, OK],
        "four wrong known images trip, good readings do not hide them": [
            *[golden(False), WELL] * 3, SUSPECT, golden(False), QUARANTINED
        ],
        "a right known image and a good check clear the suspicion": [golden(False), golden(True), SUSPECT, WELL, OK],
        "a wrong image of an older process is no news": [golden(False, late=1), OK],
        "quarantine lasts its dwell: 60 s": [STICKY, *[WELL] * 11, QUARANTINED, WELL, PROBING],
        "a hot device is not probed": [STICKY, *[TOO_HOT] * 20, QUARANTINED, WELL, PROBING],
        "a lost device is looked for after its dwell": [GONE, LOST, *[WELL] * 11, LOST, WELL, PROBING],
        "a lost device with a silent sensor is not probed": [GONE, *[UNKNOWN] * 100, LOST, until(OK)],
        "a lost device whose driver wants something is not probed": [GONE, *[RESET_WANTED] * 100, LOST, until(OK)],
        "a lost device without a sensor is not probed": [GONE, *[NO_SOURCE] * 100, LOST, until(OK)],
        "a silent sensor is not probed": [STICKY, *[UNKNOWN] * 20, QUARANTINED, WELL, PROBING],
        "a damaged one is not probed": [STICKY, *[WELL] * 11, DAMAGED, QUARANTINED, WELL, PROBING],
        "good checks alone never bring a device back": [unanswered, STICKY, *[WELL] * 30, PROBING],
        "after a fail-back ten images go one by one": [
            TOO_HOT, until(OK), 10, answered(5, late=1), 10, answered(9), 1, answered(2), 0
        ],
    }
)  # fmt: skip
def test_bad_checks(device: Device, history: list[Step]):
    device.play(*history)


@histories(
    {
        "one bad block of 16384 is 0.0061 %": [ONE_BAD, OK],
        "two are 0.0122 %": [MemoryTestPass(16_384, 2), QUARANTINED],
        "0.01 % is allowed": [MemoryTestPass(10_000, 1), OK],
        "no block is no error": [MemoryTestPass(0, 0), OK],
        "the rate is taken over the last 600 s": [ONE_BAD, wait(600), MemoryTestPass(100, 1), QUARANTINED],
        "and not over more": [ONE_BAD, wait(601), ONE_BAD, OK],
        "an uncorrectable ECC error trips": [replace(WELL, ecc_uncorrected=1), QUARANTINED],
        "a count that is unknown for a moment is the same as before": [
            replace(WELL, ecc_uncorrected=None), WELL, OK, replace(WELL, ecc_uncorrected=1), QUARANTINED
        ],
        "a fresh process starts with a clean slate": [
            ONE_BAD, TOO_HOT, until(OK), answered(10), ONE_BAD, OK
        ],
        "two shortages get a fresh process at once, the third in a row a rest": [
            MEMORY, PROBING, passed, OK, wait(600), MEMORY, PROBING, passed, OK, wait(600), MEMORY, SHORT
        ],
        "a shortage long ago is forgotten": [*SHORT_TWICE, wait(601), MEMORY, PROBING],
        "a rest counts from its end": [*SHORT_TWICE, MEMORY, SHORT, wait(59.9), until(OK), MEMORY, SHORT],
        "after a rest images go one by one": [*SHORT_TWICE, MEMORY, until(OK), 10, answered(9), 1, answered(1), 0],
        "a device that rests may be found to be damaged, or lost": [*SHORT_TWICE, MEMORY, DAMAGED, SHORT, GONE, LOST],
        "what is suspect has to be well first": [SLOWED, SUSPECT, MEMORY, passed, PROBING, *[WELL] * 3, OK],
        "a device that is away is not tested": [TOO_HOT, MemoryTestPass(16_384, 16_384), COOLING],
    }
)  # fmt: skip
def test_memory(device: Device, history: list[Step]):
    device.play(*history)


@pytest.mark.parametrize(
    ("xids", "phase"),
    [
        ([46, 48, 62, 64, 74, 94, 95, 109, 110, 136, 140, 155, 156, 158, 171, 172], QUARANTINED),
        ([8, 13, 31, 32, 43, 45, 63, 68, 69, 154], OK),  # a program's own: they end a process, not trust in the device
        ([79, 119, 120, 143, 167], LOST),
    ],
)
def test_driver_messages(xids: list[int], phase: Phase):
    for xid in xids:
        Device().until(OK).play(replace(WELL, xids=(xid,)), phase)


def test_an_operator_can_insist_on_a_thermometer():
    device = Device(HealthSettings(require_temperature=True)).play(*[NO_THERMOMETER] * 50)
    assert OK not in {decision.after for decision in device.all(Changed)}


@pytest.mark.parametrize(
    ("before", "told", "decisions"),
    [
        ([], TOO_HOT, [Finding("temperature", 86.0, 85.0), EndProcess(at_once=False)]),
        ([], Fault(STICKY, 1, "gone"), [Finding("sticky_fault", "gone"), EndProcess(at_once=True)]),
        ([], replace(WELL, ecc_uncorrected=2), [Finding("ecc_uncorrected", 2, 0), EndProcess(at_once=True)]),
        ([], NO_ROWS, [Finding("row_remap_failed", operator_action="replace_gpu"), EndProcess(at_once=True)]),
        ([SLOWED] * 13, SLOWED, [Finding("throttled", 65.0, 60), EndProcess(at_once=False)]),
        ([], Fault(MEMORY, 1), [EndProcess(at_once=True), Finding("replan", 1, 3), health_types.StartProbe(2)]),
        (SHORT_TWICE, Fault(MEMORY, 3), [Finding("replan", 3, 3), EndProcess(at_once=True)]),
        ([], SLOWED, [Finding("throttled")] * 2),
        ([], Reading("fake", Problem.ERROR, "why"), [Finding("sensor_error", "why")] * 2),
        ([], UNKNOWN, [Finding("sensor_timeout")] * 2),
        ([], NO_TEMPERATURE, [Finding("no_temperature")] * 2),
        ([], hot(math.nan), [Finding("no_temperature")] * 2),
        ([], RESET_WANTED, [PENDING] * 2),
        ([UNKNOWN], UNKNOWN, []),
        ([], health_types.GoldenChecked(False, 1, 0.5, 0.1), [MISMATCH, MISMATCH, health_types.RepeatGolden()]),
        ([golden(False)], WELL, [health_types.RepeatGolden()]),
        ([golden(False), golden(True)], WELL, [Finding("well_again")]),
        ([], MemoryTestPass(20_000, 1), [Finding("memory_errors", 0.00005, 0.0001)]),
        ([MemoryTestPass(20_000, 1)], MemoryTestPass(20_000, 1), []),
        ([STICKY], RESET_WANTED, [replace(PENDING, operator_action="gpu_reset")]),
        ([STICKY, RESET_WANTED], RESET_WANTED, []),
        ([STICKY, RESET_WANTED], UNKNOWN, []),
        ([STICKY, RESET_WANTED, UNKNOWN], RESET_WANTED, []),
    ],
)
def test_what_is_told(device: Device, before: list[Step], told: health_types.Sample, decisions: list[Decision]):
    """What a phase is changed for, and what is found beside it. An edge is told once, however long it lasts."""
    device.play(*before)
    device.now += HEALTH.interval if isinstance(told, Reading) else 0.0
    found = device.tell(told)
    assert decisions == [decision.finding if isinstance(decision, Changed) else decision for decision in found]


def test_a_change_says_how_often_and_until_when(device: Device):
    device.play(TOO_HOT, DAMAGED)
    until = device.now + 55
    hot_trip = Changed(OK, COOLING, Finding("temperature", 86.0, 85.0), 1, until)
    assert device.all(Changed)[-2:] == [hot_trip, Changed(COOLING, QUARANTINED, Finding("xid", 48), 1, until)]
    assert device.all(EndProcess) == [EndProcess(at_once=False), EndProcess(at_once=True)]
    keys = {"device": "cuda:0", "from": "ok", "to": "cooling", "reason": "temperature", "trips": 1}
    keys |= {"reading": 86.0, "threshold": 85.0, "until": until}
    assert health_types.event_of("cuda:0", hot_trip) == ("engine.state", keys)
    asked = Finding("recovery_pending", operator_action="reboot")
    keys = {"device": "cuda:0", "reason": "recovery_pending", "operator_action": "reboot"}
    assert health_types.event_of("cuda:0", asked) == ("engine.degraded", keys)


def test_a_board_without_spare_rows_is_never_taken_back(device: Device):
    device.play(*[NO_ROWS] * 2000, QUARANTINED)


def test_quarantine_ends_when_the_driver_asks_for_nothing(device: Device):
    device.play(STICKY, *[RESET_WANTED] * 100, QUARANTINED, WELL, PROBING)
    assert [decision.operator_action for decision in device.all(Finding)] == ["gpu_reset"]
    assert device.state.operator_action == ""


@pytest.mark.parametrize("kind", [FaultKind.NO_DEVICE, FaultKind.UNKILLABLE])
@pytest.mark.parametrize(
    ("before", "next_probe"), [([WELL], 60), ([hot(90.0)] * 12, 60), ([hot(90.0), until(OK), hot(90.0)], 120)]
)
def test_a_device_out_of_reach_is_lost_from_any_phase(device, kind, before, next_probe):
    """Told once, however often it is reported. No dwell becomes shorter by it."""
    device.play(*before, kind, LOST)
    told = len(device.log)
    device.play(kind, LOST)
    assert len(device.log) == told
    assert device.all(EndProcess)[-1] == EndProcess(at_once=True)
    assert device.state.next_probe - device.now == next_probe


@pytest.mark.parametrize("problem", [Problem.NO_DEVICE, Problem.GPU_IS_LOST, Problem.DRIVER_MISMATCH])
def test_a_lost_device_is_looked_for_at_growing_intervals(device: Device, problem: Problem):
    gone = Reading("fake", problem, "why")
    device.play(gone, LOST)
    assert device.all(Changed)[-1].finding.reading == "why"
    looks, told = [device.now], len(device.log)
    while len(looks) < 9:
        before = device.state.looks
        device.check(gone)
        looks += [device.now] * (device.state.looks - before)
    assert [round((b - a) / 60) for a, b in itertools.pairwise(looks)] == [1, 1, 2, 4, 8, 16, 32, 60]
    assert len(device.log) == told


@pytest.mark.parametrize(
    ("reading", "finding"),
    [
        (Reading("fake", Problem.DRIVER_MISMATCH), Finding("driver_mismatch", operator_action="reboot")),
        (RESET_WANTED, replace(PENDING, operator_action="gpu_reset")),
    ],
)
def test_a_changed_driver_is_told_with_what_to_do(reading: Reading, finding: Finding):
    """At start too, when nothing has failed over yet; once."""
    assert Device().play(*[reading] * 100, Phase.ABSENT).all(Finding) == [finding]


# --- probing and fail-back


@histories(
    {
        "a passed probe and three good checks are needed": [WELL, PROBING, WELL, PROBING, WELL, PROBING, WELL, OK],
        "a first start is no fail-back": [WELL, until(OK), 0],
        "three good checks in a row are needed, not in all": [WELL, WELL, WELL, UNKNOWN, WELL, WELL, PROBING, WELL, OK],
        "four bad checks fail the probe": [WELL, *[UNKNOWN] * 3, PROBING, UNKNOWN, QUARANTINED],
        "bad checks before good ones are forgotten": [WELL, *[UNKNOWN] * 3, WELL, *[UNKNOWN] * 3, PROBING],
        "heat during the probe": [WELL, hot(85.1), COOLING],
        "damage during the probe": [WELL, DAMAGED, QUARANTINED],
        "loss during the probe": [WELL, GONE, LOST],
        "a fault during the probe": [WELL, STICKY, QUARANTINED],
        "an unclean capture, which the next process cannot have": [
            WELL, FaultKind.UNCLEAN_CAPTURE, PROBING, passed, *[WELL] * 3, OK, FaultKind.UNCLEAN_CAPTURE, QUARANTINED
        ],
        "shortages of memory during the probe": [WELL, MEMORY, MEMORY, PROBING, MEMORY, SHORT],
        "wrong known images count in use only": [WELL, *[golden(False)] * 9, PROBING],
        "bad blocks count in use only": [WELL, MemoryTestPass(1, 1), PROBING],
        "throttling since before the first use is suspect": [*[SLOWED] * 4, OK, SLOWED, SUSPECT],
        "an old ECC count is not held against the board": [
            *[replace(WELL, ecc_uncorrected=7)] * 4, OK, WELL, OK, replace(WELL, ecc_uncorrected=1), QUARANTINED
        ],
        "its start may take long, which the worker bounds": [unanswered, *[WELL] * 250, wait(600), PROBING, passed, OK],
    }
)  # fmt: skip
def test_while_it_is_probed(history: list[Step]):
    Device().play(*history)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"enumerated": None}, Finding("probe_enumerate", "the device did not answer")),
        ({"canary_bad": 1}, Finding("probe_canary", 1, 0)),
        ({"test_seconds": 120.1}, Finding("probe_timeout", 120.1, 120.0)),
        ({"seconds": 0.21}, Finding("probe_latency", 0.21, 0.2)),
    ],
)
def test_any_failed_step_of_the_probe_quarantines(change: dict[str, object], finding: Finding):
    """The reason names the step; what was read, or words where nothing was. The steps are test_selftest.py's."""
    device = Device(probe=replace(PROVED, **change)).play(WELL, QUARANTINED)
    assert device.all(Changed)[-1].finding == finding


def test_news_of_an_older_process_are_ignored():
    device = Device(probe=BAD_BLOCKS).play(*[WELL] * 20)
    device.probe = None
    device.until(PROBING)
    number = device.state.process
    assert number > 1
    strange = health_types.Probed(number - 1, PROVED), Fault(STICKY, number - 1), Fault(MEMORY, number + 1)
    assert [device.tell(news) for news in strange] == [[], [], []]
    assert device.state.phase is PROBING
    assert not device.state.proved


def test_failed_probes_wait_longer_each_time():
    device = Device(probe=BAD_BLOCKS).play(*[WELL] * (1 + 7200 // 5))
    starts = [now for now, decision in device.log if isinstance(decision, health_types.StartProbe)]
    assert [b - a for a, b in itertools.pairwise(starts)] == [60, 120, 240, 480, 960, 1920]
    assert [cooldown(trips, HEALTH) for trips in (0, 1, 6, 7, 8, 10_000)] == [60, 60, 1920, 3600, 3600, 3600]


def test_any_fault_among_those_ten_trips_again(device: Device):
    device.play(TOO_HOT, until(OK), answered(9), STICKY, QUARANTINED)
    assert device.state.next_probe - device.now == 120


def test_a_gpu_whose_memory_somebody_else_took_is_tried_more_and_more_rarely():
    """No fault of the device: it never counts as a trip."""
    device = Device(probe=None)
    while device.now < 86_400:
        device.check()
        if device.state.phase is PROBING:
            device.play(MEMORY)
    starts = [now for now, decision in device.log if isinstance(decision, health_types.StartProbe)]
    pauses = [b - a for a, b in itertools.pairwise(starts)]
    assert pauses[:9] == [0, 5, 65, 120, 240, 480, 960, 1920, 3600]
    assert device.state.trips == 0


def test_trips_are_forgotten_after_six_uninterrupted_hours(device: Device):
    device.play(TOO_HOT, until(OK), *[WELL] * (6 * 720 - 1), SLOWED, until(OK), *[WELL] * (6 * 720 - 1))
    assert device.state.trips == 1
    device.check()
    assert device.state.trips == 0


# --- promises


def failovers_of_a_day(temperature: Callable[[Device], float]) -> int:
    device = Device()
    while device.now < 86_400:
        device.check(hot(temperature(device)))
    return sum(changed.is_failover for changed in device.all(Changed))


def test_oscillating_around_the_trip_point_for_a_day_costs_at_most_29_failovers():
    """Hot whenever it is used, cool whenever it is not: the worst case, at 5 s ticks."""
    assert 20 < failovers_of_a_day(lambda device: 86.0 if device.state.in_use else 74.0) <= 29


@settings(max_examples=4, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([60.0, 74.0, 80.0, 86.0, 95.0])), min_size=1))
@example([(1, 86.0), (1, 74.0)])
@example([(13, 86.0), (13, 74.0)])
@example([(360, 86.0), (360, 74.0)])
def test_no_course_of_temperature_flaps_more_than_29_times_a_day(course):
    """Any sequence of plateaus, repeated for 24 simulated hours."""
    ticks = itertools.cycle(temperature for count, temperature in course for _ in range(count))
    assert failovers_of_a_day(lambda _: next(ticks)) <= 29


READINGS = st.sampled_from(
    [
        WELL, WELL, WELL, hot(74.0), hot(75.0), hot(80.0), hot(85.0), TOO_HOT, hot(math.nan), UNKNOWN, SLOWED,
        NO_TEMPERATURE, RESET_WANTED, NO_ROWS,
        replace(WELL, ecc_uncorrected=1), replace(WELL, xids=(13,)), DAMAGED,
        replace(WELL, xids=(79,)), GONE, Reading("fake", Problem.NO_DEVICE),
    ]
)  # fmt: skip
PROBES = st.sampled_from([*[PROVED] * 3, BAD_BLOCKS, replace(PROVED, fresh_process=False), health_types.ProbeReport()])
LAGS = st.integers(-2, 0)  # the news is from the newest process, or from one before
SAMPLES = st.one_of(
    READINGS,
    st.builds(Fault, st.sampled_from(FaultKind), LAGS),
    st.builds(health_types.Probed, LAGS, PROBES),
    st.builds(health_types.GoldenChecked, st.booleans(), LAGS),
    st.builds(health_types.Answered, LAGS, st.integers(1, 16)),
    st.builds(MemoryTestPass, st.just(16_384), st.integers(0, 3)),
)
CHAOS = st.tuples(st.sampled_from([0.0, 1.0, 5.0, 5.0, 5.0, 60.0, 700.0, 3700.0]), SAMPLES).map(lambda one: [one])
# What a history must often hold to come far: calm stretches, a dwell waited out, a probe passed, a trip.
MOTIFS = st.sampled_from(
    [
        [(5.0, WELL)] * 4,
        [(3700.0, WELL)],
        [(1.0, health_types.Probed(0, PROVED)), *[(5.0, WELL)] * 3],
        [(5.0, TOO_HOT), *[(5.0, COOL)] * 13],
        [(1.0, Fault(STICKY, 0)), (3700.0, WELL), *[(5.0, WELL)] * 3],
    ]
)
STEPS = st.lists(st.one_of(CHAOS, MOTIFS), max_size=60).map(lambda parts: [one for part in parts for one in part])


def course_of(steps: list[tuple[float, health_types.Sample]]):
    """Every step of a random history: (now, sample, state before, state after, decisions)."""
    state, now = DeviceState(), 0.0
    for seconds, told in steps:
        now += seconds
        sample = replace(told, process=state.process + told.process) if hasattr(told, "process") else told
        after, decisions = step(state, sample, now, HEALTH)
        assert step(state, sample, now, HEALTH) == (after, decisions), "it depends on more than its arguments"
        yield now, sample, state, after, decisions
        state = after


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_a_device_in_use_has_passed_a_probe_since_its_last_trip(steps):
    """OK follows a passed report for the newest process, made after the last trip, which ended the process before;
    each probe has a number of its own, and is not started before the dwell of so many trips is over."""
    proved, earliest, numbers = None, -math.inf, []
    for now, sample, before, after, decisions in course_of(steps):
        ended = any(isinstance(decision, EndProcess) for decision in decisions)
        started = [decision.process for decision in decisions if isinstance(decision, health_types.StartProbe)]
        if isinstance(sample, health_types.Probed) and sample.report == PROVED and before.phase is PROBING:
            proved = sample.process
        if ended:
            proved = None
        assert not after.in_use or proved == after.process
        assert not started or now >= earliest
        if after.trips > before.trips:
            assert ended
            earliest = now + min(60 * 2 ** (after.trips - 1), 3600)
        numbers += started
    assert numbers == sorted(set(numbers))


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_decisions_tell_every_transition_and_no_other(steps):
    """A Changed for each change of phase; each in the vocabulary of events.py, keys and all."""
    for _, _, before, after, decisions in course_of(steps):
        changes = [decision for decision in decisions if isinstance(decision, Changed)]
        phases = [changes[0].before, changes[-1].after] if changes else [before.phase, before.phase]
        assert phases == [before.phase, after.phase]
        assert any(change.is_failover for change in changes) == (before.in_use and not after.in_use)
        for decision in decisions:
            if isinstance(decision, (Changed, Finding)):
                assert events.problems_with(*health_types.event_of("cuda:0", decision)) == []
