"""Folders that cannot be used together are refused before anything is watched."""

import subprocess

import pytest

from rmbgd.config.layout import check_layout
from rmbgd.config.load import parse
from rmbgd.errors import ConfigError

pytestmark = pytest.mark.timeout(20)


def configured(base, *folders, **service):
    tables = []
    for number, folder in enumerate(folders):
        names = {role: str(base / f"{role}{number}") for role in ("input", "output", "done", "failed")}
        tables.append({"name": f"f{number}"} | names | {role: str(base / path) for role, path in folder.items()})
    places = {"state_directory": str(base / "state"), "runtime_directory": str(base / "run")}
    return parse({"service": places | service, "folder": tables})


def problems(config):
    with pytest.raises(ConfigError) as caught:
        check_layout(config)
    return caught.value.problems


def test_folders_apart_are_fine(tmp_path):
    (tmp_path / "input0").mkdir()
    check_layout(configured(tmp_path, {}, {}))


def test_two_folders_may_share_their_results(tmp_path):
    """Outputs, done and failed of different folders may be one directory each: names are kept apart by the ledger."""
    check_layout(configured(tmp_path, {"output": "o", "failed": "f"}, {"output": "o", "failed": "f"}))


@pytest.mark.parametrize(
    "folder",
    [
        {"output": "input0"},
        {"output": "input0/out"},
        {"done": "input0/archive"},
        {"failed": "input0/a/b"},
        {"input": "output0/in"},
        {"input": "done0/x"},
        {"output": "same", "done": "same"},
        {"output": "same", "failed": "same"},
    ],
)
def test_results_and_inputs_of_one_folder_stay_apart(tmp_path, folder):
    assert 1 == len(problems(configured(tmp_path, folder)))


def test_a_chain_of_folders_is_refused(tmp_path):
    """The input of one folder inside the output of another would feed the second with the first's results."""
    (found,) = problems(configured(tmp_path, {}, {"input": "output0/next"}))
    assert "f1" in found
    assert "f0" in found


def test_the_same_or_a_nested_input_twice_is_refused(tmp_path):
    assert problems(configured(tmp_path, {}, {"input": "input0"}))
    assert problems(configured(tmp_path, {}, {"input": "input0/deep/inside"}))


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


def test_all_findings_come_at_once(tmp_path):
    found = problems(configured(tmp_path, {"output": "input0/out"}, {"done": "input1/done"}))
    assert 2 == len(found)
    assert all("folder 'f" in text for text in found)
