"""What the keys of each role open on a real broker, and what they do not."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nkeys
import pytest
from nats.js import api

from rmbgd.errors import RmbgdError
from rmbgd.fleet import keys
from rmbgd.fleet.workers import order_of
from tests.support.broker import Broker

CONFIGURATION = Path(__file__).parents[2] / "config" / "nats-server.conf"
LAST = "last"  # a subject that the broker refuses to feeder and worker; errors come in the order of what caused them
BOUND = 30.0  # s that one conversation with the broker may take
ENDED = ("RMBGD_HOT", "RMBGD_BULK")
# Refused to feeder and worker alike: whatever makes, changes or empties something, and reading jobs without a lease.
CHANGES = [
    *(f"$JS.API.STREAM.{verb}.RMBGD_HOT" for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT")),
    *(f"$JS.API.STREAM.{verb}.RMBGD_BULK" for verb in ("RESTORE", "MSG.GET", "PEER.REMOVE", "LEADER.STEPDOWN")),
    *(f"$JS.API.STREAM.{verb}.KV_rmbgd_attempts" for verb in ("DELETE", "PURGE", "UPDATE", "MSG.DELETE")),
    *(f"$JS.API.STREAM.{verb}" for verb in ("NAMES", "LIST", "CREATE.NEW")),
    *(f"$JS.API.CONSUMER.{verb}.RMBGD_HOT.x" for verb in ("CREATE", "DELETE", "PAUSE", "UNPIN", "RESET")),
    "$JS.API.CONSUMER.CREATE.RMBGD_HOT", "$JS.API.CONSUMER.DURABLE.CREATE.RMBGD_HOT.x",
    "$JS.API.CONSUMER.CREATE.KV_rmbgd_control.x", "$JS.API.DIRECT.GET.RMBGD_HOT", "$JS.API.SERVER.REMOVE",
    "$JS.API.DIRECT.GET.KV_rmbgd_control", "$JS.API.DIRECT.GET.KV_rmbgd_workers.$KV.rmbgd_workers.h.0",
    "$JS.API.ACCOUNT.PURGE.RMBGD", "$KV.rmbgd_control.drain.h", "$SYS.REQ.SERVER.PING", "other",
]  # fmt: skip
OWN = {  # subjects of the one that the other may not use
    "feeder": ["rmbgd.jobs.hot.shop", "rmbgd.jobs.bulk.shop"],
    "worker": [
        "rmbgd.dead.shop", "$JS.API.CONSUMER.MSG.NEXT.RMBGD_HOT.x", "$JS.API.CONSUMER.MSG.NEXT.RMBGD_BULK.x",
        "$JS.ACK.RMBGD_HOT.x.1.1.1.1.0", "$KV.rmbgd_attempts.a", "$KV.rmbgd_workers.h.0",
        "$JS.API.STREAM.INFO.KV_rmbgd_attempts", "$JS.API.STREAM.MSG.GET.KV_rmbgd_workers",
    ],
}  # fmt: skip
BOTH = ["$JS.API.INFO", "$JS.API.STREAM.INFO.RMBGD_HOT", "$JS.API.STREAM.INFO.RMBGD_DEAD"]
BOTH += [f"$JS.API.CONSUMER.INFO.{stream}.workers-shop" for stream in ENDED]


class Site:
    """The shipped configuration with keys of its own, and clients of each role."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "keys"
        keys.write_keys(self.directory)
        text = re.sub(r"^(server_name|listen|http): .*$", "", CONFIGURATION.read_text(), flags=re.MULTILINE)
        text = text.replace("/var/lib/rmbgd-nats", "{store}")
        self.broker = Broker(base, text.replace('"users.conf"', f'"../keys/{keys.USERS_FILE}"'))

    def inbox(self, role: str) -> str:
        seed = (self.directory / f"{role}.nk").read_bytes().strip()
        return keys.inbox_prefix(nkeys.from_seed(seed).public_key.decode())

    def as_role(self, role: str, action: Callable[[nats.NATS], Awaitable[Any]]) -> tuple[Any, list[str]]:
        """What `action` answers, and what the broker refused meanwhile."""

        async def ask() -> tuple[Any, list[str]]:
            errors: list[str] = []
            refused = asyncio.Event()

            async def note(error: Exception) -> None:
                errors.append(str(error))
                if LAST in errors[-1]:
                    refused.set()

            seed = str(self.directory / f"{role}.nk")
            client = await nats.connect(
                self.broker.url,
                nkeys_seed=seed,
                inbox_prefix=self.inbox(role),
                allow_reconnect=False,
                error_cb=note,
            )
            try:
                answer = await action(client)
                await client.publish(LAST, b"")
                await client.flush()
                if role != "admin":
                    await refused.wait()
                return answer, [error for error in errors if LAST not in error]
            finally:
                await client.close()

        return asyncio.run(asyncio.wait_for(ask(), BOUND))

    def refused(self, role: str, subjects: list[str]) -> set[str]:
        """Those of `subjects` to which the role may not publish."""

        async def publish(client: nats.NATS) -> None:
            for subject in subjects:
                await client.publish(subject, b"{}")

        said = " ".join(self.as_role(role, publish)[1])
        return {subject for subject in subjects if f'publish to "{subject}"'.lower() in said.lower()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    with site.broker:
        site.as_role("admin", set_up)
        yield site


async def set_up(client: nats.NATS) -> None:
    jetstream = client.jetstream()
    for stream, kind in (("RMBGD_HOT", "hot"), ("RMBGD_BULK", "bulk")):
        await jetstream.add_stream(
            name=stream, subjects=[f"rmbgd.jobs.{kind}.*"], retention=api.RetentionPolicy.WORK_QUEUE
        )
        await jetstream.add_consumer(stream, durable_name="workers-shop", filter_subject=f"rmbgd.jobs.{kind}.shop")
    await jetstream.add_stream(name="RMBGD_DEAD", subjects=["rmbgd.dead.*"])
    for bucket in ("rmbgd_attempts", "rmbgd_workers", "rmbgd_control"):
        await jetstream.create_key_value(bucket=bucket, ttl=60)
    await (await jetstream.key_value("rmbgd_control")).put("drain.h", b"1")


@pytest.mark.integration
@pytest.mark.parametrize(("role", "other"), [("feeder", "worker"), ("worker", "feeder")])
def test_a_role_may_publish_what_it_needs_and_nothing_else(site: Site, role: str, other: str) -> None:
    assert site.refused(role, [*OWN[role], *BOTH]) == set()
    forbidden = [*OWN[other], *CHANGES]
    assert site.refused(role, forbidden) == set(forbidden)


@pytest.mark.integration
def test_admin_may_do_all(site: Site) -> None:
    reading = [
        subject for subject in CHANGES if not re.search(r"DELETE|PURGE|REMOVE|UPDATE|RESTORE|\$SYS|\$KV", subject)
    ]
    assert site.refused("admin", [*reading, *BOTH]) == set()


@pytest.mark.integration
@pytest.mark.parametrize("role", ["feeder", "worker"])
@pytest.mark.parametrize(
    "subject", ["rmbgd.>", ">", "$JS.API.>", "$KV.>", "$JS.ACK.>", "_INBOX.>", "*.>", "inbox of admin"]
)
def test_no_role_may_listen_to_others(site: Site, role: str, subject: str) -> None:
    """Nor to the answers that others get: a lease is one."""

    async def listen(client: nats.NATS) -> None:
        await client.subscribe(f"{site.inbox('admin')}.>" if subject == "inbox of admin" else subject)

    said = site.as_role(role, listen)[1]
    assert len(said) == 1
    assert "permissions violation for subscription" in said[0].lower()


@pytest.mark.integration
def test_the_work_of_feeder_and_worker_goes_through(site: Site) -> None:
    """Publish and its repetition; lease, extend, hand back, finish; attempts, report, orders; a dead letter."""

    async def feed(client: nats.NATS) -> list[bool | None]:
        jetstream = client.jetstream()
        await jetstream.stream_info("RMBGD_HOT")
        await jetstream.consumer_info("RMBGD_HOT", "workers-shop")
        identity = {"Nats-Msg-Id": "one"}
        return [(await jetstream.publish("rmbgd.jobs.hot.shop", b"x", headers=identity)).duplicate for _ in range(2)]

    async def work(client: nats.NATS) -> tuple[int, bytes | None, bytes | None]:
        jetstream = client.jetstream()
        pull = await jetstream.pull_subscribe_bind(consumer="workers-shop", stream="RMBGD_HOT")
        await (await pull.fetch(1, timeout=5))[0].nak()
        [message] = await pull.fetch(1, timeout=5)
        await message.in_progress()
        await message.ack_sync(timeout=5)
        attempts = await jetstream.key_value("rmbgd_attempts")
        await attempts.put("a", b"1")
        seen = (await attempts.get("a")).value
        await attempts.delete("a")
        await (await jetstream.key_value("rmbgd_workers")).put("h.0", b"{}")
        order = (await (await jetstream.key_value("rmbgd_control")).get("drain.h")).value
        await jetstream.publish("rmbgd.dead.shop", b"x")
        return (await jetstream.stream_info("RMBGD_HOT")).state.messages, seen, order

    site.as_role("admin", lambda client: client.jetstream().purge_stream("RMBGD_HOT"))
    assert site.as_role("feeder", feed) == ([None, True], [])
    (left, attempts, _), refused = site.as_role("worker", work)
    assert (left, attempts, refused) == (0, b"1", [])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("role", "question", "data"),
    [
        ("feeder", "rmbgd.jobs.hot.shop", b"x"),
        ("worker", "rmbgd.dead.shop", b'{"host": "h"}'),
        ("worker", "$JS.API.STREAM.MSG.GET.KV_rmbgd_workers", b'{"last_by_subj": "$KV.rmbgd_workers.h.0"}'),
    ],
)
def test_an_answer_of_the_broker_is_no_order(site: Site, role: str, question: str, data: bytes) -> None:
    """It goes to whatever subject the question names, whoever may not publish to that: nothing refuses it."""

    async def ask(client: nats.NATS) -> None:
        if role == "worker":
            await client.jetstream().publish("$KV.rmbgd_workers.h.0", b'{"host": "h"}')
        await client.publish(question, data, reply="$KV.rmbgd_control.drain.h")

    async def stored(client: nats.NATS) -> bytes | None:
        control = await client.jetstream().key_value("rmbgd_control")
        order = b'{"host": "h"}'
        for _ in range(200):
            if (found := (await control.get("drain.h")).value) != order:
                break
            await asyncio.sleep(0.05)
        await control.put("drain.h", order)
        return found

    async def put_order(client: nats.NATS) -> None:
        await (await client.jetstream().key_value("rmbgd_control")).put("drain.h", b'{"host": "h"}')

    site.as_role("admin", put_order)
    assert site.as_role(role, ask)[1] == []
    found, _ = site.as_role("admin", stored)
    assert b"stream" in found
    assert order_of("drain.h", found) is None
    assert order_of("drain.h", b'{"host": "h"}') == {"host": "h"}
    assert order_of("drain.g", b'{"host": "h"}') is None


