"""The life of a machine: what counts as operating, what as failure, and what is told when the log has holes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.events import SAFE_MODE_OVER
from rmbgd.mtbf.logs import LogSource, read
from rmbgd.mtbf.machine import MachineHistory, machines
from rmbgd.mtbf.timeline import State
from tests.mtbf.box import PARTS, Box, play
from tests.mtbf.oracle import judge

DAY = 86400.0


def machine_of(box: Box, folder: Path, **options: bool) -> MachineHistory:
    path = box.write(folder / f"{box.name}.jsonl")
    (machine,) = machines(read([LogSource(box.name, True, (path,))]), **options)
    return machine


def seconds(machine: MachineHistory) -> dict[str, float]:
    found = {str(kind): round(machine.timeline.seconds(kind), 3) for kind in State}
    return {kind: value for kind, value in found.items() if value}


def causes(machine: MachineHistory) -> list[str]:
    return [failure.cause for failure in machine.failures]


# --- what counts


def test_time_counts_from_ready_to_the_last_line(tmp_path: Path):
    """A run that still goes on when the log is read: no failure, no end."""
    machine = machine_of(Box().start().serve(3600), tmp_path)

    assert seconds(machine) == {"up": 3600}
    assert causes(machine) == []


def test_a_planned_stop_is_neither_operating_nor_down(tmp_path: Path):
    """From the request to stop until ready again."""
    box = Box().start().serve(600).stop(seconds=3).sleep(100).start(ready_after=17).serve(600)

    assert seconds(machine_of(box, tmp_path)) == {"up": 1200, "planned": 120}


def test_leaving_safe_mode_is_planned_though_the_process_stays(tmp_path: Path):
    """The service stops and starts itself under the same pid; the time between is neither operating nor down."""
    box = Box().start().serve(600).stop(SAFE_MODE_OVER, seconds=3)
    box.pid -= 1
    machine = machine_of(box.start(ready_after=7).serve(600), tmp_path)

    assert seconds(machine) == {"up": 1200, "planned": 10}
    assert causes(machine) == []


def test_a_recorded_kill_is_a_failure_from_the_exit_until_ready(tmp_path: Path):
    """Only the recorder saw it."""
    box = Box().start().serve(600).sleep(10).recorded().sleep(5).start(ready_after=2.5).serve(600)
    machine = machine_of(box, tmp_path)

    assert seconds(machine) == {"up": 1210, "down": 7.5}
    assert [(failure.cause, failure.down) for failure in machine.failures] == [("signal KILL", 7.5)]


@pytest.mark.parametrize(
    ("recorded", "cause"),
    [
        (("watchdog", "killed", "ABRT"), "watchdog"),
        (("signal", "killed", "SEGV"), "signal SEGV"),
        (("core-dump", "dumped", "SIGSEGV"), "signal SEGV"),
        (("exit-code", "exited", "70"), "exit status 70"),
        (("oom-kill", "killed", "KILL"), "oom-kill"),
    ],
)
def test_the_cause_is_in_systemd_s_words(tmp_path: Path, recorded: tuple[str, str, str], cause: str):
    """As the exit recorder wrote them."""
    box = Box().start().serve(600).recorded(*recorded).sleep(5).start().serve(600)

    assert causes(machine_of(box, tmp_path)) == [cause]


def test_a_failed_stage_is_a_failure_with_its_name(tmp_path: Path):
    """The service's own word goes before the recorder's; it failed when it began to stop for it."""
    box = Box().start().serve(600).emit("service.stopping", cause="finish", in_flight=1).sleep(2)
    box.emit("service.failed", stage="finish", error="KeyError: 'x'", traceback="").recorded(
        "exit-code", "exited", "70"
    )
    machine = machine_of(box.sleep(5).start(ready_after=3).serve(600), tmp_path)

    assert causes(machine) == ["failed: finish"]
    assert machine.failures[0].detail == "KeyError: 'x'"
    assert seconds(machine) == {"up": 1200, "down": 10}


def test_a_run_that_vanished_is_a_failure_from_its_last_line(tmp_path: Path):
    """No stop, no exit, and another process in the same boot: conservative, and told."""
    box = Box().start().serve(600).sleep(30).start(ready_after=2).serve(600)
    machine = machine_of(box, tmp_path)

    assert causes(machine) == ["vanished"]
    assert seconds(machine) == {"up": 1200, "down": 32}
    assert any("without a recorded end" in note for note in machine.notes)


def test_a_planned_reboot_is_no_failure(tmp_path: Path):
    """Stopped by SIGTERM, then another boot."""
    box = Box().start().serve(600).stop(seconds=2).reboot(58).start(ready_after=60).serve(600)

    assert seconds(machine_of(box, tmp_path)) == {"up": 1200, "planned": 120}


def test_a_boot_without_an_end_before_is_a_power_loss(tmp_path: Path):
    """Told apart: neither operating, nor down, nor a failure."""
    box = Box().start().serve(600).reboot(100).start(ready_after=20).serve(600)
    machine = machine_of(box, tmp_path)

    assert seconds(machine) == {"up": 1200, "power_loss": 120}
    assert causes(machine) == []
    assert any("power loss" in note for note in machine.notes)


def test_a_power_loss_can_be_counted_as_a_failure(tmp_path: Path):
    """When the operator asks for it."""
    box = Box().start().serve(600).reboot(100).start(ready_after=20).serve(600)
    machine = machine_of(box, tmp_path, power_loss_is_failure=True)

    assert causes(machine) == ["power loss"]
    assert seconds(machine) == {"up": 1200, "down": 120}


def test_a_crash_loop_is_one_failure(tmp_path: Path):
    """The function was lost once; the starts that failed are counted apart."""
    box = Box().start().serve(600).recorded("signal", "killed", "SEGV").sleep(5)
    for _ in range(30):
        box.pid += 1
        box.emit("service.start", config="", folders=[], device="auto", python="").sleep(1)
        box.recorded("exit-code", "exited", "70").sleep(5)
    machine = machine_of(box.start(ready_after=2).serve(600), tmp_path)

    assert causes(machine) == ["signal SEGV"]
    assert machine.timeline.failed_starts == 30
    assert machine.failures[0].down == 5 + 30 * 6 + 2


def test_a_start_that_fails_after_a_planned_stop_is_a_failure(tmp_path: Path):
    """Nobody planned that it would not come back."""
    box = Box().start().serve(600).stop(seconds=1).sleep(9)
    box.pid += 1
    box.emit("service.start", config="", folders=[], device="auto", python="").sleep(1)
    box.recorded("exit-code", "exited", "70").sleep(29)
    machine = machine_of(box.start(ready_after=10).serve(600), tmp_path)

    assert causes(machine) == ["start: exit status 70"]
    assert seconds(machine) == {"up": 1200, "planned": 10, "down": 40}


def test_a_refused_configuration_is_the_operator_s(tmp_path: Path):
    """Exit status 78, even of a process that wrote nothing: no failure, and told."""
    box = Box().start().serve(600).stop(seconds=1).recorded("success", "exited", "0").sleep(9)
    box.recorded("exit-code", "exited", "78").sleep(30)
    machine = machine_of(box.start(ready_after=10).serve(600), tmp_path)

    assert causes(machine) == []
    assert seconds(machine) == {"up": 1200, "planned": 50}
    assert any("configuration refused" in note for note in machine.notes)


def test_a_refused_configuration_is_known_without_the_recorder(tmp_path: Path):
    """By the stage in which the service says that it failed."""
    box = Box().start().serve(600).stop(seconds=1).sleep(9)
    box.pid += 1
    box.emit("service.start", config="", folders=[], device="auto", python="")
    box.emit("service.failed", stage="start", error="no such model", traceback="").sleep(30)
    machine = machine_of(box.start(ready_after=10).serve(600), tmp_path)

    assert causes(machine) == []
    assert seconds(machine) == {"up": 1200, "planned": 50}


def test_a_stop_that_ends_badly_is_a_failure_of_no_duration(tmp_path: Path):
    """The stop was asked for, its violent end was not."""
    box = Box().start().serve(600).emit("service.stopping", cause="SIGTERM", in_flight=2).sleep(60)
    box.recorded("timeout", "killed", "KILL").sleep(50)
    machine = machine_of(box.start(ready_after=10).serve(600), tmp_path)

    assert causes(machine) == ["timeout while stopping"]
    assert seconds(machine) == {"up": 1200, "planned": 120}
    assert machine.failures[0].down == 0


def test_still_down_at_the_end_is_told_and_not_guessed(tmp_path: Path):
    """How long it will last is not known."""
    machine = machine_of(Box().start().serve(600).recorded(), tmp_path)

    assert machine.failures[0].down is None
    assert any("still down" in note for note in machine.notes)


# --- gaps and stalls


def test_a_gap_in_the_heartbeat_is_not_operating_time(tmp_path: Path):
    """Nor is it down: nobody knows. Told."""
    box = Box().start().serve(600).sleep(1000).health().serve(600)
    machine = machine_of(box, tmp_path)

    assert seconds(machine) == {"up": 1200, "unobserved": 1000}
    assert any("gap in the heartbeat" in note for note in machine.notes)


def test_three_heartbeats_may_be_missing(tmp_path: Path):
    """A busy disk delays lines."""
    box = Box(heartbeat=60).start().serve(600).sleep(180).health().serve(600)

    assert seconds(machine_of(box, tmp_path)) == {"up": 1380}


def test_images_are_signs_of_life(tmp_path: Path):
    """Where heartbeats are rare."""
    box = Box(heartbeat=60).start()
    for _ in range(100):
        box.sleep(100).image()

    assert seconds(machine_of(box, tmp_path)) == {"up": 10_000}


def test_a_kill_long_after_the_last_heartbeat_counts_from_that(tmp_path: Path):
    """It hung first."""
    box = Box().start().serve(600).sleep(2000).recorded("watchdog", "killed", "ABRT").sleep(5).start().serve(60)
    machine = machine_of(box, tmp_path)

    assert machine.failures[0].down == 2007
    assert seconds(machine) == {"up": 660, "down": 2007}


def test_work_that_waits_while_nothing_comes_out_is_a_stall(tmp_path: Path):
    """A failure from the last outcome until the next, when it takes more than two minutes."""
    box = Box().start().serve(120).image()
    box.in_flight = 3
    box.serve(300).sleep(30).image()
    box.in_flight = 0
    machine = machine_of(box.sleep(30).health().serve(300), tmp_path)

    assert causes(machine) == ["stall"]
    assert seconds(machine) == {"up": 120 + 330, "down": 330}


def test_a_slow_machine_is_not_stalled(tmp_path: Path):
    """Ten times its own 95 % of the time from claim to outcome."""
    box = Box().start()
    box.in_flight = 1
    for _ in range(20):
        box.serve(300).image(total=300_000)

    assert causes(machine_of(box, tmp_path)) == []


def test_a_pause_for_the_disk_is_no_stall(tmp_path: Path):
    """The disk is the operator's; the service waits as it should."""
    box = Box().start().serve(60)
    box.in_flight, box.paused = 3, "disk_full"
    machine = machine_of(box.serve(3600), tmp_path)

    assert causes(machine) == []


