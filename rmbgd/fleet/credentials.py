"""What proves to the broker who we are, and how the connection is encrypted: files named in the configuration."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import nkeys

from rmbgd.config.load import SourceSettings
from rmbgd.errors import ConfigError, explain
from rmbgd.fleet.keys import inbox_prefix


def proof(path: Path | None) -> dict[str, object]:
    """Options of the connection that prove who we are. Raises ConfigError, which never shows what the file holds."""
    if path is None:
        return {}
    words = private_lines(path, "source.credentials")
    if any("BEGIN NATS USER JWT" in line for line in words):
        return {"user_credentials": str(path)}
    if len(words) == 1 and words[0].startswith("SU"):
        return {"nkeys_seed_str": words[0], "inbox_prefix": inbox_prefix(_public_key(words[0], path))}
    if len(words) == 2:
        return {"user": words[0], "password": words[1]}
    raise ConfigError(
        f"source.credentials: {path} is none of: NATS credentials, the seed of an nkey (SU...), a user and a password "
        "on two lines"
    )


def private_lines(path: Path, setting: str) -> list[str]:
    """Of a file that only we may read; without comments. Raises ConfigError."""
    try:
        status = os.stat(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = explain(error) if isinstance(error, OSError) else f"{path}: is no text"
        raise ConfigError(f"{setting}: {why}") from error
    if stat.S_IMODE(status.st_mode) & 0o007:
        raise ConfigError(f"{setting}: others may read {path}; take that away: chmod o= {path}")
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _public_key(seed: str, path: Path) -> str:
    try:
        return str(nkeys.from_seed(seed.encode()).public_key.decode())
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigError(f"source.credentials: {path}: no seed of an nkey; copy the file again") from error


def encryption(settings: SourceSettings) -> dict[str, object]:
    if not any((settings.tls_ca, settings.tls_certificate, *(each.startswith("tls:") for each in settings.servers))):
        return {}
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_certificate is not None:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"source.tls_ca, tls_certificate or tls_key: {explain(error)}") from error
    return {"tls": context}
