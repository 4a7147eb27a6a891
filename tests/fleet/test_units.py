"""Units of a fleet: the worker is the service but for what is listed here; the broker's configuration is valid."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rmbgd.config.settings import ServiceSettings
from rmbgd.fleet.keys import write_keys
from rmbgd.service import unit_files
from tests.support.broker import program

REPOSITORY = Path(__file__).parents[2]
DIFFERENCES = {
    "Description", "After", "Wants", "Conflicts", "ExecStartPre", "ExecStart", "ExecStopPost", "MemoryHigh",
    "MemoryMax", "Slice", "StateDirectory", "LogsDirectory", "RuntimeDirectory", "WorkingDirectory", "SyslogIdentifier",
    "Environment", "PrivateNetwork", "RestrictAddressFamilies", "IPAddressAllow",
}  # fmt: skip
NETWORK = {
    "PrivateNetwork=no", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "IPAddressDeny=any",
    "IPAddressAllow=localhost",
}  # fmt: skip
FLEET = ("rmbgd@.service", "rmbgd-announce.service", "rmbgd-sweep.service", "rmbgd-nats.service")


def lines(name: str) -> set[str]:
    stripped = (line.strip() for line in unit_files.text(name).splitlines())
    return {line for line in stripped if line and not line.startswith("#")}


def test_a_worker_has_the_sandbox_of_the_service() -> None:
    service, worker = lines("rmbgd.service"), lines("rmbgd@.service")
    assert {line.partition("=")[0] for line in service ^ worker} == DIFFERENCES
    assert worker >= NETWORK


@pytest.mark.parametrize("name", FLEET)
def test_no_unit_may_gain_rights(name: str) -> None:
    common = {
        "NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=", "ProtectSystem=strict",
        "ProtectHome=yes", "PrivateUsers=yes", "SystemCallFilter=~@privileged @resources",
    }  # fmt: skip
    assert lines(name) >= common
    assert unit_files.SYSTEM[name] == f"/etc/systemd/system/{name}"


@pytest.mark.parametrize("name", ["rmbgd@.service", "rmbgd-announce.service", "rmbgd-sweep.service"])
def test_who_writes_beside_the_images_may(name: str) -> None:
    """The announcer what it rejects; the sweep removes temporaries."""
    assert lines(name) >= {"ReadWritePaths=-/srv/rmbgd"}


def test_instances_have_their_own_directories_and_share_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the configuration says nothing, the unit decides; what it says counts."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/rmbgd/3:/var/lib/other")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/rmbgd/3")
    settings = ServiceSettings()
    assert (settings.state_directory, settings.runtime_directory) == (Path("/var/lib/rmbgd/3"), Path("/run/rmbgd/3"))
    assert settings.models_directory == Path("/var/lib/rmbgd/models")
    assert ServiceSettings(state_directory="/s").state_directory == Path("/s")
    assert ServiceSettings(state_directory="/s").models_directory == Path("/s/models")


@pytest.mark.integration
def test_the_broker_takes_the_shipped_configuration(tmp_path: Path) -> None:
    """The block for TLS as well, once its comment signs are gone."""
    write_keys(tmp_path / "keys")
    (tmp_path / "users.conf").write_bytes((tmp_path / "keys" / "users.conf").read_bytes())
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    certificate += ["-subj", "/CN=broker", "-days", "2", "-keyout", "server.key", "-out", "server.pem"]
    subprocess.run(certificate, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "ca.pem").write_bytes((tmp_path / "server.pem").read_bytes())
    shipped = (REPOSITORY / "config" / "nats-server.conf").read_text(encoding="utf-8")
    head, mark, block = shipped.partition("# tls {")
    with_tls = head + (mark + block).replace("\n# ", "\n").removeprefix("# ")
    for text in (shipped, with_tls.replace("/etc/rmbgd/nats", str(tmp_path))):
        path = tmp_path / "nats-server.conf"
        path.write_text(text)
        done = subprocess.run([program(), "-t", "--config", path], capture_output=True, text=True, check=False)
        assert (done.returncode, "is valid" in done.stderr) == (0, True), done.stderr
