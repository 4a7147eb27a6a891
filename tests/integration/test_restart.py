"""Starting, stopping and restarting: what waited is found, nothing is done twice, nothing is lost (T13, T14, T37)."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.images import sample_image, samples
from tests.support.service import ServiceUnderTest

WAITING = 200
LOAD = 100
RESTARTS = 8


@pytest.mark.parametrize("originals", ["archive", "keep"])
def test_files_that_came_while_down_are_computed_once(tmp_path: Path, originals: str) -> None:
    service = ServiceUnderTest(tmp_path, folder={"originals": originals})
    data = {f"{number % 7}/{number}.png": sample_image(number) for number in range(WAITING)}
    service.drop_all(data)
    with service:
        service.wait_for_endings(WAITING)
        service.restart()
        service.turn(3)
        assert service.computed() == WAITING
        assert sorted(event["path"] for event in service.endings()) == sorted(data)
    if originals == "archive":
        audit.assert_complete(service.roots, data)
    audit.assert_ledger_settled(service.state, done=WAITING + 3)


def test_files_written_during_the_start_are_neither_missed_nor_taken_half(tmp_path: Path) -> None:
    half, written = sample_image(9_999), {}
    service = ServiceUnderTest(tmp_path)
    (service.input / "half.png").write_bytes(half[:1000])
    over = threading.Event()

    def write() -> None:
        for number in range(10_000, 10_600):
            name = f"{number % 5}/{number}.png"
            written[name] = sample_image(number)
            (service.input / name).parent.mkdir(exist_ok=True)
            (service.input / name).write_bytes(written[name])
            if over.wait(0.003):  # spread over the whole of the start
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with service:
            service.turn()
            over.set()
            writer.join()
            service.wait_for("intake.incomplete", path="half.png")
            service.wait_for_endings(len(written) + 1)
            assert service.endings("half.png") == []
            with open(service.input / "half.png", "ab") as file:
                file.write(half[1000:])
            service.wait_for("image.done", path="half.png")
            assert len(service.endings()) == len(written) + 1
    finally:
        over.set()
        writer.join()
    audit.assert_complete(service.roots, written | {"half.png": half})


def test_stop_under_load_finishes_or_returns_everything(tmp_path: Path) -> None:
    """Again and again, by either signal, while it starts and while it works: everything is done once, nothing twice."""
    service = ServiceUnderTest(tmp_path, options={"engine": {"delay": 0.01}})
    data = service.drop_all(samples(range(LOAD)))
    for life in range(RESTARTS):
        data |= service.drop_all({f"life-{life}.png": sample_image(LOAD + life)})  # to wait for
        since = len(service.events)
        service.start(ready=False)
        service.wait_for("service.start" if life % 2 else "image.done", since=since)
        service.signal(signal.SIGINT if life % 4 > 1 else signal.SIGTERM)
        assert service.reap() == 0
        assert service.named("service.stop", since=since)[0]["exit_code"] == 0
        ended = audit.places(service.roots, data)
        assert audit.claimed(service.input) == [], "a stop left images claimed"
        assert life or 0 < list(ended.values()).count("done") < LOAD, "the load was too small to be stopped in"
    with service.start():
        service.wait_for_endings(len(data))
    audit.assert_complete(service.roots, data)
    assert service.computed() == len(data)
    assert {event["attempt"] for event in service.endings()} == {1}, "a stop is no attempt"


def test_second_signal_ends_the_waiting(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path) as service:
        service.hold_in_engine("a.png", sample_image(1))
        service.signal(signal.SIGTERM)
        service.wait_for("service.stopping")
        service.signal(signal.SIGTERM)
        assert service.reap() == 0
        service.hold.unlink()
        service.start()
        service.wait_for("image.done", path="a.png")
    audit.assert_complete(service.roots, {"a.png": sample_image(1)})


def test_hangup_compares_at_once(tmp_path: Path) -> None:
    settings = {"intake": {"reconcile": 3600.0, "reconcile_lossy": 3600.0}}
    with ServiceUnderTest(tmp_path, settings=settings, folder={"watch": "poll"}) as service:
        service.drop("a.png", sample_image(1))
        service.signal(signal.SIGHUP)
        service.wait_for("service.reload")
        service.wait_for("image.done", path="a.png")
    audit.assert_complete(service.roots, {"a.png": sample_image(1)})
