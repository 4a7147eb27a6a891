"""Converts the public ONNX file of U²-Net-p into the safetensors file that ships inside the package.

    python tools/convert_u2netp.py u2netp.onnx [rmbgd/models/data/u2netp.safetensors]

Takes only the weights, in graph order, and gives them the names of `rmbgd.models.u2net.U2NetP`; does not read the
rest of the graph. Refuses any file but the published one (by sha256). Needs the packages onnx and safetensors.

Layout of the result: float32 `<module>.weight` [out, in, kernel row, kernel column] and `<module>.bias` [out],
BatchNorm folded, modules in the order in which the network runs them; one metadata entry `provenance` (JSON).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from safetensors.numpy import save

from rmbgd.models.store import EMBEDDED
from rmbgd.models.u2net import U2NetP

ONNX_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
PROVENANCE = {
    "network": "U²-Net-p, 320x320, salient object segmentation, trained on DUTS-TR",
    "authors": "Xuebin Qin, Zichen Zhang, Chenyang Huang, Masood Dehghan, Osmar R. Zaiane, Martin Jagersand",
    "source": "https://github.com/xuebinqin/U-2-Net, as u2netp.onnx",
    "source_sha256": ONNX_SHA256,
    "licence": "Apache-2.0",
    "changes": "weights taken out of the ONNX graph and renamed; values unchanged",
}


def convert(data: bytes) -> dict[str, np.ndarray]:
    """Bytes of the ONNX file -> tensor name -> float32 array. Raises ValueError for any file but the published one."""
    found = hashlib.sha256(data).hexdigest()
    if found != ONNX_SHA256:
        raise ValueError(f"not the published u2netp.onnx: sha256 is {found}, expected {ONNX_SHA256}")
    graph = onnx.load_from_string(data).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    with torch.device("meta"):
        network = U2NetP()
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    return {
        f"{name}.{part}": stored[source]
        for name, node in zip(names, convolutions, strict=True)  # in the same order
        for part, source in zip(("weight", "bias"), node.input[1:], strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="the public u2netp.onnx (4.6 MB)")
    parser.add_argument("out", type=Path, nargs="?", default=EMBEDDED, help="safetensors file to write")
    arguments = parser.parse_args()
    tensors = convert(arguments.onnx.read_bytes())
    provenance = json.dumps(PROVENANCE, ensure_ascii=False, indent=1)
    arguments.out.write_bytes(save(tensors, metadata={"provenance": provenance}))
    print(f"{arguments.out}: {len(tensors)} tensors, {sum(t.size for t in tensors.values())} parameters")


if __name__ == "__main__":
    main()
