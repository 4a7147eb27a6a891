"""What every table of settings is made of: checked words, and a field with its unit, bounds and reason.

Knows no setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

KIBI, MEBI = 1 << 10, 1 << 20


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"'{path}' is relative; write the whole path, starting with /")
    return path


def _octal(text: str) -> str:
    if not (len(text) in (3, 4) and all(digit in "01234567" for digit in text)):
        raise ValueError(f"'{text}' is no octal file mode; write it like \"0640\"")
    if int(text, 8) & 0o111:
        raise ValueError(f"'{text}' would make images executable; leave the execute bits out")
    return text


def _colour(text: str) -> str:
    digits = text.removeprefix("#")
    if len(digits) != 6 or not text.startswith("#") or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError(f"'{text}' is no colour; write it like \"#ffffff\"")
    return text.lower()


def _name(text: str) -> str:
    if not text or not all(c.isalnum() or c in "-_." for c in text) or text.startswith("."):
        raise ValueError(f"'{text}' is no name; use letters, digits, '-', '_' and '.'")
    return text


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
FileMode = Annotated[str, AfterValidator(_octal)]
Colour = Annotated[str, AfterValidator(_colour)]
Name = Annotated[str, AfterValidator(_name)]


def setting(default: Any = ..., *, unit: str = "", reason: str, **bounds: Any) -> Any:
    """A field with the unit it is measured in and the reason for its default; bounds are pydantic's ge, le, gt, lt."""
    return Field(default, description=reason, json_schema_extra={"unit": unit}, validate_default=True, **bounds)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- The device and the process around it, and when it is no longer trusted.


class EngineSettings(Settings):
    """The device and the process around it."""

    device: str = setting(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:[0-9]{1,3})$",
        reason='"auto" takes the GPU when there is one; "cuda" all of them, "cuda:1" one',
    )
    threads: int = setting(0, unit="threads", ge=0, le=256, reason="CPU threads of the network; 0 takes one per core")
    precision: Literal["auto", "float32", "float16", "bfloat16", "float8"] = setting(
        "auto",
        reason="auto: float16 on a GPU, float32 on a CPU; float8 (Ada, Hopper) only while its answers stay near float16's",
    )
    start_timeout: float = setting(180.0, unit="s", ge=1, le=3600, reason="loading, warming up and the golden image")
    batch_timeout: float = setting(
        120.0,
        unit="s",
        ge=0.1,
        le=3600,
        reason="the longest honest batch on a slow CPU; beyond it the process is hung and is killed",
    )
    hang_minimum: float = setting(
        1.0,
        unit="s",
        ge=0.1,
        le=600,
        reason="a batch on a GPU is hung after ten times its measured time, but not before this; batch_timeout is for CPUs",
    )
    restart_delay_maximum: float = setting(
        60.0, unit="s", ge=0.1, le=3600, reason="a process that keeps dying is started again at 1, 2, 4 ... up to this"
    )
    tries: int = setting(
        3,
        unit="tries",
        ge=1,
        le=10,
        reason="faults an image may be part of, the last one alone (on the CPU where that stands by), before it is poison",
    )


