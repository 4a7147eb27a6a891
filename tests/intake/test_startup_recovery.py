"""A world that stops between any two steps, and the start after it: nothing lost, nothing twice, nothing half."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd import naming as names
from rmbgd.errors import Reason
from rmbgd.fs import version_of
from rmbgd.intake.startup_recovery import FILM_ATTEMPTS, Recovered
from rmbgd.store.records import Candidate, FileName, Job, SetFile, SetKey
from rmbgd.testing.fs import FailingFs, WorldStopped
from tests.support.run import Run
from tests.support.workspace import OF_DONE, Workspace, done, sha256, torn


def check_whole(workspace: Workspace, originals: list[bytes]) -> None:
    """At every moment: each original in exactly one place (or, deleted, in none), each output name complete."""
    found = [data for role in ("input", "done", "failed") for data in workspace.files(role).values()]
    for data in originals:
        assert found.count(data) == 1 or (data not in found and workspace.folder.originals == "delete")
    for path, data in workspace.files("output").items():
        if not names.is_temporary(os.path.basename(path)) and not path.endswith(".json"):
            assert data.startswith(b"cutout of ")
            assert data.removeprefix(b"cutout of ") in originals


def check_ended(workspace: Workspace, dropped: dict[str, bytes]) -> None:
    """In the end: an output for every good image under its own name, a reason for every bad one, nothing besides."""
    outputs = workspace.files("output")
    good = {path: data for path, data in dropped.items() if not data.startswith(b"bad")}
    assert {path: data for path, data in outputs.items() if not path.endswith(".json")} == {
        path.replace(".jpg", ".png"): b"cutout of " + data for path, data in good.items()
    }
    assert {path for path in outputs if path.endswith(".json")} == {
        path.replace(".jpg", ".png.json") for path, data in good.items() if data.startswith(b"empty")
    }
    bad = {path for path in dropped if path not in good}
    reasons = {f"{path}.error.json" for path in bad}
    kept = workspace.folder.originals == "keep"
    assert set(workspace.files("failed")) == (reasons if kept else bad | reasons)
    assert set(workspace.files("input")) == (set(dropped) if kept else set())
    if workspace.folder.originals == "archive":
        assert workspace.files("done") == good
    assert not any(row.state in ("claimed", "publishing") for row in workspace.ledger.unfinished())


def check_delivered(runs: list[Run], dropped: dict[str, bytes]) -> None:
    """How each image ended is in the log of one run, and once more at most, in that of a next one that says so."""
    for path, data in dropped.items():
        event = "image.failed" if data.startswith(b"bad") else "image.done"
        found = [keys for run in runs for keys in run.events.named(event) if keys["path"] == path]
        assert 1 <= len(found) <= 2, f"{path} was delivered {len(found)} times"
        assert [keys.get("recovered", False) for keys in found][1:] in ([], [True])
        assert len({keys["job"] for keys in found}) == 1
        if event == "image.done":
            assert {(keys["output"], keys["sha256_out"]) for keys in found} == {
                (path.replace(".jpg", ".png"), sha256(b"cutout of " + data))
            }


@pytest.fixture
def base() -> Iterator[Path]:
    """In memory where possible: thousands of synced commits."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


UNIQUE = {"a.jpg": b"good one", "s/b.jpg": b"empty one", "c.jpg": b"bad one", "d.jpg": b"later one", "e.jpg": b"good"}
EQUAL = UNIQUE | {"e.jpg": b"good one"}


@pytest.mark.parametrize("originals", ["archive", "delete", "keep"])
def test_every_moment_of_dying_ends_the_same(base: Path, originals: str) -> None:
    """However many steps were done: whole at that moment, and after the next start as if there had been no crash."""
    for steps in itertools.count():
        place = base / str(steps)
        place.mkdir()
        with Run(place, after=steps, originals=originals) as run:
            for path, data in UNIQUE.items():
                run.drop(path, data)
            died = True
            with suppress(WorldStopped):
                run.work_off()
                run.work_waiting()
                died = False
            check_whole(run, list(UNIQUE.values()))
        with Run(place, originals=originals) as again:
            again.clock.advance(2000)
            again.work_off()
            check_ended(again, UNIQUE)
            check_delivered([run, again], UNIQUE)
        with Run(place, originals=originals) as once_more:
            once_more.clock.advance(4000)
            before = once_more.files("output"), once_more.ledger.counts()
            assert not once_more.work_off()
            assert (once_more.files("output"), once_more.ledger.counts()) == before
            assert once_more.events.events == []
        shutil.rmtree(place)
        if not died:
            break
    assert steps > 30


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    crashes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    originals=st.sampled_from(["archive", "delete", "keep"]),
    order=st.permutations(sorted(UNIQUE)),
)
def test_dying_while_recovering_ends_the_same(base: Path, crashes: list[int], originals: str, order: list[str]) -> None:
    place = Path(tempfile.mkdtemp(dir=base))
    for number, after in enumerate(crashes):
        with Run(place, after=after, originals=originals, intake={"attempts": 10}) as run:
            if number == 0:
                for path in order:
                    run.drop(path, UNIQUE[path])
            run.clock.advance(2000.0 * number)
            with suppress(WorldStopped):
                run.work_off()
            check_whole(run, list(UNIQUE.values()))
    with Run(place, originals=originals, intake={"attempts": 10}) as last:
        last.clock.advance(20_000)
        last.work_off()
        check_ended(last, UNIQUE)
    shutil.rmtree(place)


