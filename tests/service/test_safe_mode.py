"""Safe mode: when it is entered, for how long, and what the record of starts keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rmbgd.config.load import Config, SourceSettings, parse
from rmbgd.events import RecordedEvents
from rmbgd.service import start_record
from rmbgd.service.safe_mode import SafeMode, reduced
from rmbgd.service.start_record import Start
from rmbgd.telemetry import jsonl
from rmbgd.testing.clock import FakeClock

WINDOW, QUIET = 600.0, 300.0


def configured(state: Path, *, safe_starts: int = 3, **tables: Any) -> Config:
    times = {"safe_window": WINDOW, "safe_quiet": QUIET, "safe_quiet_maximum": 1000.0}
    return parse({"service": {"state_directory": str(state), "safe_starts": safe_starts, **times}} | tables)


class Machine:
    """Starts the service again and again on one state directory, with a clock that is moved by hand."""

    def __init__(self, state: Path, safe_starts: int = 3) -> None:
        self.state, self.clock, self.events = state, FakeClock(), RecordedEvents()
        self.config = configured(state, safe_starts=safe_starts)
        self.invocation = 0

    def start(self) -> SafeMode:
        self.invocation += 1
        mode = SafeMode(self.config, self.clock, {"INVOCATION_ID": str(self.invocation)})
        mode.begin(self.events)
        return mode

    def die(self, times: int = 1, after: float = 10.0) -> None:
        for _ in range(times):
            self.start()
            self.clock.advance(after)

    def exit(self, **environ: str) -> None:
        """What systemd's ExecStopPost records of the run that was started last, or of another invocation."""
        environ = {"INVOCATION_ID": str(self.invocation)} | environ
        now = start_record.moment(self.clock.monotonic(), self.clock.wall().timestamp())
        start_record.record_exit(self.state, environ, now)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_after_three_deaths_within_ten_minutes_the_fourth_start_is_careful(machine: Machine) -> None:
    machine.die(2)
    assert not machine.start().safe
    machine.clock.advance(10.0)
    assert machine.start().safe
    (event,) = machine.events.named("service.safe_mode")
    assert event["causes"] == [start_record.NO_WORD] * 3
    assert (event["window"], event["seconds"], event["device"], event["model"]) == (WINDOW, QUIET, "cpu", "u2netp")


@pytest.mark.parametrize(("safe_starts", "deaths", "after"), [(3, 10, 301.0), (0, 20, 10.0)])
def test_no_safe_mode(tmp_path: Path, safe_starts: int, deaths: int, after: float) -> None:
    machine = Machine(tmp_path, safe_starts)
    machine.die(deaths, after=after)
    assert not machine.start().safe


def test_an_orderly_stop_forgives_everything(machine: Machine) -> None:
    """Also in safe mode: an operator who restarts the service wants it whole."""
    machine.die(3)
    machine.start().ended()
    assert not machine.start().safe
    assert start_record.read(machine.state).safe_modes == 0


def test_a_broken_part_is_a_death_with_its_name(machine: Machine) -> None:
    """The service's own report is kept; what systemd adds of the same run is not counted again."""
    for _ in range(3):
        machine.start().ended("finish: OSError: no")
        machine.exit(SERVICE_RESULT="exit-code", EXIT_STATUS="70")
    mode = SafeMode(machine.config, machine.clock, {})
    assert (mode.safe, mode.causes()) == (True, ["finish: OSError: no"] * 3)


def test_an_unusable_configuration_is_no_death(machine: Machine) -> None:
    """It is the operator's to mend, and says nothing of what was before: neither for nor against it."""
    machine.die(2)
    machine.start().ended("engine: ModelError", of_operator=True)
    machine.exit(SERVICE_RESULT="exit-code", EXIT_STATUS="78", INVOCATION_ID="x")
    assert not SafeMode(machine.config, machine.clock, {}).safe
    machine.die()
    assert SafeMode(machine.config, machine.clock, {}).safe


def test_what_lived_long_does_not_die_of_its_start(machine: Machine) -> None:
    """After the window in good health the record is forgotten; a death later is a death, not a loop."""
    machine.die(2)
    mode = machine.start()
    mode.ready()
    assert mode.seconds_left() == WINDOW
    machine.clock.advance(WINDOW)
    assert mode.seconds_left() == 0
    assert not mode.settle()
    assert mode.seconds_left() is None
    machine.exit(SERVICE_RESULT="signal", EXIT_STATUS="KILL")
    machine.die(2)
    assert not SafeMode(machine.config, machine.clock, {}).safe


def test_safe_mode_is_left_after_its_quiet_time_and_not_before_ready(machine: Machine) -> None:
    """Its time begins when it is ready; at its end the next start has everything, unless a part fails meanwhile."""
    machine.die(3)
    mode = machine.start()
    assert mode.seconds_left() is None
    mode.ready()
    assert mode.seconds_left() == QUIET
    machine.clock.advance(QUIET)
    assert mode.settle()
    mode.ended()
    assert mode.over
    assert not machine.start().safe
    mode.ended("reconcile: boom")
    assert not mode.over


