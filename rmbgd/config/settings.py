"""Defines every setting: its default, unit, bounds and the reason for them."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticKnownError

from rmbgd import naming as names
from rmbgd.paths import unit_directories

KIBI, MEBI = 1 << 10, 1 << 20
UNCHECKED = {"contradictions": "left to the caller"}  # context of a validation that looks at each setting by itself


def _home(path: object) -> object:
    return os.path.expanduser(path) if isinstance(path, (str, Path)) else path


def _absolute(path: Path) -> Path:
    if str(path).startswith("~"):
        raise ValueError(f"{str(path)!r}: no such user has a home directory here; write the whole path")
    if not path.is_absolute():
        raise ValueError(f"{str(path)!r} is relative; write the whole path, starting with / or ~/")
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} has a NUL character, which no path can have; leave it out")
    return path


def _octal(text: str) -> str:
    if not (len(text) in (3, 4) and all(digit in "01234567" for digit in text)):
        raise ValueError(f'{text!r} is no octal file mode; write it like "0640"')
    if int(text, 8) & 0o111:
        raise ValueError(f"{text!r} would make images executable; leave the execute bits out")
    return text


def _colour(text: str) -> str:
    """As "#rrggbb", from that, "#rgb" or a name of CSS, in any case."""
    word = text.strip().lower()
    if re.fullmatch(r"#([0-9a-f]{3}){1,2}", word):
        return word if len(word) == 7 else "#" + "".join(2 * digit for digit in word[1:])
    from PIL import ImageColor

    if word in ImageColor.colormap:
        return "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(word))
    near = ['"#' + word + '"'] if re.fullmatch(r"([0-9a-f]{3}){1,2}", word) else []
    near += difflib.get_close_matches(word, ImageColor.colormap, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f'{text!r} is no colour; {hint}write a CSS name or "#ffffff"')


def check_name(text: str) -> str:
    if not text or not all(c.isalnum() or c in "-_." for c in text) or text.startswith("."):
        raise ValueError(f"{text!r} is no name; use letters, digits, '-', '_' and '.'")
    return text


# Texts of a certain shape: pattern, what another text is and what to write.
DEVICE = r"auto|cpu|cuda(:[0-9]{1,3})?", 'no device; write "auto", "cpu", "cuda", or "cuda:1" for GPU 1'
SIZE = r"([1-9][0-9]{0,4}x[1-9][0-9]{0,4})?", 'no size; write width and height, like "2000x1500", or "" for none'
SERVER = (
    r"(nats|tls)://[^\s/:@]+(:[0-9]{1,5})?",
    'no address of a broker; write "nats://HOST:4222", or "tls://HOST:4222"; passwords belong into source.credentials',
)
ADDRESS = (
    r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/\0]+)*/?",
    'no place in a bucket; write "s3://BUCKET/PREFIX", or "s3://BUCKET" for all of it',
)
ENDPOINT = r"(https?://[^\s/@]+)?", 'no address of a storage; write "https://HOST:9000", or "" for Amazon S3'
DIGEST = r"([0-9a-f]{64})?", 'no SHA-256; write its 64 digits, 0 to 9 and a to f, or "" for none'


def _shaped(pattern: str, rule: str, nearest: Callable[[str], str]) -> AfterValidator:
    """Accepts a text that `pattern` fits; else says `rule`, with the nearest right text where there is one."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            near = nearest(text.strip().lower())
            hint = f'; did you mean "{near}"?' if near and re.fullmatch(pattern, near) else ""
            raise ValueError(f"{text!r} is {rule}{hint}")
        return text

    return AfterValidator(check)


def _near_device(text: str) -> str:
    if gpu := re.match(r"(?:cuda|gpu|nvidia)\D*(\d*)", text):
        return f"cuda:{gpu[1]}" if gpu[1] else "cuda"
    return next(iter(difflib.get_close_matches(text, ["auto", "cpu", "cuda"], 1)), "")


def _near_size(text: str) -> str:
    return "x".join((re.findall(r"\d+", text) * 2)[:2])


def _hook(value: object) -> object:
    if isinstance(value, str):
        if value and not re.fullmatch(r"[\w:.\\@-]+\.(service|target)", value):
            raise ValueError(
                f'{value!r} is no unit; write "mail.service", or a command as a list, ["/usr/bin/logger", "x"]'
            )
    elif not (isinstance(value, list) and value and all(isinstance(word, str) and "\0" not in word for word in value)):
        raise ValueError(f'{value!r} is no command; write a list of words, ["/usr/bin/logger", "x"], or a unit')
    elif not value[0].startswith("/"):
        raise ValueError(f"{value[0]!r} is no whole path of a program; begin the list with one, starting with /")
    return value


def _whole(value: object) -> object:
    if type(value) is not int:  # to a Literal, true and 1.0 are 1
        raise PydanticKnownError("int_type")
    return value


def percent(value: object) -> object:
    """0.1 of "10%"."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?\s?%", value):
        return float(value.rstrip("%")) / 100
    return value


AbsolutePath = Annotated[Path, Field(strict=False), BeforeValidator(_home), AfterValidator(_absolute)]
Share = Annotated[float, BeforeValidator(percent)]
Device = Annotated[str, _shaped(*DEVICE, _near_device)]
Size = Annotated[str, _shaped(*SIZE, _near_size)]
Digest = Annotated[str, _shaped(*DIGEST, lambda text: text.removeprefix("sha256:"))]
S3Address = Annotated[str, _shaped(*ADDRESS, lambda text: f"s3://{text.removeprefix('s3:').lstrip('/')}")]
Endpoint = Annotated[str, _shaped(*ENDPOINT, lambda text: f"https://{text}")]
Server = Annotated[str, _shaped(*SERVER, lambda text: f"nats://{text}")]
FileMode = Annotated[str, AfterValidator(_octal)]
Colour = Annotated[str, AfterValidator(_colour)]
Name = Annotated[str, AfterValidator(check_name)]
Template = Annotated[str, AfterValidator(names.check_template)]
Hook = Annotated[list[str] | str, BeforeValidator(_hook)]


def setting(default: Any = ..., *, unit: str = "", reason: str, **bounds: Any) -> Any:
    """A field with the unit it is measured in and the reason for its default; bounds are pydantic's ge, le, gt, lt."""
    return Field(default, description=reason, json_schema_extra={"unit": unit}, validate_default=True, **bounds)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        """Settings that do not go together, that at fault first; and why, without its name."""
        return iter(())

    @model_validator(mode="after")
    def _goes_together(self, info: ValidationInfo) -> Settings:
        if info.context is not UNCHECKED and (
            found := [f"{'.'.join(map(str, places[0]))}: {text}" for places, text in self.contradictions()]
        ):
            raise ValueError("\n".join(found))
        return self


