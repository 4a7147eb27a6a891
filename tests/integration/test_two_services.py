"""Two services, two state directories, one drop folder: one claims, the other waits, and both say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.config.load import load
from rmbgd.doctor.checks import CheckState
from rmbgd.doctor.folders import check_folders
from rmbgd.errors import Exit
from tests.support import audit
from tests.support.images import sample_image, samples
from tests.support.service import ServiceUnderTest


def pair(tmp_path: Path) -> tuple[ServiceUnderTest, ServiceUnderTest]:
    """The second is the first with its own state: same folders for images, as from a copied configuration."""
    first, second = ServiceUnderTest(tmp_path / "first"), ServiceUnderTest(tmp_path / "second")
    second.roots = first.roots
    second.input, second.output, second.done, second.failed = first.roots.values()
    second.configure({}, {})
    return first, second


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_second_service_waits_for_the_first_and_takes_over(tmp_path: Path, end: str) -> None:
    first, second = pair(tmp_path)
    data = samples(range(24))
    with first, second.start(ready=False):
        holder = first.pid
        first.hold.touch()
        first.drop_all(data)
        first.wait(lambda: first.given() and len(audit.claimed(first.input)) > 1, "images in work")
        waiting = second.wait_for("folder.waiting", folder="shop", cause="in_use")
        assert f"process {holder} on" in waiting["holder"]
        assert str(first.state) in waiting["holder"]
        contested = first.wait_for("folder.contested", folder="shop")
        assert (contested["contender_pid"], contested["state_directory"]) == (second.pid, str(second.state))
        second.restart()
        second.wait_for("folder.waiting", cause="in_use", count=2)
        if end == "stop":
            first.hold.unlink()
            assert first.stop() == 0
        else:
            first.kill()
        second.wait_for("folder.watching", folder="shop")
        second.wait(lambda: set(audit.files(second.done)) == set(data), "every image done by one of the two")
        second.drop("late.png", sample_image(99))
        second.wait_for("image.done", path="late.png")
        if end == "kill":  # its rows are the second's business now, which is no loss to report
            first.hold.unlink()
            first.start(ready=False)
            first.wait_for("folder.waiting", cause="in_use")
            since = len(first.events)
            assert second.stop() == 0
            first.wait_for("folder.watching", since=since)
            first.turn()
    audit.assert_complete(first.roots, data | {"late.png": sample_image(99)})
    ended = [each["path"] for service in (first, second) for each in service.endings()]
    assert sorted(ended) == sorted([*data, "late.png"])
    assert [each for service in (first, second) for each in service.named("image.failed")] == []


def test_lock_is_taken_again_after_the_claim_folder_was_removed(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    with first:
        shutil.rmtree(first.input / ".rmbgd")
        first.wait((first.input / ".rmbgd" / "lock").exists, "a new lock")
        with second.start(ready=False):
            second.wait_for("folder.waiting", cause="in_use")
            first.turn()


def test_check_and_doctor_name_the_other_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = pair(tmp_path)
    with first:
        first.turn()
        statuses = [cli.main(["check", "--config", str(service.config)]) for service in (first, second)]
        (fault,) = [each for each in check_folders(load(second.config)) if each.need == "owner shop"]
        assert [each for each in check_folders(load(first.config)) if each.need == "owner shop"] == []
    statuses.append(cli.main(["check", "--config", str(second.config)]))  # the first one has ended
    assert statuses == [Exit.OK, Exit.CONFIGURATION, Exit.OK]
    assert fault.state is CheckState.FAIL
    for said in (capsys.readouterr().err, fault.text):
        assert f"process {first.pid} on" in said
        assert str(first.state) in said
