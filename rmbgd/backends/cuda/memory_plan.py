"""POLICY: how a GPU's memory is divided at start, and a batch among batch sizes. Bytes throughout.

What is planned stays allocated: inputs and outputs of the networks for the largest batch, the graphs' memory (shared,
so it is that of the largest batch), the staging buffer for images, and working memory to finish them.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from rmbgd.engine.types import Limit, Options

MEBI = 1 << 20

SIZES = (1, 2, 4, 8, 16)
WORKING_BYTES = 32 * MEBI  # for small levels of images that are finished together; one takes at most 15 MiB
PLAIN_PIXELS = 1 << 21  # of an image that is finished without kernels; the host finishes larger ones
PLAIN_BYTES = 64 * PLAIN_PIXELS  # then takes the place of WORKING_BYTES: planes of floats at full size
STAGING_LEAST = 32 * MEBI  # holds an image of 4 megapixels and its output
STAGING_FRACTION = 4  # staging gets at most one in so many of the bytes that may be taken
WORKING_SLACK = 1.125  # of a network's working memory: torch's allocator rounds, and graphs lie in a pool of their own
HOST_FRACTION = 8  # at most one in so many bytes of the host's free memory are locked


@dataclass(frozen=True, slots=True)
class NetworkNeed:
    """Memory of one network, in bytes.

    fixed   working memory of any batch
    each    more for each image of it
    static  input and output of one image
    """

    fixed: int
    each: int
    static: int

    def batch(self, images: int) -> int:
        return int(WORKING_SLACK * (self.fixed + images * self.each))


@dataclass(frozen=True, slots=True)
class Plan:
    """sizes: batch sizes, ascending. The rest in bytes; `pinned` in whole pages, which alone can be locked.

    network  working memory of the largest batch
    working  of finishing images
    """

    sizes: tuple[int, ...]
    network: int
    staging: int
    working: int
    pinned: int
    limits: tuple[Limit, ...] = field(default=())

    def facts(self) -> dict[str, object]:
        return {
            "batch_sizes": list(self.sizes), "network_bytes": self.network, "staging_bytes": self.staging,
            "working_bytes": self.working, "pinned_bytes": self.pinned,
        }  # fmt: skip


def plan(
    *,
    free: int,
    total: int,
    host_free: int,
    arena: int,
    networks: Sequence[NetworkNeed],
    options: Options,
    working: int = WORKING_BYTES,
) -> Plan:
    """The largest batch that fits beside all else, and what is reduced for it. Never refuses: one image is tried.

    free, total  bytes of the device, after the weights were loaded
    host_free    bytes of the host that are free, for what is page-locked
    arena        bytes of the shared block
    options      the most that may be taken, and the spare bytes: less than those free at start is a limit
    working      bytes that finishing images takes
    """
    limits = []
    if free < options.spare_bytes:
        detail = f"{_mib(free)} of {_mib(total)} are free on the device; {_mib(options.spare_bytes)} should stay so"
        limits.append(Limit("memory_low", detail))
    spendable = max(0, free - options.spare_bytes)
    staging = max(STAGING_LEAST, min(options.staging_bytes, spendable // STAGING_FRACTION))
    fixed = staging + working
    wanted = [size for size in SIZES if size <= options.batch_maximum]
    fitting = []
    for size in wanted:  # networks run one at a time, and each has its own inputs and outputs
        need = max(network.batch(size) for network in networks) + size * sum(network.static for network in networks)
        if fixed + need <= spendable:
            fitting.append(size)
    sizes = tuple(fitting or wanted[:1])
    if sizes != tuple(wanted):
        detail = f"{_mib(spendable)} may be taken: at most {sizes[-1]} images at once, not {wanted[-1]}"
        limits.append(Limit("batch", detail))
    wanted_pinned = _whole_pages(min(arena, options.pinned_bytes))
    pinned = min(wanted_pinned, _whole_pages(host_free // HOST_FRACTION))
    if pinned < wanted_pinned:
        limits.append(Limit("pinned", f"{_mib(host_free)} of the host are free: {_mib(pinned)} are page-locked"))
    network = max(network.batch(sizes[-1]) for network in networks)
    return Plan(sizes, network, staging, working, pinned, tuple(limits))


def split(images: int, sizes: Sequence[int], seconds: Mapping[int, float]) -> list[tuple[int, int]]:
    """The quickest sequence of batches, as (images, batch size), by the measured `seconds` of each size.

    A batch may have empty inputs where that is quicker: 5 go as 4 + 1 unless a batch of 8 takes less than both. Sizes
    without `seconds` count as taking time in proportion, so they are used exactly full.
    """
    per_image = max((seconds[size] / size for size in sizes if size in seconds), default=1.0)

    @cache
    def best(count: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if count == 0:
            return 0.0, ()
        choices = []
        for size in sizes:
            filled = min(size, count)
            cost, rest = best(count - filled)
            choices.append((cost + seconds.get(size, size * per_image), ((filled, size), *rest)))
        return min(choices, key=lambda choice: (round(choice[0], 9), len(choice[1])))

    return sorted(best(images)[1], reverse=True)


def _whole_pages(byte_count: int) -> int:
    return byte_count - byte_count % mmap.PAGESIZE


def _mib(byte_count: int) -> str:
    return f"{byte_count / MEBI:,.0f} MiB"
