"""What the service survives under systemd: a stop under load, SIGKILL, a hang. Nothing is lost or made twice."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from tests.system.service import InstalledService, picture

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

LOAD = 30  # pictures; seconds of work for the small network


def drop_load(service: InstalledService) -> set[str]:
    """All at once, so that there is something left to do when the first is done."""
    pictures = {f"load-{number:02}.jpg": picture(100 + number) for number in range(LOAD)}
    service.drop_all(pictures)
    return set(pictures)


def all_accounted_for(service: InstalledService, names: set[str]) -> bool:
    """Every picture came out, its original is archived, and nothing else lies anywhere."""
    published = {str(PurePath(name).with_suffix(".png")) for name in names}
    return (
        service.files("out") == published
        and service.files("done") == names
        and service.files("in") == set()
        and service.files("failed") == set()
    )


def assert_each_done_once(service: InstalledService, names: set[str]) -> None:
    done = [event["path"] for event in service.events("image.done")]
    assert sorted(names) == sorted(done)


def test_stop_under_load_is_orderly_and_loses_nothing(service: InstalledService) -> None:
    """systemd sees exit status 0 within its patience; what was not finished is finished after the next start."""
    names = drop_load(service)
    service.wait(lambda: service.events("image.done"), "the first of the load")

    service.stop()

    state = service.show("Result", "ExecMainCode", "ExecMainStatus", "ActiveState")
    assert {"Result": "success", "ExecMainCode": "1", "ExecMainStatus": "0", "ActiveState": "inactive"} == state
    left = LOAD - len(service.events("image.done"))
    assert left > 0, "the load was too small to be stopped in"
    stop = service.events("service.stop")
    assert [0] == [event["exit_code"] for event in stop]
    service.wait(lambda: service.events("service.exit"), "the exit recorder")
    recorded = [(event["result"], event["code"], event["status"]) for event in service.events("service.exit")]
    assert [("success", "exited", "0")] == recorded

    service.start()

    service.wait(lambda: all_accounted_for(service, names), "the rest of the load")
    assert_each_done_once(service, names)


def test_sigkill_under_load_is_recorded_and_loses_nothing(service: InstalledService) -> None:
    """systemd brings it back by itself, the exit recorder names the cause, and every picture is finished."""
    names = drop_load(service)
    service.wait(lambda: service.events("image.done"), "the first of the load")

    service.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "rmbgd.service")

    service.wait(lambda: all_accounted_for(service, names), "the load")
    assert "1" == service.show("NRestarts")["NRestarts"]
    (recorded,) = service.events("service.exit")
    assert ("signal", "killed", "KILL") == (recorded["result"], recorded["code"], recorded["status"])
    assert recorded["uptime"] > 0
    assert 2 == len(service.events("service.ready"))
    assert names == {event["path"] for event in service.events("image.done")}


def test_hang_ends_in_the_watchdog_with_stacks_in_the_journal(service: InstalledService) -> None:
    """A service that stands still is aborted by systemd, shows every Python stack, and is back by itself."""
    service.stop()
    service.drop_in("[Service]\nWatchdogSec=4s\n")
    service.start()
    ready = len(service.events("service.ready"))

    service.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "rmbgd.service")

    service.wait(lambda: len(service.events("service.ready")) > ready, "the next start")
    recorded = service.events("service.exit")[-1]
    assert "watchdog" == recorded["result"]
    # CPython's fault handler walks the frames of running threads without the interpreter's lock. In 3 of 60 trials on a
    # busy service (3.11, SIGSTOP, SIGABRT, SIGCONT; no handler of ours in the chain) that walk ended in a fault of its own,
    # in the middle of a line. Threads that hang do not change their frames; and service.stalled has shown them before.
    assert recorded["status"] in ("ABRT", "SEGV")
    journal = service.journal("-o", "cat", "-n", "400")
    assert "Fatal Python error: Aborted" in journal
    assert "rmbgd/health/monitor.py" in journal
