"""A hub on this machine: answers what huggingface_hub asks of the real one for one repository, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository with the files of `folder`. `asked` records every request line."""

    repo: str
    folder: Path
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)  # first byte of every partial request
    error: tuple[int, str] | None = None  # status and X-Error-Code instead of an answer
    cut_after: int | None = None  # bytes of the next longer body, once; then the connection is cut
    endpoint: str = ""

    def facts(self) -> dict:
        siblings = []
        for path in sorted(self.folder.iterdir()):
            size = path.stat().st_size
            record: dict = {"rfilename": path.name, "size": size, "blobId": "b" * 40}
            if path.suffix == ".safetensors":
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                record["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
            siblings.append(record)
        names = {"id": self.repo, "modelId": self.repo, "sha": self.commit}
        return {**names, "siblings": siblings, "tags": [], "private": False}


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if hub.error:
                self.reply(hub.error[0], b"{}", {"X-Error-Code": hub.error[1]}, body=body)
            elif path.startswith(f"/api/models/{hub.repo}/tree"):
                self.reply(404, b"{}", {}, body=body)
            elif path.startswith(f"/api/models/{hub.repo}"):
                self.reply(200, json.dumps(hub.facts()).encode(), {"Content-Type": "application/json"}, body=body)
            elif path.startswith(f"/{hub.repo}/resolve/{hub.commit}/"):
                self.file(hub.folder / path.rpartition("/")[2], body=body)
            else:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

        def file(self, path: Path, *, body: bool) -> None:
            if not path.is_file():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
                return
            data = path.read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": hub.commit}
            headers["Accept-Ranges"] = "bytes"
            if start := int(self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0] or 0):
                hub.ranges.append(start)
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(206 if start else 200, data[start:], headers, body=body)

        def reply(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and hub.cut_after is not None and len(content) > hub.cut_after:
                self.wfile.write(content[: hub.cut_after])
                hub.cut_after = None
                self.close_connection = True
            elif body:
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
