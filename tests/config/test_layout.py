"""Folders that cannot be used together are refused before anything is watched."""

import subprocess

import pytest

from rmbgd.config import layout
from rmbgd.config.layout import check_layout
from rmbgd.config.load import parse
from rmbgd.errors import ConfigError

ROLES = ["input", "output", "done", "failed", "review", "state_directory", "runtime_directory"]


def configured(base, *folders, metrics_file=None, **service):
    tables = []
    for number, folder in enumerate(folders):
        names = {role: str(base / f"{role}{number}") for role in ROLES[:5]}
        tables.append({"name": f"f{number}"} | names | {role: str(base / path) for role, path in folder.items()})
    places = {"state_directory": str(base / "state"), "runtime_directory": str(base / "run")}
    health = {} if metrics_file is None else {"metrics_file": metrics_file}
    return parse({"service": places | service, "health": health, "folder": tables})


def problems(config):
    with pytest.raises(ConfigError) as caught:
        check_layout(config)
    return caught.value.problems


@pytest.mark.parametrize("folders", [[{}, {}], [{"output": "o", "failed": "f"}, {"output": "o", "failed": "f"}]])
def test_folders_apart_are_fine_and_two_may_share_their_results(tmp_path, folders):
    """Existing or not; in shared outputs and failed folders, the ledger keeps names apart."""
    (tmp_path / "input0").mkdir()
    check_layout(configured(tmp_path, *folders))


@pytest.mark.parametrize(
    "folders",
    [
        [{"output": "input0"}],
        [{"output": "input0/out"}],
        [{"done": "input0/archive"}],
        [{"failed": "input0/a/b"}],
        [{"review": "input0/people"}],
        [{"input": "review0/in"}],
        [{"review": "same", "output": "same"}],
        [{"review": "same", "failed": "same"}],
        [{"input": "output0/in"}],
        [{"input": "done0/x"}],
        [{"output": "same", "done": "same"}],
        [{"output": "same", "failed": "same"}],
        [{}, {"input": "output0/next"}],  # would feed the second with the first's results
        [{}, {"input": "input0"}],
        [{}, {"input": "input0/deep/inside"}],
    ],
)
def test_results_and_inputs_stay_apart(tmp_path, folders):
    (found,) = problems(configured(tmp_path, *folders))
    assert all(f"'f{number}'" in found for number in range(len(folders)))


def test_a_link_hides_nothing(tmp_path):
    (tmp_path / "input0" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "input0" / "sub")
    assert problems(configured(tmp_path, {"output": "link"}))


@pytest.mark.integration
def test_a_bind_mount_hides_nothing(tmp_path):
    other = tmp_path / "other"
    (tmp_path / "input0").mkdir()
    other.mkdir()
    mounted = subprocess.run(["mount", "--bind", tmp_path / "input0", other], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs root and mount: {mounted.stderr.decode().strip()}")
    try:
        found = problems(configured(tmp_path, {"output": "other/out"}))
    finally:
        subprocess.run(["umount", other], check=True)
    assert "lies inside" in found[0]


def test_the_ledger_does_not_lie_in_a_drop_folder(tmp_path):
    assert problems(configured(tmp_path, {}, state_directory=str(tmp_path / "input0" / "state")))


@pytest.mark.parametrize("role", ROLES[:5])
@pytest.mark.parametrize(("setting", "name"), [("log_file", "events.jsonl"), ("metrics_file", "rmbgd.prom")])
def test_files_of_the_service_do_not_lie_in_its_folders(tmp_path, role, setting, name):
    """Deep inside, and by way of a link; a rotated log would be taken for an image."""
    (tmp_path / f"{role}0" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / f"{role}0" / "deep")
    (found,) = problems(configured(tmp_path, {}, **{setting: str(tmp_path / "link" / name)}))
    assert f"{setting}: {tmp_path}/link/{name} lies inside folder 'f0'.{role} ({tmp_path}/{role}0)" in found
    check_layout(configured(tmp_path, {}, **{setting: str(tmp_path / name)}))


@pytest.mark.parametrize(("setting", "name"), [("log_file", "log"), ("metrics_file", "rmbgd.prom")])
def test_files_of_the_service_can_be_written(tmp_path, setting, name):
    (tmp_path / name).mkdir()
    assert "is a folder" in problems(configured(tmp_path, {}, **{setting: str(tmp_path / name)}))[0]
    (tmp_path / "file").write_bytes(b"")
    (found,) = problems(configured(tmp_path, {}, **{setting: str(tmp_path / "file" / name)}))
    assert f"{tmp_path}/file is a file" in found


def test_a_log_on_a_disk_that_comes_later_keeps_no_service_from_starting(tmp_path):
    """`rmbgd check` reports it, the start does not end."""
    config = configured(tmp_path, {}, log_file=str(tmp_path / "nowhere" / "log"))
    check_layout(config)
    (found,) = layout.missing_folders(config)
    assert found.location == ("service", "log_file")
    assert found.text == f"{tmp_path}/nowhere does not exist; make it, or name another file"


def test_folder_of_the_log_that_systemd_makes_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MADE_BY_THE_UNIT", tmp_path / "log")
    assert [] == list(layout.missing_folders(configured(tmp_path, {}, log_file=str(tmp_path / "log" / "events.jsonl"))))


@pytest.mark.parametrize("role", ROLES)
def test_file_is_no_folder(tmp_path, role):
    (tmp_path / "file").write_bytes(b"")
    of_service = role.endswith("directory")
    folder, service = ({}, {role: str(tmp_path / "file")}) if of_service else ({role: "file"}, {})
    (found,) = problems(configured(tmp_path, folder, **service))
    assert f"{role}: {tmp_path}/file is a file" in found


def test_all_findings_come_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "plain").write_bytes(b"")
    log_file = str(tmp_path / "plain" / "log")
    found = problems(
        configured(tmp_path, {"output": "input0/out"}, {"done": "input1/d", "failed": "file"}, log_file=log_file)
    )
    assert 4 == len(found)
    assert 3 == sum("folder 'f" in text for text in found)
