"""Hooks: when they are run, what they get, and that nothing they do holds up the service."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.config.load import Config, parse
from rmbgd.errors import ConfigError
from rmbgd.service import hooks
from rmbgd.service.hooks import SPOOL_MAXIMUM, Hooks, PendingCalls, Spool, run_hook, run_spool

FAILED = {"folder": "shop", "path": "a\udcff\n.jpg", "reason": "truncated", "detail": ""}
CALL = {"hook": "on_failed", "event": "image.failed", "level": "warning", "count": 1, **FAILED}
SPOOLED = {"RMBGD_HOOKS": "spool"}


def configured(tmp_path: Path, **settings: Any) -> Config:
    return parse({"service": {"runtime_directory": str(tmp_path)}, "hooks": settings})


def python(script: str, *words: str) -> list[str]:
    return [sys.executable, "-c", script, *words]


def calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def ignore(_event: str, /, **_keys: object) -> None:
    pass


# --- when


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=30))
def test_every_event_is_counted_once_and_runs_keep_their_distance(steps: list[tuple[float, bool]]) -> None:
    pending, now, added, taken = PendingCalls(10.0), 0.0, 0, []
    for pause, happens in steps:
        now += pause
        if happens:
            pending.add({"path": now})
            added += 1
        if count := pending.take(now):
            taken.append((now, count))
    assert added == sum(count for _, count in taken) + pending.count
    assert all(later - earlier >= 10.0 for (earlier, _), (later, _) in itertools.pairwise(taken))


def test_first_failure_is_told_at_once_and_the_others_together(tmp_path: Path) -> None:
    """With the interval of a minute that nobody waits for; the end tells what was not told."""
    seen: list[str] = []
    with Hooks(
        configured(tmp_path, on_failed=["/bin/true"]), lambda event, /, **_: seen.append(event), SPOOLED
    ) as emit:
        for number in range(5):
            emit("image.failed", **FAILED | {"path": f"{number}.jpg"})
            emit("image.done", path="well.jpg")
    first, rest = calls(tmp_path / "hooks")
    assert ("0.jpg", 1, "rejected 0.jpg: truncated") == (first["path"], first["count"], first["message"])
    assert ("4.jpg", 4, "image.failed", "on_failed") == tuple(rest[key] for key in ("path", "count", "event", "hook"))
    assert ["image.failed", "image.done"] * 5 == seen


def test_idle_is_told_once_when_work_has_ended(tmp_path: Path) -> None:
    """Also work that began and ended between two looks; never where there was none."""
    with Hooks(configured(tmp_path, on_idle=["/bin/true"]), ignore, SPOOLED) as emit:
        quiet = {"waiting": 0, "in_flight": 0, "done": 3, "arena_kept": {}}
        emit.health(quiet)
        emit.health(quiet | {"waiting": 2})
        emit.health(quiet | {"in_flight": 1})
        assert [] == calls(tmp_path / "hooks")
        emit.health(quiet)
        emit.health(quiet)
        emit("image.done", path="quick.jpg")
        emit.health(quiet)
    found = calls(tmp_path / "hooks")
    assert 2 == sum(call["count"] for call in found)
    assert {"health"} == {call["event"] for call in found}
    assert "arena_kept" not in found[0]


def test_without_hooks_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with Hooks(configured(tmp_path), ignore) as emit:
        emit("image.failed", **FAILED)
        assert before == threading.active_count()
    assert [] == os.listdir(tmp_path)


# --- the spool


def test_a_spool_that_nobody_empties_keeps_the_newest_and_counts_the_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "hooks")
    problems = [spool.add("on_failed", {"number": number}) for number in range(SPOOL_MAXIMUM + 3)]
    found = calls(spool.path)
    assert SPOOL_MAXIMUM == len(found)
    assert (3, SPOOL_MAXIMUM + 2, 1) == (found[0]["number"], found[-1]["number"], found[-1]["lost"])
    (told,) = filter(None, problems)
    assert "rmbgd-hooks.path" in told


def test_a_folder_that_cannot_be_made_is_told_and_counted(tmp_path: Path) -> None:
    (tmp_path / "hooks").write_text("in the way")
    spool = Spool(tmp_path / "hooks")
    assert str(tmp_path / "hooks") in spool.add("on_failed", {})
    (tmp_path / "hooks").unlink()
    spool.add("on_failed", {})
    assert [1] == [call["lost"] for call in calls(spool.path)]


def test_what_lies_in_the_spool_is_data(tmp_path: Path) -> None:
    """It is removed whatever it is, and no link in it is followed; a command in it is not run."""
    spool, secret, failed = tmp_path / "hooks", tmp_path / "secret.json", []
    spool.mkdir()
    secret.write_text(json.dumps(CALL))
    (spool / "1.json").symlink_to(secret)
    os.mkfifo(spool / "2.json")
    (spool / "3.json").write_text("[" * 100_000)
    (spool / "4.json").write_text(json.dumps({"hook": "timeout", "command": ["/bin/false"]}))
    (spool / "5.json").mkdir()
    (spool / "6.json.tmp").write_text("being written")
    run_spool(spool, configured(tmp_path).hooks, lambda *problem: failed.append(problem))
    assert ["6.json.tmp"] == os.listdir(spool)
    assert ["unknown"] * 5 == [name for name, _ in failed]
    assert secret.exists()


@pytest.mark.integration
def test_what_cannot_be_removed_keeps_no_call_from_being_run(tmp_path: Path) -> None:
    (tmp_path / "hooks" / "0.json").mkdir(parents=True)
    (tmp_path / "hooks" / "0.json" / "within").touch()
    Spool(tmp_path / "hooks").add("on_failed", {"hook": "on_failed"})
    failed: list[tuple[str, str]] = []
    settings = configured(tmp_path, on_failed=["/bin/touch", str(tmp_path / "ran")]).hooks
    run_spool(tmp_path / "hooks", settings, lambda *problem: failed.append(problem))
    assert (tmp_path / "ran").exists()
    assert failed == [("unknown", f"{tmp_path}/hooks/0.json: {os.strerror(errno.ENOTEMPTY)}")]


def test_a_spool_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.json").write_text("{}")
    (tmp_path / "hooks").symlink_to(tmp_path / "other")
    run_spool(tmp_path / "hooks", configured(tmp_path).hooks, lambda *_: None)
    assert ["a.json"] == os.listdir(tmp_path / "other")


# --- the command


@pytest.mark.integration
def test_command_gets_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON on standard input and in its environment, without what is systemd's and the service's."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    script = "import json, os, sys; json.dump([json.load(sys.stdin), dict(os.environ)], open(sys.argv[1], 'w'))"
    assert "" == run_hook(python(script, str(tmp_path / "told")), CALL | {"message": "refused a"}, 60.0)
    told, environ = json.loads((tmp_path / "told").read_text())
    assert CALL["path"] == told["path"] == environ["RMBGD_PATH"]
    shown = {"RMBGD_HOOK": "on_failed", "RMBGD_EVENT": "image.failed", "RMBGD_MESSAGE": "refused a", "RMBGD_COUNT": "1"}
    assert environ.items() >= shown.items()
    assert "NOTIFY_SOCKET" not in environ


@pytest.mark.integration
@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (python("raise SystemExit(3)"), "ended with status 3"),
        (python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "ended with signal 9"),
        (["/no/such/program"], "No such file or directory: '/no/such/program'"),
        (python("import time; time.sleep(1000)"), "took longer than 0.2 s and was killed"),
        # A command that leaves a child behind in its group, which holds what it inherited.
        (["/bin/sh", "-c", "sleep 1000 & sleep 1000"], "took longer than 0.2 s and was killed"),
    ],
)
def test_command_that_fails_says_how(command: list[str], problem: str) -> None:
    assert problem in run_hook(command, CALL, 0.2 if "longer" in problem else 60.0)


@pytest.mark.integration
def test_a_hanging_command_holds_up_neither_events_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "CLOSE_TIMEOUT", 0.01)
    monkeypatch.setattr(hooks, "QUEUE_MAXIMUM", 3)
    seen, settings = [], configured(tmp_path, on_failed=python("import time; time.sleep(1000)"), timeout=1.0)
    with Hooks(settings, lambda event, /, **_: seen.append(event), {}) as emit:
        for _ in range(1000):
            emit("image.failed", **FAILED)
    assert 1000 == seen.count("image.failed")
    emit._thread.join(60)  # type: ignore[union-attr] # its commands are killed in the end
    assert "hook.failed" in seen


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mail", 'is no unit; write "mail.service", or a command as a list'),
        (["mail", "x"], "is no whole path of a program"),
        ([], "is no command"),
        (["/bin/sh", 3], "is no command"),
        (5, "is no command"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_configuration(tmp_path: Path, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        configured(tmp_path, on_failed=value)
    assert 1 == len(caught.value.problems)


@pytest.mark.parametrize("value", ["mail@shop.service", ["/usr/bin/logger", "rmbgd"], ""])
def test_what_can_be_run_is_accepted(tmp_path: Path, value: object) -> None:
    assert value == configured(tmp_path, on_failed=value).hooks.on_failed