class HealthSettings(Settings):
    """When a GPU is left, when it is trusted again, and what stands in meanwhile. Bounds keep each rule meaningful."""

    require_gpu: bool = setting(
        False,
        reason="true: while no GPU is well, images wait in their folders instead of going to a lesser model; nothing fails",
    )
    fallback_model: str = setting(
        "auto", reason="on the CPU while the GPU is away; auto: birefnet-lite where it is installed, else u2netp"
    )
    fallback_start: Literal["auto", "warm", "on_demand"] = setting(
        "auto",
        reason="warm keeps that model loaded, so that the next image starts within 2 s; auto: on demand where memory is scarce",
    )
    sensor: Literal["auto", "nvml", "sysfs", "none"] = setting(
        "auto", reason="auto: NVML where the driver has it, else a thermal zone that names the GPU (Jetson)"
    )
    require_temperature: bool = setting(
        False, reason="true: a GPU whose temperature nobody can read counts as failing a check each time"
    )
    interval: float = setting(
        5.0, unit="s", ge=0.5, le=60, reason="between two checks: a failover is decided within one of them"
    )
    sensor_timeout: float = setting(
        2.0, unit="s", ge=0.05, le=30, reason="a driver that answers later is hung; the reading then counts as unknown"
    )
    hot: float = setting(
        85.0, unit="°C", ge=40, le=110, reason="above it the GPU is left at once: a failover is cheap, heat is not"
    )
    cool: float = setting(
        75.0,
        unit="°C",
        ge=20,
        le=105,
        reason="boards regulate to about 83 under load, so a narrow band would go back and forth all day",
    )
    cool_checks: int = setting(
        12, unit="checks", ge=1, le=720, reason="consecutive cool ones before a hot GPU is tried: a minute at 5 s each"
    )
    throttle_grace: float = setting(
        60.0, unit="s", ge=0, le=3600, reason="slowed down by heat or power for longer: left; shorter: only suspect"
    )
    bad_checks: int = setting(
        4,
        unit="checks",
        ge=1,
        le=100,
        reason="the GPU is left at this many bad ones in a row; one good one resets them",
    )
    good_checks: int = setting(
        3, unit="checks", ge=1, le=100, reason="in a row, besides a passed probe, before a GPU is used"
    )
    memory_error_rate: float = setting(
        0.0001, unit="bad blocks per block", ge=0, lt=1, reason="0.01 %: two bad blocks in one pass of 16,384, not one"
    )
    memory_window: float = setting(
        600.0, unit="s", ge=10, le=86_400, reason="over which that rate is taken; the last passes, not all of them"
    )
    canary_interval: float = setting(
        60.0, unit="s", ge=1, le=86_400, reason="between two passes over the canary, in idle gaps of the engine"
    )
    canary_blocks: int = setting(
        16_384,
        unit="blocks of 4 KiB",
        ge=256,
        le=1_048_576,
        reason="64 MiB: enough to resolve 0.01 %, little enough for an 8 GB card",
    )
    golden_interval: float = setting(
        600.0, unit="s", ge=1, le=86_400, reason="between two runs of the golden image: wrong answers without an error"
    )
    golden_mean: float = setting(
        2 / 255,
        unit="alpha",
        ge=0,
        le=1,
        reason="largest mean difference from the stored answer; rounding is far below",
    )
    golden_peak: float = setting(
        16 / 255, unit="alpha", ge=0, le=1, reason="largest difference on all but golden_outliers of the pixels"
    )
    golden_outliers: float = setting(
        0.001, unit="share of pixels", ge=0, le=0.5, reason="pixels on a hard edge may differ more between devices"
    )
    memory_faults: int = setting(
        3,
        unit="faults",
        ge=1,
        le=1000,
        reason="out of device memory this often within the window: left; fewer: retried",
    )
    memory_faults_window: float = setting(
        600.0, unit="s", ge=10, le=86_400, reason="another program may take the memory for a moment"
    )
    dwell: float = setting(
        60.0, unit="s", ge=1, le=86_400, reason="away from a GPU after its first trip; doubled with each further one"
    )
    dwell_maximum: float = setting(
        3600.0, unit="s", ge=1, le=604_800, reason="bounds a flapping GPU to one failover an hour, 29 on its first day"
    )
    forgive_after: float = setting(
        21_600.0,
        unit="s",
        ge=60,
        le=31_536_000,
        reason="uninterrupted well time after which trips are forgotten; a sliding window would let a flapping GPU off",
    )
    probe_timeout: float = setting(
        120.0,
        unit="s",
        ge=1,
        le=3600,
        reason="fresh process, model, canary and golden image; raise it with engine.start_timeout where loading is slow",
    )
    probe_passes: int = setting(
        2, unit="passes", ge=1, le=100, reason="over the canary within a probe, without one bad block"
    )
    probe_slowness: float = setting(
        2.0, unit="times", gt=1, le=100, reason="slower than this against its own first measure is not well"
    )
    trial_pictures: int = setting(
        10, unit="pictures", ge=0, le=10_000, reason="go one by one after a fail-back; any fault among them ends it"
    )
    xid_lost: list[int] = setting(
        [79, 119, 120], unit="XID", reason="driver messages after which the GPU is off the bus or its firmware is dead"
    )
    xid_quarantine: list[int] = setting(
        [48, 62, 64, 74, 94, 95, 109, 140],
        unit="XID",
        reason="driver messages of a sick device; others (13, 31, 43, 45 ...) are a program's own fault",
    )
    metrics_file: AbsolutePath | None = setting(
        None, reason="counters for Prometheus' node exporter, rewritten each status interval; must end in .prom"
    )

    @model_validator(mode="after")
    def _thresholds_fit_together(self) -> HealthSettings:
        if self.cool >= self.hot:
            raise ValueError(
                f"cool = {self.cool} must be below hot = {self.hot}, or the GPU is left and taken back at once"
            )
        if self.dwell_maximum < self.dwell:
            raise ValueError(f"dwell_maximum = {self.dwell_maximum} must not be below dwell = {self.dwell}")
        if self.sensor_timeout > self.interval:
            raise ValueError(
                f"sensor_timeout = {self.sensor_timeout} must not exceed interval = {self.interval}: checks would pile up"
            )
        if both := sorted(set(self.xid_lost) & set(self.xid_quarantine)):
            raise ValueError(f"XID {both[0]} stands in xid_lost and in xid_quarantine; choose one")
        if self.metrics_file is not None and self.metrics_file.suffix != ".prom":
            raise ValueError(f"metrics_file = '{self.metrics_file}' must end in .prom, or the node exporter ignores it")
        return self