def crashed(place: Path, after: int, dropped: dict[str, bytes], **given: object) -> bool:
    """Whether the world stops after so many steps, in a run in which these arrive."""
    place.mkdir(exist_ok=True)
    with Run(place, after=after, **given) as run, suppress(WorldStopped):
        for path, data in dropped.items():
            run.drop(path, data)
        run.work_off()
        return False
    return True


def test_equal_images_survive_dying_too(base: Path) -> None:
    """Copies of a known output have names of their own at every crash point."""
    for steps in range(60):
        died = crashed(base / str(steps), steps, EQUAL)
        with Run(base / str(steps)) as again:
            again.clock.advance(2000)
            again.work_off()
            check_ended(again, EQUAL)
    assert not died, "more steps than were tried"


def test_a_replaced_input_survives_dying_too(base: Path) -> None:
    for steps in range(20):
        place = base / str(steps)
        place.mkdir()
        with Run(place) as first:
            first.drop("a.jpg", b"empty old")
            first.work_off()
        died = crashed(place, steps, {"a.jpg": b"good new"})
        with Run(place) as again:
            again.work_off()
            assert again.files("output") == {"a.png": b"cutout of good new"}
            assert sorted(again.files("done").values()) == [b"empty old", b"good new"]
    assert not died


def test_archives_on_another_disk_survive_dying_too(base: Path, tmp_path: Path) -> None:
    """Copied, renamed, not yet removed: at each point the next start leaves one original."""
    if os.stat(base).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system at hand")
    for steps in range(20):
        done = tmp_path / str(steps)
        done.mkdir()
        died = crashed(base / str(steps), steps, {"a.jpg": b"good one"}, done=str(done))
        with Run(base / str(steps), done=str(done)) as again:
            again.work_off()
        assert {path.name: path.read_bytes() for path in done.iterdir()} == {"a.jpg": b"good one"}
    assert not died


