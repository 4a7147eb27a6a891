"""A fleet under test: a real broker, folders that all share, and workers that lease from it, killed and restarted."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nats.aio.msg import Msg

from rmbgd.config.load import SourceSettings
from rmbgd.fleet import streams
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import BULK, DEAD, HOT, Announcement
from rmbgd.fleet.share import fingerprint_of
from rmbgd.naming import is_temporary
from rmbgd.sequence.sequences import SHARED_STATES
from tests.support import audit
from tests.support.broker import PATIENCE as BROKER_PATIENCE
from tests.support.broker import Broker as BrokerUnderTest
from tests.support.service import Event, ServiceUnderTest, Settings
from tests.support.workspace import sha256

ROOT = "shop"
PATIENCE = 60.0  # s until a wait fails the test
LOOK_AGAIN = 0.05  # s between two looks at folders and queues
LEASE = 2.0  # s
RETRY_WAIT = 0.5  # s
DOUBTED = 0.8725  # half of what the fake engine makes of samples has less confidence


class FleetUnderTest:
    """Everything below `base`. The broker runs and is set up, workers do not run yet.

    review    with a folder for people
    recipe    of all workers
    folder    more settings of their root
    settings  tables of their configurations, over the short times that scenarios use
    options   for their launchers
    broker, address, credentials  a configuration of the broker, where it listens, and with what we connect to it
    """

    def __init__(
        self,
        base: Path,
        *,
        workers: int = 2,
        lease: float = LEASE,
        review: bool = False,
        recipe: dict[str, Any] | None = None,
        folder: dict[str, Any] | None = None,
        settings: Settings | None = None,
        options: dict[str, Any] | None = None,
        broker: str | None = None,
        address: str = "127.0.0.1",
        credentials: Path | None = None,
    ) -> None:
        roles = ("input", "output", "failed", *(["review"] if review else []))
        self.roots = {role: base / "shared" / role for role in roles}
        for root in self.roots.values():
            root.mkdir(parents=True)
        self.input, self.output, self.failed = (self.roots[role] for role in roles[:3])
        self.desk, self.lease = base / "desk", lease
        self.desk.mkdir()
        self.broker = BrokerUnderTest(base, broker, address=address)
        source = {"kind": "jetstream", "servers": [self.broker.url], "lease": lease, "retry_wait": RETRY_WAIT}
        tables = {**(settings or {})}
        tables["source"] = source | tables.get("source", {})
        folder = {role: str(path) for role, path in self.roots.items()} | {"originals": "keep"} | (folder or {})
        self.folder = folder
        self._proof = credentials
        self.workers = [
            ServiceUnderTest(base / f"w{number}", settings=tables, folder=folder, recipe=recipe, options=options)
            for number in range(workers)
        ]
        self.administrator: Broker | None = None
        self._alone: dict[str, int] = {}  # by the identity of an image; the connection's thread has it
        self._starts = {id(worker): 0 for worker in self.workers}  # events before the last one

    def __enter__(self) -> Self:
        self.broker.start()
        self.set_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every scenario ends in an orderly stop of all workers."""
        try:
            for worker in self.workers:
                if worker.process is not None:
                    worker.__exit__(kind, error, trace)
        finally:
            for worker in self.workers:
                if not worker.is_down:
                    worker.kill()
            self.disconnect()
            self.broker.kill()

    # ------------------------------------------------------------------------------------------------ the broker

    @property
    def admin(self) -> Broker:
        """Our own connection."""
        if self.administrator is None:
            settings = SourceSettings(servers=[self.broker.url], credentials=self._proof)
            self.administrator = Broker(settings, "administrator", lambda _: None)
            self.administrator.start()
            self.administrator.wait_until_connected(BROKER_PATIENCE)
            self.administrator.ask(lambda client: client.subscribe(f"$KV.{streams.ATTEMPTS}.>", cb=self._note_attempt))
        self.administrator.wait_until_connected(BROKER_PATIENCE)
        return self.administrator

    async def _note_attempt(self, message: Msg) -> None:
        if message.data:
            identity, count = message.subject.rpartition(".")[2], int(json.loads(message.data)["alone"])
            self._alone[identity] = max(self._alone.get(identity, 0), count)

    def disconnect(self) -> None:
        if self.administrator is not None:
            self.administrator.close()
            self.administrator = None

    def set_up(self) -> None:
        streams.set_up(self.admin, [ROOT], self.lease, change=True)

    def put(self, *messages: bytes, stream: str = HOT) -> None:
        """Whatever they are."""
        subject = Announcement(ROOT, "", "", "").subject(stream)
        assert not any(self.admin.publish([(subject, data, "") for data in messages]))

    def queued(self) -> tuple[int, int, int]:
        """Messages that wait, that are leased, and leased again, on both queues."""
        states = streams.queue_states(self.admin, [ROOT])
        return sum(s.waiting for s in states), sum(s.leased for s in states), sum(s.redelivered for s in states)

    def stored(self, *queues: str) -> int:
        """Messages of these streams without an acknowledgement: exact, while a consumer learns of new ones late."""

        async def ask(client: Any) -> int:
            return sum([int((await client.jetstream().stream_info(each)).state.messages) for each in queues])

        return self.admin.ask(ask)

    def dead_letters(self) -> int:
        return self.stored(DEAD)

    # ------------------------------------------------------------------------------------------------ images

    def write(self, name: str, data: bytes) -> Announcement:
        """An image that stands complete in the input; what is to be announced of it."""
        fresh, target = self.desk / "fresh", self.input / name
        fresh.write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(fresh, target)
        return self.announcement(name)

    def announcement(self, name: str) -> Announcement:
        """Of what stands there."""
        return Announcement(ROOT, name, fingerprint_of(os.lstat(self.input / name)), "default")

    def announce(self, announcements: Iterable[Announcement], stream: str = HOT) -> None:
        messages = [(each.subject(stream), each.encode(), each.identity) for each in announcements]
        assert not any(self.admin.publish(messages))

    def drop_all(self, images: dict[str, bytes]) -> list[Announcement]:
        """Written, then announced at once."""
        announced = [self.write(name, data) for name, data in images.items()]
        self.announce(announced)
        return announced

    # ------------------------------------------------------------------------------------------------ workers

    def start(self) -> Self:
        for worker in self.workers:
            worker.start(ready=False)
        for worker in self.workers:
            worker.wait_for("service.ready")
        return self

    def restart_dead(self) -> int:
        """As systemd does: those that ended; how many there were."""
        dead = [worker for worker in self.workers if worker.is_down]
        for worker in dead:
            worker.reap()
            self._starts[id(worker)] = len(worker.events)
            worker.start(ready=False)
        return len(dead)

    def wait_until_ready(self) -> None:
        """All of them, as they were started last."""
        for worker in self.workers:
            worker.wait_for("service.ready", since=self._starts[id(worker)])

    def events(self, name: str) -> list[Event]:
        """Of all workers, from their log files, which hold what was said up to a SIGKILL."""
        return [event for worker in self.workers for event in worker.recorded(name)]

    def done_counts(self) -> Counter[tuple[str, str]]:
        """Path and fingerprint -> events image.done."""
        return Counter((event["path"], event["fingerprint"]) for event in self.events("image.done"))

    def unexplained(self) -> list[tuple[str, str]]:
        """Versions with further events image.done that do not say of themselves that they are further ones."""
        plain = Counter[tuple[str, str]]()
        for event in self.events("image.done"):
            plain[event["path"], event["fingerprint"]] += not (event.get("recovered") or event.get("duplicate"))
        return sorted(version for version, count in plain.items() if count > 1)

    def alone(self) -> int:
        """Runs of suspects by themselves that began."""
        return sum(self._alone.values())

    def computed(self) -> int:
        """Images that went through the engine, of all workers over all their starts."""
        return sum(worker.computed() for worker in self.workers)

    # ------------------------------------------------------------------------------------------------ what stands

    def wait(self, condition: Callable[[], Any], what: str, *, timeout: float = PATIENCE) -> Any:
        """The first true value of a condition that no event tells of."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                tails = "\n".join(worker.tail() for worker in self.workers)
                raise AssertionError(f"nothing for {timeout} s while waiting for {what}; {tails}")
            time.sleep(LOOK_AGAIN)
        return value

    def wait_until_settled(self, timeout: float = PATIENCE) -> None:
        """Everything that was announced has its answer."""
        self.wait(lambda: self.stored(HOT, BULK) == 0, "empty queues", timeout=timeout)

    def results(self, *roles: str) -> dict[str, bytes]:
        """Files of the outputs by path, without records; each must be complete."""
        found = {}
        for role in roles or [role for role in ("output", "review") if role in self.roots]:
            for path in self._visible(role):
                if not path.endswith(".json"):
                    assert path not in found, f"{path} stands in two roots"
                    found[path] = (self.roots[role] / path).read_bytes()
        return found

    def _visible(self, role: str) -> list[str]:
        visible = [path for path in audit.files(self.roots[role]) if not path.startswith(f"{SHARED_STATES}/")]
        return [path for path in visible if not is_temporary(os.path.basename(path))]

    def records(self, *roles: str) -> dict[str, dict[str, Any]]:
        """Input -> the record of its set; no input has two."""
        found: dict[str, dict[str, Any]] = {}
        for role in roles or [role for role in ("output", "review") if role in self.roots]:
            for path in self._visible(role):
                if path.endswith(".json"):
                    story = json.loads((self.roots[role] / path).read_bytes())
                    assert story["path"] not in found, f"{story['path']} has two records"
                    found[story["path"]] = story | {"root": role}
        return found

    def partial(self) -> list[str]:
        """Files that are visible and not whole: not as their record says, of no record, or temporaries not hidden."""
        wrong = []
        records = self.records()
        listed = {(story["root"], each["path"]): each for story in records.values() for each in story["outputs"]}
        standing = {
            (role, path): self.roots[role] / path
            for role in ("output", "review")
            if role in self.roots
            for path in self._visible(role)
            if not path.endswith(".json")
        }
        for place in listed.keys() | standing.keys():
            if place not in standing:
                wrong.append(f"{place}: missing")
            elif place not in listed:
                wrong.append(f"{place}: of no record")
            elif standing[place].stat().st_size != listed[place]["size"]:
                wrong.append(f"{place}: another size than its record says")
            elif sha256(standing[place].read_bytes()) != listed[place]["sha256"]:
                wrong.append(f"{place}: another content than its record says")
        return sorted(wrong)

    def temporaries(self) -> list[str]:
        return [path.name for root in self.roots.values() for path in root.rglob("*") if is_temporary(path.name)]

    def failures(self) -> dict[str, str]:
        """Input -> reason."""
        stories = [json.loads(path.read_bytes()) for path in self.failed.rglob("*.error.json")]
        return {story["path"]: story["reason"] for story in stories}

    def assert_all_done(self, names: Collection[str]) -> None:
        assert set(self.records()) == set(names)
        assert self.partial() == []
