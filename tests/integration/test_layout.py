"""Folders that would eat themselves are refused at the start, with status 78 and a line for each finding (T32)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.mounts import mounted, need_mounts
from tests.support.service import ServiceUnderTest


def refused(service: ServiceUnderTest, *mentioned: str) -> None:
    """It does not start, says in one line each what is wrong with which folders, and has written nothing."""
    service.start(ready=False)
    assert service.reap() == 78
    said = b"".join(service.stderr).decode()
    assert all(line.startswith("rmbgd: ") for line in said.splitlines()), said
    for words in mentioned:
        assert words in said
    assert service.named("service.ready") == []
    assert not os.path.lexists(service.input / ".rmbgd")


@pytest.mark.parametrize("role", ["output", "done", "failed"])
@pytest.mark.parametrize("where", ["", "sub"], ids=["same", "inside"])
def test_result_in_the_drop_folder(tmp_path: Path, role: str, where: str) -> None:
    """Output, archive or quarantine that is the input or lies inside it."""
    service = ServiceUnderTest(tmp_path)
    place = service.input / where
    place.mkdir(exist_ok=True)
    service.configure({}, {role: str(place)})
    refused(service, "folder 'shop'", str(place), "same directory" if not where else "lies inside")


@pytest.mark.parametrize("role", ["output", "done", "failed"])
def test_drop_folder_in_a_result(tmp_path: Path, role: str) -> None:
    """An input that lies inside its output, archive or quarantine."""
    service = ServiceUnderTest(tmp_path)
    inside = service.roots[role] / "in"
    inside.mkdir()
    service.configure({}, {"input": str(inside)})
    refused(service, str(inside), "lies inside")


@pytest.mark.parametrize("where", ["", "sub"], ids=["same", "inside"])
def test_drop_folder_in_another_folders_output(tmp_path: Path, where: str) -> None:
    """A chain of folders whose second would take the first one's cutouts in, again and again."""
    service = ServiceUnderTest(tmp_path)
    (service.output / where).mkdir(exist_ok=True)
    second = {"name": "second", "input": str(service.output / where), "output": str(tmp_path / "out-2")}
    second |= {"failed": str(tmp_path / "failed-2"), "originals": "delete"}
    service.configure({}, {}, {}, [second])
    refused(service, "folder 'second'", "folder 'shop'")


def test_one_drop_folder_twice(tmp_path: Path) -> None:
    """The same directory as the input of two folders."""
    service = ServiceUnderTest(tmp_path)
    second = {"name": "second", "input": str(service.input), "output": str(tmp_path / "out-2")}
    second |= {"failed": str(tmp_path / "failed-2"), "originals": "delete"}
    service.configure({}, {}, {}, [second])
    refused(service, "folder 'second'", "same directory")


@pytest.mark.parametrize("where", ["", "sub"], ids=["same", "inside"])
def test_links_hide_nothing(tmp_path: Path, where: str) -> None:
    """An output that is the input, or lies in it, by way of a symbolic link."""
    service = ServiceUnderTest(tmp_path)
    (service.input / where).mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(service.input)
    service.configure({}, {"output": str(tmp_path / "link" / where)})
    refused(service, "folder 'shop'")


@pytest.mark.parametrize("where", ["", "sub"], ids=["same", "inside"])
def test_bind_mounts_hide_nothing(tmp_path: Path, where: str) -> None:
    """An output that is the input, or lies in it, by way of a bind mount."""
    need_mounts()
    service = ServiceUnderTest(tmp_path)
    (service.input / where).mkdir(exist_ok=True)
    (tmp_path / "bound").mkdir()
    with mounted(tmp_path / "bound", "none", "bind", str(service.input)):
        service.configure({}, {"output": str(tmp_path / "bound" / where)})
        refused(service, "folder 'shop'")


def test_state_in_a_drop_folder(tmp_path: Path) -> None:
    """The ledger is no image: its directory must not lie where files are dropped."""
    service = ServiceUnderTest(tmp_path)
    inside = service.input / "state"
    inside.mkdir()
    service.configure({"service": {"state_directory": str(inside)}}, {})
    refused(service, "state_directory")


def test_all_findings_are_told_at_once(tmp_path: Path) -> None:
    """An operator mends a layout in one go."""
    service = ServiceUnderTest(tmp_path)
    inside = {role: str(service.input / role) for role in ("output", "done", "failed")}
    service.configure({}, inside)
    refused(service, *inside.values())


def test_second_service_on_the_same_state_is_refused(tmp_path: Path) -> None:
    """Two services never share a ledger: the second ends with status 78, the first goes on."""
    with ServiceUnderTest(tmp_path) as first:
        second = ServiceUnderTest(tmp_path)
        second.log_file = tmp_path / "second.jsonl"
        second.start(ready=False)
        assert second.reap() == 78
        assert "another rmbgd" in b"".join(second.stderr).decode()
        first.turn()
