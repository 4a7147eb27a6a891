"""BiRefNet for transformers: AutoModelForImageSegmentation without remote code.

    import rmbgd.models.hf  # registers the classes
    model = AutoModelForImageSegmentation.from_pretrained("/var/lib/rmbgd/models/birefnet")
    alpha = model(pixel_values).logits.sigmoid()

For notebooks and other programs; the service never imports it. The model's own parameters are the published ones, so
`save_pretrained` writes what the author's code and `load_model` read, bit for bit. The network that computes is
folded from them at the first forward, and again after they moved or changed type. After changing one in place call
`refold`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmbgd.errors import ModelError, missing_extra
from rmbgd.models import licences
from rmbgd.models.checkpoint import BACKBONES, DERIVED, TRAINING_HEADS, published, read_header
from rmbgd.models.convert import assemble
from rmbgd.models.registry import PatchOrder
from rmbgd.models.store import DEFAULT_MODELS, WEIGHTS, resolve
from rmbgd.models.swin import relative_position_index

try:
    from transformers import AutoConfig, AutoModelForImageSegmentation, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import SemanticSegmenterOutput
except ImportError as missing:
    raise missing_extra("transformers", "transformers", __name__) from missing


class BiRefNetConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """backbone: "swin_v1_l" or "swin_v1_t"; patch_order: a `PatchOrder`, None where it is not known yet; input_size:
    (height, width) in pixels; published_as: the registry's name, which carries the licence along."""

    model_type = "birefnet"

    def __init__(
        self,
        backbone: str = "swin_v1_l",
        patch_order: str | None = None,
        input_size: tuple[int, int] = (1024, 1024),
        published_as: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.backbone = backbone
        self.patch_order = patch_order
        self.input_size = list(input_size)
        self.published_as = published_as


class BiRefNetForImageSegmentation(PreTrainedModel):  # type: ignore[no-untyped-call]
    """pixel_values: normalised images [B,3,H,W], H and W multiples of 32 -> logits [B,1,H,W]."""

    config_class = BiRefNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_missing = [  # noqa: RUF012, as the base class declares it
        *(f"{name}$" for name in DERIVED),
        *(f"^{head}" for head in TRAINING_HEADS),
    ]

    def __init__(self, config: BiRefNetConfig) -> None:
        super().__init__(config)
        for name, info in published(config.backbone).items():
            *path, leaf = name.split(".")
            branch: nn.Module = self
            for word in path:
                if not hasattr(branch, word):
                    branch.add_module(word, nn.Module())
                branch = branch.get_submodule(word)
            if info.floating and not leaf.startswith("running_"):
                branch.register_parameter(leaf, nn.Parameter(torch.empty(info.shape), requires_grad=False))
            else:
                branch.register_buffer(leaf, torch.empty(info.shape, dtype=None if info.floating else torch.int64))
        self._folded: list[nn.Module] = []  # a list, so that the network is no submodule and is not saved
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | os.PathLike[str], *more: Any, **options: Any
    ) -> BiRefNetForImageSegmentation:
        """As transformers does it, for a folder or a name at the hub. Raises ModelError.

        A folder is held to the same rules as `load_model` holds it; the author's own folders pass too.
        """
        if os.path.isdir(source):
            options["config"] = _completed(Path(source), options.pop("config", None))
        return super().from_pretrained(source, *more, **options)

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> Any:
        """SemanticSegmenterOutput with `logits`; as with the author's code, `[-1]` of it is the logits too."""
        if self.training:
            raise ModelError("this BiRefNet computes, it does not train: call .eval()")
        if not self._folded:
            self.refold()
        logits = self._folded[0](pixel_values)
        return (logits,) if return_dict is False else SemanticSegmenterOutput(logits=logits)

    def refold(self) -> None:
        if self.config.patch_order is None:
            raise ModelError("the order of the image patches is not known: set config.patch_order")
        backbone, order = BACKBONES[self.config.backbone], PatchOrder(self.config.patch_order)
        tensors = self.state_dict()
        self._folded = [assemble(backbone, order, tensors.__getitem__, device=self.device, dtype=self.dtype)]

    def load_state_dict(self, *more: Any, **options: Any) -> Any:
        self._folded = []
        return super().load_state_dict(*more, **options)

    def _apply(self, *more: Any, **options: Any) -> Any:
        self._folded = []  # moved or cast
        return super()._apply(*more, **options)  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if getattr(tensor, "_is_hf_initialized", False):
                continue
            if name == "relative_position_index":
                window = BACKBONES[self.config.backbone].window
                tensor.copy_(relative_position_index(window, tensor.device).view(tensor.shape))
            elif tensor.dim() > 1:
                nn.init.trunc_normal_(tensor, std=0.02)
            else:
                tensor.fill_(1 if name in {"weight", "running_var"} else 0)


def _completed(folder: Path, config: BiRefNetConfig | None) -> BiRefNetConfig:
    """The configuration with what the folder says and config.json does not: backbone, patch order, input size."""
    model = resolve(folder / WEIGHTS, folder.parent)
    if model.entry and not licences.accepted(model.entry, folder.parent):
        licences.require(model.entry, DEFAULT_MODELS)
    config = config or BiRefNetConfig()
    config.backbone = model.backbone(read_header(model.weights))
    config.patch_order = model.patch_order(PatchOrder(config.patch_order) if config.patch_order else None).order.value
    config.input_size = list(model.input_size())
    config.published_as = model.entry.name if model.entry else None
    return config


AutoConfig.register(BiRefNetConfig.model_type, BiRefNetConfig)
AutoModelForImageSegmentation.register(BiRefNetConfig, BiRefNetForImageSegmentation)
