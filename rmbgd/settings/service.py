"""How the service runs: its own places, the arrival of files, limits of pictures, threads and memory.

A table: decides nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rmbgd.settings.basics import KIBI, MEBI, AbsolutePath, Settings, setting


class Service(Settings):
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
        reason="pictures already decoded are finished within it; below systemd's TimeoutStopSec of 60",
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
        reason="pictures wait, no device computes, nothing is paused, and none moves this long: the line is hung as well",
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


class Intake(Settings):
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
        3, unit="attempts", ge=1, le=10, reason="starts of the service that one picture may end before it is set aside"
    )


class Limits(Settings):
    """What a picture may be. Checked on the header, before memory is taken."""

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


class Pipeline(Settings):
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
        reason="decoded pictures in flight; must hold one of the largest allowed",
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