def test_an_idle_service_is_not_stalled(tmp_path: Path):
    """Nothing waits."""
    assert causes(machine_of(Box().start().serve(DAY), tmp_path)) == []


def test_a_watchdog_kill_counts_from_when_the_thread_hung(tmp_path: Path):
    """As the service reported it; one failure, not two."""
    box = Box().start().serve(600).emit("service.stalled", threads=["finish-1"], seconds=30.0).sleep(25)
    box.recorded("watchdog", "killed", "ABRT").sleep(5).start(ready_after=2).serve(600)
    machine = machine_of(box, tmp_path)

    assert causes(machine) == ["watchdog, after a stall"]
    assert seconds(machine) == {"up": 570 + 600, "down": 30 + 25 + 5 + 2}


def test_a_job_that_is_published_twice_is_a_failure(tmp_path: Path):
    """Of no duration; the same line found twice is not that."""
    box = Box().start().serve(60).image()
    box.lines.append(box.lines[-1])
    again = box.jobs
    machine = machine_of(box.serve(60), tmp_path)
    assert causes(machine) == []
    assert any("more than once" in note for note in machine.notes)

    box.jobs = again - 1
    assert causes(machine_of(box.image().serve(60), tmp_path)) == ["published twice"]


@pytest.mark.parametrize("rebooted", [False, True])
def test_an_outcome_that_a_next_start_tells_again_counts_once(tmp_path: Path, rebooted: bool):
    """By the job's number, not by the line; in the same boot or after a reboot. What was never told counts, too."""
    box = Box().start().serve(60).image().image()
    box.recorded().sleep(5) if not rebooted else box.reboot()
    box.jobs -= 1
    box.pid += 1
    box.start(ready_after=0)
    for _ in range(2):
        box.image(recovered=True)  # the second of those above, and one that nobody has told
    machine = machine_of(box.serve(60), tmp_path)

    assert machine.counts["outcomes"] == {"done": 3}
    assert "published twice" not in causes(machine)
    assert any("1 outcome told again" in note for note in machine.notes)