# --- What a GPU's engine takes of the device, and how it launches work. A table: decides nothing.


class GpuSettings(Settings):
    """Of every GPU in use. Memory is taken once, before the first image; the log says how it was divided."""

    graphs: bool = setting(
        True, reason="replay recorded launches: one instead of some thousand per batch; false launches kernel by kernel"
    )
    kernels: Literal["auto", "off"] = setting(
        "auto", reason="auto: kernels in Triton where they compile and run, else plain ones, which the log then says"
    )
    staging_bytes: int = setting(
        128 * MEBI,
        unit="bytes",
        ge=32 * MEBI,
        le=16 * 1024 * MEBI,
        reason="images on their way on the device; one of 33 megapixels fits, larger ones are resized by the CPU",
    )
    pinned_bytes: int = setting(
        256 * MEBI,
        unit="bytes",
        ge=0,
        le=64 * 1024 * MEBI,
        reason="of pipeline.arena_bytes, page-locked so that copies run beside the work; taken from all other programs",
    )
    spare_bytes: int = setting(
        1024 * MEBI,
        unit="bytes",
        ge=0,
        le=64 * 1024 * MEBI,
        reason="left free on the device: less of it at start is told, and batches are made smaller to keep it",
    )


# --- What comes out, and between which folders.


class Recipe(Settings):
    """What comes out."""

    model: str = setting(
        "u2netp", reason="a name of `rmbgd models list`, a folder with model.safetensors, or a .safetensors file"
    )
    patch_order: Literal["auto", "channel_first", "tile_first"] = setting(
        "auto",
        reason="layout of the network's image patches, for weights of your own; auto reads it beside the weights",
    )
    model_sha256: str = setting(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        unit="hex digits",
        reason="what the model's file must hash to; empty trusts the registry's digest where there is one, and always logs it",
    )
    format: Literal["png", "webp", "tiff"] = setting("png", reason="every tool reads it; lossless")
    content: Literal["rgba", "mask", "colour"] = setting(
        "rgba", reason="rgba: transparent cutout; mask: alpha alone; colour: on a background colour"
    )
    mask_bits: Literal[8, 16] = setting(8, unit="bits", reason="16 keeps every step of a soft edge, in PNG and TIFF")
    background: Colour = setting("#ffffff", reason="used when content is colour; the background is exactly this value")
    edge_colours: Literal["clean", "keep"] = setting(
        "clean", reason="clean takes the old background out of half-transparent pixels; keep leaves the photo's"
    )
    hidden_colours: Literal["zero", "keep"] = setting(
        "zero", reason="colours under full transparency: nobody sees them, and they double the file"
    )
    png_level: int = setting(2, unit="level", ge=0, le=3, reason="ISA-L deflate; 3 is slower and no smaller")
    webp_quality: int = setting(80, unit="quality", ge=0, le=100, reason="used when webp_lossless is false")
    webp_lossless: bool = setting(True, reason="a cutout is usually worked on further")
    crop: bool = setting(False, reason="cut to the subject's box (alpha of 10 and more), with crop_margin around it")
    crop_margin: float = setting(
        0.05, unit="of the box's longer side", ge=0, le=0.5, reason="air that marketplaces ask for"
    )
    canvas: str = setting(
        "",
        pattern=r"^([1-9][0-9]{0,4}x[1-9][0-9]{0,4})?$",
        unit="pixels",
        reason='fit the image into e.g. "2000x2000"; empty keeps its size',
    )
    metadata: list[Literal["copyright", "artist", "description", "software", "datetime"]] = setting(
        ["copyright"], reason="text fields that are carried over; profile and resolution always are, GPS never is"
    )
    animated: Literal["refuse", "first_frame"] = setting("refuse", reason="one frame of many is rarely what was meant")
    on_empty: Literal["publish", "refuse"] = setting(
        "publish",
        reason="publish: a fully transparent image with the verdict 'empty'; refuse: the original goes to failed",
    )
    empty_below: float = setting(
        0.0005,
        unit="share of pixels",
        ge=0,
        le=1,
        reason="fewer pixels than this at alpha 0.5 or more: there is no subject",
    )
    sidecar: Literal["never", "notable", "always"] = setting(
        "notable", reason="a <output>.json with the facts; notable: only when the verdict is not 'ok'"
    )
    file_mode: FileMode = setting("0640", unit="octal", reason="group may read; nobody else")

    @model_validator(mode="after")
    def _formats_hold_what_is_asked(self) -> Recipe:
        if self.content == "mask" and self.mask_bits == 16 and self.format == "webp":
            raise ValueError('format "webp" holds 8 bits only; use "png" or "tiff" for a 16-bit mask')
        return self


