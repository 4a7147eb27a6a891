"""The life of a machine: what counts as operating, what as failure, and what is told when the log has holes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.events import LEDGER_DAMAGED, SAFE_MODE_OVER
from rmbgd.mtbf import html, report, text
from rmbgd.mtbf.logs import LogSource, read
from rmbgd.mtbf.machine import MachineHistory, machines
from rmbgd.mtbf.timeline import State, stamp
from tests.mtbf.box import EPOCH, FAILED, PARTS, Box, play
from tests.mtbf.oracle import judge

DAY = 86400.0
REFUSED = ("exit-code", "exited", "78")

History = Callable[[Box], Box]
Failures = list[tuple[float, str, float | None]]


def machine_of(box: Box, folder: Path, *, power_loss_is_failure: bool = False) -> MachineHistory:
    path = box.write(folder / f"{box.name}.jsonl")
    (machine,) = machines(read([LogSource(box.name, True, (path,))]), power_loss_is_failure=power_loss_is_failure)
    return machine


def seconds(machine: MachineHistory) -> dict[str, float]:
    found = {str(kind): round(machine.timeline.seconds(kind), 3) for kind in State}
    return {kind: value for kind, value in found.items() if value}


def pause(box: Box, kind: str, path: str = "/var/lib/rmbgd/ledger.sqlite", **keys: str) -> Box:
    return box.emit("storage.paused", kind=kind, path=path, detail="SQLITE_CORRUPT", **keys)


# Name: what the box does, seconds in each state, failures (seconds after the first line, cause, seconds down), a note.
HISTORIES: dict[str, tuple[History, dict[str, float], Failures, str]] = {
    # What counts. Operating time goes from ready to the last line, or to the request to stop.
    "still at work": (lambda b: b.start().serve(3600), {"up": 3600}, [], ""),
    "a stop of which only the end was written": (
        lambda b: b.start().serve(600).emit("service.stop", exit_code=0, seconds=1.0, returned=0).sleep(8).start(),
        {"up": 600, "planned": 10}, [], ""),
    "leaving safe mode, under the same pid": (
        lambda b: b.start().serve(600).stop(SAFE_MODE_OVER, seconds=3).set(pid=1000).start(ready_after=7).serve(600),
        {"up": 1200, "planned": 10}, [], ""),
    "an exit without error that nobody asked for": (
        lambda b: b.start().serve(600).recorded("success", "exited", "0").sleep(8).start(),
        {"up": 600, "planned": 10}, [], ""),
    "a failed stage: the service's own word goes before the recorder's, when it began to stop for it": (
        lambda b: b.start().serve(600).emit("service.stopping", cause="finish", in_flight=1).sleep(2)
        .fail("finish", "KeyError: 'x'").recorded(*FAILED).sleep(5).start(ready_after=3).serve(600),
        {"up": 1200, "down": 10}, [(602, "failed: finish", 10)], ""),
    "an exit status of its own": (
        lambda b: b.start().serve(600).emit("service.stop", exit_code=70, seconds=1.0, returned=0).sleep(8).start(),
        {"up": 600, "down": 10}, [(602, "exit status 70", 10)], ""),
    "vanished: no stop, no exit, and another process in the same boot; down from its last line": (
        lambda b: b.start().serve(600).sleep(30).start(ready_after=2).serve(600),
        {"up": 1200, "down": 32}, [(602, "vanished", 32)], "1 run without a recorded end"),
    "vanished, and another process followed at once": (lambda b: b.start().serve(600).start().serve(60),
        {"up": 660, "down": 2}, [(602, "vanished", 2)], "1 run without"),
    "a power loss: neither operating nor down": (
        lambda b: b.start().serve(600).reboot(100).start(ready_after=20).serve(600),
        {"up": 1200, "power_loss": 120}, [], "1 boot without a recorded end of the one before"),
    "boots that overlap on the wall clock": (
        lambda b: b.start().serve(600).stop().reboot(-300).start().serve(600), {"up": 903}, [], ""),
    "the wall clock set back over the reboot after a start that failed": (
        lambda b: b.start().serve(600).stop(seconds=0).sleep(10).launch().sleep(1).recorded(*FAILED).reboot(-5).start()
        .serve(600),
        {"up": 1200, "planned": 10}, [(612, "start: exit status 70", 0)], "set back over a reboot"),
    "a crash loop is one failure": (lambda b: [b.start().serve(600).recorded("signal", "killed", "SEGV").sleep(5)]
        and [b.launch().sleep(1).recorded(*FAILED).sleep(5) for _ in range(30)] and b.start().serve(600),
        {"up": 1200, "down": 187}, [(602, "signal SEGV", 187)], ""),
    "a start that fails at once after a planned stop, and wrote nothing": (
        lambda b: b.start().serve(600).stop(seconds=0).recorded("success", "exited", "0").sleep(1).recorded(*FAILED)
        .sleep(9).start(ready_after=0),
        {"up": 600, "planned": 1, "down": 9}, [(603, "start: exit status 70", 9)], ""),
    "a second exit at the moment of a planned stop": (
        lambda b: b.start().serve(600).stop(seconds=0).recorded("success", "exited", "0").recorded(*FAILED).sleep(8)
        .start(),
        {"up": 600, "planned": 10}, [], ""),
    "a start that fails at the moment of a planned stop": (
        lambda b: b.start().serve(600).stop(seconds=0).launch().sleep(1).recorded(*FAILED).sleep(7).start(),
        {"up": 600, "down": 10}, [(602, "start: exit status 70", 10)], ""),
    "a first start that fails": (lambda b: b.launch().sleep(1).recorded(*FAILED).sleep(9).start().serve(60),
        {"up": 60, "down": 12}, [(0, "start: exit status 70", 12)], ""),
    "a start that vanishes": (
        lambda b: b.start().serve(600).stop(seconds=0).sleep(10).launch().sleep(10).start().serve(60),
        {"up": 660, "planned": 10, "down": 12}, [(612, "start: vanished", 12)], ""),
    "the log ends while it starts": (
        lambda b: b.start().serve(600).stop(seconds=0).sleep(10).launch(), {"up": 600}, [], ""),
    "stopped while it starts": (
        lambda b: b.start().serve(600).stop(seconds=0).sleep(10).launch().stop().sleep(9).start(),
        {"up": 600, "planned": 22}, [], ""),
    "a refused configuration, even of a process that wrote nothing": (
        lambda b: b.start().serve(600).stop(seconds=1).recorded("success", "exited", "0").sleep(9)
        .recorded(*REFUSED).sleep(30).start(ready_after=10).serve(600),
        {"up": 1200, "planned": 50}, [], "configuration refused"),
    "a configuration refused at first": (lambda b: b.recorded(*REFUSED).sleep(30).start(ready_after=10).serve(600),
        {"up": 600, "planned": 40}, [], "configuration refused"),
    "a configuration that is refused when it was ready": (
        lambda b: b.start().serve(600).recorded(*REFUSED).sleep(8).start(),
        {"up": 600, "planned": 10}, [], "configuration refused"),
    "a configuration refused by the stage in which the service says that it failed": (
        lambda b: b.start().serve(600).stop(seconds=1).sleep(9).launch().fail("start", "no such model").sleep(30)
        .start(ready_after=10).serve(600),
        {"up": 1200, "planned": 50}, [], "configuration refused"),
    "a stop that ends badly: the stop was asked for, its violent end was not": (
        lambda b: b.start().serve(600).emit("service.stopping", cause="SIGTERM", in_flight=2).sleep(60)
        .recorded("timeout", "killed", "KILL").sleep(50).start(ready_after=10).serve(600),
        {"up": 1200, "planned": 120}, [(602, "timeout while stopping", 0)], ""),
    "still down at the end: told, and not guessed": (
        lambda b: b.start().serve(600).recorded(), {"up": 600}, [(602, "signal KILL", None)], "still down"),
    # Gaps: neither operating nor down, for nobody knows.
    "a gap in the heartbeat": (lambda b: b.start().serve(600).sleep(1000).health().serve(600),
        {"up": 1200, "unobserved": 1000}, [], "1 gap in the heartbeat"),
    "three heartbeats may be missing, for a busy disk delays lines": (
        lambda b: b.start().serve(600).sleep(180).health().serve(600), {"up": 1380}, [], ""),
    "images are signs of life where heartbeats are rare": (
        lambda b: [b.start()] and [b.sleep(100).image() for _ in range(100)] and b,
        {"up": 10_000}, [], "a run without heartbeats"),
    "a kill long after the last heartbeat: it hung first": (
        lambda b: b.start().serve(600).sleep(2000).recorded("watchdog", "killed", "ABRT").sleep(5).start().serve(60),
        {"up": 660, "down": 2007}, [(602, "watchdog", 2007)], ""),
    "a kill as long after the last heartbeat as may be": (
        lambda b: b.start().serve(600).sleep(180).recorded().sleep(8).start(),
        {"up": 780, "down": 10}, [(782, "signal KILL", 10)], ""),
    # Stalls: work waits and nothing comes out, for more than two minutes.
    "a stall, from the last outcome until the next": (
        lambda b: b.start().serve(120).image().set(in_flight=3).serve(300).sleep(30).image().set(in_flight=0).sleep(30)
        .health().serve(300),
        {"up": 120 + 330, "down": 330}, [(122, "stall", 330)], ""),
    "a stall that the next heartbeat ends": (
        lambda b: b.start().serve(60).set(in_flight=1).serve(180).set(in_flight=0).serve(120),
        {"up": 120, "down": 240}, [(62, "stall", 240)], ""),
    "two stalls, and a failure after them": (
        lambda b: b.start().serve(60).set(in_flight=1).serve(180).sleep(10).image().set(in_flight=0).serve(60)
        .set(in_flight=1).serve(180).sleep(10).image().set(in_flight=0).serve(60).recorded().sleep(8).start(),
        {"up": 180, "down": 390}, [(62, "stall", 190), (312, "stall", 190), (562, "signal KILL", 10)], ""),
    "a stall that a gap interrupts": (lambda b: b.start().set(in_flight=1).serve(240).sleep(1000).health().serve(240),
        {"down": 240, "unobserved": 1000}, [(2, "stall", 240), (1242, "stall", None)], "1 gap"),
    "a stall that lasts until the end: down until ready again": (
        lambda b: b.start().serve(60).set(in_flight=1).serve(240).stop(seconds=0).sleep(8).set(in_flight=0).start(),
        {"up": 60, "down": 250}, [(62, "stall", 250)], ""),
    "a gap, and a stall until the end": (
        lambda b: b.start().sleep(1000).health().set(in_flight=1).serve(240).recorded().sleep(8).start(),
        {"unobserved": 1000, "down": 250}, [(1002, "signal KILL, after a stall", 250)], "1 gap"),
    "a slow machine: ten times its own 95 % of the time from claim to outcome": (
        lambda b: [b.start().set(in_flight=1)] and [b.serve(300).image(total=300_000) for _ in range(20)] and b,
        {"up": 6000}, [], ""),
    "a pause for the disk, which is the operator's": (
        lambda b: b.start().serve(60).set(in_flight=3, paused="disk_full").serve(3600), {"up": 3660}, [], ""),
    "a watchdog kill counts once, from when the thread hung": (
        lambda b: b.start().serve(600).emit("service.stalled", threads=["finish-1"], seconds=30.0).sleep(25)
        .recorded("watchdog", "killed", "ABRT").sleep(5).start(ready_after=2).serve(600),
        {"up": 570 + 600, "down": 30 + 25 + 5 + 2}, [(572, "watchdog, after a stall", 62)], ""),
    "a thread that hung for long, and went on": (
        lambda b: b.start().serve(600).emit("service.stalled", threads=["finish-1"], seconds=100.0).serve(60)
        .emit("service.stall_ended", seconds=160.0).serve(60),
        {"up": 560, "down": 160}, [(502, "stall", 160)], ""),
    "a thread that hung for a moment": (
        lambda b: b.start().serve(600).emit("service.stalled", threads=["finish-1"], seconds=30.0).serve(60)
        .emit("service.stall_ended", seconds=90.0).serve(60).recorded().sleep(8).start(),
        {"up": 630, "down": 100}, [(572, "stall", 90), (722, "signal KILL", 10)], ""),
    # The ledger: an outage of it is down, and one failure; a full disk is neither.
    "the ledger refused, and went on": (
        lambda b: pause(b.start().serve(600), "ledger", cause="denied").serve(300).emit(
            "storage.resumed", kind="ledger", cause="denied", seconds=300.0).serve(600),
        {"up": 1200, "down": 300}, [(602, "ledger", 300)], ""),
    "the ledger was damaged, and replaced in the same process": (
        lambda b: pause(b.start().serve(600), "ledger", cause="damaged").sleep(1).stop(LEDGER_DAMAGED, seconds=2)
        .set(pid=1000).start(ready_after=7).serve(600),
        {"up": 1200, "down": 10}, [(602, "ledger", 10)], ""),
    "damage of which the pause was not written": (
        lambda b: b.start().serve(600).stop(LEDGER_DAMAGED, seconds=2).set(pid=1000).start(ready_after=8).serve(600),
        {"up": 1200, "down": 10}, [(602, "ledger", 10)], ""),
    "a planned stop while the ledger refused": (
        lambda b: pause(b.start().serve(600), "ledger", cause="read_only").serve(120).stop(seconds=2).sleep(58).start()
        .serve(60),
        {"up": 660, "down": 120, "planned": 62}, [(602, "ledger", 120)], ""),
    "an earlier version that met damage: told of as the disk's, and resumed untruly every two seconds": (
        lambda b: [b.start().serve(600)] and [pause(b, "io_error").sleep(2).emit(
            "storage.resumed", kind="ledger", seconds=2.0) for _ in range(300)] and b.serve(600),
        {"up": 1200, "down": 600}, [(602, "ledger", 600)], ""),
    "a full disk of the ledger, in an earlier version": (
        lambda b: pause(b.start().serve(60), "disk_full").set(paused="ledger").serve(600).set(paused=None).emit(
            "storage.resumed", kind="ledger", seconds=600.0).serve(60),
        {"up": 720}, [], ""),
    # Logs as they are found.
    "a log that begins in the middle of a run": (
        lambda b: b.start().serve(6000).set(lines=b.lines[50:]), {"up": 6000 - 49 * 60}, [], ""),
    "`rmbgd once` in the same log": (
        lambda b: b.start().serve(600).set(pid=7).image().emit("run.summary", done=1, failed=0, skipped=0, seconds=1.0)
        .set(pid=1001).serve(600),
        {"up": 1200}, [], "1 run of other commands"),
    "a second service, that saw the lock and left": (
        lambda b: b.start().serve(600).set(pid=7776).launch().sleep(1).recorded(*REFUSED).set(pid=1001).serve(600),
        {"up": 1201}, [], "a second process was started"),
    "a second service that was at work within the time of the first": (
        lambda b: b.start().serve(600).set(pid=7776).start(ready_after=0).serve(60).set(pid=1001).serve(600),
        {"up": 1260}, [], "two runs of the service at once"),
    "a process that left nothing but its exit, while another is at work": (
        lambda b: b.start().serve(60).recorded(*FAILED, ended_pid=5).serve(60), {"up": 120}, [], ""),
    "lines of one millisecond keep their order, twice in the log": (
        lambda b: [b.start().serve(600).stop(seconds=0).sleep(10)]
        and [b.start(ready_after=0).fail().sleep(10) for _ in range(2)]
        and b.start(ready_after=0).serve(60).set(lines=b.lines * 2),
        {"up": 660, "planned": 10, "down": 20}, [(612, "failed: finish", 10), (622, "failed: finish", 10)],
        "more than once"),
    "lines in another order": (
        lambda b: b.start().serve(600).stop().sleep(60).start().serve(600)
        .set(lines=b.lines[:3] + b.lines[8:2:-1] + b.lines[9:]), {"up": 1200, "planned": 63}, [], ""),
    "published twice": (lambda b: b.start().serve(60).image().set(jobs=0).sleep(1).image().serve(60),
        {"up": 121}, [(63, "published twice", 0)], ""),
    "the same line twice": (lambda b: b.start().serve(60).image().set(lines=[*b.lines, b.lines[-1]]).serve(60),
        {"up": 120}, [], "more than once"),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_is_counted_as_defined(tmp_path: Path, name: str):
    history, states, failures, note = HISTORIES[name]
    machine = machine_of(history(Box()), tmp_path)
    found = machine.failures
    assert seconds(machine) == states
    assert all(span.begin < span.end for span in machine.timeline.spans)
    assert [(round(each.at - EPOCH, 3), each.cause, each.down and round(each.down, 3)) for each in found] == failures
    if "set back" not in note:  # there, two times have one place
        before = [machine.timeline.operated_until(each.at) for each in found]
        assert [each.operated for each in found] == pytest.approx(before)
    assert any(note in each for each in machine.notes) if note else machine.notes == []


@pytest.mark.parametrize(
    ("recorded", "cause"),
    [(("core-dump", "dumped", "SIGILL"), "signal ILL"), (FAILED, "exit status 70"), (("oom-kill", "", ""), "oom-kill")],
)
def test_the_cause_is_in_systemd_s_words(tmp_path: Path, recorded: tuple[str, str, str], cause: str):
    (failure,) = machine_of(Box().start().serve(600).recorded(*recorded).sleep(5).start(), tmp_path).failures
    assert (failure.cause, failure.detail) == (cause, " ".join(recorded[1:]))


def test_a_power_loss_can_be_counted_as_a_failure(tmp_path: Path):
    box = Box().start().serve(600).reboot(100).start(ready_after=20).serve(600).stop(seconds=0).reboot(8).start()
    machine = machine_of(box, tmp_path, power_loss_is_failure=True)
    assert [failure.cause for failure in machine.failures] == ["power loss"]
    assert seconds(machine) == {"up": 1200, "down": 120, "planned": 10}


@pytest.mark.parametrize("rebooted", [False, True])
def test_an_outcome_that_a_next_start_tells_again_counts_once(tmp_path: Path, rebooted: bool):
    """By the job's number, not by the line; in the same boot or after a reboot. What was never told counts, too."""
    box = Box().start().serve(60).image().image()
    box.recorded().sleep(5) if not rebooted else box.reboot()
    box.set(jobs=1, pid=1001).start(ready_after=0)
    for _ in range(2):
        box.image(recovered=True)  # the second of those above, and one that nobody has told
    # The next start was killed as well, when it had just told.
    box.recorded().sleep(5).start().set(jobs=1).image(recovered=True)
    machine = machine_of(box.serve(60), tmp_path)
    assert machine.counts["outcomes"] == {"done": 3}
    assert "published twice" not in [failure.cause for failure in machine.failures]
    assert any("2 outcomes told again" in note for note in machine.notes)


