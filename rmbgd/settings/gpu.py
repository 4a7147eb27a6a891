"""What a GPU's engine takes of the device, and how it launches work. A table: decides nothing."""

from __future__ import annotations

from typing import Literal

from rmbgd.settings.basics import MEBI, Settings, setting


class GpuSettings(Settings):
    """Of every GPU in use. Memory is taken once, before the first picture; the log says how it was divided."""

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
        reason="pictures on their way on the device; one of 33 megapixels fits, larger ones are resized by the CPU",
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
