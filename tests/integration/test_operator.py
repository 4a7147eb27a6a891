"""What an operator does to a running service, by the commands: list, retry, pause, resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rmbgd.cli import main as cli
from rmbgd.errors import Exit, Reason
from tests.support import audit
from tests.support.images import assert_cutout_of, sample_image
from tests.support.service import ServiceUnderTest

Rmbgd = Callable[..., tuple[int, str, str]]
NOTE = b"no image at all, but text enough" * 4
STEPS_MAXIMUM = 60


@pytest.fixture
def rmbgd(capsys: pytest.CaptureFixture[str]) -> Rmbgd:
    """(exit status, stdout, stderr) of a command about a service."""

    def run(service: ServiceUnderTest, verb: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([verb, *arguments, "--config", str(service.config)])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def rows(rmbgd: Rmbgd) -> Callable[..., list[dict[str, Any]]]:
    def listed(service: ServiceUnderTest, state: str, *arguments: str) -> list[dict[str, Any]]:
        status, out, _ = rmbgd(service, "list", state, "--json", *arguments)
        assert status == 0
        found: list[dict[str, Any]] = json.loads(out)["rows"]
        return found

    return listed


def paused(service: ServiceUnderTest) -> object:
    return json.loads((service.runtime / "status.json").read_bytes())["health"]["paused"]


def test_pause_holds_over_a_restart_until_it_is_resumed(tmp_path: Path, rmbgd: Rmbgd) -> None:
    settings = {"service": {"status_interval": 0.1}, "intake": {"quiet_closed": 0.05}}
    with ServiceUnderTest(tmp_path, settings=settings) as service:
        service.hold_in_engine("first.png", sample_image(1))
        status, out, _ = rmbgd(service, "pause")
        assert (status, out) == (0, "every folder is paused: images in work are finished, nothing more is begun\n")
        service.drop("second.png", sample_image(2))
        service.hold.unlink()
        service.wait_for("image.done", path="first.png")
        service.wait(lambda: paused(service) == "operator", "the pause in the status file")
        assert "every folder is paused already, by " in rmbgd(service, "pause")[1]
        service.wait(lambda: "paused by " in rmbgd(service, "list", "waiting")[1], "the reason why it waits")
        service.restart()
        service.wait(lambda: paused(service) == "operator", "the pause after a restart")
        assert service.endings("second.png") == []
        assert (
            rmbgd(service, "resume", "shop")[1]
            == "folder shop stays paused, as every folder is: `rmbgd resume` ends that\n"
        )
        assert rmbgd(service, "resume")[:2] == (0, "every folder is served\n")
        service.wait_for("image.done", path="second.png")
        assert rmbgd(service, "resume")[:2] == (0, "every folder was served already\n")
        service.wait(lambda: paused(service) is None, "no pause in the status file")
    (begun,), (over,) = service.named("service.paused"), service.named("service.resumed")
    assert begun["person"] == over["person"] != ""
    assert "folder" not in begun
    assert over["seconds"] > 0


def test_pause_of_one_folder_holds_that_one_alone(tmp_path: Path, rmbgd: Rmbgd) -> None:
    with ServiceUnderTest(tmp_path, settings={"service": {"status_interval": 0.1}}) as service:
        answer = json.loads(rmbgd(service, "pause", "shop", "--json")[1])
        assert (answer["changed"], [each["folder"] for each in answer["pauses"]]) == (True, ["shop"])
        service.wait(lambda: paused(service) == "operator:shop", "its name in the status file")
        service.drop("a.png", sample_image(1))
        assert rmbgd(service, "pause", "shpo")[::2] == (
            1,
            "rmbgd pause: there is no folder 'shpo': did you mean 'shop'?\n",
        )
        service.wait(lambda: "a.png" in rmbgd(service, "list", "waiting")[1], "the image that waits")
        assert rmbgd(service, "resume", "shop")[1] == "folder shop is served\n"
        service.wait_for("image.done", path="a.png")


def test_list_shows_what_waits_and_why_what_is_in_work_what_failed_and_what_is_done(
    tmp_path: Path, rmbgd: Rmbgd, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    whole = sample_image(1)
    with ServiceUnderTest(tmp_path) as service:
        service.serve("s/done.png", whole)
        service.drop("note.png", NOTE)
        service.wait_for("image.failed", path="note.png")
        (service.input / "cut.png").write_bytes(sample_image(2)[:-100])
        writer = open(service.input / "open.png", "wb")  # noqa: SIM115, it is closed below
        writer.write(whole)
        writer.flush()
        service.hold_in_engine("held.png", sample_image(3))
        gates = {"cut.png": "tail", "open.png": "writer"}
        waiting = lambda: {row["path"]: row["gate"] for row in rows(service, "waiting")}  # noqa: E731
        service.wait(lambda: waiting() == gates, "both, each with what it lacks")
        out = rmbgd(service, "list", "waiting")[1]
        assert "its end is missing; rejected in " in out
        assert "still being written: a program has it open" in out
        (working,) = rows(service, "working")
        assert (working["path"], working["attempt"], working["folder"]) == ("held.png", 1, "shop")
        assert len(rows(service, "waiting", "--limit", "1")) == 1
        assert "... and more: --limit 10" in rmbgd(service, "list", "waiting", "--limit", "1")[1]
        assert rmbgd(service, "list", "waiting", "--folder", "shpo")[::2] == (
            1,
            "rmbgd list: there is no folder 'shpo': did you mean 'shop'?\n",
        )
        writer.close()
        service.hold.unlink()
        service.wait_for("image.done", path="held.png")
        live = [rows(service, state) for state in ("failed", "done")]
    after = [rows(service, state) for state in ("failed", "done")]
    (failed,), done = after
    assert live[0] == after[0], "the same without the service"
    assert (failed["reason"], failed["original"]) == ("unidentified", str(service.failed / "note.png"))
    assert {row["path"]: (row["output"], row["verdict"]) for row in done}["s/done.png"] == ("s/done.png", "ok")
    assert "note.png" in rmbgd(service, "list", "failed")[1]
    unknown = "rmbgd list: there is no folder 'shpo': did you mean 'shop'?\n"
    assert rmbgd(service, "list", "done", "--folder", "shpo") == (1, "", unknown), "as of the service"
    status, out, err = rmbgd(service, "list", "waiting")
    assert (status, out) == (Exit.NOT_RUNNING, "")
    where, start = service.runtime / "control.sock", f"rmbgd run --config {service.config}"
    assert err == f"rmbgd list: rmbgd is not running (no control socket at {where}); start it with: {start}\n"


def test_retry_puts_back_what_was_rejected(tmp_path: Path, rmbgd: Rmbgd, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServiceUnderTest(tmp_path) as service:
        names = ("a.png", "s/b.png", "s/c.png", "d.png")
        service.drop_all(dict.fromkeys(names, NOTE))
        service.wait_for_endings(len(names))
        assert rmbgd(service, "retry")[0] == Exit.USAGE
        status, out, err = rmbgd(service, "retry", "shop/s/b.png", "nothing.png")
        assert (status, out) == (1, "1 put back into the input, 1 left\n")
        assert err == "rmbgd retry: nothing.png: nothing of this name was rejected; see `rmbgd list failed`\n"
        monkeypatch.chdir(service.failed / "s")
        assert json.loads(rmbgd(service, "retry", "c.png", "--json")[1]) == {"retried": 1, "left": 0, "reasons": []}
        service.wait_for_endings(len(names) + 2)
        for name in names:  # mended where they lie
            (service.failed / name).write_bytes(sample_image(names.index(name)))
        assert rmbgd(service, "retry", "--failed", "--reason", "poison")[:2] == (0, "0 put back into the input\n")
        assert "did you mean 'poison'?" in rmbgd(service, "retry", "--failed", "--reason", "poisson")[2]
        assert rmbgd(service, "retry", "--failed")[:2] == (0, "4 put back into the input\n")
        for number, name in enumerate(names):
            service.wait_for("image.done", path=name)
            assert_cutout_of(sample_image(number), service.output / name)
        assert audit.files(service.failed) == []
    told = service.named("image.retried")
    assert sorted(event["path"] for event in told) == sorted([*names, "s/b.png", "s/c.png"])
    assert {event["reason"] for event in told} == {Reason.UNIDENTIFIED}


def test_retry_of_a_kept_original_processes_it_again(tmp_path: Path, rmbgd: Rmbgd) -> None:
    with ServiceUnderTest(tmp_path, folder={"originals": "keep"}) as service:
        service.drop("a.png", NOTE)
        service.wait_for("image.failed", path="a.png")
        service.turn(2)
        assert len(service.endings("a.png")) == 1
        assert rmbgd(service, "retry", str(service.input / "a.png"))[:2] == (0, "1 put back into the input\n")
        service.wait_for("image.failed", path="a.png", count=2)
        assert audit.reason_of(service.failed, "a.png") == Reason.UNIDENTIFIED


def are_done(service: ServiceUnderTest, names: Sequence[str]) -> bool:
    return all((service.done / name).exists() for name in names)


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_killed_before_each_step_of_a_retry_and_a_pause(tmp_path: Path, rmbgd: Rmbgd) -> None:
    service = ServiceUnderTest(tmp_path, settings={"intake": {"attempts": 10}})
    service.options["fuse"] = str(service.fuse)
    names = ("a.png", "s/b.png")
    with service:
        for step in range(STEPS_MAXIMUM):
            before = service.ended_count()
            service.drop_all({name: NOTE + bytes([step]) for name in names})
            service.wait(lambda before=before: service.ended_count() >= before + len(names), "both rejected")
            service.wait(service.is_idle, "an idle service")
            for name in names:  # when they come back they are images
                (service.failed / name).write_bytes(sample_image(step))
            service.fuse.write_text(str(step + 1))
            rmbgd(service, "retry", "--failed")
            rmbgd(service, "pause")
            rmbgd(service, "resume")
            ended = lambda: service.ended or are_done(service, names)  # noqa: E731
            service.wait(ended, "an end, of one kind or the other", alive=False)
            burnt = service.ended or not service.fuse.exists()
            if burnt:
                service.reap()
                service.start()
            else:
                service.fuse.unlink()
            assert rmbgd(service, "retry", "--failed")[0] == 0
            assert rmbgd(service, "resume")[0] == 0
            service.wait(lambda: are_done(service, names), f"both, after a kill before step {step + 1}")
            service.wait(service.is_idle, "an idle service")
            assert audit.files(service.failed) == []
            for folder in (service.done, service.output):
                shutil.rmtree(folder)
                folder.mkdir()
            if not burnt:
                break
        assert 5 < step < STEPS_MAXIMUM - 1