@pytest.mark.parametrize("jump", [DAY, -DAY, -(56 * 365 * DAY)])
def test_a_jump_of_the_wall_clock_changes_no_duration(tmp_path: Path, jump: float):
    box = Box().start().serve(6000).step_clock(jump).serve(600).recorded().sleep(5).start().serve(6000)
    machine = machine_of(box, tmp_path)
    assert seconds(machine) == {"up": 12_600, "down": 7}
    at = stamp(EPOCH + jump + 2 + 6000 + 60)
    assert any(f"the wall clock jumped by {jump:+.0f} s around {at}" in note for note in machine.notes)


def test_a_clock_that_is_put_right_after_boot_places_the_whole_boot(tmp_path: Path):
    """Boards without a battery start in 1970 until the network answers."""
    box = Box().step_clock(-50 * 365 * DAY).start().serve(30).step_clock(50 * 365 * DAY).serve(DAY)
    window = machine_of(box, tmp_path).window
    assert window
    assert window[0] > 1.7e9


def test_a_time_that_no_calendar_has_is_shown_in_seconds():
    assert (stamp(EPOCH), stamp(1e12)) == ("2026-01-01 00:00Z", "1000000000000 s")
    assert (report.time(EPOCH), report.time(1e12)) == ("2026-01-01T00:00:00.000Z", None)


