"""Folders that cannot be used together are refused before anything is watched."""

import subprocess

import pytest

from rmbgd.config.layout import check_layout
from rmbgd.config.load import parse
from rmbgd.errors import ConfigError


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


def test_all_findings_come_at_once(tmp_path):
    found = problems(configured(tmp_path, {"output": "input0/out"}, {"done": "input1/done"}))
    assert 2 == len(found)
    assert all("folder 'f" in text for text in found)
