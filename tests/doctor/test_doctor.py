"""The doctor: what it reports of each need, tried on real folders and on answers of a sick machine."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rmbgd.clock import SystemClock
from rmbgd.config.load import Config
from rmbgd.config.settings import EngineSettings, Folder, ServiceSettings
from rmbgd.doctor import checks, folders, ledger
from rmbgd.doctor.checks import CheckState
from rmbgd.engine.device_query import ask
from rmbgd.service import start_record
from rmbgd.service.start_record import Start, StartRecord
from rmbgd.store import copies
from rmbgd.store.ledger import Ledger
from tests.support.damage import spoil

OK, WARN, FAIL = CheckState
CPU_TORCH = {"version": "2.13.0", "built_for_cuda": None, "cuda": False, "threads": 2, "devices": []}
CUDA_TORCH = CPU_TORCH | {"built_for_cuda": "12.6", "cause": "CUDA driver version is insufficient"}
CARD = {"name": "RTX 4080", "memory_bytes": 16 << 30, "capability": "8.9", "computes": True}
READY_TORCH = CUDA_TORCH | {"cuda": True, "devices": [CARD]}
NO_DRIVER = {"error": "NVMLError_LibraryNotFound", "text": "NVML Shared Library Not Found"}
READ_ONLY = Path("/proc/sys")  # even root cannot write there
DRIVER = {"driver": "560.35", "devices": [{"name": "RTX 4080", "memory_bytes": 16 << 30, "temperature": 44}]}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    places = {name: tmp_path / name for name in ("input", "output", "done", "failed", "review")}
    for place in places.values():
        place.mkdir()
    return Folder(name="shop", **places)


@pytest.mark.parametrize(
    ("device", "torch", "nvml", "state", "said"),
    [
        ("cpu", CPU_TORCH, NO_DRIVER, OK, "not used"),
        ("auto", CPU_TORCH, NO_DRIVER, OK, "no NVIDIA driver"),
        ("auto", CPU_TORCH, DRIVER, WARN, "this torch is built for the CPU only"),
        ("auto", CUDA_TORCH, DRIVER, WARN, "CUDA driver version is insufficient"),
        ("auto", READY_TORCH, DRIVER, OK, "44 C"),
        ("cuda", CPU_TORCH, NO_DRIVER, FAIL, "no NVIDIA driver"),
        ("cuda", CUDA_TORCH, {"driver": "560.35", "devices": []}, FAIL, "sees no card"),
        ("cuda", {"error": "Crash", "text": "boom"}, DRIVER, FAIL, "torch cannot be asked about RTX 4080"),
        ("cuda:1", READY_TORCH, DRIVER, FAIL, "there are 1"),
        ("cuda:0", READY_TORCH, NO_DRIVER, WARN, "its health cannot be read"),
        ("cuda", READY_TORCH | {"devices": [CARD | {"computes": False}]}, DRIVER, FAIL, "came out wrong"),
        ("cuda", CUDA_TORCH, {"error": "E", "text": "Driver/library version mismatch"}, FAIL, "was upgraded"),
        ("cuda", CUDA_TORCH, {"error": "E", "text": "GPU is lost"}, FAIL, "fallen off the bus"),
        ("cuda", CUDA_TORCH, {"error": "Timeout", "text": "no answer within 120 s"}, FAIL, "no answer within"),
    ],
)
def test_gpu_is_judged_with_its_cause(device: str, torch: Any, nvml: Any, state: CheckState, said: str) -> None:
    found = checks.judge_gpu(device, torch, nvml)
    assert state == found.state
    assert said in found.text


def test_torch_that_cannot_be_imported_fails_with_the_reason() -> None:
    found = checks.judge_torch("auto", {"error": "ImportError", "text": "libcudart.so.12: cannot open"}, NO_DRIVER)
    assert (FAIL, "ImportError: libcudart.so.12: cannot open") == (found.state, found.text)
    assert "pip install" in found.hint


@pytest.mark.parametrize(
    ("device", "torch", "nvml", "state", "said", "hint"),
    [
        ("auto", CPU_TORCH, NO_DRIVER, OK, "2.13.0, built for the CPU only, 2 CPU threads; fits this machine", ""),
        ("auto", CPU_TORCH, DRIVER, WARN, "but this machine has a GPU", "download.pytorch.org/whl/cu126"),
        ("cpu", CPU_TORCH, DRIVER, OK, "fits this machine", ""),
        ("auto", READY_TORCH, DRIVER, OK, "built for CUDA 12.6, 2 CPU threads; fits this machine", ""),
        ("auto", CUDA_TORCH, NO_DRIVER, OK, "it works, but there is no GPU here", "0.2 instead of 2.7 GB"),
    ],
)
def test_torch_is_told_and_whether_it_fits_the_machine(
    device: str, torch: Any, nvml: Any, state: CheckState, said: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.os.path, "exists", lambda _: False)  # the nodes of a driver that this machine may have
    found = checks.judge_torch(device, torch, nvml)
    assert (state, True, True) == (found.state, said in found.text, hint in found.hint)
    assert bool(hint) == bool(found.hint)


@pytest.mark.parametrize(
    ("deaths", "state", "said"), [(0, OK, "none"), (1, WARN, "died within"), (3, WARN, "safe mode")]
)
def test_starts_that_died_are_reported(tmp_path: Path, deaths: int, state: CheckState, said: str) -> None:
    settings = Config(service=ServiceSettings(state_directory=tmp_path))
    now = start_record.moment(time.monotonic(), time.time())
    start_record.write(tmp_path, StartRecord(tuple(Start(*now, str(n), ended="signal SEGV") for n in range(deaths))))
    found = checks.starts(settings)
    assert state == found.state
    assert said in found.text
    assert ("signal SEGV" in found.text) == bool(deaths)


@pytest.mark.integration
def test_question_without_an_answer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that hangs, a library that raises, one that takes its process along: none takes the doctor with it."""
    assert {"error": "Timeout", "text": "no answer within 0.001 s"} == ask("torch", patience=0.001)
    assert {"error": "KeyError", "text": "'no such question'"} == ask("no such question")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert {"error": "Crash", "text": "the asking process ended with 1"} == ask("torch")