# --- failovers


def busy(box: Box) -> Box:
    """Three images before, so that nothing is late unless it takes over two minutes."""
    return box.start().serve(60).image().image().image().serve(60)


# Name: what the box does, and of each failover: begin, seconds, reason, images, outcome.
FAILOVERS: dict[str, tuple[History, list[tuple[float, float, str, int, str]]]] = {
    "work came out on the CPU": (
        lambda b: busy(b).failover().serve(60).image().image().refuse().serve(60).failback().serve(60),
        [(122, 120, "temperature", 3, "avoided")]),
    "announced work, of which nothing was told": (
        lambda b: busy(b).failover("xid", images=2).serve(60).failback(), [(122, 60, "xid", 2, "avoided")]),
    "nothing to do": (lambda b: busy(b).failover("xid", images=0).serve(120).failback(), [(122, 120, "xid", 0, "idle")],
    ),
    "images before and after it do not count, nor what is put back, nor another process": (
        lambda b: busy(b).sleep(1).failover(images=0).sleep(1).emit(
            "image.postponed", job=99, folder="shop", path="p", attempt=1, milliseconds={}, why="stopping", detail="")
        .set(pid=7).image().set(pid=1001).sleep(1).failback().sleep(1).image(),
        [(123, 2, "temperature", 0, "idle")]),
    "an image was lost to the engine": (
        lambda b: busy(b).failover().serve(60).image().refuse("poison", stage="engine").serve(60).failback(),
        [(122, 120, "temperature", 2, "broken")]),
    "an image came late": (lambda b: [busy(b)] and [b.sleep(1).image() for _ in range(100)]
        and b.sleep(1).failover().image(total=120_001).serve(60).failback(),
        [(223, 60, "temperature", 1, "broken")]),
    "an image came just in time": (lambda b: [busy(b)] and [b.sleep(1).image() for _ in range(100)]
        and b.sleep(1).failover().image(total=120_000).serve(60).failback(),
        [(223, 60, "temperature", 1, "avoided")]),
    "the service failed meanwhile": (
        lambda b: busy(b).failover().image().serve(60).recorded().sleep(5).start().serve(60),
        [(122, 60, "temperature", 1, "broken")]),
    "the service failed before": (
        lambda b: busy(b).recorded().sleep(8).start().serve(60).failover().serve(60).failback(),
        [(192, 60, "temperature", 1, "avoided")]),
    "not back by the end of the log": (
        lambda b: busy(b).failover(images=0).serve(120), [(122, 120, "temperature", 0, "open")]),
    "a number of images instead of their list": (lambda b: busy(b).failover(images=0)
        .set(lines=[line.replace('"images": []', '"images": 5') for line in b.lines]).serve(60).failback(),
        [(122, 60, "temperature", 0, "idle")]),
    "left once more, although its return was not told": (
        lambda b: busy(b).failover(images=0).serve(60).failover("xid").serve(60).failback().serve(60),
        [(122, 60, "temperature", 0, "idle"), (182, 60, "xid", 1, "avoided")]),
    "an image without its times": (lambda b: b.start().failover().image(milliseconds={}).serve(60).failback(),
        [(2, 60, "temperature", 1, "avoided")]),
    "another device returns meanwhile": (lambda b: busy(b).failover(images=0).serve(60).emit(
            "engine.failback", **{"from": "cpu", "to": "cuda:1"}, seconds=1.0, model="m").serve(60).failback(),
        [(122, 120, "temperature", 0, "idle")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILOVERS)
def test_a_failover_is_judged_by_what_came_out(tmp_path: Path, name: str):
    history, expected = FAILOVERS[name]
    found = machine_of(history(Box()), tmp_path).trips
    assert [(t.at - EPOCH, t.until - t.at, t.reason, t.images, str(t.outcome)) for t in found] == expected
    assert {(t.device, t.to) for t in found} == {("cuda:0", "cpu")}
    assert [t.threshold for t in found] == [85.0 if t.reason == "temperature" else None for t in found]


# --- against brute force


@settings(max_examples=150, deadline=None)
@given(PARTS, st.sets(st.integers(0, 200), max_size=40))
def test_random_histories_agree_with_brute_force(tmp_path_factory, parts, dropped):
    box = play(parts, dropped)
    machine = machine_of(box, tmp_path_factory.mktemp("log"))
    expected, failures, failed_starts = judge(box.lines, gap=40)
    assert seconds(machine) == {kind: float(count) for kind, count in expected.items() if count}
    assert (len(machine.failures), machine.timeline.failed_starts) == (failures, failed_starts)


def test_a_full_disk_is_told_apart_and_counted_once(tmp_path: Path) -> None:
    """Two outputs on one disk pause together; every form of the report has the line."""
    box = Box().start().serve(60)
    for path in ("/srv/a", "/srv/b"):
        pause(box, "disk_full", path).sleep(10)
    for _ in range(2):
        box.serve(90).emit("storage.resumed", kind="disk_full", seconds=1.0)
    pause(box.serve(60), "quota", "/srv/a").serve(30).emit("storage.resumed", kind="quota", seconds=30.0).serve(60)
    machine = machine_of(box, tmp_path)
    found = report.MtbfReport([machine], 0.9, None)
    assert (found.full_disk, machine.failures, seconds(machine)) == ((230.0, 2), [], {"up": 410.0})
    assert found.as_dict()["total"]["full_disk"] == {"seconds": 230.0, "incidents": 2}
    assert "full disk             3 min 50 s over 2 incidents: neither failure nor down" in text.render(found)
    assert "with a full disk in 2 incidents" in html.render(found)


@pytest.mark.parametrize("paused", ["operator", "operator:shop"])
def test_a_pause_whose_beginning_is_in_no_log_is_known_from_health(tmp_path: Path, paused: str) -> None:
    """It was rotated away, or the service was killed between the ledger's record and the event."""
    box = Box().start().set(paused=paused).serve(60).serve(60)
    folder = {"folder": "shop"} if ":" in paused else {}
    box.emit("service.resumed", **folder, person="anna", seconds=1.0).set(paused=None).serve(60)
    found = report.MtbfReport([machine_of(box, tmp_path)], 0.9, None)
    assert found.paused_hours * 3600 == pytest.approx(60)  # from the first health event on


def test_pauses_of_an_operator_are_told_apart_also_over_a_restart(tmp_path: Path) -> None:
    """Of folders that are paused at once the time counts once; while the service is stopped it is no pause."""
    box = Box().start().serve(60).emit("service.paused", folder="shop", person="anna").set(paused="operator:shop")
    box.serve(60).emit("service.paused", person="anna").set(paused="operator").serve(60)
    box.emit("service.resumed", folder="shop", person="anna", seconds=120.0).serve(60)
    box.stop().sleep(1000).start().serve(60)
    box.emit("service.resumed", person="anna", seconds=1.0).set(paused=None).serve(120)
    box.emit("service.paused", person="anna").set(paused="operator").serve(60).set(paused=None).serve(60)  # it was lost
    machine = machine_of(box, tmp_path)
    found = report.MtbfReport([machine], 0.9, None)
    assert (found.paused_hours * 3600, machine.failures) == (pytest.approx(60 * 3 + 60 + 120), [])
    assert found.as_dict()["total"]["paused_hours"] == found.paused_hours
    assert f"paused                {found.paused_hours:,.4f} h of it by an operator: no failure" in text.render(found)
    assert "of it paused by an operator" in html.render(found)


@pytest.mark.parametrize("then", [lambda b: b.serve(120), lambda b: b.stop(LEDGER_DAMAGED)])
def test_an_outage_of_the_ledger_is_told_with_its_text(tmp_path: Path, then: Callable[[Box], Box]) -> None:
    machine = machine_of(then(pause(Box().start().serve(60), "ledger", cause="damaged")), tmp_path)
    assert machine.failures[0].detail == "the ledger could not be used (damaged): SQLITE_CORRUPT"