class Folder(Settings):
    """One drop folder. Relative paths below `input` are mirrored below the others."""

    name: Name = setting(reason="appears in events and in the ledger; never reuse one for another folder")
    input: AbsolutePath = setting(reason="files are dropped here")
    output: AbsolutePath = setting(reason="finished cutouts appear here, whole or not at all")
    failed: AbsolutePath = setting(reason="refused originals, each with <name>.error.json")
    done: AbsolutePath | None = setting(None, reason="originals after success; needed when originals is archive")
    originals: Literal["archive", "delete", "keep"] = setting(
        "archive", reason="archive moves them to done; keep leaves them in the input and remembers them"
    )
    recipe: Name = setting("default", reason="a [recipe.NAME] table")
    recursive: bool = setting(True, reason="sub-folders are watched and mirrored")
    priority: int = setting(
        50, unit="0..100", ge=0, le=100, reason="higher goes first; waiting raises it by one each ten seconds"
    )
    latency: Literal["bulk", "realtime"] = setting(
        "bulk", reason="realtime images go first and alone, so that none waits for a batch"
    )
    latency_target: float = setting(
        0.13,
        unit="s",
        ge=0.005,
        le=3600,
        reason="of the engine: a batch takes half of it at most, as an image may just miss one and be in the next; "
        "raise it where only the rate counts",
    )
    watch: Literal["auto", "events", "poll"] = setting("auto", reason="auto polls where events do not arrive")
    require_mount: bool = setting(
        False, reason="a removable disk: while nothing is mounted at input, wait and write nothing there"
    )
    ignore: list[str] = setting(
        [], unit="patterns", reason="more names to leave alone, besides those of half-finished uploads"
    )

    @model_validator(mode="after")
    def _archive_has_a_place(self) -> Folder:
        if self.originals == "archive" and self.done is None:
            raise ValueError('originals = "archive" needs a `done` folder; give one, or say "delete" or "keep"')
        return self


# --- How the service runs: its own places, the arrival of files, limits of images, threads and memory.


class ServiceSettings(Settings):
    """Where the service keeps its own things, and how it stops."""

    state_directory: AbsolutePath = setting(
        Path("/var/lib/rmbgd"),
        reason="the ledger lives here; must survive a reboot, on a local disk",
    )
    runtime_directory: AbsolutePath = setting(
        Path("/run/rmbgd"), reason="the status file lives here; may vanish at reboot"
    )
    models_directory: AbsolutePath = setting(
        Path("/var/lib/rmbgd/models"), reason="fetched weights, <name>/model.safetensors, and accepted licences"
    )
    log_file: AbsolutePath | None = setting(
        None,
        reason="a second copy of every event, for the MTBF report; the journal drops lines in bursts, a file does not",
    )
    stop_timeout: float = setting(
        45.0,
        unit="s",
        ge=1,
        le=3600,
        reason="images already decoded are finished within it; below systemd's TimeoutStopSec of 60",
    )
    health_interval: float = setting(
        60.0,
        unit="s",
        ge=1,
        le=3600,
        reason="one health event per interval: the heartbeat from which operating time is counted",
    )
    status_interval: float = setting(2.0, unit="s", ge=0.1, le=60, reason="age of what `rmbgd status` shows")
    stall_after: float = setting(
        30.0,
        unit="s",
        ge=5,
        le=3600,
        reason="a thread that neither waits nor progresses this long is hung; the watchdog is then not fed",
    )
    stuck_after: float = setting(
        300.0,
        unit="s",
        ge=10,
        le=86_400,
        reason="images wait, no device computes, nothing is paused, and none moves this long: the line is hung as well",
    )
    safe_starts: int = setting(
        3,
        unit="starts",
        ge=0,
        le=20,
        reason="so many that died within safe_window: the next is in safe mode (CPU, u2netp, one by one); 0: never",
    )
    safe_window: float = setting(
        600.0, unit="s", ge=10, le=86_400, reason="a service that lives longer than this does not die of its start"
    )
    safe_quiet: float = setting(
        600.0, unit="s", ge=1, le=86_400, reason="in safe mode without a death, before everything is tried again"
    )
    safe_quiet_maximum: float = setting(
        86_400.0, unit="s", ge=1, le=604_800, reason="safe_quiet is doubled, up to this, each time that it did not help"
    )


