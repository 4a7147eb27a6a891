"""Sensors: what NVML and the kernel say, what they cannot say, and a driver that hangs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmbgd.engine.sensors.base import MEASURES, DeadlineSensor, Problem, Reading, Throttle
from rmbgd.engine.sensors.choose import BlindSensor, ChosenSensor, ThermalZoneSensor, choose_sensor
from rmbgd.engine.sensors.nvml import EVENTS_MAXIMUM, NvmlSensor
from rmbgd.events import RecordedEvents
from rmbgd.testing.sensors import FakeSensor, Never
from tests.engine.sensors.fake_nvml import FakeNvml

SHORT = 0.05  # s; a deadline that tests can wait for
LONG = 60.0  # s; a deadline that is never reached
WELL = Reading("fake", temperature=60.0)


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def zone(root: Path, number: int, name: str, temp: str) -> None:
    folder = root / "class" / "thermal" / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(name + "\n")
    (folder / "temp").write_text(temp + "\n")


# --- NVML


def test_nvml_gives_every_field(nvml: FakeNvml):
    """A data-centre board that has everything."""
    nvml.throttle, nvml.ecc, nvml.remapped, nvml.xids = 0x04 | 0x20 | 0x80, 3, (1, 0, 1, 0), [13, 48]
    reading = NvmlSensor(nvml).read()

    assert reading == Reading(
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


def test_what_a_board_lacks_is_unknown_and_not_zero(nvml: FakeNvml):
    """A GeForce without ECC, row remapping and recovery action."""
    nvml.ecc = nvml.NVMLError_NotSupported()
    nvml.remapped = nvml.NVMLError_NotSupported()
    nvml.recovery = SimpleNamespace(nvmlReturn=3, value=SimpleNamespace(uiVal=0))
    reading = NvmlSensor(nvml).read()

    assert reading.problem is None
    assert (reading.ecc_uncorrected, reading.remap_failed, reading.remap_pending, reading.recovery) == (None,) * 4
    assert reading.unsupported == {"ecc_uncorrected", "remap_failed", "remap_pending", "recovery"}
    assert reading.temperature == 61.0


@pytest.mark.parametrize("name", ["NotSupported", "FunctionNotFound", "NoPermission"])
def test_old_drivers_and_missing_rights_count_as_unsupported(nvml: FakeNvml, name: str):
    """They will not be cured by asking again."""
    nvml.throttle = getattr(nvml, f"NVMLError_{name}")()

    assert NvmlSensor(nvml).read().unsupported == {"throttle"}


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
@pytest.mark.parametrize("where", ["init", "handle", "temperature"])
def test_each_error_of_the_library_has_its_problem(
    nvml: FakeNvml, name: str, problem: Problem, recovery: str | None, where: str
):
    """Wherever it is raised; and no field of such a reading has a value."""
    setattr(nvml, where, getattr(nvml, f"NVMLError_{name}")("said the driver"))
    reading = NvmlSensor(nvml).read()

    assert (problem, recovery, "said the driver") == (reading.problem, reading.recovery, reading.detail)
    assert all(getattr(reading, measure) is None for measure in MEASURES if measure != "recovery")


def test_after_a_problem_the_library_is_entered_anew(nvml: FakeNvml):
    """A driver that was reloaded answers again without a restart of the service, and nothing stays open."""
    sensor = NvmlSensor(nvml)
    nvml.temperature = nvml.NVMLError_GpuIsLost()
    sensor.read()
    assert nvml.depth == 0

    nvml.temperature = 44
    assert sensor.read().temperature == 44.0
    sensor.close()
    assert nvml.depth == 0


def test_the_library_is_entered_once_for_many_readings(nvml: FakeNvml):
    """Entering costs tens of milliseconds on real drivers."""
    sensor = NvmlSensor(nvml)
    for _ in range(5):
        sensor.read()

    assert nvml.calls.count("init") == 1


def test_a_device_is_found_by_its_uuid_where_that_is_known(nvml: FakeNvml):
    """CUDA and NVML count in different orders."""
    NvmlSensor(nvml, index=1, uuid="GPU-1234").read()

    assert "uuid GPU-1234" in nvml.calls
    assert "index 1" not in nvml.calls


def test_a_board_that_tells_no_events_is_read_all_the_same(nvml: FakeNvml):
    """Registering is refused in some containers."""
    nvml.register = nvml.NVMLError_NotSupported()
    nvml.xids = [79]
    reading = NvmlSensor(nvml).read()

    assert reading.temperature == 61.0
    assert reading.xids == ()


def test_a_storm_of_driver_messages_does_not_hold_the_reading(nvml: FakeNvml):
    """At most EVENTS_MAXIMUM are taken at once; the rest come with the next reading."""
    nvml.xids = [31] * (EVENTS_MAXIMUM + 5)
    sensor = NvmlSensor(nvml)

    assert [EVENTS_MAXIMUM, 5, 0] == [len(sensor.read().xids) for _ in range(3)]


def test_a_device_that_vanishes_while_events_are_read_is_lost(nvml: FakeNvml):
    """The event call has errors of its own."""
    nvml.xids = [nvml.NVMLError_GpuIsLost()]

    assert NvmlSensor(nvml).read().problem is Problem.GPU_IS_LOST


@pytest.mark.parametrize(("number", "name"), [(0, "none"), (1, "gpu_reset"), (2, "reboot"), (99, "action_99")])
def test_the_recovery_action_has_a_name(nvml: FakeNvml, number: int, name: str):
    """One that this version does not know is still not "none"."""
    nvml.recovery = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=number))

    assert name == NvmlSensor(nvml).read().recovery


def test_the_real_binding_has_every_name_in_use(nvml: FakeNvml):
    """The stand-in cannot drift from pynvml: each of its calls, errors and constants is there."""
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]

    assert names
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_the_real_binding_without_a_driver_has_no_source():
    """On a machine without NVIDIA's library; with one, the reading is whatever the device says."""
    pynvml = pytest.importorskip("pynvml")
    sensor = NvmlSensor(pynvml)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert sensor.read().problem is Problem.NO_SOURCE
    else:
        pynvml.nvmlShutdown()
        assert sensor.read().source == "nvml"
    sensor.close()