# A table: one setting a row, a long reason in the row below.
# fmt: off


class ServiceSettings(Settings):
    """Where the service keeps its own files, how it stops, and when it counts as hung."""

    state_directory: AbsolutePath = setting(Path("/var/lib/rmbgd"),
        reason="the ledger; must survive a reboot, on a local disk")
    runtime_directory: AbsolutePath = setting(Path("/run/rmbgd"), reason="the status file; may vanish at reboot")
    models_directory: AbsolutePath = setting(Path("/var/lib/rmbgd/models"),
        reason="fetched weights, <name>/model.safetensors, and accepted licences; where it is not set, `models` in state_directory")
    log_file: AbsolutePath | None = setting(None,
        reason="a second copy of every event, for the MTBF report: the journal drops lines in bursts, a file does not")
    stop_timeout: float = setting(45.0, unit="s", ge=1, le=3600,
        reason="decoded images are finished within this time; below systemd's TimeoutStopSec of 60")
    health_interval: float = setting(60.0, unit="s", ge=1, le=3600,
        reason="time between two health events, from which operating time is counted")
    status_interval: float = setting(2.0, unit="s", ge=0.1, le=60,
        reason="how often the status file is written, which `rmbgd status` shows")
    stall_after: float = setting(30.0, unit="s", ge=5, le=3600,
        reason="a thread that neither waits nor makes progress for this long is hung; the watchdog is then no longer fed")
    stuck_after: float = setting(300.0, unit="s", ge=10, le=86_400,
        reason="treat the pipeline as hung if images are queued, no device is busy, nothing is paused, and nothing has moved for this long")
    safe_starts: int = setting(3, unit="starts", ge=0, le=20,
        reason="after this many starts that died within safe_window, start in safe mode (CPU, u2netp, one image at a time); 0: never")
    safe_window: float = setting(600.0, unit="s", ge=10, le=86_400,
        reason="a crash later than this after the start does not count as a failed start")
    safe_quiet: float = setting(600.0, unit="s", ge=1, le=86_400,
        reason="time in safe mode without a crash before the full configuration is tried again")
    safe_quiet_maximum: float = setting(86_400.0, unit="s", ge=1, le=604_800,
        reason="safe_quiet doubles, up to this, each time the full configuration crashes again")

    @model_validator(mode="before")
    @classmethod
    def _models_beside_the_ledger(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        state = _home(given.get("state_directory"))
        if isinstance(state, str) and os.path.isabs(state) and "models_directory" not in given:
            given = given | {"models_directory": Path(state) / "models"}
        return unit_directories() | given  # instances share the models


class IntakeSettings(Settings):
    """When an arriving file is complete, and how often folders are compared with the ledger."""

    quiet_closed: float = setting(0.5, unit="s", ge=0.05, le=600,
        reason="time without change after a close or rename, once every other check has passed")
    quiet_unknown: float = setting(2.0, unit="s", ge=0.05, le=600,
        reason="time without change when no event said that the writer is done: uploaders may pause that long")
    quiet_remote: float = setting(5.0, unit="s", ge=0.05, le=600,
        reason="time without change where open writers cannot be seen (network and FUSE file systems)")
    reconcile: float = setting(30.0, unit="s", ge=0.2, le=3600,
        reason="time between two full scans of a local folder; events only speed up what a scan would find")
    reconcile_lossy: float = setting(5.0, unit="s", ge=0.2, le=3600,
        reason="time between two full scans where events are missing or unreliable")
    root_check: float = setting(5.0, unit="s", ge=0.1, le=600,
        reason="how soon a replaced or unmounted drop folder is noticed")
    incomplete_timeout: float = setting(900.0, unit="s", ge=1, le=604800,
        reason="an incomplete file is retried and, after this time without change, rejected as `truncated`")
    accept_unwritten: bool = setting(False,
        reason="false: an image with parts that were never written waits, and ends as `truncated`; true publishes it with the note zero_run")
    stuck_upload: float = setting(3600.0, unit="s", ge=1, le=604800,
        reason="an upload still open or changing after this time is reported once; it is never rejected")
    hints_maximum: int = setting(10_000, unit="paths", ge=10, le=1_000_000,
        reason="pending file events; beyond this they are dropped and the folders are scanned")
    tracked_maximum: int = setting(4_096, unit="files", ge=16, le=1_000_000,
        reason="files checked for completeness at once; the others wait in the folder, which costs no memory")
    attempts: int = setting(3, unit="attempts", ge=1, le=10,
        reason="service crashes an image may be involved in before it is rejected as `crash_loop`")


class LimitSettings(Settings):
    """How large an image may be. Checked on the header, before memory is allocated."""

    pixels: int = setting(50_000_000, unit="pixels", ge=1, le=500_000_000,
        reason="covers 8000x6000 cameras; bounds the memory for images and the decoders")
    side: int = setting(32_768, unit="pixels", ge=1, le=65_535,
        reason="no camera image is longer; stops strips of 1 x 50,000,000 pixels")
    file_bytes: int = setting(320 * MEBI, unit="bytes", ge=1, le=8192 * MEBI,
        reason="an uncompressed 16-bit TIFF of 50 megapixels has 300 MB")
    metadata_bytes: int = setting(8 * MEBI, unit="bytes", ge=KIBI, le=256 * MEBI,
        reason="profiles and text take kilobytes; more is an attack")
    film_seconds: float = setting(7200.0, unit="s", ge=1, le=864_000,
        reason="a longer film holds up all that come after it; films go one after another")
    film_frames: int = setting(432_000, unit="frames", ge=1, le=100_000_000,
        reason="two hours at 60 a second; a film may hold more than its length promises")
    film_streams: int = setting(8, unit="streams", ge=1, le=256,
        reason="one of images, sound in a few languages, subtitles; each one more is read by code that may be wrong")
    film_bytes: int = setting(64 * 1024 * MEBI, unit="bytes", ge=1, le=1 << 44,
        reason="two hours of 720p in ProRes 4444, 25 frames a second, have 37 GB")


class PipelineSettings(Settings):
    """Threads and memory between the folder and the engine."""

    decode_threads: int = setting(2, unit="threads", ge=1, le=64,
        reason="decoders release the interpreter lock; one per two cores is enough")
    finish_threads: int = setting(2, unit="threads", ge=1, le=64,
        reason="encoding takes most of the processor time; syncing to disk waits")
    arena_bytes: int = setting(512 * MEBI, unit="bytes", ge=16 * MEBI, le=64 * 1024 * MEBI,
        reason="shared memory for decoded images in flight; must hold one of the largest allowed")
    queue: int = setting(16, unit="images", ge=1, le=1024,
        reason="images queued between two stages; their bytes are bounded by arena_bytes")
    batch_maximum: Annotated[Literal[1, 2, 4, 8, 16], BeforeValidator(_whole)] = setting(8, unit="images",
        reason="largest batch offered to the engine, which may take less")
    batch_wait: float = setting(0.0, unit="s", ge=0, le=0.003,
        reason="extra time to wait for more images while the engine is idle; rarely helps")
    film_timeout: float = setting(120.0, unit="s", ge=1, le=3600,
        reason="a film's process that says nothing for so long is hung, and killed; one frame takes less than a second")
    free_bytes_minimum: int = setting(512 * MEBI, unit="bytes", ge=0, le=1 << 50,
        reason="below this free space on an output, no image is claimed until there is half as much again")


class EngineSettings(Settings):
    """The device and the process that computes on it."""

    device: Device = setting("auto",
        reason='"auto" uses every visible GPU, or the CPU if there is none; "cuda" requires a GPU; "cuda:1" uses one')
    threads: int = setting(0, unit="threads", ge=0, le=256, reason="CPU threads of the network; 0: one per core")
    cpu_runtime: Literal["auto", "torch", "openvino"] = setting("auto",
        reason="what computes on a CPU; auto: OpenVINO for a network that it has (u2netp), where the extra `openvino` is installed, else torch")
    precision: Literal["auto", "float32", "float16", "bfloat16", "float8"] = setting("auto",
        reason="auto: float16 on a GPU; on a CPU bfloat16 where it is quicker and as good on these weights, measured at the first start, else float32; float8, of older versions, is read as auto")
    start_timeout: float = setting(180.0, unit="s", ge=1, le=3600,
        reason="for loading and warming up, of a GPU or of the CPU that computes what it is compared with")
    batch_timeout: float = setting(120.0, unit="s", ge=0.1, le=3600,
        reason="longest batch on a slow CPU; after this the process counts as hung and is killed")
    hang_minimum: float = setting(5.0, unit="s", ge=0.1, le=600,
        reason="a batch on a GPU counts as hung after this and ten times its usual time: the first image of a kind loads kernels; batch_timeout is for CPUs")
    restart_delay_maximum: float = setting(60.0, unit="s", ge=0.1, le=3600,
        reason="a process that keeps dying is restarted after 1, 2, 4 ... s, up to this")
    tries: int = setting(3, unit="tries", ge=1, le=10,
        reason="engine faults in a row that make an image `poison`. The last two come with the image alone on one device, the CPU fallback if there is one, and with no fault on other images in between; so 1 is read as 2. An engine that is killed from outside is no such fault")

    @property
    def precision_used(self) -> str:
        return "auto" if self.precision == "float8" else self.precision

    @property
    def tries_used(self) -> int:
        return max(self.tries, 2)


class GpuSettings(Settings):
    """Every GPU in use. Its memory is allocated once, before the first image; the log says how it was divided."""

    graphs: bool = setting(True,
        reason="replay recorded launches: one instead of some thousand per batch; false launches each kernel by itself")
    kernels: Literal["auto", "off"] = setting("auto",
        reason="auto: Triton kernels where they compile and run, else plain PyTorch, which the log then says; off: always plain")
    staging_bytes: int = setting(224 * MEBI, unit="bytes", ge=32 * MEBI, le=16 * 1024 * MEBI,
        reason="device memory for images on their way; one of 33 megapixels fits, larger ones are resized by the CPU")
    pinned_bytes: int = setting(256 * MEBI, unit="bytes", ge=0, le=64 * 1024 * MEBI,
        reason="part of pipeline.arena_bytes to page-lock, so that copies overlap with computing; no other program can use it")
    spare_bytes: int = setting(1024 * MEBI, unit="bytes", ge=0, le=64 * 1024 * MEBI,
        reason="device memory to leave free: with less at start a warning is logged, and batches are made smaller to keep it")


class HealthSettings(Settings):
    """When a GPU is taken out of service, when it is trusted again, and what computes meanwhile."""

    require_gpu: bool = setting(False,
        reason="true: while no GPU is usable, images wait in their folders instead of going to a lesser model; nothing fails")
    fallback_model: str = setting("auto",
        reason="used on the CPU while no GPU is usable; auto: birefnet-lite if installed, else u2netp")
    fallback_start: Literal["auto", "warm", "on_demand"] = setting("auto",
        reason="warm keeps that model loaded, so that the next image starts within 2 s; auto: on demand where memory is scarce")
    sensor: Literal["auto", "nvml", "sysfs", "none"] = setting("auto",
        reason="auto: NVML if the driver has it, else a thermal zone that names the GPU (Jetson)")
    require_temperature: bool = setting(False, reason="true: a GPU whose temperature cannot be read fails each check")
    interval: float = setting(5.0, unit="s", ge=0.5, le=60,
        reason="time between two checks; a failover is decided within one of them")
    sensor_timeout: float = setting(2.0, unit="s", ge=0.05, le=30,
        reason="a driver that takes longer is hung, and the reading counts as unknown")
    hot: float = setting(85.0, unit="°C", ge=40, le=110,
        reason="above this the GPU is taken out of service at once: a failover is cheap, heat is not")
    cool: float = setting(75.0, unit="°C", ge=20, le=105,
        reason="boards regulate to about 83 under load, so a narrow band would make work move back and forth all day")
    cool_checks: int = setting(12, unit="checks", ge=1, le=720,
        reason="consecutive cool readings before a hot GPU is tried again: a minute at 5 s each")
    throttle_grace: float = setting(60.0, unit="s", ge=0, le=3600,
        reason="a GPU slowed down by heat or power for longer is taken out of service; for less it is only suspect")
    bad_checks: int = setting(4, unit="checks", ge=1, le=100,
        reason="consecutive bad checks that take a GPU out of service; one good check resets the count")
    good_checks: int = setting(3, unit="checks", ge=1, le=100,
        reason="consecutive good checks, besides a passed probe, before a GPU is used")
    memory_error_rate: float = setting(0.0001, unit="bad blocks per block", ge=0, lt=1,
        reason="0.01 %: two bad blocks in one pass over 16,384, not one")
    memory_window: float = setting(600.0, unit="s", ge=10, le=86_400,
        reason="the rate is taken over the passes of this time, not over all of them")
    canary_interval: float = setting(60.0, unit="s", ge=1, le=86_400,
        reason="time between two passes of the memory test, while the engine is idle")
    canary_blocks: int = setting(16_384, unit="blocks of 4 KiB", ge=256, le=1_048_576,
        reason="64 MiB: enough to resolve 0.01 %, little enough for an 8 GB card")
    golden_interval: float = setting(600.0, unit="s", ge=1, le=86_400,
        reason="time between two runs of the golden image, which finds wrong results that raise no error")
    golden_mean: float = setting(2 / 255, unit="alpha", ge=0, le=1,
        reason="largest mean difference from the stored result; rounding is far below")
    golden_peak: float = setting(16 / 255, unit="alpha", ge=0, le=1,
        reason="largest difference on all but golden_outliers of the pixels")
    golden_outliers: Share = setting(0.001, unit="share of pixels", ge=0, le=0.5,
        reason="pixels on a hard edge may differ more between devices")
    memory_faults: int = setting(3, unit="faults", ge=1, le=1000,
        reason="a GPU that ran short of memory gets a fresh process, which divides what is free; from this many times in a row on it rests before that, for dwell, then doubled")
    memory_faults_window: float = setting(600.0, unit="s", ge=10, le=86_400,
        reason="shortages further apart than this are not in a row: another program may take the memory for a moment")
    dwell: float = setting(60.0, unit="s", ge=1, le=86_400,
        reason="time out of service after the first trip; doubles with each further one")
    dwell_maximum: float = setting(3600.0, unit="s", ge=1, le=604_800,
        reason="limits a flapping GPU to one failover an hour, 29 on its first day")
    forgive_after: float = setting(21_600.0, unit="s", ge=60, le=31_536_000,
        reason="uninterrupted healthy time after which trips are forgotten; a sliding window would let a flapping GPU off")
    probe_timeout: float = setting(120.0, unit="s", ge=1, le=3600,
        reason="memory test and golden image in a new process; its start has engine.start_timeout")
    probe_passes: int = setting(2, unit="passes", ge=1, le=100,
        reason="memory test passes within a probe, all without a bad block")
    probe_slowness: float = setting(2.0, unit="times", gt=1, le=100,
        reason="a probe slower than this many times the device's first measurement fails")
    trial_pictures: int = setting(10, unit="images", ge=0, le=10_000,
        reason="images run one at a time after a failback; a fault during them ends the trial")
    # Compared with NVIDIA's Xid catalogue of 2025-10-29, all 172 (docs.nvidia.com/deploy/xid-errors): what it answers by
    # a reset or a restart of the machine, and uncorrectable memory. 154 only says that the recovery action changed, which
    # the sensor reads with every check.
    xid_lost: list[int] = setting([79, 119, 120, 143, 167], unit="XID",
        reason="driver messages after which the GPU is off the bus or its firmware is dead")
    xid_quarantine: list[int] = setting([46, 48, 62, 64, 74, 94, 95, 109, 110, 136, 140, 155, 156, 158, 171, 172], unit="XID",
        reason="driver messages of a failing device; others (13, 31, 43, 45 ...) are a program's own fault")
    metrics_file: AbsolutePath | None = setting(None,
        reason="counters for Prometheus' node exporter, rewritten each status_interval; must end in .prom")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[str]], str]]:
        if self.cool >= self.hot:
            text = f"{self.cool} must be below hot = {self.hot}, or the GPU is left and taken back at once"
            yield [("cool",), ("hot",)], text
        if self.dwell_maximum < self.dwell:
            text = f"{self.dwell_maximum} must not be below dwell = {self.dwell}"
            yield [("dwell_maximum",), ("dwell",)], text
        if self.sensor_timeout > self.interval:
            text = f"{self.sensor_timeout} must not exceed interval = {self.interval}: checks would pile up"
            yield [("sensor_timeout",), ("interval",)], text
        if both := sorted(set(self.xid_lost) & set(self.xid_quarantine)):
            yield [("xid_lost",), ("xid_quarantine",)], f"XID {both[0]} is in xid_quarantine, too; choose one"
        if self.metrics_file is not None and self.metrics_file.suffix != ".prom":
            text = f"'{self.metrics_file}' must end in .prom, or the node exporter ignores it"
            yield [("metrics_file",)], text


