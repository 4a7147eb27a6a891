"""Optional libraries by the extra that installs them: which are here, and which of them a configuration needs."""

from __future__ import annotations

import importlib.util

from rmbgd.config.load import Config
from rmbgd.errors import missing_extra

EXTRAS = {  # the module that tells whether it is here, and what it is for
    "completion": ("shtab", "completion in the shell"),
    "cuda": ("triton", "faster networks on an NVIDIA card"),
    "fetch": ("huggingface_hub", "models fetch"),
    "fleet": ("nats", "images from a broker, for many GPUs and hosts"),
    "heif": ("pillow_heif", "HEIC images"),
    "metrics": ("prometheus_client", "health.metrics_file"),
    "openvino": ("openvino", "u2netp on CPUs in half of the time"),
    "parquet": ("pyarrow", "backfill from a list in a Parquet file"),
    "ray": ("ray", "a backfill on a Ray cluster"),
    "report": ("jinja2", "HTML reports"),
    "s3": ("botocore", "images in buckets"),
    "systemd": ("systemd.daemon", "systemd's own library; the service does without"),
    "tensorrt": ("tensorrt", "a rival of the GPU engine, for measuring"),
    "transformers": ("transformers", "rmbgd.models.hf"),
    "video": ("av", "films"),
}


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def missing_extras(config: Config) -> list[str]:
    """A sentence for each library that a setting needs and that is not installed."""
    needed = {
        "metrics": config.health.metrics_file is not None and "health.metrics_file",
        "fleet": config.source.kind == "jetstream" and 'source.kind = "jetstream"',
        "s3": bool(config.bucket) and "[[bucket]]",
        "video": any(folder.kind == "films" for folder in config.folder) and '[[folder]] kind = "films"',
        "openvino": config.engine.cpu_runtime == "openvino" and 'engine.cpu_runtime = "openvino"',
    }
    found: list[str] = []
    for extra, what in needed.items():
        if what and not is_installed(module := EXTRAS[extra][0]):
            found += missing_extra(module, extra, what).problems
    return found