class IntakeSettings(Settings):
    """When an arriving file is complete, and how often the folders are compared with the ledger."""

    quiet_closed: float = setting(
        0.5, unit="s", ge=0.05, le=600, reason="after a close or a rename with every other gate passed"
    )
    quiet_unknown: float = setting(
        2.0,
        unit="s",
        ge=0.05,
        le=600,
        reason="when nothing said that the writer is done: uploaders pause that long at times",
    )
    quiet_remote: float = setting(
        5.0, unit="s", ge=0.05, le=600, reason="where open writers cannot be seen (network and FUSE file systems)"
    )
    reconcile: float = setting(
        30.0, unit="s", ge=0.2, le=3600, reason="full comparison on local file systems; events only hint"
    )
    reconcile_lossy: float = setting(
        5.0, unit="s", ge=0.2, le=3600, reason="full comparison where events are missing or were missed"
    )
    root_check: float = setting(
        5.0, unit="s", ge=0.1, le=600, reason="how soon a replaced or unmounted drop folder is noticed"
    )
    incomplete_timeout: float = setting(
        900.0,
        unit="s",
        ge=1,
        le=604800,
        reason="a closed file with its tail missing is refused as truncated after this time without change",
    )
    stuck_upload: float = setting(
        3600.0,
        unit="s",
        ge=1,
        le=604800,
        reason="an upload still open or changing after this time is reported once; it is never refused",
    )
    hints_maximum: int = setting(
        10_000,
        unit="paths",
        ge=10,
        le=1_000_000,
        reason="beyond it the hints are dropped and the folder is compared whole",
    )
    tracked_maximum: int = setting(
        4_096,
        unit="files",
        ge=16,
        le=1_000_000,
        reason="files observed at once; the others wait in the folder, which costs no memory",
    )
    attempts: int = setting(
        3, unit="attempts", ge=1, le=10, reason="starts of the service that one image may end before it is set aside"
    )


class LimitSettings(Settings):
    """What an image may be. Checked on the header, before memory is taken."""

    pixels: int = setting(
        50_000_000,
        unit="pixels",
        ge=1,
        le=500_000_000,
        reason="covers 8000x6000 cameras; bounds the arena and the decoders",
    )
    side: int = setting(
        32_768, unit="pixels", ge=1, le=65_535, reason="no camera is longer; stops 1 x 50,000,000 strips"
    )
    file_bytes: int = setting(
        320 * MEBI,
        unit="bytes",
        ge=1,
        le=8192 * MEBI,
        reason="a 50-megapixel 16-bit TIFF without compression is 300 MB",
    )
    metadata_bytes: int = setting(
        8 * MEBI, unit="bytes", ge=KIBI, le=256 * MEBI, reason="profiles and text are kilobytes; more is an attack"
    )


class PipelineSettings(Settings):
    """Threads and memory between the folder and the engine."""

    decode_threads: int = setting(
        2, unit="threads", ge=1, le=64, reason="decoders release the interpreter lock; one per two cores is enough"
    )
    finish_threads: int = setting(
        2, unit="threads", ge=1, le=64, reason="encoding dominates the CPU; syncing to disk waits"
    )
    arena_bytes: int = setting(
        512 * MEBI,
        unit="bytes",
        ge=16 * MEBI,
        le=64 * 1024 * MEBI,
        reason="decoded images in flight; must hold one of the largest allowed",
    )
    queue: int = setting(
        16, unit="pictures", ge=1, le=1024, reason="places between two stages; bytes are bounded by the arena"
    )
    batch_maximum: Literal[1, 2, 4, 8, 16] = setting(
        8, unit="pictures", reason="largest batch offered to an engine; the engine may take less"
    )
    batch_wait: float = setting(
        0.0,
        unit="s",
        ge=0,
        le=0.003,
        reason="waiting for company beyond the engine's own busy time; rarely helps, never more than 3 ms",
    )
    free_bytes_minimum: int = setting(
        512 * MEBI,
        unit="bytes",
        ge=0,
        le=1 << 50,
        reason="below this free space on an output, claiming pauses until there is half as much again",
    )