def test_what_the_cpu_computes_in_is_read_from_what_was_measured(tmp_path: Path) -> None:
    """Of each model the newest; what is damaged is left out."""
    config = Config(service=ServiceSettings(state_directory=tmp_path))
    assert "not measured on the CPU yet" in checks.precision(config).text
    (tmp_path / "precision").mkdir()
    for age, (name, content) in enumerate(
        {
            "new": kept("u2netp", "openvino", "bfloat16", "it takes 0.2 s"),
            "old": kept("u2netp", "torch", "float32", "bfloat16 is not quicker"),
            "other": kept("/models/x", "torch", "float32", "bfloat16 is off by 9 levels"),
            "cut": "{",
            "list": "[]",
        }.items()
    ):
        (tmp_path / "precision" / f"{name}.json").write_text(content)
        os.utime(tmp_path / "precision" / f"{name}.json", (1000 - age, 1000 - age))
    found = checks.precision(config)
    assert found.state == OK
    assert sorted(found.text.split("; ")) == [
        "/models/x in torch 1.2, float32: bfloat16 is off by 9 levels",
        "u2netp in openvino 1.2, bfloat16: it takes 0.2 s",
    ]


def kept(model: str, runtime: str, precision: str, because: str) -> str:
    key = {"model": model, "runtime": runtime, "runtime_version": "1.2"}
    return json.dumps({"precision": precision, "because": because, "sha256": "a", "key": key})


def test_a_configured_precision_is_the_reason(tmp_path: Path) -> None:
    config = Config(service=ServiceSettings(state_directory=tmp_path), engine=EngineSettings(precision="float32"))
    assert checks.precision(config).text == "float32 on the CPU, too: as configured in engine.precision"


def test_too_little_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "OWN_NEED", 1 << 60)
    assert FAIL == checks.memory(Config()).state


