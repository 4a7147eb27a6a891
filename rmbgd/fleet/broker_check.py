"""Asks a NATS server, by its monitoring port, whether it keeps what it confirms: JetStream, sync_always, room, TLS."""

from __future__ import annotations

import ipaddress
import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT = 5.0  # s for each answer
ASK_AGAIN = 0.5  # s
ANSWER_MAXIMUM = 1 << 20  # bytes
VERSION_MINIMUM = (2, 11)
ROOM_MINIMUM = 0.1  # of what the store may hold


@dataclass(frozen=True, slots=True)
class BrokerFinding:
    """What is wrong with a broker; `fatal`: it must not run so."""

    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{'error' if self.fatal else 'warning'}: {self.text}"


def check_broker(url: str, patience: float = 0.0) -> list[BrokerFinding]:
    """What is wrong with the broker whose monitoring port is `url` (http://HOST:8222); nothing: all is well.

    patience  seconds for which one that has just been started is asked again until it answers
    """
    base = url.rstrip("/")
    deadline = time.monotonic() + patience
    while True:
        try:
            general, jetstream = _ask(f"{base}/varz"), _ask(f"{base}/jsz")
            return list(judge(base, general, jetstream))
        except OSError as error:  # URLError is one
            if time.monotonic() >= deadline:
                return [_silent(base, error)]
            time.sleep(ASK_AGAIN)
        except ValueError as error:
            return [_silent(base, error)]


def _silent(base: str, error: Exception) -> BrokerFinding:
    reason = getattr(error, "reason", error)
    return BrokerFinding(f"{base}: the broker does not answer ({reason}); start it, and set `http` in nats-server.conf")


def judge(base: str, general: Mapping[str, Any], jetstream: Mapping[str, Any]) -> Iterator[BrokerFinding]:
    """Findings from the answers of /varz and /jsz."""
    version = str(general.get("version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < VERSION_MINIMUM:
        yield BrokerFinding(
            f"{base}: nats-server {version or 'of unknown version'} is too old: before 2.10 it lacks sync_interval: "
            "always, and before 2.10.23 it loses streams in plain crashes; install 2.11 or newer"
        )
    settings = jetstream.get("config") or {}
    if jetstream.get("disabled") or not settings:
        yield BrokerFinding(
            f"{base}: JetStream is off; write a block `jetstream {{ ... }}` into nats-server.conf, and restart"
        )
    else:
        if not settings.get("sync_always"):
            yield BrokerFinding(
                f"{base}: sync_interval is not `always`, so that a power cut takes images that the broker confirmed; "
                "write `sync_interval: always` into its block `jetstream`, and restart"
            )
        used, may = int(jetstream.get("storage", 0)), int(settings.get("max_storage", 0))
        if may <= 0 or used > may * (1 - ROOM_MINIMUM):
            yield BrokerFinding(
                f"{base}: the store in {settings.get('store_dir', '?')} holds {used:,} of at most {may:,} bytes; "
                "start more workers, or raise max_file_store",
                fatal=False,  # a full broker has to start, or nobody could take anything out of it
            )
    yield from _reachable(base, general)


def _reachable(base: str, general: Mapping[str, Any]) -> Iterator[BrokerFinding]:
    host = str(general.get("host", ""))
    if not (_is_loopback(host) or general.get("tls_required")):
        yield BrokerFinding(
            f"{base}: clients reach {host}:{general.get('port', '?')} without TLS; turn on `tls`, or listen "
            "on 127.0.0.1",
            fatal=False,
        )
    monitor = str(general.get("http_host") or host)
    if general.get("http_port") and not _is_loopback(monitor):
        yield BrokerFinding(
            f"{base}: the monitoring port {monitor}:{general['http_port']} has no login; set http to 127.0.0.1:8222",
            fatal=False,
        )
    if not general.get("auth_required"):
        yield BrokerFinding(
            f"{base}: clients need no key; include users.conf as config/nats-server.conf does", fatal=False
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(url: str) -> dict[str, Any]:
    """Raises OSError without an answer, ValueError for one that is no JSON object."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address; write http://127.0.0.1:8222")
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310, the scheme is checked above
        found = json.loads(answer.read(ANSWER_MAXIMUM))
    if not isinstance(found, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004, as any answer that is no JSON
    return found
