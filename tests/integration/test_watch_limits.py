"""The kernel gives no inotify instance or too few watches: the folder is polled instead, and the service says so (F18).

The limits are those of a user namespace of the service's own, so that nobody else on the machine notices.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest

POLLING = {"intake": {"reconcile": 3600.0, "reconcile_lossy": 0.5}}


def limited(name: str, value: int) -> list[str]:
    """A command prefix: the rest runs where /proc/sys/user/`name` is `value`."""
    script = f'echo {value} > /proc/sys/user/{name} && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a user namespace")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces or their limits cannot be had here")
    return prefix


@pytest.mark.parametrize(("name", "value"), [("max_inotify_instances", 0), ("max_inotify_watches", 3)])
def test_without_watches_the_folder_is_polled(tmp_path: Path, name: str, value: int) -> None:
    data = {f"{number}/{number}.png": sample_image(number) for number in range(8)}
    service = ServiceUnderTest(tmp_path, settings=POLLING, prefix=limited(name, value))
    for path in data:
        (service.input / path).parent.mkdir()
    with service:
        service.wait_for("watch.degraded", folder="shop", cause="watch_limit")
        service.serve_all(data)
        service.turn()
        assert len(service.named("watch.degraded")) == 1
        assert service.named("service.failed") == []
    audit.assert_settled(service, data)
