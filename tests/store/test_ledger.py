"""The ledger: what it remembers, what it forgets, and what it says of a broken file."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rmbgd.errors import ConfigError, LedgerFault, Reason, StorageFault
from rmbgd.events import RecordedEvents
from rmbgd.fs import FileVersion
from rmbgd.store import copies
from rmbgd.store.ledger import Ledger
from rmbgd.store.opening import JUMP
from rmbgd.store.outbox import job_keys, refused
from rmbgd.store.records import Candidate, ContentKey, FileName, Job, Published, PublishedFile, SetFile, SetKey, Target
from rmbgd.store.schema import MIGRATIONS, SCHEMA_VERSION
from rmbgd.testing.clock import FakeClock
from tests.support.damage import spoil
from tests.support.workspace import OF_DONE, done, torn


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path, clock: FakeClock) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(path, clock)) as opened:
        yield opened


def candidate(path: str = "a.jpg", *, inode: int = 1, ctime: int = 3, by_rename: bool = True, seen: float = 990.0):
    return Candidate("drop", path, "/in", FileVersion(inode, 10, 2, ctime), seen, by_rename)


def claim_one(ledger: Ledger, **given: object) -> Job:
    (job,) = ledger.claim([candidate(**given)])
    return job


def key(path: str = "a.jpg") -> SetKey:
    return SetKey("/out", "drop", path)


def looking(target: Target) -> Published:
    """Published with 5 bytes."""
    return Published("/out", (PublishedFile(target.slot, target.path, "ab", 5, inode=7, mtime_ns=8),))


def publishing(ledger: Ledger, job: Job, path: str = "a.jpg", sha256: str = "ab", **whose: str) -> Target:
    file = SetFile(FileName.of_output(path, ".png"), sha256, 5)
    ((target,), _) = ledger.publishing(done(job), replace(key(path), **whose), [file])
    return target


def publish(ledger: Ledger, job: Job, path: str = "a.jpg", *, content: ContentKey | None = None) -> str:
    target = publishing(ledger, job, path)
    ledger.done(job.job_id, looking(target), content=content, report={"width": 4})
    return target.path


def finish(ledger: Ledger, job: Job, *, content: ContentKey | None = None) -> None:
    publish(ledger, job, job.relative_path, content=content)
    ledger.original_moved(job.job_id)


@contextlib.contextmanager
def reopened(ledger: Ledger) -> Iterator[Ledger]:
    ledger.close()
    with contextlib.closing(Ledger(ledger.path, ledger._clock)) as again:
        yield again


def test_a_claim_says_where_the_bytes_will_be(ledger: Ledger) -> None:
    moved, kept = ledger.claim([candidate("s/a.jpg"), candidate("b.jpg", by_rename=False)])
    assert moved.source == f"/in/.rmbgd/{moved.job_id}__s%2Fa.jpg"
    assert kept.source == "/in/b.jpg"
    assert moved.attempt == kept.attempt == 1
    assert (moved.first_seen, moved.claimed_at) == (990.0, 1000.0)


def test_two_versions_of_one_path_are_not_in_flight_together(ledger: Ledger) -> None:
    """The newer version is claimed only when the older one has ended, so that the newest output is written last."""
    first = claim_one(ledger)
    assert ledger.claim([candidate(inode=2)]) == []
    assert ledger.is_in_flight(first.job_id)
    publish(ledger, first)
    assert not ledger.is_in_flight(first.job_id)
    assert len(ledger.claim([candidate(inode=2)])) == 1


def test_claims_survive_the_process(ledger: Ledger, clock: FakeClock) -> None:
    job = claim_one(ledger, path="caf\udce9/\n.jpg", inode=(1 << 64) - 3)  # some file systems use all 64 bits
    pragmas = [ledger.database.one(f"PRAGMA {name}", ()) for name in ("journal_mode", "synchronous")]
    assert pragmas == [("wal",), (2,)]  # FULL: NORMAL would lose the last commits to a power cut
    clock.advance(5)
    with reopened(ledger) as again:
        (row,) = again.unfinished()
        retry = again.next_attempt(replace(row, source="/elsewhere"))
    known = (job.job_id, job.relative_path, job.version, "claimed")
    assert (row.job_id, row.relative_path, row.version, row.state) == known
    assert (retry.attempt, retry.source, retry.first_seen, retry.claimed_at) == (2, "/elsewhere", 990.0, 1005.0)


def test_postponing_does_not_count_as_an_attempt(ledger: Ledger) -> None:
    """A released job is forgotten; one that was tried before keeps the attempts that crashes cost it."""
    job = claim_one(ledger)
    ledger.release([job.job_id])
    assert ledger.counts() == {}
    assert claim_one(ledger).job_id > job.job_id, "temporaries are named after jobs: no number is used twice"
    (row,) = ledger.unfinished()
    ledger.release([ledger.next_attempt(row).job_id])
    assert ledger.counts() == {"waiting": 1}
    assert claim_one(ledger, ctime=99).attempt == 2
    assert ledger.counts() == {"claimed": 1}


@pytest.mark.parametrize("by_rename", [False, True])
def test_kept_originals_are_handled_once_per_version(ledger: Ledger, by_rename: bool) -> None:
    job = claim_one(ledger, by_rename=by_rename)
    assert not ledger.handled("drop", "a.jpg", job.version)
    publish(ledger, job)
    ledger.original_moved(job.job_id)
    assert ledger.handled("drop", "a.jpg", job.version) is not by_rename
    assert not ledger.handled("drop", "a.jpg", FileVersion(1, 10, 2, 4))
    assert not ledger.handled("other", "a.jpg", job.version)


def test_refused_entries_are_recorded_once(ledger: Ledger) -> None:
    version = FileVersion(1, 0, 2, 3)
    assert ledger.refuse("drop", "link", version, Reason.NOT_REGULAR, "symbolic link")
    assert ledger.refuse("drop", "link", version, Reason.NOT_REGULAR, "symbolic link") is None
    assert ledger.refuse("drop", "link", FileVersion(1, 0, 2, 4), Reason.NOT_REGULAR, "symbolic link")


def test_a_moved_original_is_written_with_the_next_transaction(ledger: Ledger) -> None:
    job = claim_one(ledger)
    publish(ledger, job)
    assert [row.state for row in ledger.unfinished()] == ["done"]
    ledger.original_moved(job.job_id)
    with reopened(ledger) as again:
        assert again.unfinished() == []
        assert again.counts() == {"done": 1}


def test_a_failed_job_waits_for_its_quarantine(ledger: Ledger) -> None:
    """The reason is there after a crash between the decision and the move."""
    job = claim_one(ledger)
    ledger.failed(refused(job_keys(job), Reason.CORRUPT, "bad \udcff byte"))
    (row,) = ledger.unfinished()
    assert (row.state, row.reason, row.detail) == ("failed", "corrupt", "bad \\udcff byte")


def test_targets_are_stable_in_every_order_of_arrival(ledger: Ledger) -> None:
    job = claim_one(ledger)
    first = {}
    for order in itertools.permutations(["a.jpg", "a.png", "a.JPG", "s/a.jpg"]):
        output = "/" + ",".join(order).replace("/", ":")
        names = {path: publishing(ledger, job, path, output=output).path for path in order}
        assert len(set(names.values())) == 4
        assert names[order[0]] == ("s/a.png" if order[0].startswith("s/") else "a.png")
        first[output] = names
    with reopened(ledger) as again:
        for output, names in first.items():
            assert names == {path: publishing(again, job, path, output=output).path for path in sorted(names)}


def test_two_folders_may_share_an_output(ledger: Ledger) -> None:
    first, second = ledger.claim([candidate(), candidate("b.jpg")])
    names = {publishing(ledger, job, folder=folder).path for job, folder in ((first, "one"), (second, "two"))}
    assert len(names) == 2


def test_pruning_keeps_what_would_be_computed_again(ledger: Ledger, clock: FakeClock) -> None:
    open_ = claim_one(ledger, path="open")
    for path in ("moved", "kept", "gone"):
        finish(ledger, claim_one(ledger, path=path, by_rename=path == "moved"))
    clock.advance(31 * 86_400)
    finish(ledger, young := claim_one(ledger, path="young", by_rename=False))
    last = 0
    while last := ledger.prune(lambda row: row.relative_path == "kept", after=last, batch=1):
        pass
    assert [ledger.handled("drop", path, young.version) for path in ("kept", "young")] == [True, True]
    assert ledger.counts() == {"done": 2, "claimed": 1}
    assert ledger.is_in_flight(open_.job_id)


def test_pruning_bounds_jobs_names_and_known_content(ledger: Ledger, clock: FakeClock) -> None:
    """Beyond the limit the oldest go, however young; an original that stays in place is remembered, with its name."""
    for number in range(10):
        clock.advance(1)
        job = claim_one(ledger, path=f"{number}.jpg", by_rename=number > 0)
        finish(ledger, job, content=ContentKey(str(number), "recipe"))
    last = 0
    while last := ledger.prune(lambda _: True, rows=4, after=last):
        pass
    assert ledger.counts() == {"done": 4}
    assert [number for number in range(10) if ledger.same_content(str(number), "recipe")] == [6, 7, 8, 9]
    assert [number for number in range(10) if ledger.output_names.of(key(f"{number}.jpg"))] == [0, 6, 7, 8, 9]


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as pool:
        claims = pool.map(ledger.claim, [[candidate(f"{number}.jpg")] for number in range(80)])
    assert len({job.job_id for jobs in claims for job in jobs}) == 80


def test_a_ledger_that_cannot_be_had_is_a_matter_of_configuration(ledger: Ledger, tmp_path: Path, clock) -> None:
    """A second service on one ledger would claim twice; a missing folder is named. The message says what to do."""
    with pytest.raises(ConfigError, match="another rmbgd"):
        Ledger(ledger.path, clock)
    with pytest.raises(ConfigError, match="state directory"):
        Ledger(tmp_path / "missing" / "ledger.sqlite", clock)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="is no file; move it away"):
        Ledger(tmp_path / "folder", clock)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"no database at all, just text" * 50, "not a database"),
        (b"SQLite format 3\0" + b"\xff" * 4000, "not a database"),
        (b"", "empty"),
    ],
)
def test_a_damaged_file_is_kept_and_replaced(path: Path, clock: FakeClock, content: bytes, cause: str) -> None:
    path.write_bytes(content)
    with contextlib.closing(Ledger(path, clock)) as ledger:
        replacement = ledger.database.replacement
        assert replacement is not None
        assert (cause in replacement.cause, replacement.copy) == (True, None)
        assert Path(replacement.aside).read_bytes() == content
        assert claim_one(ledger).job_id > JUMP
    with contextlib.closing(Ledger(path, clock)) as again:
        assert (again.database.replacement, again.counts()) == (None, {"claimed": 1})


def test_what_sqlite_left_of_a_removed_ledger_is_no_part_of_the_next(path: Path, clock: FakeClock) -> None:
    first = Ledger(path, clock)
    claim_one(first)
    kept = {suffix: path.with_name(path.name + suffix).read_bytes() for suffix in ("-wal", "-shm")}
    first.close()
    path.unlink()
    for suffix, content in kept.items():
        path.with_name(path.name + suffix).write_bytes(content)
    with contextlib.closing(Ledger(path, clock)) as ledger:
        assert (ledger.is_new, ledger.counts(), ledger.database.replacement) == (True, {}, None)
        assert [claim_one(ledger, path=name).job_id for name in "ab"] == [1, 2]


@pytest.mark.parametrize("size", [-1, 5000, 0])
def test_a_ledger_that_was_written_back_and_has_no_name_yet_is_used(path: Path, clock: FakeClock, size: int) -> None:
    """The service was killed as it wrote a removed ledger back; a part of one is no ledger."""
    with contextlib.closing(Ledger(path, clock)) as first:
        first.claim([candidate(f"{number}.jpg") for number in range(100)])
    content = path.read_bytes()
    path.unlink()
    path.with_name(path.name + ".new").write_bytes(content if size < 0 else content[:size])
    with contextlib.closing(Ledger(path, clock)) as ledger:
        assert (ledger.is_new, ledger.counts()) == (size >= 0, {"claimed": 100} if size < 0 else {})


def test_the_newest_ledgers_set_aside_stay(path: Path, clock: FakeClock) -> None:
    for number in range(5):
        path.write_bytes(b"garbage" * (number + 1))
        Ledger(path, clock).close()
        clock.advance(1)
    assert [each.stat().st_size for each in copies.aside(str(path), "damaged")] == [21, 28, 35]


def test_job_numbers_are_never_used_twice(path: Path, clock: FakeClock) -> None:
    """Not those after the copy, not those of the ledger that replaced it, however often one copy has to serve."""
    used: list[int] = []
    with contextlib.closing(Ledger(path, clock)) as ledger:
        used.append(claim_one(ledger).job_id)
    copies.copy_of_today(str(path), clock.wall())
    for round_ in range(3):
        with contextlib.closing(Ledger(path, clock)) as ledger:
            used += [job.job_id for job in ledger.claim([candidate(f"{round_}-{n}.jpg") for n in range(400)])]
        spoil(path, "target", "zero")
        clock.advance(60)
    assert len(set(used)) == len(used) == 1201


@pytest.mark.parametrize("copied", [True, False])
def test_a_pause_outlives_the_ledger(path: Path, clock: FakeClock, copied: bool) -> None:
    """What is paused now stays so when the ledger is damaged; what was paused when it was copied does not come back."""
    with contextlib.closing(Ledger(path, clock)) as ledger:
        ledger.pause("old", "anna")
        if copied:
            copies.copy_of_today(str(path), clock.wall())
        ledger.end_pauses(["old"])
        ledger.pause("shop", "otto")
        paused = ledger.pauses()
    spoil(path, "target", "zero")
    with contextlib.closing(Ledger(path, clock)) as again:
        assert again.database.replacement is not None
        assert (again.database.replacement.copy is not None, again.pauses()) == (copied, paused)
    spoil(path, "pause", "zero")
    with contextlib.closing(Ledger(path, clock)) as once_more:
        assert set(once_more.pauses()) == ({"old"} if copied else set())  # they cannot be read any more


def test_a_damaged_copy_is_passed_over(path: Path, clock: FakeClock) -> None:
    with contextlib.closing(Ledger(path, clock)) as ledger:
        claim_one(ledger)
        for day in range(4):
            copies.copy_of_today(str(path), clock.wall() + timedelta(days=day))
            claim_one(ledger, path=f"{day}.jpg")
    found = copies.copies(str(path))
    assert [each.path.name[-13:-7] for each in found] == sorted(
        (each.path.name[-13:-7] for each in found), reverse=True
    )
    assert len(found) == copies.KEPT
    found[0].path.write_bytes(found[0].path.read_bytes()[:5000])
    path.write_bytes(b"garbage")
    with contextlib.closing(Ledger(path, clock)) as ledger:
        assert ledger.database.replacement is not None
        assert ledger.database.replacement.copy == found[1]
        assert ledger.counts() == {"waiting": 3}


@pytest.mark.parametrize(
    ("script", "message"), [("PRAGMA user_version=99", "schema 99"), ("CREATE TABLE recipes (cake TEXT)", "schema 0")]
)
def test_a_database_of_another_kind_is_refused(path: Path, clock: FakeClock, script: str, message: str) -> None:
    """What a newer version wrote is not guessed at, and tables without a schema number are not ours to bring up."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    with pytest.raises(ConfigError, match=message):
        Ledger(path, clock)