# --- the kernel's thermal zones


@pytest.mark.parametrize("name", ["gpu-thermal", "GPU-therm", "soc-gpu"])
def test_a_zone_that_names_the_gpu_is_read(tmp_path: Path, name: str):
    """In thousandths of a degree, whatever the case of its name."""
    zone(tmp_path, 0, "cpu-thermal", "99000")
    zone(tmp_path, 1, name, "48312")

    assert ThermalZoneSensor(tmp_path).read().temperature == 48.312


def test_the_hottest_of_several_gpu_zones_counts(tmp_path: Path):
    """Boards with one zone per cluster."""
    zone(tmp_path, 0, "gpu0-thermal", "50000")
    zone(tmp_path, 1, "gpu1-thermal", "70000")

    assert ThermalZoneSensor(tmp_path).read().temperature == 70.0


def test_a_sleeping_gpu_is_as_warm_as_its_chip_at_most(tmp_path: Path):
    """Orin reads -256 °C then; the junction temperature of the chip stands in."""
    zone(tmp_path, 1, "gpu-thermal", "-256000")
    zone(tmp_path, 8, "tj-thermal", "47500")

    assert ThermalZoneSensor(tmp_path).read().temperature == 47.5


@pytest.mark.parametrize("text", ["-256000", "", "hot"])
def test_a_zone_that_cannot_be_read_is_unknown(tmp_path: Path, text: str):
    """Neither 0 nor -256; and it lacks what it should have given."""
    zone(tmp_path, 1, "gpu-thermal", text)
    reading = ThermalZoneSensor(tmp_path).read()

    assert reading.temperature is None
    assert reading.lacks("temperature")


def test_a_zone_that_refuses_is_unknown(tmp_path: Path):
    """The file is there and reading it fails, as with EAGAIN."""
    zone(tmp_path, 1, "gpu-thermal", "1")
    sensor = ThermalZoneSensor(tmp_path)
    temp = tmp_path / "class" / "thermal" / "thermal_zone1" / "temp"
    temp.unlink()
    temp.mkdir()

    assert sensor.read().lacks("temperature")


def test_what_a_thermal_zone_cannot_know_is_unsupported(tmp_path: Path):
    """Everything but the temperature."""
    zone(tmp_path, 1, "gpu-thermal", "50000")

    assert ThermalZoneSensor(tmp_path).read().unsupported == frozenset(MEASURES) - {"temperature"}


# --- the deadline


def test_a_reading_passes_through():
    """Whatever the sensor says, when it answers in time."""
    timed = DeadlineSensor(FakeSensor([WELL]), LONG)

    assert timed.read() == WELL
    timed.close()


def test_a_sensor_that_raises_is_a_bad_reading():
    """Type and text are kept; the next reading is tried again."""
    timed = DeadlineSensor(FakeSensor([RuntimeError("driver bug"), WELL]), LONG)

    assert timed.read() == Reading("fake", Problem.ERROR, "RuntimeError: driver bug")
    assert timed.read() == WELL
    timed.close()


def test_a_sensor_that_hangs_is_a_timeout_and_only_one_call_is_made():
    """While it hangs, nobody asks again: one stuck thread at most."""
    sensor = FakeSensor([Never.RETURNS])
    threads = threading.active_count()
    timed = DeadlineSensor(sensor, SHORT)
    problems = [timed.read().problem for _ in range(5)]

    assert problems == [Problem.TIMEOUT] * 5
    assert sensor.reads == 1
    assert threading.active_count() == threads + 1
    sensor.release()
    timed.close()


