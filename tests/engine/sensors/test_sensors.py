"""Sensors: what NVML and the kernel say, what they cannot say, and a driver that hangs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rmbgd.engine.sensors.base import MEASURES, DeadlineSensor, Problem, Reading, Throttle
from rmbgd.engine.sensors.choose import ThermalZoneSensor, choose_sensor
from rmbgd.engine.sensors.nvml import EVENTS_MAXIMUM, NvmlSensor
from rmbgd.testing.sensors import NEVER_RETURNS, FakeSensor

SHORT = 0.05  # s; a deadline that tests can wait for
LONG = 60.0  # s; a deadline that is never reached
WELL = Reading("fake", temperature=60.0)
GPU_ZONE = {"gpu-thermal": "50000"}


class FakeNvml:
    """Stands for pynvml. Attributes are answers, raised when they are exceptions. `calls` lists what was asked."""

    NVML_TEMPERATURE_GPU, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.temperature: Any = 61
        self.throttle = self.ecc = 0
        self.remapped: Any = (0, 0, 0, 0)
        self.memory = SimpleNamespace(used=1 << 30, total=16 << 30, free=15 << 30)
        self.recovery = [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=0))]
        self.power = 123_400
        self.init = self.register = None
        self.handle, self.events = "handle", "events"
        self.xids: Any = []
        self.calls: list[tuple[Any, ...]] = []
        self.depth = 0  # nvmlInit minus nvmlShutdown

    def answer(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if isinstance(value := getattr(self, name), Exception):
            raise value
        return value

    def nvmlInit(self) -> None:
        self.answer("init")
        self.depth += 1

    def nvmlShutdown(self) -> None:
        self.depth -= 1

    def nvmlEventSetFree(self, events: Any) -> None:
        assert events == self.events

    def nvmlEventSetWait_v2(self, events: Any, timeout: int) -> Any:
        assert timeout == 0
        if not self.answer("xids"):
            raise self.NVMLError_Timeout("timeout")
        return SimpleNamespace(eventType=8, eventData=self.xids.pop(0))


for _call, _answer in {
    "nvmlDeviceGetHandleByIndex": "handle",
    "nvmlDeviceGetHandleByUUID": "handle",
    "nvmlEventSetCreate": "events",
    "nvmlDeviceRegisterEvents": "register",
    "nvmlDeviceGetTemperature": "temperature",
    "nvmlDeviceGetCurrentClocksThrottleReasons": "throttle",
    "nvmlDeviceGetTotalEccErrors": "ecc",
    "nvmlDeviceGetRemappedRows": "remapped",
    "nvmlDeviceGetMemoryInfo": "memory",
    "nvmlDeviceGetFieldValues": "recovery",
    "nvmlDeviceGetPowerUsage": "power",
}.items():
    setattr(FakeNvml, _call, lambda self, *arguments, answer=_answer: self.answer(answer, *arguments))

for _name in (
    "NotSupported", "FunctionNotFound", "NoPermission", "LibraryNotFound", "LibRmVersionMismatch", "GpuIsLost",
    "ResetRequired", "DriverNotLoaded", "NotFound", "InvalidArgument", "Timeout", "Unknown",
):  # fmt: skip
    setattr(FakeNvml, f"NVMLError_{_name}", type(f"NVMLError_{_name}", (FakeNvml.NVMLError,), {}))


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def zones(root: Path, **found: str) -> Path:
    """A /sys with thermal zones: temperature as the kernel writes it, by type; None: the file cannot be read."""
    for number, (name, temp) in enumerate(found.items()):
        folder = root / "class" / "thermal" / f"thermal_zone{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(name + "\n")
        (folder / "temp").write_text(temp + "\n") if temp is not None else (folder / "temp").mkdir()
    return root


# --- NVML


def test_nvml_gives_every_field(nvml: FakeNvml):
    nvml.throttle, nvml.ecc, nvml.remapped, nvml.xids = 0x04 | 0x20 | 0x80, 3, (1, 0, 1, 0), [13, 48]
    assert NvmlSensor(nvml, index=2).read() == Reading(
        source="nvml",
        temperature=61.0,
        throttle=frozenset({Throttle.SOFTWARE_THERMAL, Throttle.POWER_BRAKE}),
        ecc_uncorrected=3,
        remap_failed=False,
        remap_pending=True,
        memory_used=1 << 30,
        memory_total=16 << 30,
        recovery="none",
        power=123.4,
        xids=(13, 48),
    )
    assert ("handle", 2) in nvml.calls
    assert ("recovery", "handle", [230]) in nvml.calls


@pytest.mark.parametrize("name", ["NotSupported", "FunctionNotFound", "NoPermission"])
def test_what_a_board_lacks_is_unknown_and_not_zero(nvml: FakeNvml, name: str):
    """Neither old drivers nor missing rights are cured by asking again."""
    nvml.ecc = nvml.remapped = nvml.memory = getattr(nvml, f"NVMLError_{name}")()
    nvml.recovery = [SimpleNamespace(nvmlReturn=3, value=SimpleNamespace(uiVal=0))]
    reading = NvmlSensor(nvml).read()
    lacking = {"ecc_uncorrected", "remap_failed", "remap_pending", "memory_used", "memory_total", "recovery"}
    assert (reading.problem, reading.temperature, reading.unsupported) == (None, 61.0, lacking)
    assert {getattr(reading, name) for name in lacking} == {None}


@pytest.mark.parametrize(
    ("name", "problem", "recovery"),
    [
        ("LibraryNotFound", Problem.NO_SOURCE, None),
        ("LibRmVersionMismatch", Problem.DRIVER_MISMATCH, None),
        ("GpuIsLost", Problem.GPU_IS_LOST, None),
        ("DriverNotLoaded", Problem.NO_DEVICE, None),
        ("NotFound", Problem.NO_DEVICE, None),
        ("InvalidArgument", Problem.NO_DEVICE, None),
        ("ResetRequired", Problem.ERROR, "gpu_reset"),
        ("Unknown", Problem.ERROR, None),
    ],
)
@pytest.mark.parametrize("where", ["init", "handle", "temperature", "xids"])
def test_each_error_of_the_library_has_its_problem(nvml: FakeNvml, name, problem, recovery, where):
    """Wherever it is raised; and no field of such a reading has a value."""
    setattr(nvml, where, getattr(nvml, f"NVMLError_{name}")("said the driver"))
    reading = NvmlSensor(nvml).read()
    assert (problem, recovery, "said the driver") == (reading.problem, reading.recovery, reading.detail)
    assert all(getattr(reading, measure) is None for measure in MEASURES if measure != "recovery")


def test_after_a_problem_the_library_is_entered_anew(nvml: FakeNvml):
    """A reloaded driver answers again, and nothing stays open. Entering takes long: once is enough for many."""
    sensor = NvmlSensor(nvml)
    nvml.temperature = nvml.NVMLError_GpuIsLost()
    sensor.read()
    assert nvml.depth == 0
    nvml.temperature = 44
    assert [sensor.read().temperature for _ in range(5)] == [44.0] * 5
    assert nvml.calls.count(("init",)) == 2
    sensor.close()
    assert nvml.depth == 0


class Cards(FakeNvml):
    """Three cards, whose handles are their numbers: the first is lost, the last has MIG instances 0 and 2."""

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self.calls.append(("handle", index))
        if index == 0:
            raise self.NVMLError_GpuIsLost
        return index

    def nvmlDeviceGetUUID(self, handle: int | str) -> str:
        return handle if isinstance(handle, str) else f"GPU-{handle}111-full"

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        if handle != 2:
            raise self.NVMLError_NotSupported
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, instance: int) -> str:
        if instance == 1:
            raise self.NVMLError_NotFound
        return f"MIG-{handle}{instance}"


@pytest.mark.parametrize(
    ("variable", "index", "card"),
    [
        (None, 1, 1),
        ("2,1", 0, 2),
        ("2,1", 1, 1),
        ("GPU-2111", 0, 2),  # NVML itself wants the whole UUID
        ("MIG-22", 0, 2),  # an instance has no temperature: its card's is read
        (None, 0, Problem.GPU_IS_LOST),
        ("0,2", 0, Problem.GPU_IS_LOST),
        ("GPU-0111", 0, Problem.NO_DEVICE),  # it cannot be asked for its UUID
        ("2", 1, Problem.NO_DEVICE),
        ("", 0, Problem.NO_DEVICE),
    ],
)
def test_the_card_that_is_read_is_the_one_that_computes(monkeypatch, variable, index, card):
    """CUDA_VISIBLE_DEVICES hides and reorders for CUDA alone."""
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    nvml = Cards()
    reading = NvmlSensor(nvml, index=index).read()
    asked = [call[1] for call in nvml.calls if call[0] == "handle"]
    assert (reading.problem or asked[-1]) == card


def test_a_board_that_tells_no_events_is_read_all_the_same(nvml: FakeNvml):
    nvml.register, nvml.xids = nvml.NVMLError_NotSupported(), [79]
    reading = NvmlSensor(nvml).read()
    assert (reading.temperature, reading.xids) == (61.0, ())


def test_a_storm_of_driver_messages_does_not_hold_the_reading(nvml: FakeNvml):
    nvml.xids = [31] * (EVENTS_MAXIMUM + 5)
    sensor = NvmlSensor(nvml)
    assert [EVENTS_MAXIMUM, 5, 0] == [len(sensor.read().xids) for _ in range(3)]


@pytest.mark.parametrize(("number", "name"), [(0, "none"), (1, "gpu_reset"), (2, "reboot"), (99, "action_99")])
def test_the_recovery_action_has_a_name(nvml: FakeNvml, number: int, name: str):
    """One that this version does not know is still not "none"."""
    nvml.recovery = [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=number))]
    assert name == NvmlSensor(nvml).read().recovery


def test_the_real_binding_has_every_name_in_use(nvml: FakeNvml):
    """The fake cannot drift from pynvml; where NVIDIA's library is missing, both say so in the same way."""
    pynvml = pytest.importorskip("pynvml")
    names = {name for name in dir(FakeNvml) if name.lower().startswith("nvml")}
    assert len(names) > 20
    assert names <= set(dir(pynvml))
    with closing(NvmlSensor(pynvml)) as sensor:
        assert sensor.read().problem in (None, Problem.NO_SOURCE)