class HookSettings(Settings):
    """What the service has run for the operator: a command as a list of words, or the name of a systemd unit."""

    on_failed: Hook = setting("", reason="run when an image was rejected; it gets the event image.failed")
    on_idle: Hook = setting("", reason="run when everything that had arrived is done; it gets the event health")
    on_failover: Hook = setting("", reason="run when a GPU was left for another device; it gets the event engine.failover")
    interval: float = setting(60.0, unit="s", ge=1, le=86_400,
        reason="shortest time between two runs of a hook: a folder of broken files is one mail; the next run says how many it stands for")
    timeout: float = setting(30.0, unit="s", ge=1, le=3600,
        reason="a command that takes longer is killed, so that the next one can run")


class Look(Settings):
    """How one file looks: format, colours, size, and the place of the subject."""

    preset: str = setting("",
        reason="take settings and rules of a marketplace from here (`rmbgd presets list`); what is set beside it goes first, and a file that fails a rule goes to the folder's review directory")
    format: Literal["png", "webp", "tiff", "jpeg"] = setting("png",
        reason="file format; png is lossless and every tool reads it; jpeg is the smallest and has no transparency")
    content: Literal["rgba", "mask", "colour", "foreground"] = setting("rgba",
        reason="rgba: transparent cutout (jpeg cannot hold one, so there it is the same as colour); mask: alpha alone; colour: on a background colour; foreground: colours multiplied by alpha on black, for compositing with a mask (tiff holds the alpha as well)")
    mask_bits: Annotated[Literal[8, 16], BeforeValidator(_whole)] = setting(8, unit="bits",
        reason="bits per pixel of a mask; 16 (PNG, TIFF) keeps every step of a soft edge")
    background: Colour = setting("#ffffff",
        reason="background colour when content is colour or format is jpeg: #rrggbb, #rgb or a CSS name; exact to the value, in jpeg as near as it can")
    faint_below: Share = setting(0.0, unit="alpha, 0..1", ge=0, le=0.5,
        reason="alpha below this becomes 0, so that haze far from the subject does not stain a plain background; 0: it stays")
    hidden_colours: Literal["zero", "keep"] = setting("zero",
        reason="colours under full transparency: zero makes them black; keep leaves the photo's, which nobody sees and which double the file")
    png_level: int = setting(2, unit="level", ge=0, le=3,
        reason="compression effort of PNG (ISA-L deflate); 3 is slower and no smaller")
    webp_quality: int = setting(80, unit="quality", ge=0, le=100, reason="quality of WebP when webp_lossless is false")
    webp_lossless: bool = setting(True, reason="write WebP without loss, as a cutout is usually processed further")
    jpeg_quality: int = setting(90, unit="quality", ge=1, le=100,
        reason="quality of JPEG; colours are never subsampled, as that blurs edges; 95 is a third larger and looks the same")
    bytes_maximum: int = setting(0, unit="bytes", ge=0, le=1 << 32,
        reason="largest file, of jpeg and lossy webp: their quality is lowered until it fits; 0: no limit")
    clipping_path: bool = setting(False,
        reason="add the subject's outline as a clipping path, which layout programs cut by; tiff and jpeg")
    colour_space: Literal["keep", "srgb"] = setting("keep",
        reason="keep leaves colours and profile as they came; srgb converts them and says so in the file, as shops ask for")
    dpi: int = setting(0, unit="dots per inch", ge=0, le=9600, reason="resolution that the file states; 0: the image's own")
    crop: bool = setting(False,
        reason="crop to the subject's bounding box (alpha of 10 and more), with crop_margin around it")
    crop_margin: Share = setting(0.05, unit="of the box's longer side", ge=0, le=0.5,
        reason='space to leave around a cropped subject, as marketplaces ask for; 0.05 or "5%"')
    canvas: Size = setting("", unit="pixels",
        reason='fit the image into this size, e.g. "2000x2000"; empty keeps its own')
    longest_side: int = setting(0, unit="pixels", ge=0, le=65_535,
        reason="make a larger image smaller, to this longer side; 0: keep its size")
    fill: Share = setting(0.0, unit="share of the frame", ge=0, le=1,
        reason="scale so that the subject's box takes this share of the canvas, in height or width, whichever is more; marketplaces ask for 0.85; 0: off")
    margins: Annotated[list[Share], Field(max_length=4)] = setting([], unit="shares of the frame",
        reason="instead of fill: space at least left free at the top, right, bottom and left of the canvas, like [0.05, 0.05, 0.1, 0.05]")
    align: Literal["centre", "bottom"] = setting("centre",
        reason="where the subject stands within fill or margins; bottom puts all images of a row on one line")
    straighten: float = setting(0.0, unit="degrees", ge=0, le=45,
        reason="turn an oblong subject upright if it leans by no more than this; 0: never")
    enlarge_maximum: float = setting(1.0, unit="times", ge=1, le=100,
        reason="an image enlarged by more has the note `enlarged`, as it is blurred; presets may make a rule of it")
    shadow: Literal["off", "contact", "cast"] = setting("off",
        reason="make a shadow: contact under the subject, or cast by the light; drawn from alpha, the same each time")
    shadow_opacity: Share = setting(0.35, unit="share of black", ge=0, le=1, reason="darkest part of the shadow")
    shadow_size: Share = setting(0.08, unit="of the box's longer side", gt=0, le=1,
        reason="how far a contact shadow spreads, and how soft a cast one is")
    light: float = setting(120.0, unit="degrees", ge=0, le=180,
        reason="where the light comes from, for a cast shadow: 0 right, 90 above, 180 left")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        """With a preset, only what results of both can contradict itself: that is looked at where it is resolved."""
        if not self.preset:
            yield from self.faults()

    def faults(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        if self.content == "mask" and self.mask_bits == 16 and self.format in ("webp", "jpeg"):
            text = f'"{self.format}" holds 8 bits only; use "png" or "tiff" for a 16-bit mask'
            yield [("format",), ("mask_bits",), ("content",)], text
        if self.clipping_path and self.format not in ("tiff", "jpeg"):
            yield [("clipping_path",), ("format",)], f'"{self.format}" holds no clipping path; use "tiff" or "jpeg"'
        lossy = self.format == "jpeg" or (self.format == "webp" and not self.webp_lossless)
        if self.bytes_maximum and not lossy:
            text = "no quality can be lowered; use jpeg, or webp with webp_lossless = false"
            yield [("bytes_maximum",), ("format",), ("webp_lossless",)], f'in "{self.format}" {text}'
        placed = "fill" if self.fill else "margins"
        if (self.fill or self.margins) and not self.canvas:
            text = f'{placed} needs a frame; set canvas, like "2000x2000"'
            yield [(placed,), ("canvas",)], text
        if self.fill and self.margins:
            yield [("margins",), ("fill",)], "margins and fill both say how large the subject is; drop one"
        if self.margins and (
            len(self.margins) != 4 or max(sum(self.margins[::2]), sum(self.margins[1::2])) >= 1 or min(self.margins) < 0
        ):
            text = "write four shares, top, right, bottom, left, that leave room between opposite sides"
            yield [("margins",)], text
        if self.crop and (self.fill or self.margins):
            yield [("crop",), (placed,)], f"{placed} crops already; drop crop"
        if self.longest_side and self.canvas:
            yield [("longest_side",), ("canvas",)], "canvas gives the size already; drop one"
        if self.shadow != "off" and self.content in ("mask", "foreground"):
            yield [("shadow",), ("content",)], f'content = "{self.content}" has no room for one; drop it'

    @property
    def flat(self) -> bool:
        """Is the cutout laid on the background colour?"""
        return self.content == "colour" or (self.format == "jpeg" and self.content == "rgba")


class Deliverable(Look):
    """One of several files of each image, published together or not at all; also takes all of `preset` to `light`."""

    path: Template = setting(
        reason="where it goes, below the output: {dir}, {stem}, {name} (with suffix), {date:%Y-%m-%d}, {subject} and {size} are replaced; a suffix that is missing is added, and one that is there settles the format")

    @model_validator(mode="before")
    @classmethod
    def _format_of_the_path(cls, given: Any) -> Any:
        if isinstance(given, dict) and "format" not in given and isinstance(given.get("path"), str):
            form = names.format_of(given["path"])
            return given | {"format": form} if form else given
        return given

    def faults(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        yield from super().faults()
        if self.path and (form := names.format_of(self.path)) and form != self.format:
            text = f'"{self.format}" is not what the suffix of {self.path!r} says; drop one of the two'
            yield [("format",), ("path",)], text


class Recipe(Look):
    """What comes out."""

    model: str = setting("u2netp",
        reason="network to use: a name of `rmbgd models list`, a folder with model.safetensors, or a .safetensors file")
    patch_order: Literal["auto", "channel_first", "tile_first"] = setting("auto",
        reason="layout of the network's image patches, for weights of your own; auto reads it beside the weights")
    model_sha256: Digest = setting("", unit="hex digits",
        reason="refuse a model whose file has another SHA-256; empty: the registry's digest if there is one. The digest is always logged")
    film: Literal["prores4444", "vp9", "h264", "png"] = setting("prores4444",
        reason="what comes out of a film: prores4444 (.mov) and vp9 (.webm) hold alpha; h264 (.mp4) shows it on the background colour; png is a .zip of numbered frames, with their times (docs/films.md)")
    film_quality: int = setting(18, unit="CRF", ge=0, le=51,
        reason="of vp9 and h264: lower is better and larger; 18 is near what eyes can tell")
    edge_colours: Literal["clean", "keep"] = setting("clean",
        reason="colours of half-transparent pixels: clean removes the old background from them; keep leaves the photo's")
    refine: Literal["auto", "off"] = setting("auto",
        reason="alpha's edges in an image that is more than twice as long or as wide as a network of at most 320 pixels: auto lets them follow the image's own; off leaves them as soft as the network's")
    deliver: list[Deliverable] = setting([],
        reason="several files for each image, one [[recipe.NAME.deliver]] for each; without any, one file as this table says")
    subjects: Literal["whole", "split", "largest"] = setting("whole",
        reason="several subjects in one image: whole keeps them together, split makes a file of each ({stem}~1, {stem}~2 ... unless a path says {subject}), largest drops the others")
    subjects_minimum: Share = setting(0.005, unit="of the largest subject's area", ge=0, le=1,
        reason="what is smaller is no subject of its own; its pixels go to the nearest one")
    coco: bool = setting(False, reason="with split: also write the subjects as COCO annotations, <stem>.coco.json")
    review_below: Share = setting(0.0, unit="confidence, 0..1", ge=0, le=1,
        reason="images whose matte is right with less confidence go to the folder's review directory, for people; 0: none do")
    metadata: list[Literal["copyright", "artist", "description", "software", "datetime"]] = setting(["copyright"],
        reason="text fields to carry over; colour profile and resolution always are, GPS never is")
    animated: Literal["refuse", "first_frame"] = setting("refuse",
        reason="animated files: refuse them, or take the first frame; one frame of many is rarely what was meant")
    on_empty: Literal["publish", "refuse"] = setting("publish",
        reason="image without a subject: publish it fully transparent with the verdict 'empty', or refuse it")
    empty_below: Share = setting(0.0005, unit="share of pixels", ge=0, le=1,
        reason='an image has no subject if fewer pixels than this have alpha 0.5 or more; 0.0005 or "0.05%"')
    sidecar: Literal["never", "notable", "always"] = setting("notable",
        reason="when to write <output>.json with the facts; notable: only when the verdict is not 'ok'")
    file_mode: FileMode = setting("0640", unit="octal", reason="mode of outputs; the group may read, others may not")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        yield from super().contradictions()
        if self.deliver and (own := [n for n, f in Look.model_fields.items() if getattr(self, n) != f.default]):
            text = "has no effect beside `deliver`; move it into each [[recipe.NAME.deliver]] that it is meant for"
            yield [(own[0],)], text
        if self.subjects == "split" and self.mask_bits == 16:
            yield [("mask_bits",), ("subjects",)], "subjects are split in masks of 8 bits; drop one"
        if self.coco and self.subjects != "split":
            yield [("coco",), ("subjects",)], 'annotates subjects; set subjects = "split", or drop it'
        if not any(getattr(each, "preset", "") for each in self.deliver):  # they may bring a format, and so a suffix
            yield from self.equal_paths()
        for number, each in enumerate(self.deliver):
            place = ("deliver", number, "path")
            if not isinstance(each, Deliverable) or not each.path:
                continue  # that is a mistake of its own
            if "subject" in names.fields_of(each.path) and self.subjects != "split":
                yield [place, ("subjects",)], '{subject} is a number of subjects = "split"; set that, or leave it out'
            if (each.content, each.mask_bits) == ("mask", 16) and any(other.content != "mask" for other in self.deliver if other is not each):
                text = "beside a cutout a mask has 8 bits, as both are made of one plane; drop mask_bits"
                yield [("deliver", number, "mask_bits")], text

    def equal_paths(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        """Two files need two names, for every image."""
        usable = [(n, each) for n, each in enumerate(self.deliver) if isinstance(each, Deliverable) and each.path]
        for place, (number, each) in enumerate(usable):
            for _, other in usable[:place]:
                if names.may_be_equal(each.path, each.format, other.path, other.format):
                    text = f"{each.path!r} may give the name that {other.path!r} gives; two files need two names"
                    yield [("deliver", number, "path")], text
                    break

    @property
    def of_images_alone(self) -> list[str]:
        """Settings that say something films cannot have."""
        names = ("crop", "canvas", "longest_side", "fill", "margins", "straighten", "shadow", "clipping_path", "mask_bits",
                 "preset", "deliver", "subjects", "coco", "review_below")  # fmt: skip
        return [name for name in names if getattr(self, name) != Recipe.model_fields[name].default]

    @property
    def makes_several(self) -> bool:
        """May it make more than one file of an image, or name it otherwise than the image?"""
        return bool(self.deliver) or self.subjects == "split"

    @property
    def looks(self) -> Sequence[Look]:
        """Of each file, before its preset."""
        return self.deliver or [self]


class SourceSettings(Settings):
    """Where images come from: the drop folders of this machine, or a queue that several machines share (docs/fleet.md)."""

    kind: Literal["folders", "jetstream"] = setting("folders",
        reason="folders: every image that is dropped into them is claimed here; jetstream: images are leased from a queue on NATS JetStream, into which `rmbgd announce` or `rmbgd backfill` puts their names")
    servers: list[Server] = setting(["nats://127.0.0.1:4222"], unit="addresses",
        reason="of the broker; several of one cluster. tls:// where it is not on this machine")
    credentials: AbsolutePath | None = setting(None,
        reason="file with what proves who we are: NATS credentials, the seed of an nkey, or a user and a password on two lines; its mode must keep others from reading it")
    tls_ca: AbsolutePath | None = setting(None, reason="certificate of the authority that signed the broker's, where the system does not know it")
    tls_certificate: AbsolutePath | None = setting(None, reason="our own certificate, where the broker asks for one; with tls_key")
    tls_key: AbsolutePath | None = setting(None, reason="private key of tls_certificate")
    lease: float = setting(60.0, unit="s", ge=2, le=3600,
        reason="an image whose worker is gone for this long goes to another one; leases of images that move are extended. Set by `rmbgd fleet setup`")
    lease_maximum: float = setting(1800.0, unit="s", ge=10, le=86_400,
        reason="an image that still is not done after this goes to another worker, moving or not")
    retry_wait: float = setting(30.0, unit="s", ge=0.1, le=3600,
        reason="pause before an image is leased again that a worker gave back because it could not read or write, and the longest one before a broker is asked again that would not answer")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[str]], str]]:
        if not self.servers:
            yield [("servers",)], 'is empty; write the address of a broker, like "nats://127.0.0.1:4222"'
        if self.lease_maximum < self.lease:
            yield [("lease_maximum",), ("lease",)], f"is shorter than one lease of {self.lease:g} s; raise it"
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield [("tls_certificate",), ("tls_key",)], "a certificate and its key go together; give both, or none"