def test_what_two_starts_tell_again_counts_once(tmp_path: Path):
    """The next start was killed as well, when it had just told."""
    box = Box().start().serve(60).recorded().sleep(5).start()
    box.image(recovered=True).recorded().sleep(5).start()
    box.jobs -= 1
    machine = machine_of(box.image(recovered=True).serve(60), tmp_path)

    assert machine.counts["outcomes"] == {"done": 1}
    assert "published twice" not in causes(machine)


# --- logs as they are found


def test_lines_in_any_order_give_the_same_time(tmp_path: Path):
    """Threads and rotated parts mix them; within a boot the monotonic time decides."""
    box = Box().start().serve(600).stop().sleep(60).start().serve(600)
    straight = seconds(machine_of(box, tmp_path))
    box.lines[3:9] = box.lines[3:9][::-1]

    assert seconds(machine_of(box, tmp_path)) == straight


def test_lines_of_one_millisecond_keep_their_order(tmp_path: Path):
    """A process that starts, is ready and fails within it, ten times over, twice in the log."""
    box = Box().start().serve(600).stop().sleep(60)
    for _ in range(10):
        box.start(ready_after=0).emit("service.failed", stage="finish", error="", traceback="").sleep(10)
    box.start(ready_after=0).serve(60)
    box.lines *= 2

    assert causes(machine_of(box, tmp_path)) == ["failed: finish"] * 10


