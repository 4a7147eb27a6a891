"""A nats-server that is too old is named in one line, with its version, by workers and by commands."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.errors import Exit
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest

pytestmark = pytest.mark.integration

OLD = "2.9.10"  # Debian 12's


@contextmanager
def old_server() -> Iterator[str]:
    """As far as a client gets with it: it says who it is, and answers pings. Its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        threading.Thread(target=_accept, args=(listening, port), daemon=True).start()
        yield f"nats://127.0.0.1:{port}"
        listening.shutdown(socket.SHUT_RDWR)  # or accept goes on


def _accept(listening: socket.socket, port: int) -> None:
    with suppress(OSError):
        while True:
            threading.Thread(target=_serve, args=(listening.accept()[0], port), daemon=True).start()


def _serve(connection: socket.socket, port: int) -> None:
    said = {"server_id": "A", "version": OLD, "proto": 1, "host": "127.0.0.1", "port": port, "headers": True,
            "max_payload": 1 << 20, "jetstream": True}  # fmt: skip
    with connection, suppress(OSError), connection.makefile("rb") as lines:
        connection.sendall(b"INFO " + json.dumps(said).encode() + b"\r\n")
        for line in lines:
            if line.startswith(b"PING"):
                connection.sendall(b"PONG\r\n")


@contextmanager
def old_monitor() -> Iterator[str]:
    """The monitoring port of such a server."""

    class Monitor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {
                "/varz": {"version": OLD, "host": "127.0.0.1", "port": 4222, "auth_required": True},
                "/jsz": {"config": {"max_storage": 1000, "store_dir": "/s"}, "storage": 0},
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Monitor) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("announces", [False, True], ids=["worker", "announcer"])
def test_an_old_server_is_named_once(tmp_path: Path, announces: bool) -> None:
    with old_server() as url:
        settings = {"source": {"kind": "jetstream", "servers": [url], "retry_wait": 0.5}}
        service = ServiceUnderTest(
            tmp_path, settings=settings, folder={"originals": "keep"}, options={"announces": announces}
        )
        with service.start():
            service.drop("a.png", sample_image())
            lost = service.wait_for("source.lost")
            time.sleep(1.5)  # several more tries
        assert (lost["kind"], lost["detail"]) == ("unfit", f"{url}: nats-server {OLD}; install 2.11 or newer there")
        assert len(service.recorded("source.lost")) == 1
        assert service.recorded("source.unusable") == service.recorded("source.connected") == []


def test_setup_names_an_old_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with old_server() as url:
        settings = {"source": {"kind": "jetstream", "servers": [url]}}
        service = ServiceUnderTest(tmp_path, settings=settings, folder={"originals": "keep"})
        assert cli.main(["fleet", "setup", "--config", str(service.config)]) == Exit.FAILED
        said = capsys.readouterr()
        assert said.out == ""
        [line] = said.err.splitlines()
        assert f"{url}: nats-server {OLD}; install 2.11 or newer there" in line


def test_check_broker_names_an_old_server(capsys: pytest.CaptureFixture[str]) -> None:
    with old_monitor() as url:
        assert cli.main(["fleet", "check-broker", "--monitor", url]) == Exit.FAILED
        first, *_ = capsys.readouterr().out.splitlines()
        assert first.startswith(f"error: {url}: nats-server {OLD} is too old")
        assert first.endswith("install 2.11 or newer")