@pytest.mark.integration
def test_nobody_enters_without_a_key_of_the_account(site: Site, tmp_path: Path) -> None:
    keys.write_keys(tmp_path / "others")

    async def enter(**how: Any) -> None:
        client = await nats.connect(site.broker.url, allow_reconnect=False, connect_timeout=5, **how)
        await client.close()

    for how in ({}, {"user": "admin", "password": "x"}, {"nkeys_seed": str(tmp_path / "others" / "admin.nk")}):
        with pytest.raises((nats.errors.Error, OSError), match=r"(?i)authorization|no servers|nkey"):
            asyncio.run(asyncio.wait_for(enter(**how), BOUND))


def test_keys_are_private_and_are_not_replaced_unasked(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    paths = keys.write_keys(directory)
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {"feeder.nk": "0o600", "worker.nk": "0o600", "admin.nk": "0o600", "users.conf": "0o644"}
    before = [path.read_bytes() for path in paths]
    assert not [seed for seed in before[:3] if seed.strip() in before[3]]
    with pytest.raises(RmbgdError, match="it exists, and new keys would lock out"):
        keys.write_keys(directory)
    assert before == [path.read_bytes() for path in paths]
    keys.write_keys(directory, replace=True)
    assert not set(before) & {path.read_bytes() for path in paths}