@pytest.mark.parametrize("jump", [DAY, -DAY, -(56 * 365 * DAY)])
def test_a_jump_of_the_wall_clock_changes_no_duration(tmp_path: Path, jump: float):
    """A day forth, a day back, back to 1970; told."""
    box = Box().start().serve(6000).step_clock(jump).serve(600).recorded().sleep(5).start().serve(6000)
    machine = machine_of(box, tmp_path)

    assert seconds(machine) == {"up": 12_600, "down": 7}
    assert any("clock jumped" in note for note in machine.notes)


def test_a_clock_that_is_put_right_after_boot_places_the_whole_boot(tmp_path: Path):
    """Boards without a battery start in 1970 until the network answers."""
    box = Box()
    box.step_clock(-50 * 365 * DAY).start().serve(30).step_clock(50 * 365 * DAY).serve(DAY)
    machine = machine_of(box, tmp_path)

    assert machine.window is not None
    assert machine.window[0] > 1.7e9


def test_a_log_that_begins_in_the_middle_of_a_run(tmp_path: Path):
    """Its first part was rotated away: operating from its first line on."""
    box = Box().start().serve(6000)
    box.lines = box.lines[50:]

    assert seconds(machine_of(box, tmp_path)) == {"up": 6000 - 49 * 60}


def test_one_shot_runs_are_left_out(tmp_path: Path):
    """`rmbgd once` in the same log is no service."""
    box = Box().start().serve(600)
    pid, box.pid = box.pid, 7
    box.image().emit("run.summary", done=1, failed=0, skipped=0, seconds=1.0)
    box.pid = pid
    machine = machine_of(box.serve(600), tmp_path)

    assert seconds(machine) == {"up": 1200}
    assert machine.counts["outcomes"]["done"] == 0
    assert any("other commands" in note for note in machine.notes)


def test_a_second_service_that_is_refused_changes_nothing(tmp_path: Path):
    """It saw the lock and left, while the first one worked on."""
    box = Box().start().serve(600)
    pid = box.pid
    box.pid = 7777
    box.emit("service.start", config="", folders=[], device="auto", python="").sleep(1)
    box.recorded("exit-code", "exited", "78")
    box.pid = pid
    machine = machine_of(box.serve(600), tmp_path)

    assert causes(machine) == []
    assert seconds(machine) == {"up": 1201}


# --- against brute force


@settings(max_examples=150, deadline=None)
@given(PARTS, st.sets(st.integers(0, 200), max_size=40))
def test_random_histories_agree_with_brute_force(tmp_path_factory, parts, dropped):
    """Every second in the same state, and as many failures, when lines are lost, stop events among them."""
    box = play(parts, dropped)
    machine = machine_of(box, tmp_path_factory.mktemp("log"))
    expected = judge(box.lines, gap=40)

    assert seconds(machine) == {kind: float(count) for kind, count in expected.seconds.items() if count}
    assert len(machine.failures) == expected.failures
    assert machine.timeline.failed_starts == expected.failed_starts
