"""Storage that speaks S3, as a process of its own: what it was asked is in its log; it can be made to hang."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import botocore.session
import pytest

from tests.support.broker import free_port
from tests.support.standstill import stand_still

PATIENCE = 30.0  # s until it answers
KEYS = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"
_REQUEST = re.compile(r'"(?:\x1b\[[0-9;]*m)*([A-Z]+) (/\S*) HTTP')


class Storage:
    """What it holds is in its memory. Files of its own in `base`."""

    def __init__(self, base: Path) -> None:
        pytest.importorskip("moto", reason="needs moto (pip install 'moto[server]')")
        base.mkdir(parents=True, exist_ok=True)
        self.credentials, self.log, self.port = base / "s3-keys", base / "storage.log", free_port()
        self.credentials.write_text(KEYS)
        self.credentials.chmod(0o600)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the storage did not start: {self.log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.05)
        session = botocore.session.Session()
        session.set_credentials("a", "b")
        self._client = session.create_client("s3", region_name="us-east-1", endpoint_url=self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the table [s3]."""
        return {"endpoint": self.url, "credentials": str(self.credentials), "timeout": 2.0}

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It answers nothing meanwhile."""
        assert self.process is not None
        stand_still(self.process.pid)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def make(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Its ETag."""
        return str(self._client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"]).strip('"')

    def delete(self, bucket: str, key: str) -> None:
        self._client.delete_object(Bucket=bucket, Key=key)

    def read(self, bucket: str, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def metadata(self, bucket: str, key: str) -> dict[str, str]:
        return dict(self._client.head_object(Bucket=bucket, Key=key)["Metadata"])

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """By key below the prefix, without what workers ask the storage's abilities by."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {key.removeprefix(prefix): self.read(bucket, key) for key in keys if ".rmbgd-probe" not in key}

    def asked(self, bucket: str) -> Counter[tuple[str, str]]:
        """Requests for objects of a bucket so far, by method and key; of listings by the empty key."""
        found: Counter[tuple[str, str]] = Counter()
        for method, path in _REQUEST.findall(self.log.read_text(errors="replace")):
            target = path.partition("?")[0]
            if target == f"/{bucket}" or target.startswith(f"/{bucket}/"):
                found[method, target.removeprefix(f"/{bucket}").removeprefix("/")] += 1
        return found