def test_usable_folders_are_fine_and_left_as_they_were(folder: Folder) -> None:
    assert folders.TRIAL.startswith(".")  # a running service leaves hidden names alone
    assert OK == folders.rights(folder).state
    assert [] == [path for path in folder.input.parent.rglob("*") if path.is_file()]


@pytest.mark.parametrize("role", ["input", "output", "done", "failed", "review"])
def test_folder_that_is_missing_is_named(role: str, folder: Folder) -> None:
    path: Path = getattr(folder, role)
    path.rmdir()
    found = folders.rights(folder)
    assert (FAIL, f"{role} {path}: does not exist") == (found.state, found.text)


def test_folder_that_cannot_be_written_fails(folder: Folder) -> None:
    found = folders.rights(folder.model_copy(update={"output": READ_ONLY}))
    assert FAIL == found.state
    assert f"output {READ_ONLY}" in found.text


def test_folder_in_which_nothing_can_be_removed_fails(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(folders.os, "unlink", refuse)
    found = folders.rights(folder)
    assert (FAIL, True) == (found.state, found.text.startswith(f"input {folder.input}: "))


def test_input_that_is_only_kept_need_not_be_writable(folder: Folder) -> None:
    found = folders.rights(folder.model_copy(update={"input": READ_ONLY, "originals": "keep"}))
    assert "input" not in found.text or FAIL != found.state


def test_archive_on_another_file_system_is_a_warning(folder: Folder, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    found = folders.rights(folder.model_copy(update={"done": elsewhere}))
    assert WARN == found.state
    assert "done lie on another file system" in found.text


def test_events_are_heard(folder: Folder) -> None:
    found = folders.events(folder)
    assert (OK, "a change was reported") == (found.state, found.text.partition(": ")[2])


def test_folder_that_is_polled_needs_no_events(folder: Folder) -> None:
    assert OK == folders.events(folder.model_copy(update={"watch": "poll"})).state


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "unknown"])
def test_remote_file_system_is_polled(kind: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "file_system", lambda _: kind)
    found = folders.events(folder)
    assert (WARN, True) == (found.state, found.text.startswith(f"{kind}: what other machines write causes no events"))


def test_too_little_space_fails(folder: Folder) -> None:
    assert OK == folders.space(folder, 0).state
    assert FAIL == folders.space(folder, 1 << 60).state


def test_watches_are_counted_against_the_limit(folder: Folder) -> None:
    for name in ("a", "a/b", "c"):
        (folder.input / name).mkdir()
    assert "4 directories to watch" in folders.watches(Config(folder=[folder])).text


def test_embedded_model_is_whole(tmp_path: Path) -> None:
    found = folders.model("u2netp", tmp_path)
    assert (OK, True) == (found.state, "as the registry states" in found.text)


@pytest.mark.parametrize("name", ["no-such-model", "birefnet", "./missing.safetensors"])
def test_missing_model_is_reported_with_the_way_to_get_it(name: str, tmp_path: Path) -> None:
    found = folders.model(name, tmp_path)
    assert FAIL == found.state
    assert found.text


def test_no_folder_at_all_is_a_fault() -> None:
    (first, *_) = folders.check_folders(Config())
    assert (FAIL, "folders") == (first.state, first.need)