def test_each_safe_mode_that_did_not_help_is_twice_as_long(machine: Machine) -> None:
    """Up to the maximum; a death in safe mode is the same one still; a long healthy run begins anew."""
    for _ in range(4):
        machine.die(4)  # the last one in safe mode
        mode = machine.start()
        mode.ready()
        mode.settle()
        mode.ended()
    mode = machine.start()
    mode.ready()
    mode.settle()
    machine.die(4)
    seconds = [event["seconds"] for event in machine.events.named("service.safe_mode")]
    assert seconds == [300.0, 300.0, 600.0, 600.0, 1000.0, 1000.0, 1000.0, 1000.0, 300.0]


def test_a_process_that_dies_before_it_can_say_anything_counts(machine: Machine) -> None:
    for number in range(3):
        machine.exit(SERVICE_RESULT="exit-code", EXIT_STATUS="1", INVOCATION_ID=f"early {number}")
    mode = machine.start()
    assert (mode.safe, mode.causes()) == (True, ["exit status 1"] * 3)


@pytest.mark.parametrize(
    ("result", "status", "cause"),
    [
        ("signal", "KILL", "signal KILL"),
        ("core-dump", "SEGV", "signal SEGV"),
        ("watchdog", "ABRT", "watchdog"),
        ("oom-kill", "KILL", "oom-kill"),
        ("timeout", "TERM", "timeout"),
        ("success", "0", start_record.NO_WORD),  # a planned stop: nothing is added
    ],
)
def test_the_recorder_says_how_a_run_ended(machine: Machine, result: str, status: str, cause: str) -> None:
    machine.start()
    machine.exit(SERVICE_RESULT=result, EXIT_STATUS=status)
    assert SafeMode(machine.config, machine.clock, {}).causes() == [cause]


def test_the_wall_clock_decides_only_across_boots() -> None:
    here = Start(jsonl.boot_id(), 100.0, 5000.0, "")
    other = Start("another boot", 100.0, 5000.0, "")
    assert here.age((jsonl.boot_id(), 160.0, 1e9)) == 60.0
    assert other.age((jsonl.boot_id(), 160.0, 5007.0)) == 7.0
    assert other.age((jsonl.boot_id(), 160.0, 0.0)) == 0.0


def test_a_service_that_is_at_work_is_not_counted_dead() -> None:
    """The doctor looks at the record while the service runs."""
    parent = os.getppid()
    start = jsonl.process_start(parent)
    assert start is not None
    starts = tuple(Start(jsonl.boot_id(), 0.0, 0.0, "", process=(parent, start + late)) for late in (0, 1))
    assert start_record.deaths(starts) == [starts[1]]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"runs": [{}]}', b'{"runs": [3], "safe_modes": 0}', b"\xff" * 99])
def test_a_spoilt_record_is_no_record(machine: Machine, text: bytes) -> None:
    (machine.state / start_record.FILE).write_bytes(text)
    assert not machine.start().safe
    assert len(start_record.read(machine.state).starts) == 1


def test_a_disk_that_refuses_does_not_keep_the_service_from_starting(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "not" / "there")
    machine.die(5)
    assert not machine.start().safe


def test_the_record_stays_small(machine: Machine) -> None:
    machine.die(start_record.KEPT + 2)
    assert len(json.loads((machine.state / start_record.FILE).read_text())["runs"]) == start_record.KEPT


def test_safe_mode_changes_the_engine_and_the_load_and_nothing_else(tmp_path: Path) -> None:
    roots = {name: str(tmp_path / name) for name in ("input", "output", "done", "failed")}
    folders = [
        {"name": "a", "recipe": "shop", **roots},
        {"name": "b", **{name: f"{path}-b" for name, path in roots.items()}},
    ]
    config = configured(
        tmp_path,
        engine={"device": "cuda:1", "precision": "float16"},
        health={"require_gpu": True},
        pipeline={"batch_maximum": 16, "decode_threads": 8},
        recipe={"shop": {"model": "birefnet", "patch_order": "tile_first", "format": "webp", "crop": True}},
        folder=folders,
    )
    less = reduced(config)
    assert (less.engine.device, less.engine.precision, less.health.require_gpu) == ("cpu", "auto", False)
    assert (less.pipeline.batch_maximum, less.pipeline.decode_threads, less.pipeline.queue) == (1, 1, 1)
    assert {less.recipe_of(folder).model for folder in less.folder} == {"u2netp"}
    assert {less.recipe_of(folder).patch_order for folder in less.folder} == {"auto"}
    assert (less.recipe["shop"].format, less.recipe["shop"].crop) == ("webp", True)
    assert (less.folder, less.limits, less.service) == (config.folder, config.limits, config.service)
    assert less.pipeline.arena_bytes == config.pipeline.arena_bytes
    Config.model_validate(less.model_dump())


def test_a_worker_of_a_fleet_keeps_its_models_in_safe_mode(tmp_path: Path) -> None:
    """What it publishes counts as the recipe's, on every machine."""
    folder = {"name": "a"} | {name: str(tmp_path / name) for name in ("input", "output", "done", "failed")}
    config = configured(
        tmp_path, recipe={"default": {"model": "birefnet"}}, engine={"device": "cuda:1"}, folder=[folder]
    )
    fleet = reduced(config.model_copy(update={"source": SourceSettings(kind="jetstream")}))
    assert [fleet.recipe_of(folder).model for folder in fleet.folder] == ["birefnet"]
    assert fleet.engine.device == "cpu"
    assert [reduced(config).recipe_of(folder).model for folder in config.folder] == ["u2netp"]
