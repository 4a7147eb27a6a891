"""TensorRT as a competitor: the same network, exported to ONNX with its deformable convolutions, in float16.

Takes the engine that `rmbgd models optimize --tensorrt` built, or builds it, which takes a minute or more; and times it
with its inputs and outputs on the device. The network alone: what the service adds is measured in the waterfall. Where
TensorRT is not installed, the row says so.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from rmbgd.bench.samples import drawn
from rmbgd.errors import ConfigError
from rmbgd.models import tensorrt_engine
from tools.gpubench.accuracy import compared
from tools.gpubench.networks import choose_device, float32_products, normalised, ours, timed
from tools.gpubench.plan import Answer, Plan

STEP = "TensorRT float16, the network alone"


def measure(plan: Plan, answer: Answer) -> None:
    for batch in plan.small_and_large:
        row = {"step": STEP, "type": "float16", "batch": batch}
        with answer.or_error(row, ImportError, RuntimeError, ConfigError):
            if not plan.is_gpu:
                raise RuntimeError("TensorRT needs a GPU")
            choose_device(plan)
            source, card = str(plan.weights), torch.device(plan.device)
            built = tensorrt_engine.build(source, plan.weights, card=card, batch=batch, patch_order=plan.patch_order)
            engine = tensorrt_engine.load(built.path)
            images = drawn(batch, plan.side)
            x = torch.cat([normalised(Image.fromarray(image.rgb), plan.side) for image in images]).to(plan.device)
            run, logits = bound(engine, x)
            milliseconds = 1000 * timed(run, plan, repeats=plan.repeats) / batch
            float32_products("ieee")
            with torch.inference_mode():
                network = ours(plan, torch.float32)
                reference = torch.cat([network(one[None]) for one in x])[:, 0].float().cpu().numpy()
            off = compared(np.asarray(logits.float().cpu().numpy())[:, 0], np.asarray(reference))
            answer.row(row | {"ms": milliseconds, "build_seconds": built.seconds} | off)


def bound(engine: Any, x: torch.Tensor) -> tuple[partial[object], torch.Tensor]:
    """(runs the engine on x, its logits), on torch's current stream."""
    context = engine.create_execution_context()
    source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)
    out = torch.empty(tuple(engine.get_tensor_shape(target)), dtype=x.dtype, device=x.device)
    context.set_tensor_address(source, x.contiguous().data_ptr())
    context.set_tensor_address(target, out.data_ptr())
    run = partial(context.execute_async_v3, torch.cuda.current_stream().cuda_stream)
    run()
    torch.cuda.synchronize()
    return run, out
