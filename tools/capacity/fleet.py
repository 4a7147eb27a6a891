"""Simulation of a fleet of workers on one work queue: image by image (SimPy), or in aggregates for long horizons.

A worker takes an image from the queue while it has a free slot, decodes it on one of its cores, waits for its device,
which takes what is ready as one batch, and encodes it on a core; encoding goes before decoding, and new images go
before the backfill. A worker that fails loses its images; they come back, before all others, when their leases end, and
start anew. While a worker's GPU is out, its batches take `slower` times as long.

`by_image` simulates exactly that, at some 40,000 images a second. `in_aggregate` takes steps of time instead: Poisson
arrivals and normal service counts in each step, with the mean and the variance of the narrowest resource, and a backlog
reflected at zero (Lindley's recursion; the diffusion limit of G/G/c in heavy traffic). First in, first out gives each
image's wait from the cumulated arrivals and departures. Backlogs and waits of an overloaded fleet agree within some per
cent. What waits inside a worker is not seen: near a load of 1 without a backlog, or behind images of the backfill that
workers hold already, a latency may be too short by up to `resolution`, the time a worker takes for all that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import simpy

from tools.capacity.load import Curve, Device, Floats, Times

Steps = Generator[simpy.Event, object, None]
NEW, BACKFILL = 1, 2  # priorities; 0 is what comes back
MOST_STEPS = 100_000  # of the time in which images arrive, in aggregates
SHORTEST_STEP = 0.1  # s
CELLS = 400  # parts of the time on the plot, image by image


@dataclass(frozen=True)
class Faults:
    """Seconds. Mean times between failures are exponential; infinite means never."""

    mtbf: float = math.inf
    mttr: float = 300.0
    gpu_mtbf: float = math.inf
    gpu_mttr: float = 600.0
    slower: float = 20.0  # how much longer a batch takes on the CPU while the GPU is out
    lease: float = 60.0


@dataclass(frozen=True)
class Fleet:
    """Equal workers, each with one device and so many cores; on one machine, `shared` workers share these cores."""

    workers: int
    cores: int
    decode: Times
    encode: Times
    device: Device
    faults: Faults = field(default_factory=Faults)
    shared: bool = False

    @property
    def slots(self) -> int:
        """Images that a worker holds at once: one on each core, a batch on the device, the next and the one before."""
        return self.cores + 3 * self.device.largest

    @property
    def core_seconds(self) -> float:
        return self.decode.mean + self.encode.mean

    def rate(self, slower: float = 1.0) -> float:
        """Images/s of one worker: of its cores or its device, whichever is less."""
        cores = self.cores / self.core_seconds if self.core_seconds else math.inf
        return min(cores, self.device.rate() / slower)

    @property
    def resolution(self) -> float:
        """Seconds: aggregates do not tell latencies below it."""
        return self.slots / self.rate()


@dataclass(frozen=True)
class Outcome:
    """New images: when they came and how long each took in s, and how many each value stands for; infinite, if never
    done. Over time: arrivals/s, and images in the system, new and of the backfill. drained: s until the last of both
    was done; backfilled: of the backfill."""

    at: Floats
    latency: Floats
    weight: Floats
    grid: Floats
    arrivals: Floats
    backlog: Floats
    backfill: Floats
    drained: float
    backfilled: float
    busy: float = math.nan  # s of cores
    device_busy: float = math.nan  # s of devices
    redone: int = 0

    @cached_property
    def _sorted(self) -> tuple[Floats, Floats]:
        order = np.argsort(self.latency, kind="stable")
        return self.latency[order], np.cumsum(self.weight[order])

    def percentile(self, percent: float) -> float:
        values, below = self._sorted
        if not values.size or not below[-1]:
            return 0.0
        return float(values[min(np.searchsorted(below, percent / 100 * below[-1]), values.size - 1)])

    def over_time(self, percent: float, cells: int = 100) -> tuple[Floats, Floats]:
        """Middles of equal parts of the time, and the percentile of the images that came in each."""
        edges = np.linspace(0.0, float(self.at[self.weight > 0].max(initial=1e-9)), cells + 1)
        cell = np.clip(np.digitize(self.at, edges) - 1, 0, cells - 1)
        found = np.full(cells, np.nan)
        for number in np.unique(cell[self.weight > 0]):
            here = cell == number
            part = replace(self, at=self.at[here], latency=self.latency[here], weight=self.weight[here])
            found[number] = part.percentile(percent)
        return (edges[1:] + edges[:-1]) / 2, found


@dataclass
class _Image:
    at: float
    number: int  # -1: of the backfill
    priority: int
    decoded: simpy.Event | None = None


class _Worker:
    def __init__(self, hall: _Hall, cores: simpy.PriorityResource) -> None:
        self.hall, self.cores, self.slower = hall, cores, 1.0
        self.ready = list[_Image]()
        self.wake = hall.env.event()
        self.running = list[simpy.Process]()

    def start(self) -> None:
        env = self.hall.env
        self.running = [env.process(self._device()), *(env.process(self._slot()) for _ in range(self.hall.fleet.slots))]

    def _work(self, seconds: float, priority: int) -> Steps:
        with self.cores.request(priority) as core:
            yield core
            yield self.hall.env.timeout(seconds)
            self.hall.busy += seconds

    def _slot(self) -> Steps:
        hall = self.hall
        while True:
            get = hall.queue.get()
            image: _Image | None = None
            try:
                yield get
                image = _taken(get)
                yield from self._work(next(hall.decode), 1)
                image.decoded = hall.env.event()
                self.ready.append(image)
                if not self.wake.triggered:
                    self.wake.succeed()
                yield image.decoded
                yield from self._work(next(hall.encode), 0)
            except simpy.Interrupt:
                if image is None and get.triggered:
                    image = _taken(get)
                if image is None:
                    get.cancel()
                else:
                    hall.env.process(hall.lost(image))
                return
            hall.done(image)

    def _device(self) -> Steps:
        hall, most = self.hall, self.hall.fleet.device.largest
        try:
            while True:
                while not self.ready:
                    self.wake = hall.env.event()
                    yield self.wake
                batch, self.ready = self.ready[:most], self.ready[most:]
                seconds = hall.batch_seconds(len(batch)) * self.slower
                yield hall.env.timeout(seconds)
                hall.device_busy += seconds
                for image in batch:
                    assert image.decoded is not None
                    image.decoded.succeed()
        except simpy.Interrupt:
            self.ready = []

    def fail(self, outages: Iterator[tuple[float, float]]) -> Steps:
        for up, out in outages:
            yield self.hall.env.timeout(up)
            for process in self.running:
                if process.is_alive:
                    process.interrupt()
            yield self.hall.env.timeout(out)
            self.start()

    def fail_over(self, outages: Iterator[tuple[float, float]]) -> Steps:
        for up, out in outages:
            yield self.hall.env.timeout(up)
            self.slower = self.hall.fleet.faults.slower
            yield self.hall.env.timeout(out)
            self.slower = 1.0


def _taken(get: simpy.Event) -> _Image:
    item = get.value
    assert isinstance(item, simpy.PriorityItem)
    image: _Image = item.item
    return image


class _Hall:
    """The queue, the clock and what was seen of them."""

    def __init__(self, fleet: Fleet, arrivals: Floats, backfill: int, seed: int) -> None:
        self.env, self.fleet, self.dice = simpy.Environment(), fleet, np.random.default_rng(seed)
        self.queue = simpy.PriorityStore(self.env)
        self.decode, self.encode = fleet.decode.stream(self.dice), fleet.encode.stream(self.dice)
        self.device: dict[int, Iterator[float]] = {
            size: times.stream(self.dice) for size, times in fleet.device.batches.items()
        }
        self.arrivals, self.ends = arrivals, np.full(arrivals.size, math.inf)
        self.backfill, self.backfill_ends = backfill, list[float]()
        self.left, self.finished = arrivals.size + backfill, self.env.event()
        self.busy = self.device_busy = 0.0
        self.redone = self.sequence = 0
        shared = simpy.PriorityResource(self.env, fleet.cores) if fleet.shared else None
        workers = [_Worker(self, shared or simpy.PriorityResource(self.env, fleet.cores)) for _ in range(fleet.workers)]
        for number, worker in enumerate(workers):
            worker.start()
            if math.isfinite(fleet.faults.mtbf):
                self.env.process(worker.fail(outages(fleet.faults, seed, number)))
            if math.isfinite(fleet.faults.gpu_mtbf):
                self.env.process(worker.fail_over(outages(fleet.faults, seed, number, gpu=True)))
        self.env.process(self._arrive())

    def _arrive(self) -> Steps:
        for _ in range(self.backfill):
            self.offer(_Image(0.0, -1, BACKFILL))
        for number, at in enumerate(self.arrivals.tolist()):
            if at > self.env.now:
                yield self.env.timeout(at - self.env.now)
            self.offer(_Image(at, number, NEW))

    def offer(self, image: _Image) -> None:
        self.sequence += 1
        self.queue.put(simpy.PriorityItem((image.priority, self.sequence), image))

    def lost(self, image: _Image) -> Steps:
        yield self.env.timeout(self.fleet.faults.lease)
        self.redone += 1
        image.priority = 0 if image.number >= 0 else BACKFILL
        self.offer(image)

    def done(self, image: _Image) -> None:
        if image.number >= 0:
            self.ends[image.number] = self.env.now
        else:
            self.backfill_ends.append(self.env.now)
        self.left -= 1
        if not self.left:
            self.finished.succeed()

    def batch_seconds(self, size: int) -> float:
        found, factor = self.fleet.device.nearest(size)
        return next(self.device[found]) * factor


def by_image(fleet: Fleet, arrivals: Floats, backfill: int = 0, seed: int = 1) -> Outcome:
    """Simulates until every image is done. arrivals: s, in order; the backfill waits from the start."""
    hall = _Hall(fleet, arrivals, backfill, seed)
    if hall.left:
        hall.env.run(hall.finished)
    last = hall.env.now
    edges = np.linspace(0.0, max(last, 1e-9), CELLS + 1)
    came, went = np.searchsorted(arrivals, edges, "right"), np.searchsorted(np.sort(hall.ends), edges, "right")
    left = backfill - np.searchsorted(np.array(hall.backfill_ends), edges, "right")
    per_second = np.diff(came, prepend=0) / (edges[1] - edges[0])
    return Outcome(
        arrivals,
        hall.ends - arrivals,
        np.ones(arrivals.size),
        edges,
        per_second,
        (came - went).astype(float),
        left.astype(float),
        last,
        max(hall.backfill_ends, default=0.0),
        hall.busy,
        hall.device_busy,
        hall.redone,
    )


def in_aggregate(fleet: Fleet, curve: Curve, backfill: int = 0, seed: int = 1) -> Outcome:
    """Simulates the curve and at most as long again, until nothing waits."""
    dice, faults = np.random.default_rng(seed), fleet.faults
    step = max(SHORTEST_STEP, curve.seconds / MOST_STEPS)
    coming = math.ceil(curve.seconds / step)
    count = 2 * coming + math.ceil(2 * faults.lease / step)
    middle: Floats = (np.arange(count, dtype=np.float64) + 0.5) * step
    came = np.zeros(count)
    came[:coming] = dice.poisson(curve.rate(middle[:coming]) * step)

    down, failures = _out(fleet, seed, count, step)
    slow, _ = _out(fleet, seed, count, step, gpu=True)
    up = fleet.workers - down
    slow = np.minimum(slow, up)
    capacity = ((up - slow) * fleet.rate() + slow * fleet.rate(faults.slower)) * step
    served = np.maximum(dice.normal(capacity, np.sqrt(capacity) * _variation(fleet)), 0.0)

    per_worker = came / step / fleet.workers
    load = np.minimum(per_worker / fleet.rate(), 1.0)
    size = fleet.device.size_at(float(came.sum() / curve.seconds) / fleet.workers)
    found, factor = fleet.device.nearest(size)
    batch = fleet.device.batches[found].scaled(factor).draw(dice, count)
    inside = fleet.decode.draw(dice, count) + fleet.encode.draw(dice, count)
    inside += batch * (1 + load * dice.uniform(size=count))  # what is left of the batch before, too
    held = _reflected(came - served + (np.arange(count) == 0) * backfill) / fleet.workers + per_worker * inside
    lost = failures * np.minimum(held, fleet.slots)  # Little's law, and what waits
    late = math.ceil(faults.lease / step)
    back = np.concatenate([np.zeros(late), lost])[:count]

    arriving = came + back
    backlog = _reflected(arriving - served)
    every = _reflected(arriving - served + (np.arange(count) == 0) * backfill)
    total = np.cumsum(arriving)
    gone = total - backlog
    wanted = total - arriving / 2
    wait = np.maximum(np.interp(wanted, gone, middle + step / 2) - middle, 0.0)
    wait[wanted > gone[-1]] = math.inf
    return Outcome(
        np.concatenate([middle, middle]),
        np.concatenate([wait + inside, wait + inside + faults.lease]),
        np.concatenate([np.maximum(came - lost, 0.0), back]),
        middle,
        came / step,
        backlog,
        every - backlog,
        max(curve.seconds, _until(every, step)),
        _until(every - backlog, step),
        redone=round(float(lost.sum())),
    )


def _reflected(steps: Floats) -> Floats:
    """A random walk that stays at zero or above."""
    walk = np.cumsum(steps)
    reflected: Floats = walk - np.minimum(np.minimum.accumulate(walk), 0.0)
    return reflected


def _until(waiting: Floats, step: float) -> float:
    """Seconds until less than an image waits for good; infinite when the end comes first."""
    steps = np.flatnonzero(waiting > 0.5)
    last = steps[-1] + 1 if steps.size else 0
    return math.inf if last == waiting.size else float(last * step)


def _variation(fleet: Fleet) -> float:
    """Coefficient of variation of the time that an image takes of the narrowest resource."""
    if fleet.core_seconds and fleet.cores / fleet.core_seconds < fleet.device.rate():
        spread = math.hypot(fleet.decode.mean * fleet.decode.cv, fleet.encode.mean * fleet.encode.cv)
        return spread / fleet.core_seconds
    found, _ = fleet.device.nearest(fleet.device.largest)
    return fleet.device.batches[found].cv * math.sqrt(fleet.device.largest)  # the images of a batch end together


def _out(fleet: Fleet, seed: int, count: int, step: float, *, gpu: bool = False) -> tuple[Floats, Floats]:
    """How many of the workers are out in each step, and how many outages begin in it."""
    change, begun = np.zeros(count + 1), np.zeros(count)
    if math.isfinite(fleet.faults.gpu_mtbf if gpu else fleet.faults.mtbf):
        for number in range(fleet.workers):
            now = 0.0
            for up, out in outages(fleet.faults, seed, number, gpu=gpu):
                first, now = int((now + up) / step), now + up + out
                if first >= count:
                    break
                begun[first] += 1
                change[first] += 1
                change[min(int(now / step), count)] -= 1
    return np.cumsum(change)[:count], begun


def outages(faults: Faults, seed: int, worker: int, *, gpu: bool = False) -> Iterator[tuple[float, float]]:
    """Seconds in order and seconds out, in turn; of a worker or of its GPU. Equal seeds give equal outages, whatever
    else is simulated."""
    dice = np.random.default_rng((seed, worker, gpu))
    means = (faults.gpu_mtbf, faults.gpu_mttr) if gpu else (faults.mtbf, faults.mttr)
    while True:
        yield dice.exponential(means[0]), dice.exponential(means[1])