class S3Settings(Settings):
    """The storage of the buckets: Amazon S3, or a server that speaks like it."""

    endpoint: Endpoint = setting("", unit="address", reason='"" for Amazon S3; else of the server')
    region: str = setting("", reason='where the buckets are; "" takes it from the configuration of the AWS tools, else us-east-1')
    addressing: Literal["auto", "path", "virtual"] = setting("auto",
        reason="where a request names its bucket: path as most servers want it, virtual in the host's name as Amazon does; auto is path where an endpoint is set")
    credentials: AbsolutePath | None = setting(None,
        reason="file with the keys, as the AWS tools write it (aws_access_key_id, aws_secret_access_key below [default]); without it the environment, the files of the AWS tools, or the role of the machine")
    timeout: float = setting(30.0, unit="s", ge=1, le=600, reason="a connection, or an answer, that takes longer counts as lost, and is tried twice more")


class Bucket(Settings):
    """One root of a fleet whose images are objects in buckets; for [source] kind = "jetstream". Keys below `input` are mirrored below the other places."""

    name: Name = setting(reason="as of a [[folder]]; the same on every host")
    input: S3Address = setting(unit="address", reason="images are the objects below it, and stay there")
    output: S3Address = setting(unit="address", reason="finished cutouts, each put whole")
    failed: S3Address = setting(unit="address", reason="of each rejected image, why: <key>.error.json")
    review: S3Address | None = setting(None, unit="address", reason="what people should look at; needed when the recipe has review_below or a preset")
    recipe: Name = setting("default", reason="name of a [recipe.NAME] table")
    recursive: bool = setting(True, reason="false leaves out keys with a / behind the input's prefix")
    priority: int = setting(50, unit="0..100", ge=0, le=100, reason="higher is leased first")
    latency: Literal["bulk", "realtime"] = setting("bulk",
        reason="realtime images go first and alone, so that none waits for a batch")
    latency_target: float = setting(0.13, unit="s", ge=0.005, le=3600,
        reason="time an image may spend in the engine. A batch takes at most half of it, as an image may just miss one; raise it where only throughput counts")
    ignore: list[str] = setting([], unit="patterns",
        reason="more names to leave alone, besides those of unfinished uploads")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[str]], str]]:
        places = {role: place.rstrip("/") + "/" for role in ("input", "output", "failed", "review") if (place := getattr(self, role))}
        for first, second in itertools.combinations(places, 2):
            if places[first].startswith(places[second]) or places[second].startswith(places[first]):
                yield [(second,), (first,)], f"{places[second]} and {first}, {places[first]}, lie one within the other; give each its own prefix"