LEAVES = {  # schema -> what its successor added
    1: "DROP TABLE untold;",
    2: "DROP TABLE pause; DROP INDEX job_failed;"
    + "".join(f"ALTER TABLE job DROP COLUMN {name};" for name in ("verdict", "width", "height", "device", "seconds")),
    3: "DROP TABLE review; ALTER TABLE content DROP COLUMN files;"
    "ALTER TABLE job DROP COLUMN score; ALTER TABLE job DROP COLUMN coverage;",
}


def go_back(ledger: Ledger, schema: int) -> None:
    script = "".join(LEAVES[each] for each in range(SCHEMA_VERSION - 1, schema - 1, -1))
    ledger.database._connection.executescript(f"{script} PRAGMA user_version={schema}")


def columns(ledger: Ledger) -> list[object]:
    names = ledger.database.all("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
    return [(name, ledger.database.all(f"PRAGMA table_info({name})")) for _, name in names]


@pytest.mark.parametrize("schema", range(1, SCHEMA_VERSION))
def test_a_ledger_of_an_earlier_schema_is_brought_up(ledger: Ledger, schema: int) -> None:
    done, open_job = (claim_one(ledger, path=name) for name in ("a.jpg", "b.jpg"))
    publish(ledger, done)
    made = columns(ledger)
    go_back(ledger, schema)
    with reopened(ledger) as after:
        assert made == columns(after)
        assert after.counts() == {"claimed": 1, "done": 1}
        assert [row.job_id for row in after.unfinished()] == [done.job_id, open_job.job_id]
        after.failed(torn(open_job))
        assert after.outbox.pending(open_job.job_id) == torn(open_job)
        assert after.database.one("PRAGMA user_version", ()) == (SCHEMA_VERSION,)
        (kept,) = copies.copies(after.path)
    with contextlib.closing(sqlite3.connect(kept.path)) as before:
        assert kept.path.name == f"before-schema-{SCHEMA_VERSION}.sqlite"
        assert before.execute("PRAGMA user_version").fetchone() == (schema,)
        assert before.execute("SELECT count(*) FROM job").fetchone() == (2,)


def test_an_older_program_names_the_copy_from_before(ledger: Ledger) -> None:
    copies.copy_before_schema(ledger.path, SCHEMA_VERSION + 1)
    ledger.database._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match=r"rmbgd ledger restore .*/before-schema-5\.sqlite"), reopened(ledger):
        pass