@pytest.mark.integration
def test_fault_gives_exit_status_1_and_json_names_it(tmp_path: Path) -> None:
    (tmp_path / "rmbgd.toml").write_text(
        f'[service]\nstate_directory = "{tmp_path}"\nruntime_directory = "{tmp_path}"\n[engine]\ndevice = "cpu"\n'
        f'[[folder]]\nname = "shop"\ninput = "{tmp_path}/in"\noutput = "{tmp_path}/out"\nfailed = "{tmp_path}/f"\n'
        'originals = "keep"\n'
    )
    command = [sys.executable, "-m", "rmbgd", "doctor", "--json", "--config", tmp_path / "rmbgd.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (1, "") == (done.returncode, done.stderr)
    said = json.loads(done.stdout)
    assert not said["healthy"]
    states = {entry["need"]: entry["state"] for entry in said["findings"]}
    assert ("ok", "ok", "fail") == (states["torch"], states["gpu"], states["folder shop"])


def test_healthy_means_that_nothing_failed() -> None:
    assert checks.healthy([checks.ok("a", ""), checks.warn("b", "")])
    assert not checks.healthy([checks.ok("a", ""), checks.fail("b", "")])


class LedgerFiles:
    def __init__(self, base: Path) -> None:
        base.chmod(0o755)
        self.state = base / "state"
        self.state.mkdir()
        self.path = self.state / "ledger.sqlite"

    def make(self) -> None:
        Ledger(self.path, SystemClock()).close()

    def found(self) -> list[tuple[CheckState, str]]:
        """(state, everything that is said) of each line."""
        config = Config(service=ServiceSettings(state_directory=self.state))
        return [(each.state, f"{each.text}; {each.hint}") for each in ledger.check_ledger(config)]


@pytest.fixture
def ledger_files() -> Iterator[LedgerFiles]:
    with tempfile.TemporaryDirectory() as base:  # which others may enter
        yield LedgerFiles(Path(base))


def test_ledger_and_the_age_of_its_copy(ledger_files: LedgerFiles) -> None:
    assert [OK] == [state for state, _ in ledger_files.found()]
    ledger_files.make()
    assert [OK, WARN] == [state for state, _ in ledger_files.found()]
    copy = copies.copy_of_today(str(ledger_files.path), datetime.now(UTC))
    assert [OK, OK] == [state for state, _ in ledger_files.found()]
    os.utime(copy, (time.time() - 5 * copies.DAY,) * 2)
    sound, old = ledger_files.found()
    assert (OK, WARN, True) == (sound[0], old[0], "120 h old" in old[1])


@pytest.mark.parametrize(("me", "state"), [(0, WARN), (990, OK), (1000, OK)])
def test_user_is_told_once(me: int, state: CheckState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, of whom the rights prove little; another user's have a line of their own, `rights`."""
    monkeypatch.setattr(checks.os, "geteuid", lambda: me)
    monkeypatch.setattr(checks.pwd, "getpwnam", lambda _: SimpleNamespace(pw_uid=990))
    assert state == checks.user().state


def test_ledger_is_left_to_those_who_have_its_rights(ledger_files: LedgerFiles) -> None:
    """No failure, and no advice to give another user what is the service's; one line says whose it is."""
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    ledger_files.make()
    os.seteuid(65534)
    try:
        assert [] == ledger_files.found()
    finally:
        os.seteuid(0)


def test_damaged_ledger_and_those_set_aside(ledger_files: LedgerFiles) -> None:
    ledger_files.make()
    spoil(ledger_files.path, "job", "zero")
    state, said = ledger_files.found()[0]
    assert (FAIL, True) == (state, "is damaged" in said and "replaces it by its newest copy" in said)
    ledger_files.make()
    *_, (state, said) = ledger_files.found()
    assert (WARN, True) == (state, ".damaged-" in said)


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("", 0o644, "may not write it; chown nobody"),
        ("-wal", 0o600, "may not read it; chown nobody"),
        ("-shm", 0o600, "may not read it; chown"),
    ],
)
@pytest.mark.parametrize("by_root", [False, True])
def test_ledger_of_another_user_is_found_with_the_rights_of_the_service(
    ledger_files: LedgerFiles, name: str, mode: int, said: str, by_root: bool
) -> None:
    """Root may do everything, and looks at the owner instead."""
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    ledger_files.make()
    os.chown(ledger_files.state, 65534, 65534)
    place = Path(f"{ledger_files.path}{name}")
    for each in ledger_files.state.iterdir():
        os.chown(each, 65534, 65534)
    place.touch(mode)
    os.chown(place, 0, 0)
    place.chmod(mode)
    os.seteuid(0 if by_root else 65534)
    try:
        state, words = ledger_files.found()[0]
    finally:
        os.seteuid(0)
    assert (FAIL, True) == (state, f"chown nobody {place}" in words), words
    assert by_root or said in words