def test_a_late_answer_is_not_taken_for_a_new_one_but_its_messages_are_kept():
    """The temperature of then is old; the driver message is told once and would be lost."""

    class Slow:
        source = "slow"

        def __init__(self) -> None:
            self.gate = threading.Event()
            self.first = True

        def read(self) -> Reading:
            if self.first:
                self.first = False
                self.gate.wait()
                return Reading("slow", temperature=99.0, xids=(79,))
            return Reading("slow", temperature=50.0, xids=(13,))

        def close(self) -> None:
            pass

    slow = Slow()
    timed = DeadlineSensor(slow, SHORT)
    assert timed.read().problem is Problem.TIMEOUT
    slow.gate.set()
    readings = [timed.read()]
    while readings[-1].problem is Problem.TIMEOUT:  # the late answer may not have arrived yet
        readings.append(timed.read())

    assert readings[-1].temperature == 50.0
    assert [xid for reading in readings for xid in reading.xids][:2] == [79, 13]
    timed.close()


def test_closing_lets_the_sensor_go():
    """In the thread that owns it."""
    sensor = FakeSensor([WELL])
    timed = DeadlineSensor(sensor, LONG)
    timed.close()

    assert sensor.closed


# --- the choice


def chosen(choice: ChosenSensor) -> tuple[str, Reading]:
    reading = choice.sensor.read()
    choice.sensor.close()
    return choice.source, reading


def test_nvml_is_chosen_where_it_tells_a_temperature(tmp_path: Path, nvml: FakeNvml):
    """Before a thermal zone, which may belong to another GPU."""
    zone(tmp_path, 0, "gpu-thermal", "50000")
    choice = choose_sensor("auto", LONG, sysfs=tmp_path, nvml=lambda: nvml)

    recorded = RecordedEvents()
    choice.announce(recorded, "cuda:0")
    why = "NVML answers with a temperature"
    assert recorded.named("engine.sensor") == [{"device": "cuda:0", "source": "nvml", "why": why}]
    assert chosen(choice)[0] == "nvml"


@pytest.mark.parametrize("name", ["LibraryNotFound", "NotSupported", "DriverNotLoaded"])
def test_jetson_is_read_from_its_thermal_zone(tmp_path: Path, nvml: FakeNvml, name: str):
    """NVML is missing there, or knows no thermometer, or finds no driver."""
    zone(tmp_path, 0, "gpu-thermal", "50000")
    setattr(nvml, "temperature" if name == "NotSupported" else "init", getattr(nvml, f"NVMLError_{name}")())
    choice = choose_sensor("auto", LONG, sysfs=tmp_path, nvml=lambda: nvml)

    assert "thermal_zone0" in choice.why
    assert chosen(choice) == ("sysfs", ThermalZoneSensor(tmp_path).read())


@pytest.mark.parametrize("name", ["GpuIsLost", "LibRmVersionMismatch", "Unknown"])
def test_nvml_that_is_unwell_stays_chosen(tmp_path: Path, nvml: FakeNvml, name: str):
    """The device may be away only for now; a thermal zone would never tell that it is back."""
    zone(tmp_path, 0, "gpu-thermal", "50000")
    nvml.handle = getattr(nvml, f"NVMLError_{name}")()
    choice = choose_sensor("auto", LONG, sysfs=tmp_path, nvml=lambda: nvml)

    assert "asked again" in choice.why
    assert chosen(choice)[0] == "nvml"


def test_without_library_and_zone_nothing_is_read_and_nothing_is_claimed(tmp_path: Path, nvml: FakeNvml):
    """Every field unsupported, none healthy; the reason says both."""
    nvml.init = nvml.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    choice = choose_sensor("auto", LONG, sysfs=tmp_path, nvml=lambda: nvml)

    assert "NVML Shared Library Not Found" in choice.why
    assert "no thermal zone" in choice.why
    assert chosen(choice) == ("none", BlindSensor().read())
    assert BlindSensor().read().unsupported == frozenset(MEASURES)


def test_a_machine_without_the_binding_is_no_error(tmp_path: Path):
    """pynvml is not installed."""

    def missing() -> FakeNvml:
        raise ImportError("No module named 'pynvml'")

    choice = choose_sensor("auto", LONG, sysfs=tmp_path, nvml=missing)

    assert "pynvml cannot be imported" in choice.why
    assert chosen(choice)[0] == "none"


@pytest.mark.parametrize("wanted", ["nvml", "sysfs", "none"])
def test_the_operator_s_word_counts(tmp_path: Path, nvml: FakeNvml, wanted: str):
    """Even where it does not answer: then each reading says so, rather than another source standing in."""
    nvml.init = nvml.NVMLError_LibraryNotFound()
    choice = choose_sensor(wanted, LONG, sysfs=tmp_path, nvml=lambda: nvml)  # type: ignore[arg-type]

    source, reading = chosen(choice)
    assert source == wanted
    assert reading.temperature is None
    assert reading.problem is (None if wanted == "none" else Problem.NO_SOURCE)


def test_a_library_that_hangs_does_not_hold_the_start(tmp_path: Path, nvml: FakeNvml):
    """The trial reading keeps the deadline too."""
    gate = threading.Event()

    class Hanging(FakeNvml):
        def nvmlInit(self) -> None:
            gate.wait()

    choice = choose_sensor("auto", SHORT, sysfs=tmp_path, nvml=Hanging)

    assert choice.source == "nvml"
    assert "sensor_timeout" in choice.why
    gate.set()
    choice.sensor.close()
