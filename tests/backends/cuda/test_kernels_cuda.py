"""On a CUDA device: each kernel at the sizes of Swin-L at 1024x1024, in each type; BiRefNet without and with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rmbgd.models.checkpoint import BACKBONES
from rmbgd.models.convert import assemble
from rmbgd.models.deform import DeformableAspp
from rmbgd.models.inference import mattes, put_images
from rmbgd.models.kernels.runtime import triton_for, use_kernels
from rmbgd.models.registry import PatchOrder
from rmbgd.models.swin import WindowAttention
from tests.models import stress
from tests.models.kernels.test_aspp import TOLERANCE, Given
from tests.models.kernels.test_head import Ending
from tests.models.kernels.test_window import computed, definition
from tests.models.stress import golden

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]

TYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float16", "bfloat16"])


@pytest.fixture
def gpu(cuda: torch.device) -> torch.device:
    if not (found := triton_for(cuda)).usable:
        pytest.skip(f"no kernels here: {found.why}")
    return cuda


def noise(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(6)).to(device)


def relative(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@TYPES
@pytest.mark.parametrize(("heads", "side", "shift"), [(6, 256, 6), (12, 128, 0), (24, 64, 6), (48, 32, 6), (24, 33, 6)])
def test_window_attention(gpu, dtype, heads, side, shift):
    """The four stages' maps, one of them odd, shifted and not."""
    layer = WindowAttention(32 * heads, heads, 12).requires_grad_(requires_grad=False)
    layer.relative_position_bias_table.normal_()
    layer.qkv.bias.normal_()
    layer = layer.to(gpu, dtype)
    use_kernels(layer, triton=True)
    qkv = noise(gpu, 1, side, side, 96 * heads).to(dtype)
    assert relative(computed(layer, qkv, shift), definition(layer, qkv, shift)) <= TOLERANCE[dtype]


@TYPES
@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_deformable_pyramid(gpu, dtype, side):
    """The decoder's maps, with offsets of some pixels and a few far outside."""
    layer = DeformableAspp()
    stress.randomised(layer)
    for branch in layer.branches:
        moves = 3 * noise(gpu, 1, 3 * branch.kernel**2, side, side)
        moves = torch.where(moves.abs() > 8, 5 * moves, moves).to(dtype)
        branch.offset = Given(moves.to(memory_format=torch.channels_last))
    layer = layer.to(gpu, dtype)
    x = noise(gpu, 1, 64, side, side).to(dtype).to(memory_format=torch.channels_last)
    use_kernels(layer, triton=True)
    got = layer(x)
    use_kernels(layer, triton=False)
    assert relative(got, layer.double()(x.double())) <= TOLERANCE[dtype]


@TYPES
def test_head(gpu, dtype):
    """1024 x 1024 pixels; the map may be in half precision, the image is float32."""
    ending = Ending().to(gpu)
    use_kernels(ending, triton=True)
    x = noise(gpu, 2, 3, 1024, 1024).to(dtype).float().to(memory_format=torch.channels_last)
    alpha, finite = mattes(ending, x, triton=True)
    torch.testing.assert_close(alpha.double(), ending.double()(x.double())[:, 0].sigmoid(), rtol=0, atol=1e-5)
    assert finite.all()


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (3024, 4032), (720, 1280), (337, 9001), (64, 64)])
def test_images(gpu, height, width):
    """Photographs of many sizes into 1024 x 1024, within 1e-3 of a level of the float64 resize."""
    rgb = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = torch.empty((1, 3, 1024, 1024), device=gpu, memory_format=torch.channels_last)
    put_images([rgb.to(gpu)], inputs, torch.ones(3, device=gpu), torch.zeros(3, device=gpu), triton=True)
    exact = F.interpolate(rgb.permute(2, 0, 1)[None].double(), (1024, 1024), mode="bilinear", antialias=True)
    torch.testing.assert_close(inputs.cpu().double(), exact, rtol=0, atol=1e-3)


def network(device, dtype, backbone: str = "swin_v1_l", order=PatchOrder.CHANNEL_FIRST) -> torch.nn.Module:
    weights = stress.recipe_tensors(stress.recipe(), backbone)
    return assemble(BACKBONES[backbone], order, weights, device=device, dtype=dtype)


GOLDENS = ["swin_v1_t-512x512", "swin_v1_t-2x256x384", "swin_v1_l-512x512", "rmbg2-512x512"]


@torch.inference_mode()
def logits(name: str, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network answers on the device, and the reference's answer."""
    x, expected = golden(name)
    backbone = "swin_v1_t" if name.startswith("swin_v1_t") else "swin_v1_l"
    order = PatchOrder.TILE_FIRST if name.startswith("rmbg2") else PatchOrder.CHANNEL_FIRST
    return network(device, dtype, backbone, order)(x.to(device)).cpu(), expected


@pytest.mark.parametrize("name", GOLDENS)
def test_float32_equals_the_reference(cuda, name):
    answer, expected = logits(name, cuda, torch.float32)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "distance", "steps"), [(torch.float16, 1e-2, 0.3), (torch.bfloat16, 6e-2, 1.5)], ids=["half", "bfloat16"]
)
@pytest.mark.parametrize("name", GOLDENS)
def test_half_precision_is_near_the_reference(cuda, name, dtype, distance, steps):
    """In half precision the logits are near the reference's (relative, L2), and so is alpha (mean, steps of 1/255)."""
    answer, expected = logits(name, cuda, dtype)
    assert answer.isfinite().all()
    assert (answer - expected).norm() / expected.norm() <= distance
    assert (answer.sigmoid() - expected.sigmoid()).abs().mean() * 255 <= steps


@torch.inference_mode()
def test_network_in_float32_is_the_reference(gpu):
    x, expected = golden("swin_v1_l-512x512")
    module = network(gpu, torch.float32)
    use_kernels(module, triton=True)
    alpha, finite = mattes(module, x.to(gpu), triton=True)
    torch.testing.assert_close(alpha.cpu(), expected[:, 0].sigmoid(), rtol=0, atol=1e-3)
    assert finite.all()


@pytest.mark.parametrize(
    ("dtype", "mean", "outliers"),
    [(torch.float16, 0.3, 1e-4), (torch.bfloat16, 1.5, 5e-3)],
    ids=["float16", "bfloat16"],
)
@torch.inference_mode()
def test_network_in_half_precision(gpu, dtype, mean, outliers):
    """The reference within so many steps of 255 on average, few pixels off by more than eight; no worse than plain."""
    x, expected = golden("swin_v1_l-512x512")
    module = network(gpu, dtype)
    exact = expected[:, 0].sigmoid()
    plain, _ = mattes(module, x.to(gpu))
    use_kernels(module, triton=True)
    alpha, finite = mattes(module, x.to(gpu), triton=True)
    off = 255 * (alpha.cpu() - exact).abs()
    off_plain = 255 * (plain.cpu() - exact).abs()
    assert finite.all()
    assert off.mean() <= mean
    assert (off > 8).float().mean() <= outliers
    assert off.mean() <= 1.05 * off_plain.mean()


@torch.inference_mode()
def test_everything_is_captured(gpu):
    """And the replay equals the launches to the bit."""
    module = network(gpu, torch.float16)
    use_kernels(module, triton=True)
    static = noise(gpu, 2, 3, 512, 512).to(memory_format=torch.channels_last)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            mattes(module, static, triton=True)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        alpha, finite = mattes(module, static, triton=True)
    static.copy_(noise(gpu, 2, 3, 512, 512).flip(3))
    expected, _ = mattes(module, static, triton=True)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(alpha, expected)
    assert finite.all()