def test_a_migration_that_fails_changes_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    go_back(ledger, 1)
    monkeypatch.setitem(MIGRATIONS, 1, "CREATE TABLE untold (job INTEGER); CREATE TABLE job (id INTEGER);")
    with pytest.raises(LedgerFault, match="already exists"), reopened(ledger):
        pass
    with contextlib.closing(sqlite3.connect(ledger.path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name='untold'").fetchall()


@pytest.mark.parametrize("recovered", [False, True])
def test_a_done_row_says_how_its_output_was_made(ledger: Ledger, *, recovered: bool) -> None:
    """Recovered: the service was killed between the rename and its record, and only the stored outcome knows."""
    job = claim_one(ledger)
    ledger.done(job.job_id, looking(publishing(ledger, job)), None if recovered else done(job))
    made = ledger.database.one("SELECT verdict, width, height, device, seconds FROM job")
    assert made == ("ok", 1, 1, "cpu", 0.009)


def test_what_waits_for_a_commit_can_be_flushed(ledger: Ledger) -> None:
    """An idle service that is killed has neither an event to deliver nor an original to look after."""
    job = claim_one(ledger)
    ledger.failed(torn(job))
    ledger.original_moved(job.job_id)
    ledger.outbox.deliver(torn(job), RecordedEvents())
    question = "SELECT (SELECT count(*) FROM untold), (SELECT count(*) FROM job WHERE retired_at IS NULL)"
    with contextlib.closing(sqlite3.connect(ledger.path)) as other:
        assert other.execute(question).fetchone() == (1, 1)
        ledger.flush()
        assert other.execute(question).fetchone() == (0, 0)


def test_what_is_forgotten_is_not_delivered(ledger: Ledger, clock: FakeClock) -> None:
    job = claim_one(ledger)
    ledger.failed(torn(job))
    ledger.original_moved(job.job_id)
    ledger.flush()
    clock.advance(31 * 86_400)
    ledger.prune(lambda _row: False)
    assert ledger.counts() == {}
    assert 0 == ledger.outbox.deliver_pending(RecordedEvents())


@pytest.mark.parametrize("end", ["done", "failed"])
def test_an_outcome_is_delivered_whole_whichever_version_stored_it(ledger: Ledger, end: str) -> None:
    """Versions before stored only what the job's row does not hold: the row gives the rest of the event."""
    events = RecordedEvents()
    whole, partial = (claim_one(ledger, path=path) for path in ("caf\udce9.jpg", "b.jpg"))
    for job in (whole, partial):
        if end == "failed":
            ledger.failed(torn(job))
        else:
            target = publishing(ledger, job, job.relative_path)
            ledger.done(job.job_id, looking(target))
        ledger.original_moved(job.job_id)
    beyond = {"stage": "decode", "milliseconds": {"decode": 1.0}} if end == "failed" else OF_DONE
    (stored,) = ledger.database.one("SELECT keys FROM untold WHERE job=?", (whole.job_id,))
    assert set(json.loads(stored)) == set(beyond), "a version before would meet the other keys twice"
    with ledger.database.transaction() as db:
        db.execute("UPDATE untold SET keys=? WHERE job=?", (json.dumps(beyond), partial.job_id))

    assert 2 == ledger.outbox.deliver_pending(events)
    ledger.flush()
    assert 0 == ledger.outbox.deliver_pending(events)
    more = {"reason": "corrupt", "detail": "torn"} if end == "failed" else {"bytes_out": 5, "sha256_out": "ab"}
    names = {whole: {"output": "caf\udce9.png"}, partial: {"output": "b.png"}}
    assert events.events == [
        (f"image.{end}", job_keys(job) | beyond | more | {"recovered": True} | (names[job] if end == "done" else {}))
        for job in (whole, partial)
    ]


def test_a_full_disk_is_a_storage_fault_and_changes_nothing(ledger: Ledger) -> None:
    """A commit that does not fit leaves no half of itself, and the ledger works on when there is room again."""
    db = ledger.database._connection
    db.execute(f"PRAGMA max_page_count={db.execute('PRAGMA page_count').fetchone()[0]}")
    many = [candidate(f"{number}.jpg") for number in range(500)]
    with pytest.raises(StorageFault) as caught:
        ledger.claim(many)
    assert caught.value.kind == "disk_full"
    db.execute("PRAGMA max_page_count=100000")
    assert ledger.counts() == {}
    assert len(ledger.claim(many)) == 500
