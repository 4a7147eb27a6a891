"""Too little memory, no more tasks, hardly any processor: the service goes on, and every image comes out."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from tests.integration.test_process import STALL_AFTER
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest
from tests.support.images import samples
from tests.support.limits import group
from tests.support.service import ServiceUnderTest

HEADROOM = 96 << 20  # bytes of memory beyond what the idle service has
TOO_MUCH = 1024  # MiB that the engine tries to take
STARVED = 0.05  # of one processor


def on_the_cpu(base: Path) -> GpuUnderTest:
    """A fake engine that takes orders, in a child process, without a GPU."""
    settings = {"engine": {"device": "cpu", "restart_delay_maximum": 1.0}}
    return GpuUnderTest(base, settings=settings, gpu={"standby": {"orders": str(base / "orders")}})


def test_kernel_takes_the_engine_when_memory_is_short(tmp_path: Path) -> None:
    """The engine's process is killed for memory, not the service; another takes over, and nothing is refused."""
    with on_the_cpu(tmp_path) as service:
        assert service.process is not None
        with group("memory", service.process.pid) as limited:
            (old,) = service.children()
            limited.add(old)
            service.turn()
            limited.limit_memory(limited.memory() + HEADROOM)
            service.steps([f"eat:{TOO_MUCH}"])
            data = service.drop_all(samples(range(10)))
            fault = service.wait_for("engine.fault")
            service.wait_for_endings(1 + len(data))
            assert limited.killed_for_memory() == 1
            assert "SIGKILL" in fault["detail"]
            (fresh,) = service.children()
            assert fresh != old
        assert service.named("image.failed") == []
        assert {event["pid"] for event in service.events} == {service.process.pid}
    audit.assert_settled(service, data)


def test_no_task_can_be_started(tmp_path: Path) -> None:
    """While fork says EAGAIN the engine that died is not replaced and nobody else dies; then everything comes out."""
    with on_the_cpu(tmp_path) as service:
        assert service.process is not None
        service.turn()
        (old,) = service.children()
        with group("pids", service.process.pid) as limited:
            limited.limit_tasks(1)
            os.kill(old, signal.SIGKILL)
            data = service.drop_all(samples(range(10)))
            service.wait_for("engine.fault", count=2)  # that it died, and that another cannot start
            assert service.children() == []
            limited.limit_tasks(None)
            service.wait_for_endings(1 + len(data))
        assert service.named("image.failed") == []
        assert {event["pid"] for event in service.events} == {service.process.pid}
        detail = service.named("engine.fault")[1]["detail"]
        assert "new thread" in detail or "Resource temporarily unavailable" in detail
    audit.assert_settled(service, data)


def test_starved_service_is_slow_and_not_hung(tmp_path: Path) -> None:
    """With a twentieth of a processor for longer than stall_after nobody is taken for hung, and all comes out."""
    settings = {"service": {"stall_after": STALL_AFTER, "status_interval": 0.1}}
    with ServiceUnderTest(tmp_path, settings=settings) as service:
        assert service.process is not None
        with group("cpu", service.process.pid) as limited:
            limited.limit_processor(STARVED)
            data = service.drop_all(samples(range(20)))
            threading.Event().wait(STALL_AFTER + 1.0)  # what is tested is that this time passes
            assert limited.throttled() > 10, "the service was not starved"
            limited.limit_processor(1.0)
            service.wait_for_endings(len(data))
        assert service.named("service.stalled") == []
        assert service.named("image.failed") == []
    audit.assert_settled(service, data)
