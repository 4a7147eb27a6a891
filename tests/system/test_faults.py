"""What the service survives under systemd: a stop under load, SIGKILL, a hang. Nothing is lost or made twice."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from tests.system.service import FOLDERS, UNIT, InstalledService, image

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

LOAD = 30  # images; seconds of work for the small network
FAILURES = 6  # of the start; more than the five after which systemd gives up where nobody tells it otherwise
RELOADS = 10


def drop_load(service: InstalledService) -> set[str]:
    """All at once, until the first is done: there is something left to do."""
    images = {f"load-{number:02}.jpg": image(100 + number) for number in range(LOAD)}
    service.drop_all(images)
    service.wait(lambda: service.events("image.done"), "the first of the load")
    return set(images)


def all_accounted_for(service: InstalledService, names: set[str]) -> bool:
    published = {str(PurePath(name).with_suffix(".png")) for name in names}
    expected = {"out": published, "done": names, "in": set(), "failed": set()}
    return expected == {folder: service.files(folder) for folder in FOLDERS}


def test_stop_under_load_is_orderly_and_loses_nothing(service: InstalledService) -> None:
    names = drop_load(service)
    service.stop()
    state = {"Result": "success", "ExecMainCode": "1", "ExecMainStatus": "0", "ActiveState": "inactive"}
    assert state == service.show(*state)
    assert len(service.events("image.done")) < LOAD, "the load was too small to be stopped in"
    assert [0] == [event["exit_code"] for event in service.events("service.stop")]
    (recorded,) = service.wait(lambda: service.events("service.exit"), "the exit recorder")
    assert ("success", "exited", "0") == (recorded["result"], recorded["code"], recorded["status"])
    service.start()
    service.wait(lambda: all_accounted_for(service, names), "the rest of the load")
    assert sorted(names) == sorted(event["path"] for event in service.events("image.done"))


def test_sigkill_under_load_is_recorded_and_loses_nothing(service: InstalledService) -> None:
    names = drop_load(service)
    service.signal("KILL")
    service.wait(lambda: all_accounted_for(service, names), "the load")
    assert "1" == service.show("NRestarts")["NRestarts"]
    (recorded,) = service.events("service.exit")
    assert ("signal", "killed", "KILL") == (recorded["result"], recorded["code"], recorded["status"])
    assert recorded["uptime"] > 0
    assert 2 == len(service.events("service.ready"))
    assert names == {event["path"] for event in service.events("image.done")}


def test_hang_ends_in_the_watchdog_with_stacks_in_the_journal(service: InstalledService) -> None:
    service.stop()
    service.drop_in("[Service]\nWatchdogSec=4s\n")
    service.start()
    ready = len(service.events("service.ready"))
    service.signal("STOP")
    service.wait(lambda: len(service.events("service.ready")) > ready, "the next start")
    recorded = service.events("service.exit")[-1]
    assert "watchdog" == recorded["result"]
    # CPython's fault handler walks the frames of all threads without the interpreter's lock, and after SIGCONT they
    # run. The stack of one that moves may be cut short (1 of 84 trials); the walk may end in a fault of its own (3 of
    # 45). A thread that hangs keeps its frames, as does one that waits for work without a limit: a decode thread.
    assert recorded["status"] in ("ABRT", "SEGV")
    journal = service.journal("-o", "cat", "-n", "400")
    assert "Fatal Python error: Aborted" in journal
    assert recorded["status"] == "SEGV" or "in _decode" in journal


def test_crash_loop_at_the_start_ends_in_a_service_in_safe_mode(service: InstalledService) -> None:
    service.stop()
    count = "/var/lib/rmbgd/tries"
    service.drop_in(
        "[Service]\nRestartSec=100ms\nExecStart=\n"
        f"ExecStart=/bin/sh -c 'echo >> {count}; [ $(wc -l < {count}) -gt {FAILURES} ] || exit 1; "
        "exec /opt/rmbgd/bin/rmbgd run --config /etc/rmbgd/rmbgd.toml'\n"
    )
    ready = len(service.events("service.ready"))
    service.machine.run("systemctl", "start", "--no-block", UNIT)
    service.wait(lambda: len(service.events("service.ready")) > ready, "a start that works")
    assert {"NRestarts": str(FAILURES), "SubState": "running"} == service.show("NRestarts", "SubState")
    (told,) = service.events("service.safe_mode")
    assert ["exit status 1"] * FAILURES == told["causes"]
    service.wait(lambda: "in safe mode" in service.show("StatusText")["StatusText"], "the status line")
    assert "safe mode" in service.machine.run("/opt/rmbgd/bin/rmbgd", "status")
    service.drop("shoe.jpg", image(1))
    service.wait(lambda: all_accounted_for(service, {"shoe.jpg"}), "the image")
    service.stop()
    service.start()
    assert 1 == len(service.events("service.safe_mode")), "an orderly stop forgives"


def test_safe_mode_is_left_under_systemd_in_the_same_process(service: InstalledService) -> None:
    """For systemd the service runs all the time: it is neither told of a stop nor kept waiting for the watchdog."""
    began = len(service.events("service.ready"))
    service.stop()
    service.machine.sh(
        "sed -i 's/^safe_quiet = .*/safe_quiet = 1.0/; s/^safe_starts = .*/safe_starts = 1/' /etc/rmbgd/rmbgd.toml"
    )
    service.start()
    service.signal("KILL")
    service.wait(lambda: service.events("service.safe_mode"), "safe mode")
    service.wait(lambda: len(service.events("service.ready")) == began + 3, "the start with everything")
    assert "safe mode is over" == service.events("service.stopping")[-1]["cause"]
    state = {"NRestarts": "1", "ActiveState": "active", "SubState": "running"}
    assert state == service.show(*state)
    assert 1 == len({event["pid"] for event in service.events("service.ready")[-2:]})
    assert ["signal KILL"] == service.events("service.safe_mode")[0]["causes"]
    service.drop("shoe.jpg", image(1))
    service.wait(lambda: all_accounted_for(service, {"shoe.jpg"}), "the image")


def test_manager_and_journal_may_be_restarted_under_load(service: InstalledService) -> None:
    names = drop_load(service)
    service.machine.run("systemctl", "restart", "systemd-journald")
    service.machine.sh(f"for n in $(seq {RELOADS}); do systemctl daemon-reload; done")
    service.wait(lambda: all_accounted_for(service, names), "the load")
    assert sorted(names) == sorted(event["path"] for event in service.events("image.done"))
    assert "0" == service.show("NRestarts")["NRestarts"]
    service.drop("after.jpg", image(99))
    service.wait(lambda: "after.jpg -> " in service.journal("-o", "cat", "RMBGD_EVENT=image.done"), "the new journal")
