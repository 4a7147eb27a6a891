"""Keys of the broker's three users, and what each of them may do: `users.conf` for nats-server.

An nkey is an Ed25519 key pair: the broker knows the public half alone, so that nothing secret lies on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmbgd.errors import RmbgdError, missing_extra
from rmbgd.fs import atomic_write

USERS_FILE = "users.conf"
SEED_MODE, USERS_MODE = 0o600, 0o644
ACCOUNT = "RMBGD"
JOBS = ("RMBGD_HOT", "RMBGD_BULK")
STREAMS = (*JOBS, "RMBGD_DEAD")
BUCKETS = ("KV_rmbgd_attempts", "KV_rmbgd_workers", "KV_rmbgd_control")
API = "$JS.API"

_LOOK = tuple(f"{API}.STREAM.INFO.{stream}" for stream in STREAMS)
_LOOK_AT_CONSUMERS = tuple(f"{API}.CONSUMER.INFO.{stream}.*" for stream in JOBS)
# No DIRECT.GET: the broker sends its answer to whatever subject a question names, and that answer is the bytes that
# were stored. So a worker could store what it likes, and have the broker announce it, or drain hosts with it.
_READ_BUCKETS = tuple(f"{API}.{verb}.{bucket}" for bucket in BUCKETS for verb in ("STREAM.INFO", "STREAM.MSG.GET"))
PUBLISH: Mapping[str, Sequence[str]] = {
    "feeder": ("rmbgd.jobs.>", f"{API}.INFO", *_LOOK, *_LOOK_AT_CONSUMERS),
    "worker": (
        "rmbgd.dead.>",
        f"{API}.INFO",
        *_LOOK,
        *_LOOK_AT_CONSUMERS,
        *(f"{API}.CONSUMER.MSG.NEXT.{stream}.>" for stream in JOBS),
        *(f"$JS.ACK.{stream}.>" for stream in JOBS),
        "$KV.rmbgd_attempts.>",
        "$KV.rmbgd_workers.>",
        *_READ_BUCKETS,
    ),
    "admin": (">",),
}
"""Subjects that each role may publish to; by these JetStream is asked for everything."""


def inbox_prefix(public: str) -> str:
    """Of the subjects on which a user takes answers: with those of another it would hear what that one leases."""
    return f"_INBOX_{public}"


def users_conf(public: Mapping[str, str]) -> str:
    """The users of the account, as nats-server reads them: `public` keys (U...) by role, and PUBLISH."""
    users = []
    for role, subjects in PUBLISH.items():
        answers = ">" if role == "admin" else f"{inbox_prefix(public[role])}.>"
        allowed = "".join(f"\n        {json.dumps(subject)}" for subject in subjects)
        users.append(
            f"  {{ # {role}\n    nkey: {public[role]}\n    permissions: {{\n"
            f"      publish: {{ allow: [{allowed}\n      ] }}\n      subscribe: {{ allow: [{json.dumps(answers)}] }}\n"
            "    }\n  }\n"
        )
    heading = f"# Written by `rmbgd fleet keys`: users of the account {ACCOUNT}; holds nothing secret."
    return f"{heading}\nusers: [\n{''.join(users)}]\n"


def write_keys(directory: Path, *, replace: bool = False) -> list[Path]:
    """Writes feeder.nk, worker.nk and admin.nk (mode 0600) and users.conf; answers their paths.

    Raises RmbgdError where one is there already and `replace` is not set, for its holders would be locked out;
    ConfigError where the extra fleet is missing; OSError.
    """
    try:
        import nkeys
    except ImportError:
        raise missing_extra("nkeys", "fleet", "fleet keys") from None
    seeds = {role: directory / f"{role}.nk" for role in PUBLISH}
    paths = [*seeds.values(), directory / USERS_FILE]
    if not replace and (there := next((path for path in paths if os.path.lexists(path)), None)):
        raise RmbgdError(
            f"{there}: it exists, and new keys would lock out all who hold the old ones; name another directory, or "
            "say --replace and give the new keys to every host"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = {}
    for role, path in seeds.items():
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public[role] = nkeys.from_seed(seed).public_key.decode()
        atomic_write(path, bytes(seed) + b"\n", mode=SEED_MODE, durable=True)
    atomic_write(directory / USERS_FILE, users_conf(public).encode(), mode=USERS_MODE, durable=True)
    return paths
