"""Order between streams, and what is captured: seen on the host, by the detector in race_device.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rmbgd.backends.cuda import memory_plan
from rmbgd.backends.cuda.postprocess import summary
from rmbgd.engine.types import OutputPlane
from rmbgd.models.birefnet import BiRefNet
from rmbgd.models.checkpoint import BACKBONES
from rmbgd.models.inference import mattes
from rmbgd.models.u2net import U2NetP
from rmbgd.testing.device import HostDevice
from tests.backends.conftest import MEBI, OPTIONS, Canvas, ball
from tests.backends.cuda.race_device import CaptureLegality, Race, RaceDevice, captured


@pytest.fixture
def works(canvas: Canvas, monkeypatch: pytest.MonkeyPatch) -> list:
    """More than the ring holds, so that images push each other out; the last goes by way of the host."""
    monkeypatch.setattr(memory_plan, "STAGING_LEAST", 2 * MEBI)
    outputs = [*OutputPlane, OutputPlane.RGBA8]
    placed = [canvas.place(n, ball(300 + 10 * n, 400), output=outputs[n], clean=n != 3) for n in range(4)]
    return [*placed, canvas.place(4, ball(700, 600))]


def run(make, canvas, works, device: RaceDevice) -> None:
    """Two batches, whose planes the host reads in the end."""
    engine = make(replace(OPTIONS, staging_bytes=2 * MEBI), device)
    with device.watch():
        for batch in (works, works[::-1]):
            engine.segment(batch)
            for work in batch[:-1] if batch is works else batch[1:]:
                slot = canvas.slot(work)
                device.read_by_host(slot.alpha.view("uint8") if slot.rgba is None else slot.rgba)


def test_a_batch_orders_all_that_it_does(make, green, canvas, works):
    run(make, canvas, works, RaceDevice())


@pytest.mark.parametrize(
    ("method", "stream", "places"),
    [
        ("wait_event", "upload", r"write on upload at staging.py:\d+.*(read|write) on (compute|download) at"),
        ("wait_event", "compute", r"read on compute at .*write on upload at staging.py:\d+"),
        ("wait_event", "download", r"read on download at staging.py:\d+.*write on compute at finish.py:\d+"),
        ("synchronize_event", "host", r"read on host at batch.py:\d+.*write on compute at batch.py:\d+"),
    ],
)
def test_a_wait_that_is_left_out_is_found_with_both_its_places(make, green, canvas, works, method, stream, places):
    with pytest.raises(Race, match=places):
        run(make, canvas, works, RaceDevice(forgets=(method, stream)))


def test_the_host_may_read_a_plane_only_once_it_waited_for_it():
    device, plane, source = RaceDevice(), torch.zeros(8), torch.ones(8)
    with device.watch(), device.download_stream():
        plane.copy_(source)
        arrived = device.record_event()
    with pytest.raises(Race, match="read on host"):
        device.read_by_host(plane.numpy())
    device.synchronize_event(arrived)
    device.read_by_host(plane.numpy())


def test_what_is_captured_asks_the_device_for_nothing(make, green):
    engine = make(device=HostDevice(capture=captured), start=False)
    assert [limit.what for limit in engine.start().limits] == ["kernels"]
    assert engine._networks["u2netp"].graph_sizes == (1, 2, 4)


ILLEGAL = [
    lambda x: x.sum().item(),
    lambda x: x.nonzero(),
    lambda x: x.masked_select(x > 0),
    lambda x: x.unique(),
    lambda x: x[x > 0],
    lambda x: x.index_put_((x > 0,), torch.tensor(0.0)),
    lambda x: x.to("meta"),
    lambda x: torch.empty(4, device="meta").copy_(x),
]


@pytest.mark.parametrize("number", range(len(ILLEGAL)))
def test_what_cannot_be_captured_is_found(number):
    x = torch.ones(4)
    with CaptureLegality(), pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        ILLEGAL[number](x)


@pytest.mark.parametrize("build", [lambda: BiRefNet(BACKBONES["swin_v1_t"]), U2NetP])
def test_a_network_and_the_summary_of_its_mattes_can_be_captured(build):
    """On `meta`, which computes nothing. As on a GPU it runs once before, which makes tables on the host."""
    with torch.inference_mode():
        with torch.device("meta"):
            network, inputs = build().eval(), torch.empty(2, 3, 1024, 1024)
        mattes(network, inputs)
        with CaptureLegality():
            found = summary(*mattes(network, inputs))
    assert found.shape == (2, 5)
