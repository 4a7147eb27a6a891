"""Which folders the sandbox of the installed unit keeps from the service, and the drop-in that shows them."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath

import pytest

from rmbgd.config.load import Config, Folder
from rmbgd.config.settings import ServiceSettings
from rmbgd.doctor import unit
from rmbgd.doctor.unit import Sandbox, check_running, drop_in, judge_unit, sandbox
from rmbgd.telemetry.jsonl import process_start

SHOWN = {  # as systemd 252 says it of the shipped unit
    "LoadState": "loaded",
    "ExecStart": "{ path=/opt/rmbgd/bin/rmbgd ; argv[]=/opt/rmbgd/bin/rmbgd run --config /etc/rmbgd/rmbgd.toml ; }",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ReadWritePaths": "-/srv/rmbgd",
    "InaccessiblePaths": "/boot /root",
    "BindPaths": "",
    "StateDirectory": "rmbgd",
    "LogsDirectory": "rmbgd",
    "CacheDirectory": "rmbgd",
    "RuntimeDirectory": "rmbgd",
}


def config(root: str, *, originals: str = "archive", **service: Path) -> Config:
    roles = {role: Path(root, role) for role in ("input", "output", "failed", "done", "review")}
    return Config(folder=[Folder(name="main", originals=originals, **roles)], service=ServiceSettings(**service))


@pytest.mark.parametrize(
    ("root", "changes", "said", "cure"),
    [
        ("/srv/rmbgd", {}, "", ""),
        ("/home/shop", {}, "rmbgd.service may not see it (ProtectHome=yes)", "25-home.conf"),
        ("/home/shop", {"ProtectHome": "read-only"}, "may only read it (ProtectHome=read-only)", "25-home.conf"),
        ("/home/shop", {"ProtectHome": "no"}, "may only read it (ProtectSystem=strict", "20-folders.conf"),
        ("/home/shop", {"ProtectHome": "no", "ReadWritePaths": "-/srv/rmbgd -/home/shop"}, "", ""),
        ("/home/shop", {"ProtectHome": "tmpfs", "BindPaths": "-/x y:/x y:rbind -/home/shop:/home/shop:rbind"}, "", ""),
        ("/data", {}, "may only read it (ProtectSystem=strict, and not in ReadWritePaths=)", "20-folders.conf"),
        ("/data", {"ProtectSystem": "full"}, "", ""),
        ("/data", {"ReadWritePaths": "/data"}, "", ""),
        ("/tmp/shop", {}, "has a /tmp of its own (PrivateTmp=yes)", "20-folders.conf"),
        ("/boot/shop", {}, "may not see it (InaccessiblePaths=)", "20-folders.conf"),
    ],
)
def test_folder_outside_the_units_world_is_named_with_its_cure(
    root: str, changes: dict[str, str], said: str, cure: str
) -> None:
    found = list(judge_unit(config(root), sandbox(SHOWN | changes)))
    texts = [f"{each.need}: {each.text}; {each.hint}" for each in found if each.state == "fail"]
    assert len(texts) == (5 if said else 0)
    assert all(said in text and cure in text for text in texts)
    assert not texts or f"folder main, input: {root}/input" in texts[0]


def test_an_input_that_is_only_read_may_be_read_only() -> None:
    found = judge_unit(config("/data", originals="keep"), sandbox(SHOWN))
    assert [f"folder main, {role}" for role in ("output", "failed", "done", "review")] == [each.need for each in found]


@pytest.mark.parametrize(
    ("shown", "path"), [(SHOWN["ExecStart"], "/etc/rmbgd/rmbgd.toml"), ("argv[]=x run --config=/a.toml ;", "/a.toml")]
)
def test_the_units_configuration_is_read_from_its_command(shown: str, path: str) -> None:
    assert sandbox({"ExecStart": shown}).config == path


@pytest.mark.parametrize(
    ("root", "lines"),
    [
        ("/srv/rmbgd", []),
        ("/data/images", ['RequiresMountsFor="/data/images"', 'ReadWritePaths="-/data/images"']),
        ("/home/shop", ["ProtectHome=tmpfs", 'BindPaths="-/home/shop"', 'ReadWritePaths="-/home/shop"']),
        ('/data/a "b" %d', ['ReadWritePaths="-/data/a \\"b\\" %%d"']),
        ("/", ['ReadWritePaths="-/input"', 'ReadWritePaths="-/done"']),
    ],
)
def test_drop_in_shows_what_the_unit_does_not(root: str, lines: list[str]) -> None:
    text = drop_in(config(root))
    assert bool(text) == bool(lines)
    assert set() == set(lines) - set(text.splitlines())
    assert "/srv/rmbgd" not in text


@pytest.mark.parametrize(("models", "shown"), [("/home/ada/models", True), ("/data/models", False)])
def test_models_are_shown_where_the_unit_hides_them(models: str, shown: bool) -> None:
    elsewhere = config("/srv/rmbgd", models_directory=Path(models))
    needs = [each.need for each in judge_unit(elsewhere, sandbox(SHOWN)) if each.state == "fail"]
    assert shown == ("service.models_directory" in needs)
    assert shown == (f'BindPaths="-{models}"' in drop_in(elsewhere))


def test_drop_in_lifts_what_it_is_written_for() -> None:
    """The policy that finds obstacles finds none in what the drop-in says."""
    text = drop_in(config("/home/shop"))
    lines = [line.partition("=")[::2] for line in text.splitlines() if "=" in line and not line.startswith("#")]
    lifted = SHOWN | {key: f"{SHOWN.get(key, '')} {value}".strip() for key, value in lines if key != "ProtectHome"}
    bound = {"ProtectHome": "tmpfs", "BindPaths": lifted["BindPaths"].strip('"') + ":/home/shop:rbind"}
    found = judge_unit(config("/home/shop"), sandbox(lifted | bound))
    assert ["ok"] == [each.state for each in found]


@pytest.mark.parametrize(
    ("status", "states"),
    [
        ({"phase": "ready", "folders": {"main": {"mode": "waiting", "cause": "denied"}}}, ["fail"]),
        ({"phase": "ready", "folders": {"main": {"mode": "waiting", "cause": "missing"}}}, ["warn"]),
        ({"phase": "ready", "folders": {"main": {"mode": "events", "cause": None}}}, []),
        ({"phase": "stopped", "folders": {"main": {"mode": "waiting", "cause": "denied"}}}, []),
        ({"process_start": 1, "folders": {"main": {"mode": "waiting", "cause": "denied"}}}, []),  # it was killed
        ({"phase": "ready", "folders": ["main"]}, []),
        (["no status"], []),
    ],
)
def test_a_folder_that_the_running_service_waits_for_is_told(tmp_path: Path, status: object, states: list[str]) -> None:
    if isinstance(status, dict):
        status = {"phase": "ready", "pid": os.getpid(), "process_start": process_start(os.getpid())} | status
    (tmp_path / "status.json").write_text(json.dumps(status))
    found = list(check_running(config("/srv/rmbgd", runtime_directory=tmp_path)))
    assert states == [each.state for each in found]
    assert all("/srv/rmbgd/input: the running service waits for it" in each.text for each in found)


def test_nothing_is_said_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unit, "SYSTEMD_RUNS", str(tmp_path / "none"))
    assert [] == list(unit.check_unit(config("/srv/rmbgd"), Path("/etc/rmbgd/rmbgd.toml")))


def test_no_obstacle_without_a_sandbox() -> None:
    assert Sandbox().obstacle(PurePath("/home/shop"), writes=True) is None
