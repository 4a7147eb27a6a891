"""The state machine of device health: its numbers at their boundaries, and its promises over random histories."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd import events
from rmbgd.config.load import HealthSettings
from rmbgd.engine.failover import cooldown, step
from rmbgd.engine.health_types import (
    Answered,
    Changed,
    Check,
    Decision,
    Degraded,
    DeviceState,
    EndProcess,
    Failback,
    Failover,
    Fault,
    FaultKind,
    GoldenChecked,
    Phase,
    Probed,
    ProbeReport,
    RepeatGolden,
    Sample,
    StartProbe,
    event_of,
)
from rmbgd.engine.sensors.base import Problem, Reading, Throttle
from rmbgd.engine.types import MemoryTestPass

HEALTH = HealthSettings()
TICK = HEALTH.interval
WELL = Reading(
    source="fake", temperature=60.0, throttle=frozenset(), ecc_uncorrected=0, remap_failed=False, recovery="none"
)
UNKNOWN = Reading(source="fake", problem=Problem.TIMEOUT)
SLOWED = replace(WELL, throttle=frozenset({Throttle.SOFTWARE_THERMAL}))
PROVED = ProbeReport(
    fresh_process=True, enumerated=True, model_intact=True, canary_passes=2, canary_bad=0,
    golden_mean=0.001, golden_peak=0.01, seconds=0.1, baseline=0.1,
)  # fmt: skip


def hot(temperature: float) -> Reading:
    return replace(WELL, temperature=temperature)


class Device:
    """A device and its machine on simulated time; probes are answered at once with `probe`."""

    def __init__(self, health: HealthSettings = HEALTH, probe: ProbeReport = PROVED) -> None:
        self.state = DeviceState()
        self.now = 0.0
        self.health = health
        self.probe = probe
        self.log: list[tuple[float, Decision]] = []

    def tell(self, sample: Sample) -> list[Decision]:
        self.state, decisions = step(self.state, sample, self.now, self.health)
        self.log += [(self.now, decision) for decision in decisions]
        return decisions

    def check(self, reading: Reading = WELL, *, heartbeat: bool = True, times: int = 1) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(times):
            self.now += self.health.interval
            decisions = self.tell(Check(reading, heartbeat))
            if any(isinstance(decision, StartProbe) for decision in decisions):
                decisions = [*decisions, *self.tell(Probed(self.state.process, self.probe))]
        return decisions

    def until(self, phase: Phase, reading: Reading = WELL, limit: float = 1e6) -> Device:
        end = self.now + limit
        while self.state.phase is not phase:
            assert self.now < end, f"still {self.state.phase} after {limit} s"
            self.check(reading)
        return self

    def fault(self, kind: FaultKind) -> list[Decision]:
        return self.tell(Fault(kind, self.state.process))

    def count(self, kind: type) -> int:
        return sum(isinstance(decision, kind) for _, decision in self.log)


@pytest.fixture
def device() -> Device:
    return Device().until(Phase.OK)


# --- into use


def test_a_device_is_used_after_a_passed_probe_and_three_good_checks():
    """ABSENT, then PROBING at the first good reading, then OK at the third good check after it."""
    device = Device()
    phases = []
    for _ in range(4):
        device.check()
        phases.append(device.state.phase)

    assert phases == [Phase.PROBING, Phase.PROBING, Phase.PROBING, Phase.OK]


def test_a_first_start_is_no_fail_back(device: Device):
    """Nothing failed over yet, so nothing returns, and the first images need not go one by one."""
    assert device.count(Failback) == 0
    assert device.state.batch_limit is None


def test_a_bad_check_restarts_the_count_of_good_ones():
    """Three good checks in a row are needed, not three in all."""
    device = Device()
    device.check(times=3)
    device.check(UNKNOWN)
    device.check(times=2)

    assert device.state.phase is Phase.PROBING
    device.check()
    assert device.state.phase is Phase.OK


# --- temperature


@pytest.mark.parametrize(("temperature", "phase"), [(85.0, Phase.OK), (85.1, Phase.COOLING)])
def test_the_trip_point_is_strict(device: Device, temperature: float, phase: Phase):
    """85.0 stays, 85.1 trips, on the first sample."""
    device.check(hot(temperature))

    assert phase is device.state.phase


def test_a_hot_device_may_finish_what_it_computes(device: Device):
    """Heat ends the process, but not in the middle of a batch."""
    assert EndProcess(at_once=False) in device.check(hot(86.0))


def test_a_hot_trip_says_what_was_read_and_what_was_allowed(device: Device):
    """One Failover with reason, reading and threshold."""
    assert Failover("temperature", 86.0, 85.0) in device.check(hot(86.0))


def test_cooling_takes_twelve_cool_samples(device: Device):
    """A minute at 75.0 and below; the eleventh sample is not enough."""
    device.check(hot(86.0))
    device.check(hot(75.0), times=11)
    assert device.state.phase is Phase.COOLING

    device.check(hot(75.0))
    assert device.state.phase is Phase.PROBING


@pytest.mark.parametrize("interruption", [hot(75.1), UNKNOWN, replace(WELL, temperature=None)])
def test_anything_but_a_cool_sample_restarts_the_minute(device: Device, interruption: Reading):
    """75.1, an unreadable sensor and a missing temperature are not cool."""
    device.check(hot(86.0))
    device.check(hot(70.0), times=11)
    device.check(interruption)
    device.check(hot(70.0), times=11)

    assert device.state.phase is Phase.COOLING


def test_a_board_without_a_thermometer_cools_by_its_throttle_state(device: Device):
    """Where the temperature cannot be known, running freely for a minute has to do."""
    blind = replace(SLOWED, temperature=None, unsupported=frozenset({"temperature"}))
    device.check(blind, times=14)
    assert device.state.phase is Phase.COOLING

    device.check(replace(blind, throttle=frozenset()), times=12)
    assert device.state.phase is Phase.PROBING


def test_throttling_for_sixty_seconds_is_suspect_and_not_more(device: Device):
    """The first slowed sample makes SUSPECT; 60 s later it stays; the next trips."""
    device.check(SLOWED)
    assert device.state.phase is Phase.SUSPECT
    device.check(SLOWED, times=12)
    assert device.state.phase is Phase.SUSPECT

    device.check(SLOWED)
    assert device.state.phase is Phase.COOLING


def test_a_device_that_was_slowed_down_is_ok_after_a_minute_of_running_freely(device: Device):
    """SUSPECT to OK needs one good check and throttling clear for 60 s."""
    device.check(SLOWED)
    device.check(times=12)
    assert device.state.phase is Phase.SUSPECT

    device.check()
    assert device.state.phase is Phase.OK


# --- checks


def test_three_bad_checks_stay_and_the_fourth_trips(device: Device):
    """SUSPECT from the first to the third, QUARANTINED at the fourth."""
    phases = []
    for _ in range(4):
        device.check(UNKNOWN)
        phases.append(device.state.phase)

    assert phases == [Phase.SUSPECT, Phase.SUSPECT, Phase.SUSPECT, Phase.QUARANTINED]


def test_one_good_check_resets_the_count(device: Device):
    """Three bad, one good, three bad: still in use."""
    device.check(UNKNOWN, times=3)
    device.check()
    assert device.state.phase is Phase.OK

    device.check(UNKNOWN, times=3)
    assert device.state.phase is Phase.SUSPECT


@pytest.mark.parametrize(
    ("reading", "heartbeat", "reason"),
    [
        (UNKNOWN, True, "sensor_timeout"),
        (Reading("fake", Problem.ERROR), True, "sensor_error"),
        (replace(WELL, temperature=None), True, "no_temperature"),
        (hot(math.nan), True, "no_temperature"),
        (replace(WELL, recovery="gpu_reset"), True, "recovery_pending"),
        (WELL, False, "no_heartbeat"),
    ],
)
def test_what_is_not_known_is_a_bad_check(device: Device, reading: Reading, heartbeat: bool, reason: str):
    """Never good by omission; the reason says which part is missing."""
    decisions = device.check(reading, heartbeat=heartbeat)

    assert device.state.phase is Phase.SUSPECT
    assert [reason] == [decision.reason for decision in decisions if isinstance(decision, Degraded)]


def test_a_board_that_has_no_thermometer_is_not_bad_for_it(device: Device):
    """Unsupported is not the same as unreadable."""
    device.check(replace(WELL, temperature=None, unsupported=frozenset({"temperature"})), times=10)

    assert device.state.phase is Phase.OK


def test_an_operator_can_insist_on_a_thermometer():
    """With require_temperature a blind board never comes into use."""
    device = Device(HealthSettings(require_temperature=True))
    device.check(replace(WELL, temperature=None, unsupported=frozenset({"temperature"})), times=50)

    assert Phase.OK not in {decision.after for _, decision in device.log if isinstance(decision, Changed)}


# --- memory


@pytest.mark.parametrize(("bad", "phase"), [(1, Phase.OK), (2, Phase.QUARANTINED)])
def test_two_bad_blocks_of_16384_trip_and_one_does_not(device: Device, bad: int, phase: Phase):
    """0.0061 % is below 0.01 %, 0.0122 % is above."""
    device.tell(MemoryTestPass(16_384, bad))

    assert phase is device.state.phase


def test_the_rate_is_taken_over_ten_minutes(device: Device):
    """A bad block 601 s ago no longer counts; 600 s ago it does, among all blocks checked since."""
    device.tell(MemoryTestPass(16_384, 1))
    at = device.now
    device.now = at + 600
    device.tell(MemoryTestPass(100, 1))
    assert device.state.phase is Phase.QUARANTINED

    late = Device().until(Phase.OK)
    late.tell(MemoryTestPass(16_384, 1))
    late.now += 601
    late.tell(MemoryTestPass(16_384, 1))
    assert late.state.phase is Phase.OK


def test_the_first_bad_block_is_told_once(device: Device):
    """One Degraded on the edge, none for the next bad blocks of the window."""
    device.tell(MemoryTestPass(16_384, 0))
    device.tell(MemoryTestPass(16_384, 1))
    device.tell(MemoryTestPass(16_384, 1))

    assert device.count(Degraded) == 1


def test_an_uncorrectable_ecc_error_trips_at_once(device: Device):
    """The count went up by one; where it stood before does not matter."""
    device.check(replace(WELL, ecc_uncorrected=7))
    assert device.state.phase is Phase.QUARANTINED


def test_an_old_ecc_count_is_the_baseline():
    """What happened before the service started is not held against the board; unknown in between changes nothing."""
    device = Device().until(Phase.OK, replace(WELL, ecc_uncorrected=7))
    device.check(replace(WELL, ecc_uncorrected=None))
    device.check(replace(WELL, ecc_uncorrected=7))
    device.check(replace(WELL, ecc_uncorrected=0))
    assert device.state.phase is Phase.OK

    device.check(replace(WELL, ecc_uncorrected=1))
    assert device.state.phase is Phase.QUARANTINED


def test_a_board_without_spare_rows_is_never_taken_back(device: Device):
    """Row remapping failed: a person has to replace the board, and is told so."""
    broken = replace(WELL, remap_failed=True)
    decisions = device.check(broken)
    assert "replace_gpu" in [decision.operator_action for decision in decisions if isinstance(decision, Failover)]

    device.check(broken, times=2000)
    assert device.state.phase is Phase.QUARANTINED


@pytest.mark.parametrize("xid", [48, 62, 64, 74, 94, 95, 109, 140])
def test_a_sick_device_s_xid_trips(device: Device, xid: int):
    """Driver messages of the device level."""
    device.check(replace(WELL, xids=(xid,)))

    assert device.state.phase is Phase.QUARANTINED


@pytest.mark.parametrize("xid", [8, 13, 31, 32, 43, 45, 63, 68, 69])
def test_a_program_s_own_xid_does_not(device: Device, xid: int):
    """Driver messages of the application level end a process, not trust in the device."""
    device.check(replace(WELL, xids=(xid,)))

    assert device.state.phase is Phase.OK


@pytest.mark.parametrize("xid", [79, 119, 120])
def test_an_xid_of_a_lost_device_loses_it(device: Device, xid: int):
    """Off the bus."""
    device.check(replace(WELL, xids=(xid,)))

    assert device.state.phase is Phase.LOST


def test_the_third_out_of_memory_in_ten_minutes_trips(device: Device):
    """Two are retried in smaller batches."""
    device.fault(FaultKind.MEMORY)
    device.now += 300
    device.fault(FaultKind.MEMORY)
    assert device.state.phase is Phase.OK

    device.now += 300
    device.fault(FaultKind.MEMORY)
    assert device.state.phase is Phase.QUARANTINED


def test_out_of_memory_long_ago_is_forgotten(device: Device):
    """The window is 600 s."""
    device.fault(FaultKind.MEMORY)
    device.fault(FaultKind.MEMORY)
    device.now += 601
    device.fault(FaultKind.MEMORY)

    assert device.state.phase is Phase.OK


def test_a_fresh_process_starts_with_a_clean_slate(device: Device):
    """Bad blocks and memory faults of the process before are not held against it, however recent they are."""
    device.tell(MemoryTestPass(16_384, 1))
    device.fault(FaultKind.MEMORY)
    device.fault(FaultKind.MEMORY)
    device.check(hot(86.0))
    device.until(Phase.OK)
    device.tell(Answered(device.state.process, 10))
    device.tell(MemoryTestPass(16_384, 1))
    device.fault(FaultKind.MEMORY)

    assert device.state.phase is Phase.OK


# --- faults of the process


def test_a_sticky_fault_trips_and_kills(device: Device):
    """A poisoned process is never used again."""
    decisions = device.fault(FaultKind.STICKY)

    assert device.state.phase is Phase.QUARANTINED
    assert EndProcess(at_once=True) in decisions


def test_a_fault_of_an_older_process_is_ignored(device: Device):
    """News that comes late must not trip the device a second time."""
    device.tell(Fault(FaultKind.STICKY, device.state.process - 1))

    assert device.state.phase is Phase.OK


@pytest.mark.parametrize("kind", [FaultKind.NO_DEVICE, FaultKind.UNKILLABLE])
@pytest.mark.parametrize("reading", [WELL, hot(90.0)])
def test_a_device_out_of_reach_is_lost_from_any_phase(device: Device, kind: FaultKind, reading: Reading):
    """From OK and from COOLING alike; told once, however often it is reported."""
    device.check(reading)
    device.fault(kind)
    before = len(device.log)
    device.fault(kind)

    assert device.state.phase is Phase.LOST
    assert len(device.log) == before


def test_quarantine_ends_when_the_driver_asks_for_nothing(device: Device):
    """While a reset is asked for, the device stays away, and the operator is told once."""
    device.fault(FaultKind.STICKY)
    wanting = replace(WELL, recovery="gpu_reset")
    device.check(wanting, times=100)
    assert device.state.phase is Phase.QUARANTINED
    assert [d.operator_action for _, d in device.log if isinstance(d, Degraded)] == ["gpu_reset"]

    device.check()
    assert device.state.phase is Phase.PROBING


def test_quarantine_lasts_at_least_its_dwell(device: Device):
    """60 s after the first trip, and no probe before."""
    device.fault(FaultKind.STICKY)
    device.check(times=11)
    assert device.state.phase is Phase.QUARANTINED

    device.check()
    assert device.state.phase is Phase.PROBING


# --- lost and absent


@pytest.mark.parametrize("problem", [Problem.NO_DEVICE, Problem.GPU_IS_LOST, Problem.DRIVER_MISMATCH])
def test_a_lost_device_is_looked_for_at_growing_intervals(device: Device, problem: Problem):
    """Re-probed after 1, 2, 4 ... 60 minutes: no busy probing, and one event, not one per tick."""
    gone = Reading("fake", problem)
    device.check(gone)
    looks, before = [], device.state.looks
    start, events_before = device.now, len(device.log)
    while len(looks) < 8:
        device.check(gone)
        if device.state.looks > before:
            before = device.state.looks
            looks.append(device.now)
    gaps = [round((b - a) / 60) for a, b in itertools.pairwise([start, *looks])]

    assert gaps == [1, 1, 2, 4, 8, 16, 32, 60]
    assert len(device.log) == events_before


def test_a_lost_device_that_is_back_is_probed(device: Device):
    """It recovers by itself."""
    device.check(Reading("fake", Problem.GPU_IS_LOST))
    device.until(Phase.OK, limit=120)

    assert device.count(Failback) == 1


def test_a_changed_driver_is_told_with_what_to_do():
    """At start too, when nothing has failed over yet."""
    device = Device()
    device.check(Reading("fake", Problem.DRIVER_MISMATCH), times=100)

    assert [d.operator_action for _, d in device.log if isinstance(d, Degraded)] == ["reboot"]


# --- probing and fail-back


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fresh_process": False}, "probe_process"),
        ({"enumerated": None}, "probe_enumerate"),
        ({"model_intact": False}, "probe_model"),
        ({"canary_passes": 1}, "probe_canary"),
        ({"canary_bad": 1}, "probe_canary"),
        ({"golden_mean": 2.1 / 255}, "probe_golden"),
        ({"golden_peak": 16.1 / 255}, "probe_golden"),
        ({"golden_mean": math.nan}, "probe_golden"),
        ({"golden_mean": None}, "probe_golden"),
        ({"seconds": 0.21}, "probe_latency"),
        ({"seconds": None}, "probe_latency"),
        ({"error": "weights file vanished"}, "probe_error"),
    ],
)
def test_any_failed_step_of_the_probe_quarantines(change: dict[str, object], reason: str):
    """Each step alone, and a step that was not reached, fails the probe; the reason names it."""
    device = Device(probe=replace(PROVED, **change))
    device.check()

    assert device.state.phase is Phase.QUARANTINED
    assert reason in {decision.reason for _, decision in device.log if isinstance(decision, Changed)}


def test_the_golden_bounds_are_inclusive():
    """2/255 and 16/255 exactly, and twice the baseline exactly, still pass."""
    device = Device(probe=replace(PROVED, golden_mean=2 / 255, golden_peak=16 / 255, seconds=0.2))
    device.check(times=4)

    assert device.state.phase is Phase.OK


def test_a_probe_that_takes_too_long_fails():
    """120 s stays, the next check quarantines; the late answer is ignored."""
    device = Device()
    device.now += TICK
    device.tell(Check(WELL))
    started, process = device.now, device.state.process
    while device.now < started + 120:
        device.now += TICK
        device.tell(Check(WELL))
    assert device.state.phase is Phase.PROBING

    device.now += TICK
    device.tell(Check(WELL))
    device.tell(Probed(process, PROVED))
    assert device.state.phase is Phase.QUARANTINED


def test_good_checks_alone_never_bring_a_device_back(device: Device):
    """A device that passed before its trip has to pass again."""
    device.fault(FaultKind.STICKY)
    for _ in range(60):
        device.now += TICK
        device.tell(Check(WELL))

    assert not device.state.in_use


def test_an_answer_of_an_older_probe_is_ignored():
    """Each probe has its number."""
    device = Device(probe=replace(PROVED, canary_bad=1))
    device.check(times=20)
    assert device.state.process > 1
    device.until(Phase.QUARANTINED)
    device.tell(Probed(1, PROVED))

    device.now += 4000
    device.tell(Check(WELL))
    device.tell(Probed(1, PROVED))
    assert device.state.phase is Phase.PROBING
    assert not device.state.proved


def test_failed_probes_wait_longer_each_time():
    """Dwell doubles: a device that cannot be started costs little."""
    device = Device(probe=replace(PROVED, canary_bad=1))
    device.check(times=1 + 7200 // 5)
    starts = [now for now, decision in device.log if isinstance(decision, StartProbe)]

    assert [b - a for a, b in itertools.pairwise(starts)] == [60, 120, 240, 480, 960, 1920]


def test_after_a_fail_back_ten_images_go_one_by_one(device: Device):
    """Batches of one until ten have been answered, then as many as the device takes."""
    device.check(hot(86.0))
    device.until(Phase.OK)
    limits = []
    for _ in range(11):
        limits.append(device.state.batch_limit)
        device.tell(Answered(device.state.process, 1))

    assert limits == [1] * 10 + [None]


@pytest.mark.parametrize("kind", [FaultKind.MEMORY, FaultKind.STICKY])
def test_any_fault_among_those_ten_trips_again(device: Device, kind: FaultKind):
    """Even a first out-of-memory; the next dwell is twice as long."""
    device.check(hot(86.0))
    device.until(Phase.OK)
    device.tell(Answered(device.state.process, 9))
    device.fault(kind)

    assert device.state.phase is Phase.QUARANTINED
    assert device.state.next_probe - device.now == 120


def test_a_fail_back_says_how_long_work_was_away(device: Device):
    """Twelve cool samples, then three good checks: 75 s at the earliest."""
    device.check(hot(86.0))
    device.until(Phase.OK)

    assert [75.0] == [decision.seconds for _, decision in device.log if isinstance(decision, Failback)]


def test_the_dwell_doubles_up_to_an_hour():
    """60, 120 ... 1920, then 3600 for ever."""
    assert [cooldown(trips, HEALTH) for trips in range(1, 10)] == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert cooldown(10_000, HEALTH) == 3600


def test_trips_are_forgotten_after_six_uninterrupted_hours(device: Device):
    """One throttled moment in between starts the six hours anew."""
    device.check(hot(86.0))
    device.until(Phase.OK)
    device.check(times=6 * 720 - 1)
    assert device.state.trips == 1
    device.check(SLOWED)
    device.until(Phase.OK)
    device.check(times=6 * 720 - 1)
    assert device.state.trips == 1

    device.check()
    assert device.state.trips == 0


# --- the golden image in passing


def test_four_wrong_known_images_in_a_row_trip(device: Device):
    """Good sensor readings in between do not hide wrong answers; each asks for another run at once."""
    for _ in range(3):
        assert RepeatGolden() in device.tell(GoldenChecked(passed=False, process=device.state.process))
        device.check()
    assert device.state.phase is Phase.SUSPECT

    device.tell(GoldenChecked(passed=False, process=device.state.process))
    assert device.state.phase is Phase.QUARANTINED


def test_one_right_known_image_clears_the_suspicion(device: Device):
    """A good check then leads back to OK."""
    device.tell(GoldenChecked(passed=False, process=device.state.process))
    device.tell(GoldenChecked(passed=True, process=device.state.process))
    device.check()

    assert device.state.phase is Phase.OK


# --- time


def test_standing_still_is_nobody_s_fault(device: Device):
    """Ten minutes of SIGSTOP in the middle of a throttled moment do not count as ten minutes of throttling."""
    device.check(SLOWED)
    device.now += 600
    device.check(SLOWED)
    assert device.state.phase is Phase.SUSPECT

    device.check(SLOWED, times=13)
    assert device.state.phase is Phase.COOLING


def test_oscillating_around_the_trip_point_for_a_day_costs_at_most_29_failovers():
    """Hot whenever it is used, cool whenever it is not: the worst case, at 5 s ticks."""
    device = Device()
    while device.now < 86_400:
        device.check(hot(86.0 if device.state.in_use else 74.0))

    assert 20 < device.count(Failover) <= 29


@pytest.mark.parametrize("period", [10, 60, 130, 600, 3600, 7200])
def test_a_square_wave_of_heat_costs_at_most_29_failovers_a_day(period: int):
    """74 and 86 °C in turn, whatever the period."""
    device = Device()
    while device.now < 86_400:
        device.check(hot(86.0 if device.now % period < period / 2 else 74.0))

    assert device.count(Failover) <= 29


# --- several devices


# --- properties

READINGS = st.sampled_from(
    [
        WELL, WELL, WELL, hot(74.0), hot(75.0), hot(80.0), hot(85.0), hot(86.0), hot(math.nan), UNKNOWN, SLOWED,
        replace(WELL, temperature=None), replace(WELL, recovery="gpu_reset"), replace(WELL, remap_failed=True),
        replace(WELL, ecc_uncorrected=1), replace(WELL, xids=(13,)), replace(WELL, xids=(48,)),
        replace(WELL, xids=(79,)), Reading("fake", Problem.GPU_IS_LOST), Reading("fake", Problem.NO_DEVICE),
    ]
)  # fmt: skip
PROBES = st.sampled_from(
    [PROVED, PROVED, PROVED, replace(PROVED, canary_bad=3), ProbeReport(), replace(PROVED, fresh_process=False)]
)
LAGS = st.integers(0, 2)  # how many processes ago the news is from
SAMPLES = st.one_of(
    st.builds(
        lambda reading, heartbeat: ("check", reading, heartbeat), READINGS, st.sampled_from([True, True, True, False])
    ),
    st.builds(lambda kind, lag: ("fault", kind, lag), st.sampled_from(list(FaultKind)), LAGS),
    st.builds(lambda report, lag: ("probed", report, lag), PROBES, LAGS),
    st.builds(lambda passed, lag: ("golden", passed, lag), st.booleans(), LAGS),
    st.builds(lambda count, lag: ("answered", count, lag), st.integers(1, 16), LAGS),
    st.builds(lambda bad: ("canary", bad, 0), st.integers(0, 3)),
)
GOOD = ("check", WELL, True)
CHAOS = st.tuples(st.sampled_from([0.0, 1.0, 5.0, 5.0, 5.0, 60.0, 700.0, 3700.0]), SAMPLES).map(lambda one: [one])
# What a history must often hold to come far: calm stretches, a dwell waited out, a probe passed, a trip.
MOTIFS = st.sampled_from(
    [
        [(5.0, GOOD)] * 4,
        [(3700.0, GOOD)],
        [(1.0, ("probed", PROVED, 0)), *[(5.0, GOOD)] * 3],
        [(5.0, ("check", hot(86.0), True)), *[(5.0, ("check", hot(70.0), True))] * 13],
        [(1.0, ("fault", FaultKind.STICKY, 0)), (3700.0, GOOD), *[(5.0, GOOD)] * 3],
    ]
)
STEPS = st.lists(st.one_of(CHAOS, MOTIFS), max_size=60).map(lambda parts: [one for part in parts for one in part])


def sample_for(state: DeviceState, what: tuple[str, object, object]) -> Sample:
    name, value, other = what
    process = state.process - other if isinstance(other, int) else state.process
    match name:
        case "check":
            return Check(value, other)  # type: ignore[arg-type]
        case "fault":
            return Fault(value, process)  # type: ignore[arg-type]
        case "probed":
            return Probed(process, value)  # type: ignore[arg-type]
        case "golden":
            return GoldenChecked(bool(value), process)
        case "answered":
            return Answered(process, int(value))  # type: ignore[call-overload]
        case _:
            return MemoryTestPass(16_384, int(value))  # type: ignore[call-overload]


def play(steps: list[tuple[float, tuple[str, object, object]]]):
    """Every step of a random history: (now, sample, state before, state after, decisions)."""
    state, now = DeviceState(), 0.0
    for seconds, what in steps:
        now += seconds
        sample = sample_for(state, what)
        after, decisions = step(state, sample, now, HEALTH)
        yield now, sample, state, after, decisions
        state = after


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_a_device_in_use_has_passed_a_probe_since_its_last_trip(steps):
    """Whatever happens, OK follows a passed report for the newest process, made after the last trip."""
    proved_process = None
    for _, sample, before, after, decisions in play(steps):
        if isinstance(sample, Probed) and sample.report == PROVED and before.phase is Phase.PROBING:
            proved_process = sample.process
        if any(isinstance(decision, EndProcess) for decision in decisions):
            proved_process = None
        if after.in_use:
            assert proved_process == after.process


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_decisions_tell_every_transition_and_no_other(steps):
    """A Changed for each change of phase, Failover exactly on leaving use, Failback exactly on returning after one."""
    away = False
    for _, _, before, after, decisions in play(steps):
        changes = [decision for decision in decisions if isinstance(decision, Changed)]
        if changes:
            assert changes[0].before is before.phase
            assert changes[-1].after is after.phase
        else:
            assert before.phase is after.phase
        left = before.in_use and not after.in_use
        returned = after.in_use and not before.in_use
        assert left == any(isinstance(decision, Failover) for decision in decisions)
        assert (returned and away) == any(isinstance(decision, Failback) for decision in decisions)
        away = (away or left) and not returned


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_a_process_that_met_a_sticky_fault_is_ended_and_never_probed(steps):
    """Every trip ends the process; every probe has a new number."""
    numbers = []
    for _, _, before, after, decisions in play(steps):
        numbers += [decision.process for decision in decisions if isinstance(decision, StartProbe)]
        if after.trips > before.trips:
            assert any(isinstance(decision, EndProcess) for decision in decisions)

    assert numbers == sorted(set(numbers))


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_no_probe_starts_before_its_time(steps):
    """From each trip at least the dwell of so many trips passes until the next probe."""
    earliest = -math.inf
    for now, _, before, after, decisions in play(steps):
        if any(isinstance(decision, StartProbe) for decision in decisions):
            assert now >= earliest
        if after.trips > before.trips:
            earliest = now + min(60 * 2 ** (after.trips - 1), 3600)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_a_step_depends_on_nothing_but_its_arguments(steps):
    """The same history twice gives the same states and decisions, and leaves the old state as it was."""
    first = [(after, decisions) for *_, after, decisions in play(steps)]
    second = [(after, decisions) for *_, after, decisions in play(steps)]

    assert first == second


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([60.0, 74.0, 80.0, 86.0, 95.0])), min_size=1))
def test_no_course_of_temperature_flaps_more_than_29_times_a_day(course):
    """Any sequence of plateaus, repeated for 24 simulated hours."""
    device = Device()
    plateau = 0
    while device.now < 86_400:
        ticks, temperature = course[plateau % len(course)]
        device.check(hot(temperature), times=ticks)
        plateau += 1

    assert sum(isinstance(d, Failover) for at, d in device.log if at <= 86_400) <= 29


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_every_change_fits_the_vocabulary(steps):
    """What is told is what events.py says, keys and all."""
    for *_, decisions in play(steps):
        for decision in decisions:
            if isinstance(decision, (Changed, Degraded)):
                assert events.problems_with(*event_of("cuda:0", decision)) == []