Start = Callable[..., Run]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Ends the run before, and starts one."""
    with ExitStack() as stack:

        def start(**given: object) -> Run:
            stack.close()
            return stack.enter_context(closing(Run(tmp_path, **given)))

        yield start


def claimed(run: Start, *paths: str, data: bytes = b"good") -> tuple[Run, list[Job]]:
    """A run that ended with these images in hand."""
    first = run()
    for path in paths:
        first.drop(path, data + path.encode())
    return first, [first.claim(path) for path in paths]


def announce(run: Run, job: Job) -> None:
    """About to be published as a file that holds an x."""
    key = SetKey(str(run.roots["output"]), "shop", job.relative_path)
    run.ledger.publishing(done(job), key, [SetFile(FileName.of_output(job.relative_path, ".png"), sha256(b"x"), 1)])


def test_an_image_that_kills_is_set_aside_and_no_other(run: Start) -> None:
    """Five were in hand when it killed the first time; after its third time it goes, and the four are published."""
    claimed(run, *(f"{name}.jpg" for name in "abcde"))
    for starts in range(2, 6):
        again = run()
        found = again.recovery.recover()
        while (job := again.recovery.suspects.next()) is not None and job.relative_path != "c.jpg":
            again.end(job)
        if job is None:  # else the service dies
            assert (starts, found.set_aside) == (4, 1)
            break
    assert set(again.files("failed")) == {"c.jpg", "c.jpg.error.json"}
    assert set(again.files("output")) == {"a.png", "b.png", "d.png", "e.png"}
    (event,) = again.events.named("image.failed")
    assert (event["path"], event["reason"], event["attempt"], event["stage"]) == ("c.jpg", "crash_loop", 3, "intake")


def test_an_output_that_was_renamed_is_not_made_again(run: Start) -> None:
    first, (job,) = claimed(run, "s/a.jpg")
    announce(first, job)
    (first.roots["output"] / "s").mkdir()
    (first.roots["output"] / "s" / "a.png").write_bytes(b"x")
    again = run()
    assert again.recovery.recover().event() == {"jobs": 0, "published": 1, "temporaries": 0, "set_aside": 0, "told": 1}
    assert set(again.files("done")) == {"s/a.jpg"}
    assert again.ledger.counts() == {"done": 1}


def test_an_original_that_could_not_be_archived_is_at_the_next_start(run: Start) -> None:
    first, (job,) = claimed(run, "a.jpg")
    first.roots["done"].rmdir()
    outcome = done(job)
    first.publish(job, outcome=outcome)
    first.deliver(outcome)
    again = run()
    assert not again.recovery.recover(), "its event has been emitted"
    assert set(again.files("done")) == {"a.jpg"}


def test_our_temporaries_are_removed_and_no_others(run: Start) -> None:
    first, (job,) = claimed(run, "s/a.jpg")
    for role, kind in (("output", ""), ("output", ".json"), ("done", ".original"), ("failed", ".error")):
        (first.roots[role] / "s").mkdir(exist_ok=True)
        (first.roots[role] / "s" / names.temporary_name(job.job_id, kind)).write_bytes(b"half")
    (first.roots["output"] / "s" / ".rmbgd-notes").write_bytes(b"mine")
    again = run()
    assert again.recovery.recover().temporaries == 4
    assert again.files("output") == {"s/.rmbgd-notes": b"mine"}


def test_without_its_ledger_nothing_is_lost(run: Start) -> None:
    """The operator moved a damaged ledger aside: claimed files go back to where they were, temporaries are removed."""
    first, _ = claimed(run, "s/t/a.jpg", "b%2F.jpg", "x" * 250 + ".jpg", data=b"")
    (first.roots["output"] / "s").mkdir()
    for name in (names.temporary_name(99), ".rmbgd-notes", "a.tmp"):
        (first.roots["output"] / "s" / name).write_bytes(b"half")
    first.close()
    for file in (first.base / "state").iterdir():
        file.unlink()
    again = run()
    assert again.recovery.recover() == Recovered(put_back=3, temporaries=1)
    short = {path: data for path, data in again.files("input").items() if len(path) < 100}
    assert short == {"s/t/a.jpg": b"s/t/a.jpg", "b%2F.jpg": b"b%2F.jpg"}
    assert len(again.files("input")) == 3
    assert again.files("output").keys() == {"s/.rmbgd-notes", "s/a.tmp"}


def test_adopting_does_not_overwrite_a_newer_upload(run: Start) -> None:
    first, (job,) = claimed(run, "a.jpg", data=b"old ")
    first.ledger.release([job.job_id])
    first.drop("a.jpg", b"new")
    again = run()
    again.recovery.recover()
    assert again.files("input") == {"a.jpg": b"new", "a~2.jpg": b"old a.jpg"}


def test_a_folder_that_is_not_there_is_left_for_later(run: Start) -> None:
    """An unmounted disk takes its rows nowhere: they are ended when it is back."""
    claimed(run, "a.jpg")
    again = run()
    away = again.roots["input"].rename(again.base / "away")
    assert not again.recovery.recover()
    away.rename(again.roots["input"])
    assert again.recovery.recover_folder("shop").jobs == 1
    assert again.recovery.suspects.remain()
    assert not again.recovery.recover_folder("shop")


def test_live_claims_are_not_adopted(run: Start) -> None:
    it, (job,) = claimed(run, "a.jpg")
    assert not it.recovery.recover_folder("shop")
    assert Path(job.source).exists()


def test_a_claim_whose_rename_never_happened_is_forgotten(run: Start) -> None:
    """The file still stands where it was dropped: no attempt is counted, the scan finds it."""
    first = run()
    version = version_of(first.drop("a.jpg").lstat())
    first.ledger.claim([Candidate("shop", "a.jpg", first.root, version, 0.0, by_rename=True)])
    again = run()
    assert not again.recovery.recover()
    assert again.ledger.counts() == {}
    assert again.files("input") == {"a.jpg": b"image"}


def test_a_claimed_file_that_was_written_to_is_a_new_arrival(run: Start) -> None:
    _, (job,) = claimed(run, "a.jpg", data=b"half ")
    with open(job.source, "ab") as file:
        file.write(b" and half")
    again = run()
    assert again.recovery.recover().jobs == 0
    assert again.files("input") == {"a.jpg": b"half a.jpg and half"}


def test_a_failing_quarantine_does_not_stop_the_others(run: Start) -> None:
    first, (a, _) = claimed(run, "a.jpg", "b.jpg")
    first.ledger.failed(torn(a))
    again = run()
    again.roots["failed"].rmdir()
    assert again.recovery.recover().jobs == 1
    again.roots["failed"].mkdir()
    again.recovery.recover_folder("shop")
    assert set(again.files("failed")) == {"a.jpg", "a.jpg.error.json"}
    assert [event["reason"] for event in again.events.named("image.failed")] == ["corrupt"]


def test_a_failed_folder_that_refuses_the_original_has_its_event_once(run: Start) -> None:
    """The original stays claimed, and each start says so; the outcome is emitted again only where it may be missing."""
    first, (job,) = claimed(run, "a.jpg")
    first.ledger.failed(torn(job))
    told = []
    for _ in range(3):
        again = run()
        again.publisher.quarantine._fs = FailingFs({"rename_noreplace": [0, errno.EFBIG]})
        assert again.recovery.recover().jobs == 0
        assert len(again.events.named("storage.retire_failed")) == 1
        assert len(again.files("input")) == 1
        told.append(len(again.events.named("image.failed")))
    assert told == [1, 0, 0]
    last = run()
    last.recovery.recover()
    assert set(last.files("failed")) == {"a.jpg", "a.jpg.error.json"}


def test_nothing_is_computed_before_the_attempt_is_on_record(run: Start) -> None:
    """Recovering alone counts nothing: starts that fail for another reason set no image aside."""
    claimed(run, "a.jpg")
    for _ in range(5):
        assert run().recovery.recover().jobs == 1
    assert [row.attempt for row in run().ledger.unfinished()] == [1]


def test_an_event_that_is_missing_is_delivered_whole(run: Start) -> None:
    """Killed between the ledger and the log: the next start writes the event, whole, and says that it was late."""
    first, (job,) = claimed(run, "a.jpg")
    first.publish(job)
    again = run()
    assert again.recovery.recover().delivered == 1
    (event,) = again.events.named("image.done")
    ends = {"output": "a.png", "bytes_out": 6, "sha256_out": sha256(b"cutout")}
    whose = {"job": job.job_id, "folder": "shop", "path": "a.jpg", "attempt": 1, "recovered": True}
    assert event == OF_DONE | ends | whose
    assert not run().recovery.recover()


def test_an_entry_that_is_refused_in_place_has_its_event_after_a_crash(run: Start) -> None:
    first = run()
    link = first.roots["input"] / "a.jpg"
    link.symlink_to("/etc/passwd")
    first.ledger.refuse("shop", "a.jpg", version_of(link.lstat()), Reason.NOT_REGULAR, "symbolic link")
    again = run()
    assert again.recovery.recover().delivered == 1
    (event,) = again.events.named("image.failed")
    assert (event["path"], event["reason"], event["detail"]) == ("a.jpg", "not_regular", "symbolic link")
    assert link.is_symlink()


def test_an_image_that_goes_back_has_no_outcome(run: Start) -> None:
    """Its cutout was announced, then its owner wrote on: nothing was published, and there is no event."""
    first, (job,) = claimed(run, "a.jpg")
    announce(first, job)
    first.put_back(job)
    again = run()
    again.recovery.recover()
    assert again.events.events == []
    assert again.ledger.outbox.pending(job.job_id) is None


@pytest.mark.parametrize("stored", [True, False])
def test_a_second_death_after_the_move_loses_no_event(run: Start, stored: bool) -> None:
    """Refused, with its event stored or, by an old version, without; moved at the next start, which dies before it."""
    first, (job,) = claimed(run, "a.jpg")
    first.ledger.failed(torn(job))
    if not stored:
        with first.ledger.database.transaction() as db:
            db.execute("DELETE FROM untold")
    second = run()
    second.publisher.deliver = mock.Mock(side_effect=WorldStopped)
    with pytest.raises(WorldStopped):
        second.recovery.recover()
    second.die()
    assert set(second.files("failed")) == {"a.jpg", "a.jpg.error.json"}
    third = run()
    assert third.recovery.recover().delivered == 1
    assert [event["reason"] for event in third.events.named("image.failed")] == ["corrupt"]


def test_a_film_begins_again_and_again_beside_the_others_and_not_for_ever(run: Start) -> None:
    """It sees many deaths, as it is in work for long, and hardly any is its fault."""
    first = run(kind="films")
    first.drop("a.mp4", b"a film")
    first.claim("a.mp4")
    for deaths in range(1, FILM_ATTEMPTS):
        again = run(kind="films")
        found = again.recovery.recover()
        assert (found.put_back, found.set_aside, found.jobs) == (1, 0, 0)
        assert not again.recovery.suspects.remain()
        job = again.claim("a.mp4")
        assert job is not None
        assert job.attempt == deaths + 1
    last = run(kind="films")
    assert last.recovery.recover().set_aside == 1
    (event,) = last.events.named("image.failed")
    assert (event["reason"], event["attempt"]) == ("crash_loop", FILM_ATTEMPTS)
