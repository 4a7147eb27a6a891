"""`rmbgd check`: all that would keep the service from starting or working, in one round; and `--create`."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rmbgd.cli import check
from rmbgd.engine.device_query import VisibleGpus
from rmbgd.errors import Exit

Rmbgd = Callable[..., tuple[int, str, str]]
NOBODY = 65534
READ_ONLY = Path("/proc/sys")  # even root cannot write there
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders to another user")


@pytest.fixture
def absent(tmp_path: Path) -> Path:
    """A configuration none of whose folders exists."""
    path = tmp_path / "rmbgd.toml"
    own = [f'{name}_directory = "{tmp_path}/own/{name}"' for name in ("state", "runtime")]
    folders = [f'{role} = "{tmp_path}/shop/{role}"' for role in ("input", "output", "done", "failed")]
    path.write_text("\n".join(["[service]", *own, "[[folder]]", 'name = "shop"', *folders]) + "\n")
    return path


def test_usable_configuration_is_fine(configuration: Callable[..., Path], rmbgd: Rmbgd) -> None:
    path = configuration()
    assert (Exit.OK, f"{path}: fine; folders: shop\n", "") == rmbgd("check", "--config", path)


def test_setting_that_is_read_as_another_value_is_told_and_fine(
    configuration: Callable[..., Path], rmbgd: Rmbgd
) -> None:
    path = configuration("[engine]\ntries = 1\n")
    status, out, _ = rmbgd("check", "--config", path)
    assert Exit.OK == status
    assert out.startswith(f"{path}: engine.tries = 1 is read as 2: ")


def test_every_problem_is_shown_with_its_line_and_carets(configuration: Callable[..., Path], rmbgd: Rmbgd) -> None:
    wrong = '[intake]\nquiet_close = 1\n[limits]\nside = 0\n[recipe.default]\nbackground = "red\\u001b"\n'
    path = configuration(wrong)
    status, _, err = rmbgd("check", "--config", path)
    assert Exit.CONFIGURATION == status
    assert err == (
        f"rmbgd check: {path}:2: [intake]: quiet_close: unknown setting; did you mean 'quiet_closed'?\n"
        "  quiet_close = 1\n"
        "  ^^^^^^^^^^^\n"
        f"rmbgd check: {path}:4: [limits]: side: must be at least 1 (is 0)\n"
        "  side = 0\n"
        "         ^\n"
        f"rmbgd check: {path}:6: [recipe.default]: background: 'red\\x1b' is no colour; did you mean red? "
        'write a CSS name or "#ffffff"\n'
        '  background = "red\\u001b"\n'
        "               ^^^^^^^^^^^\n"
    )


def test_nothing_in_a_file_reaches_the_terminal_as_it_is(configuration: Callable[..., Path], rmbgd: Rmbgd) -> None:
    path = configuration()
    path.write_text(path.read_text() + "\u202eevil = '\x9b2J'\n")
    for text in (path.read_text(), path.read_text().replace("\u202eevil", '"\\u001b]0;evil"')):
        path.write_text(text)
        status, out, err = rmbgd("check", "--config", path)
        assert Exit.CONFIGURATION == status
        assert (out + err).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "rmbgd.toml: there is no configuration; `rmbgd init FOLDER` makes one"),
        (lambda text: "", "no [[folder]] is defined, so there is nothing to do; `rmbgd check --print-default` shows"),
        (lambda text: text.replace("/out", "/in/out"), "/in/out"),  # the service would feed on its own cutouts
        (lambda text: f'[recipe.default]\nmodel = "birefnet"\n{text}', "rmbgd models fetch birefnet"),
        (lambda text: f'[recipe.default]\nmodel = "rmbg-2.0"\n{text}', ":2: [recipe.default]: model: rmbg-2.0: "),
        (lambda text: f'[health]\nfallback_model = "birefnet"\n{text}', ":2: [health]: fallback_model: birefnet: "),
        (lambda text: f'[health]\nmetrics_file = "/nowhere/a.prom"\n{text}', "metrics_file: /nowhere does not exist"),
        (lambda text: f'[health]\nmetrics_file = "{READ_ONLY}/a.prom"\n{text}', ":2: [health]: metrics_file: /"),
    ],
)
def test_what_would_end_the_service_at_its_start_is_refused_before(
    content: Callable[[str], str] | None, said: str, configuration: Callable[..., Path], rmbgd: Rmbgd
) -> None:
    path = configuration()
    if content is None:
        path.unlink()
    else:
        path.write_text(content(path.read_text()))
    status, _, err = rmbgd("check", "--config", path)
    assert Exit.CONFIGURATION == status
    assert said in err
    assert 1 == sum(line.startswith("rmbgd check: ") for line in err.splitlines())


def test_settings_folders_and_models_are_told_in_one_round(absent: Path, rmbgd: Rmbgd) -> None:
    text = absent.read_text().replace("/shop/failed", "/shop/input/failed").replace("/own/runtime", "/rmbgd.toml")
    absent.write_text(f'{text}recipe = "x"\n[recipe.x]\nmodel = "u2net"\ncanvas = "2000"\n')
    status, _, err = rmbgd("check", "--config", absent)
    assert Exit.CONFIGURATION == status
    for said in (
        "runtime_directory: ",
        f"input: {absent.parent}/shop/input does not exist (`rmbgd check --create` makes the 4 that are missing)",
        "output: ",
        "done: ",
        "failed: ",
        "model: there is no model called 'u2net': did you mean u2netp?",
        "canvas: '2000' is no size",
    ):
        assert said in err


def test_default_configuration_can_be_printed_and_checked(tmp_path: Path, rmbgd: Rmbgd) -> None:
    """Its settings are right; where its folders are not, the folders are all that is wrong."""
    path = tmp_path / "rmbgd.toml"
    path.write_text(rmbgd("check", "--print-default")[1])
    problems = json.loads(rmbgd("check", "--json", "--config", path)[1])["problems"]
    assert {each["setting"] for each in problems} <= {
        *("input", "output", "done", "failed", "state_directory", "runtime_directory", "log_file")
    }
    assert all("/" in each["problem"] for each in problems)


def test_create_makes_what_is_missing_and_then_all_is_fine(absent: Path, rmbgd: Rmbgd) -> None:
    status, out, err = rmbgd("check", "--create", "--config", absent)
    places = [f"shop/{role}" for role in ("input", "output", "done", "failed")]
    places += ["own/state", "own/runtime", "own/state/models"]
    made = "".join(f"made {absent.parent}/{place}\n" for place in places)
    assert (Exit.OK, f"{made}{absent}: fine; folders: shop\n", "") == (status, out, err)
    modes = [stat.S_IMODE((absent.parent / place).stat().st_mode) for place in places]
    assert [0o755] * 4 + [0o750, 0o750, 0o755] == modes
    assert (Exit.OK, f"{absent}: fine; folders: shop\n", "") == rmbgd("check", "--create", "--config", absent)


def test_create_makes_nothing_of_a_configuration_that_is_wrong(absent: Path, rmbgd: Rmbgd) -> None:
    """A folder of a wrong name would be the next thing to clean up."""
    for wrong in (absent.read_text() + "recipe = 'none'\n", absent.read_text().replace("shop/done", "shop/input/done")):
        absent.write_text(wrong)
        status, out, _ = rmbgd("check", "--create", "--config", absent)
        assert (Exit.CONFIGURATION, "nothing was made: a path may be among the settings to correct\n") == (status, out)
        assert [absent] == list(absent.parent.iterdir())


def test_create_says_what_cannot_be_made(absent: Path, rmbgd: Rmbgd) -> None:
    (absent.parent / "shop").symlink_to("nowhere")
    status, _, err = rmbgd("check", "--create", "--config", absent)
    assert (Exit.CONFIGURATION, 4) == (status, err.count(": cannot be made: "))
    assert "does not exist" not in err


def test_problems_as_json(absent: Path, rmbgd: Rmbgd) -> None:
    (absent.parent / "shop" / "input").mkdir(parents=True)
    status, out, err = rmbgd("check", "--json", "--config", absent)
    said: dict[str, Any] = json.loads(out)
    assert (Exit.CONFIGURATION, "", str(absent), False, ["shop"]) == (
        status, err, said["file"], said["ok"], said["folders"],
    )  # fmt: skip
    where = {"file": str(absent), "line": 7, "column": 10, "table": '[[folder]] "shop"', "setting": "output"}
    text = f"{absent.parent}/shop/output does not exist (`rmbgd check --create` makes the 3 that are missing)"
    assert where | {"problem": text} == said["problems"][0]
    status, out, _ = rmbgd("check", "--json", "--create", "--config", absent)
    said = json.loads(out)
    assert (Exit.OK, True, [], 6) == (status, said["ok"], said["problems"], len(said["made"]))
    absent.write_text("[a")
    status, out, _ = rmbgd("check", "--json", "--config", absent)
    assert (Exit.CONFIGURATION, 1) == (status, json.loads(out)["problems"][0]["line"])
    absent.unlink()
    status, out, _ = rmbgd("check", "--json", "--config", absent)
    assert (Exit.CONFIGURATION, None) == (status, json.loads(out)["problems"][0]["line"])


def test_a_removable_disk_may_be_away(absent: Path, rmbgd: Rmbgd) -> None:
    rmbgd("check", "--create", "--config", absent)
    (absent.parent / "shop" / "input").rmdir()
    absent.write_text(absent.read_text() + "require_mount = true\n")
    status, out, _ = rmbgd("check", "--create", "--config", absent)
    assert Exit.OK == status
    assert out.startswith(f"{absent.parent}/shop/input: nothing is mounted there now; the service waits for it\n")
    assert not (absent.parent / "shop" / "input").exists()


def test_a_gpu_that_is_insisted_on_must_be_there(
    configuration: Callable[..., Path], rmbgd: Rmbgd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmbgd.doctor.checks.visible_gpus", lambda: VisibleGpus(1, "the driver sees one"))
    for device, status in (("cuda:1", Exit.CONFIGURATION), ("cuda:0", Exit.OK), ("cuda", Exit.OK), ("auto", Exit.OK)):
        said = rmbgd("check", "--config", configuration(f'[engine]\ndevice = "{device}"\n'))
        assert status == said[0]
        assert (':2: [engine]: device: "cuda:1" is asked for, but 1 GPUs are visible' in said[2]) == (status != 0)


@pytest.mark.parametrize("state", ["good", "damaged", "newer", "folder"])
def test_a_ledger_that_would_end_the_service_is_told(
    state: str, configuration: Callable[..., Path], rmbgd: Rmbgd, tmp_path: Path
) -> None:
    """A damaged one is replaced by the service; a newer one would end it."""
    path, ledger = configuration(), tmp_path / "state" / "ledger.sqlite"
    if state == "folder":
        ledger.mkdir()
    else:
        with closing(sqlite3.connect(ledger)) as db:
            db.executescript(f"CREATE TABLE t (x); PRAGMA user_version = {999 if state == 'newer' else 1};")
    if state == "damaged":
        ledger.write_bytes(b"not a database" * 999)
    status, _, err = rmbgd("check", "--config", path)
    wrong = state in ("newer", "folder")
    assert (Exit.CONFIGURATION if wrong else Exit.OK, wrong) == (status, "[service]: state_directory: " in err)
    assert ("ledger of schema 999, this rmbgd knows" in err) == (state == "newer")


def test_what_the_doctor_would_fail_is_told(
    configuration: Callable[..., Path], rmbgd: Rmbgd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmbgd.doctor.checks.OWN_NEED", 1 << 60)
    path = configuration()
    status, _, err = rmbgd("check", "--config", path)
    assert (Exit.CONFIGURATION, 1) == (status, len(err.splitlines()))
    assert err.startswith(f"rmbgd check: {path}: memory: ")
    assert err.endswith("; lower pipeline.arena_bytes together with limits.pixels\n")


@needs_root
def test_root_tries_with_the_rights_of_the_service(
    configuration: Callable[..., Path], rmbgd: Rmbgd, tmp_path: Path
) -> None:
    """Root may write everywhere; the service, to whom the state directory belongs, may not."""
    path, name = configuration(), check.user_name(NOBODY)
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_mode & 0o5 != 0o5:
            place.chmod(place.stat().st_mode | 0o5)
    for place in ("in", "done", "failed", "state", "run"):
        os.chown(tmp_path / place, NOBODY, NOBODY)
    status, out, err = rmbgd("check", "--config", path)
    assert (Exit.CONFIGURATION, 0, 0) == (status, os.geteuid(), os.getegid())
    note = f"checked as root; the service runs as {name}: whether it may use its folders was tried with its rights\n"
    assert note == out
    assert f"output: {tmp_path}/out belongs to user root, mode 0755, and user {name} may not use it" in err
    os.chown(tmp_path / "out", NOBODY, NOBODY)
    (tmp_path / "run").rmdir()
    status, _, err = rmbgd("check", "--config", path)
    assert Exit.CONFIGURATION == status
    assert f"runtime_directory: {tmp_path}/run cannot be made, as {tmp_path} belongs to user root" in err
    (tmp_path / "run").mkdir(0o777)
    (tmp_path / "run").chmod(0o777)
    assert (Exit.OK, f"{note}{path}: fine; folders: shop\n", "") == rmbgd("check", "--config", path)
    (tmp_path / "out").rmdir()
    assert Exit.OK == rmbgd("check", "--create", "--config", path)[0]
    assert NOBODY == (tmp_path / "out").stat().st_uid


@needs_root
def test_who_is_neither_root_nor_the_service_does_not_try(
    configuration: Callable[..., Path], rmbgd: Rmbgd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configuration()
    os.chown(tmp_path / "state", NOBODY, NOBODY)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    status, out, _ = rmbgd("check", "--config", path)
    name = check.user_name(NOBODY)
    said = f"checked as 4321; the service runs as {name}: whether it may use its folders was not tried\n"
    assert (Exit.OK, f"{said}{path}: fine; folders: shop\n") == (status, out)


@pytest.mark.integration
def test_what_check_calls_fine_is_no_configuration_error_of_run(absent: Path, rmbgd: Rmbgd) -> None:
    """Own directories are made where that is possible; where it is not, check says so before."""
    for role in ("input", "output", "done", "failed"):
        (absent.parent / "shop" / role).mkdir(parents=True)
    assert Exit.OK == rmbgd("check", "--config", absent)[0], "the service makes its own directories"
    (absent.parent / "own").write_text("")
    assert Exit.CONFIGURATION == rmbgd("run", "--config", absent)[0]
    status, _, err = rmbgd("check", "--config", absent)
    assert Exit.CONFIGURATION == status
    assert "[service]: state_directory: " in err