# --- the kernel's thermal zones


@pytest.mark.parametrize(
    ("found", "temperature"),
    [
        ({"cpu-thermal": "99000", "gpu-thermal": "48312"}, 48.312),
        ({"cpu-thermal": "99000", "GPU-therm": "48312"}, 48.312),  # whatever the case of its name
        ({"soc-gpu": "48312"}, 48.312),
        ({"gpu0-thermal": "50000", "gpu1-thermal": "70000"}, 70.0),  # one zone per cluster: the hottest
        ({"gpu-thermal": "-256000", "tj-thermal": "47500"}, 47.5),  # Orin's GPU sleeps: its chip stands in
        ({"gpu-thermal": "-256000"}, None),  # neither 0 nor -256
        ({"gpu-thermal": ""}, None),
        ({"gpu-thermal": "hot"}, None),
        ({"gpu-thermal": None}, None),
    ],
)
def test_the_zone_that_names_the_gpu_is_read(tmp_path: Path, found: dict[str, str], temperature: float | None):
    """In thousandths of a degree. Where it cannot be read the temperature lacks; all else is unsupported."""
    reading = ThermalZoneSensor(zones(tmp_path, **found)).read()
    assert (reading.temperature, reading.unsupported) == (temperature, MEASURES - {"temperature"})
    assert reading.lacks("temperature") == (temperature is None)


