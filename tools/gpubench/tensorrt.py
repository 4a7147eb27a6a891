"""TensorRT as a competitor: the same network, exported to ONNX with its deformable convolutions, in float16.

Builds an engine on this card, which takes a minute or more, and times it with its inputs and outputs on the device. The
network alone: what the service adds is measured in the waterfall. Where TensorRT is not installed, the row says so.
"""

from __future__ import annotations

import importlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rmbgd.bench.samples import drawn
from rmbgd.models.onnx_export import export_onnx
from tools.gpubench.accuracy import compared
from tools.gpubench.networks import choose_device, float32_products, normalised, ours, timed
from tools.gpubench.plan import Answer, Plan

STEP = "TensorRT float16, the network alone"
WORKSPACE = 8 << 30  # bytes of the device that its tactics may take


def measure(plan: Plan, answer: Answer) -> None:
    for batch in plan.small_and_large:
        row = {"step": STEP, "type": "float16", "batch": batch}
        with answer.or_error(row, ImportError, RuntimeError):
            if not plan.is_gpu:
                raise RuntimeError("TensorRT needs a GPU")
            choose_device(plan)
            began = time.monotonic()
            engine = built(plan, batch)
            seconds = time.monotonic() - began
            images = drawn(batch, plan.side)
            x = torch.cat([normalised(Image.fromarray(image.rgb), plan.side) for image in images]).to(plan.device)
            run, logits = bound(engine, x)
            milliseconds = 1000 * timed(run, plan, repeats=plan.repeats) / batch
            float32_products("ieee")
            with torch.inference_mode():
                network = ours(plan, torch.float32)
                reference = torch.cat([network(one[None]) for one in x])[:, 0].float().cpu().numpy()
            off = compared(np.asarray(logits.float().cpu().numpy())[:, 0], np.asarray(reference))
            answer.row(row | {"ms": milliseconds, "build_seconds": seconds} | off)


def built(plan: Plan, batch: int) -> Any:
    """An engine for batches of exactly `batch`. Raises ImportError without TensorRT, RuntimeError with its words."""
    trt: Any = importlib.import_module("tensorrt")
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(message)

    if not hasattr(trt.BuilderFlag, "FP16"):
        raise RuntimeError(f"TensorRT {trt.__version__} chooses no types itself: install tensorrt 10")
    path = Path(plan.work, f"network-{batch}.onnx")
    export_onnx(str(plan.weights), Path(plan.work), path, batch=batch, patch_order=plan.patch_order)
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)) or said[-1])
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    plan_bytes = builder.build_serialized_network(network, config)
    if plan_bytes is None:
        raise RuntimeError(said[-1] if said else "TensorRT built nothing and said nothing")
    return trt.Runtime(log).deserialize_cuda_engine(plan_bytes)


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
