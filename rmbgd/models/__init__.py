"""The networks. Knows nothing of threads, events or pictures on their way.

Importing the package loads nothing: torch comes with the module that is named, or with the first use of `load`, in the
engine's child process only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmbgd.models.weights import LoadedModel, Provenance, load, load_model

__all__ = ["LoadedModel", "Provenance", "load", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rmbgd.models import weights

    return getattr(weights, name)