# --- the deadline


def test_a_reading_passes_through_and_an_exception_is_a_bad_one():
    sensor = FakeSensor([RuntimeError("driver bug"), WELL])
    with closing(DeadlineSensor(sensor, LONG)) as timed:
        assert timed.read() == Reading("fake", Problem.ERROR, "RuntimeError: driver bug")
        assert timed.read() == WELL
    assert sensor.closed


def test_a_sensor_that_hangs_is_a_timeout_and_only_one_call_is_made():
    """While it hangs, nobody asks again: one stuck thread at most."""
    sensor = FakeSensor([NEVER_RETURNS])
    threads = threading.active_count()
    timed = DeadlineSensor(sensor, SHORT)
    assert [timed.read().problem for _ in range(5)] == [Problem.TIMEOUT] * 5
    assert sensor.reads == 1
    assert threading.active_count() == threads + 1
    sensor.release()
    timed.close()


def test_a_late_answer_is_not_taken_for_a_new_one_but_its_messages_are_kept():
    """The temperature of then is old; the driver message is told once and would be lost."""
    gate = threading.Event()
    answers = iter([Reading("slow", temperature=99.0, xids=(79,)), Reading("slow", temperature=50.0, xids=(13,))])
    slow = FakeSensor([WELL])
    slow.read = lambda: (gate.wait(), next(answers))[1]  # type: ignore[method-assign]
    timed = DeadlineSensor(slow, SHORT)
    assert timed.read().problem is Problem.TIMEOUT
    gate.set()
    readings = [timed.read()]
    while readings[-1].problem is Problem.TIMEOUT:  # the late answer may not have arrived yet
        readings.append(timed.read())
    assert readings[-1].temperature == 50.0
    assert [xid for reading in readings for xid in reading.xids] == [79, 13]
    timed.close()


