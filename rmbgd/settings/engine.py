"""The device and the process around it, and when it is no longer trusted.

A table: decides nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rmbgd.settings.basics import AbsolutePath, Settings, setting


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
    start_timeout: float = setting(180.0, unit="s", ge=1, le=3600, reason="loading, warming up and the known picture")
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
        reason="faults a picture may be part of, the last one alone (on the CPU where that stands by), before it is poison",
    )


class Health(Settings):
    """When a GPU is left, when it is trusted again, and what stands in meanwhile. Bounds keep each rule meaningful."""

    require_gpu: bool = setting(
        False,
        reason="true: while no GPU is well, pictures wait in their folders instead of going to a lesser model; nothing fails",
    )
    fallback_model: str = setting(
        "auto", reason="on the CPU while the GPU is away; auto: birefnet-lite where it is installed, else u2netp"
    )
    fallback_start: Literal["auto", "warm", "on_demand"] = setting(
        "auto",
        reason="warm keeps that model loaded, so that the next picture starts within 2 s; auto: on demand where memory is scarce",
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
        600.0, unit="s", ge=1, le=86_400, reason="between two runs of the known picture: wrong answers without an error"
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
        reason="fresh process, model, canary and known picture; raise it with engine.start_timeout where loading is slow",
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
    def _thresholds_fit_together(self) -> Health:
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
