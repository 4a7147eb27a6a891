"""When the Triton kernels are used, and what is said when they are not."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch

from rmbgd.models.kernels import runtime as available


def test_switched_off_is_said():
    """Who switches the kernels off gets no other reason."""
    assert available.triton_for("cuda", "off") == available.Availability(False, "switched off")


def test_a_cpu_is_no_place_for_kernels_by_itself(device):
    """On a CPU the interpreter, slow as it is, is used only where somebody asks for it."""
    assert not available.triton_for("cpu", "auto").usable


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: Triton is not interpreted here")
def test_the_interpreter_is_used_when_asked_for(device):
    """`on` on a CPU takes the interpreter and says so."""
    found = available.triton_for("cpu", "on")

    assert found.usable
    assert "interpreter" in found.why


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said(device):
    """Without a driver the answer is a reason, not an exception."""
    found = available.triton_for("cuda:0", "auto")

    assert not found.usable
    assert "no usable CUDA device" in found.why


def test_without_triton_is_said(monkeypatch):
    """Where Triton is not installed the answer names it."""
    monkeypatch.setitem(sys.modules, "triton", None)
    found = available.triton_for("cuda", "auto")

    assert not found.usable
    assert "not installed" in found.why


@pytest.mark.parametrize(("capability", "usable"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_old_cards_are_left_to_plain_torch(device, monkeypatch, capability, usable):
    """Below capability 8.0 the kernels are not used."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(available, "_trial", lambda _: "")
    found = available.triton_for("cuda", "auto")

    assert found.usable is usable
    assert "a card" in found.why


def test_a_kernel_that_does_not_compile_is_said(device, monkeypatch):
    """What the compiler says comes in one line, with what to do; the caller goes on without kernels."""

    def broken(_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nmore")

    from rmbgd.models.kernels import trial_kernel

    monkeypatch.setattr(trial_kernel, "doubled", broken)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda n, device: arange(n))
    found = available.triton_for("cuda", "auto")

    assert not found.usable
    assert "Failed to find C compiler" in found.why
    assert "optimize" in found.why
    assert "\n" not in found.why


def test_the_trial_kernel_computes(device):
    """The kernel that stands for all computes what it says."""
    from rmbgd.models.kernels.trial_kernel import doubled

    assert torch.equal(doubled(torch.arange(8, device=device)).cpu(), torch.arange(0, 16, 2))


def test_plain_kernels_need_no_triton():
    """The plain functions load without Triton, which comes only with a module named _kernel."""
    code = "import sys\nfrom rmbgd.models.kernels import runtime, head, resize\nprint('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