# --- the choice


@pytest.fixture
def choose(tmp_path: Path, nvml: FakeNvml) -> Iterator[Callable[..., tuple[DeadlineSensor, str]]]:
    """Chooses between NVML and the zones below tmp_path; what it chose is closed at the end."""
    with ExitStack() as stack:

        def make(wanted="auto", timeout=LONG, library=lambda: nvml):
            sensor, why = choose_sensor(wanted, timeout, sysfs=tmp_path, nvml=library)
            return stack.enter_context(closing(sensor)), why

        yield make


@pytest.mark.parametrize("error", ["", "GpuIsLost", "LibRmVersionMismatch", "Unknown"])
def test_nvml_goes_before_a_thermal_zone_also_when_it_is_unwell(tmp_path: Path, nvml: FakeNvml, choose, error: str):
    """The zone may belong to another GPU, and would never tell that a device that is away is back."""
    zones(tmp_path, **GPU_ZONE)
    if error:
        nvml.handle = getattr(nvml, f"NVMLError_{error}")()
    sensor, why = choose()
    assert sensor.source == "nvml"
    assert why.endswith("it is asked again each time" if error else "NVML answers with a temperature")


@pytest.mark.parametrize(
    ("where", "name"), [("init", "LibraryNotFound"), ("temperature", "NotSupported"), ("init", "DriverNotLoaded")]
)
def test_jetson_is_read_from_its_thermal_zone(tmp_path: Path, nvml: FakeNvml, choose, where: str, name: str):
    """NVML is missing there, or knows no thermometer, or finds no driver."""
    zones(tmp_path, **GPU_ZONE)
    setattr(nvml, where, getattr(nvml, f"NVMLError_{name}")())
    sensor, why = choose()
    assert "thermal_zone0" in why
    assert sensor.source == "sysfs"
    assert sensor.read() == ThermalZoneSensor(tmp_path).read()


def test_without_library_and_zone_nothing_is_read_and_nothing_is_claimed(nvml: FakeNvml, choose):
    """Every field unsupported, none healthy; the reason says both. pynvml itself may be missing, too."""
    nvml.init = nvml.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    without_pynvml = partial(import_module, "no_such_module")
    for library, missing in ((lambda: nvml, "Library Not Found"), (without_pynvml, "pynvml cannot be imported")):
        sensor, why = choose(library=library)
        assert re.search(f"{missing}.*no thermal zone", why)
        assert sensor.read() == Reading("none", unsupported=MEASURES)


def test_the_operator_s_word_counts(nvml: FakeNvml, choose):
    """Even where it does not answer: then each reading says so, rather than another source standing in."""
    nvml.init = nvml.NVMLError_LibraryNotFound()
    for wanted, problem in (("nvml", Problem.NO_SOURCE), ("sysfs", Problem.NO_SOURCE), ("none", None)):
        reading = choose(wanted)[0].read()
        assert (reading.source, reading.temperature, reading.problem) == (wanted, None, problem)


def test_a_library_that_hangs_does_not_hold_the_start(nvml: FakeNvml, choose, monkeypatch: pytest.MonkeyPatch):
    """The trial reading keeps the deadline too."""
    gate = threading.Event()
    monkeypatch.setattr(nvml, "nvmlInit", gate.wait)
    sensor, why = choose(timeout=SHORT)
    gate.set()
    assert sensor.source == "nvml"
    assert "sensor_timeout" in why