class Folder(Settings):
    """One drop folder. Relative paths below `input` are mirrored below the other directories."""

    name: Name = setting(reason="appears in events and in the ledger; never reuse it for another folder")
    input: AbsolutePath = setting(reason="drop files here")
    output: AbsolutePath = setting(reason="finished cutouts, each published atomically")
    failed: AbsolutePath = setting(reason="rejected originals, each with <name>.error.json")
    done: AbsolutePath | None = setting(None, reason="originals after success; needed when originals is archive")
    review: AbsolutePath | None = setting(None,
        reason="what people should look at, by `rmbgd review`; needed when the recipe has review_below or a preset")
    originals: Literal["archive", "delete", "keep"] = setting("archive",
        reason="archive moves them to done, delete removes them, keep leaves them in the input and remembers them")
    sidecars: Literal["ignore", "carry"] = setting("ignore",
        reason="what other programs wrote about an image (.xmp, .json, checksums): ignore leaves it in the input, carry moves it with the original to done or failed")
    recipe: Name = setting("default", reason="name of a [recipe.NAME] table")
    recursive: bool = setting(True, reason="watch sub-folders, and mirror them")
    remove_empty: bool = setting(False,
        reason="true removes a sub-folder of the input a minute after its last image left it empty")
    priority: int = setting(50, unit="0..100", ge=0, le=100,
        reason="higher goes first; waiting raises it by one every ten seconds")
    latency: Literal["bulk", "realtime"] = setting("bulk",
        reason="realtime images go first and alone, so that none waits for a batch")
    latency_target: float = setting(0.13, unit="s", ge=0.005, le=3600,
        reason="time an image may spend in the engine. A batch takes at most half of it, as an image may just miss one; raise it where only throughput counts")
    kind: Literal["images", "frames", "films"] = setting("images",
        reason="frames: numbered frames of films; a directory is a sequence, or a stem before a number, and its frames leave in the order of their numbers (docs/frames.md); films: .mp4, .mov, .mkv and .webm, one after another (docs/films.md)")
    temporal: Literal["off", "steady"] = setting("off",
        reason="of frames and films: steady keeps alpha from flickering, by the frame before; what moves is not smoothed")
    look_ahead: int = setting(1, unit="frames", ge=0, le=8,
        reason="of steady films: a frame's alpha follows from so many after it, too; one takes a twelfth of the flicker that is left, more take little more, and each costs the filter's time once more")
    plate: str = setting("", unit="image, or median",
        reason='of steady frames of a fixed camera: the empty scene, as an image file; "median" learns it; "" for a camera that moves')
    frame_wait: float = setting(2.0, unit="s", ge=0.05, le=3600,
        reason="a missing frame is waited for this long from the moment at which it is wanted, then passed over")
    frame_window: int = setting(256, unit="frames", ge=1, le=4096,
        reason="complete frames that wait for a missing one at most; with more it is passed over at once")
    sequence_quiet: float = setting(60.0, unit="s", ge=0.5, le=86_400,
        reason="a sequence without a new frame for this long is over; frames that come later go on where it ended")
    watch: Literal["auto", "events", "poll"] = setting("auto", reason="auto polls where events do not arrive")
    require_mount: bool = setting(False,
        reason="true for a removable disk: while nothing is mounted at input, wait and write nothing there")
    ignore: list[str] = setting([], unit="patterns",
        reason="more names to leave alone, besides those of unfinished uploads")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[str]], str]]:
        if self.originals == "archive" and self.done is None:
            text = 'is missing: originals = "archive" needs a `done` folder; give one, or say "delete" or "keep"'
            yield [("done",), ("originals",)], text
        of_frames = ("plate", "frame_wait", "frame_window", "sequence_quiet")
        own = [name for name in of_frames if getattr(self, name) != Folder.model_fields[name].default]
        if self.kind != "frames" and own:
            yield [(own[0],), ("kind",)], 'is for frames of films; set kind = "frames", or drop it'
        if self.kind == "images" and self.temporal != "off":
            yield [("temporal",), ("kind",)], 'is for frames and films; set kind = "frames" or "films", or drop it'
        if self.kind == "films" and self.latency == "realtime":
            yield [("latency",), ("kind",)], "a film is not realtime: it is there whole; drop it"
        if self.kind != "films" and self.look_ahead != Folder.model_fields["look_ahead"].default:
            yield [("look_ahead",), ("kind",)], 'is for films, which are there whole; set kind = "films", or drop it'
        if self.plate and self.temporal != "steady":
            yield [("plate",), ("temporal",)], 'serves the temporal filter; set temporal = "steady", or drop it'
        if self.plate not in ("", "median") and not os.path.isabs(self.plate):
            yield [("plate",)], f"{self.plate!r} is no whole path; write the whole path of an image, or median"
