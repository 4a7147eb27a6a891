"""Records the operator's acceptance of a licence that restricts use.

One small file a model, so two acceptances never overwrite each other and withdrawing one is deleting its file.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rmbgd.errors import ModelError
from rmbgd.fs import write_json
from rmbgd.models.registry import ModelEntry, alternatives

FOLDER = "accepted"  # below the models directory: no registry model has this name


@dataclass(frozen=True)
class Acceptance:
    model: str
    licence: str  # SPDX identifier
    licence_url: str
    accepted_by: str
    accepted_at: str  # UTC, ISO 8601
    host: str


def record_path(entry: ModelEntry, models: Path) -> Path:
    return models / FOLDER / f"{entry.name}.json"


def acting_person() -> str:
    """The login name, that behind sudo where there is one, with the numeric id, which cannot be chosen."""
    if (login := os.environ.get("SUDO_USER")) and (uid := os.environ.get("SUDO_UID")):
        return f"{login} (uid {uid}, through sudo)"
    try:
        login = getpass.getuser()
    except (OSError, KeyError):  # a numeric user without an account, as in containers
        login = "unknown"
    return f"{login} (uid {os.getuid()})"


def accept(entry: ModelEntry, models: Path, *, who: str, now: datetime) -> Acceptance:
    """Record it durably and in one step. `now` is aware, UTC. Raises ModelError when the folder cannot be written."""
    moment = now.isoformat(timespec="seconds")
    record = Acceptance(entry.name, entry.licence, entry.licence_url, who, moment, socket.gethostname())
    try:
        write_json(record_path(entry, models), asdict(record))
    except OSError as error:
        raise ModelError(
            f"{record_path(entry, models)}: the acceptance cannot be recorded: {error.strerror}. "
            "Run the command as a user who may write there (sudo), or name another folder with --models-dir"
        ) from error
    return record


def accepted(entry: ModelEntry, models: Path) -> Acceptance | None:
    """The record that allows `entry` to load, or None: absent, unreadable, or given for another licence or model."""
    try:
        record = Acceptance(**json.loads(record_path(entry, models).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if (record.model, record.licence) == (entry.name, entry.licence) else None


def require(entry: ModelEntry, models: Path) -> Acceptance | None:
    """None where no acceptance is needed, else the record. Raises ModelError naming the models that need none."""
    if not entry.needs_consent:
        return None
    if record := accepted(entry, models):
        return record
    raise ModelError(
        f"{entry.name}: licensed under {entry.licence}, which forbids commercial use; no acceptance is recorded in "
        f"{models}. Read {entry.licence_url}, then: rmbgd models accept {entry.name}. "
        f"Free for commercial use: {', '.join(alternatives(entry))}"
    )
