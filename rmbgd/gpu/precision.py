"""POLICY: in which type a network computes on a device, from what is asked for and what the device can do.

Knows no torch: types are told by name. Some parts of a network stay in float32 whatever is chosen; the network knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rmbgd.engine.base import Limit

Capability = tuple[int, int]

BFLOAT16_FROM: Capability = (8, 0)  # Ampere
FLOAT8_FROM: Capability = (8, 9)  # Ada; Hopper is 9.0


@dataclass(frozen=True, slots=True)
class Precision:
    """storage  of weights and activations: float32, float16 or bfloat16
    float8   whether products of the backbone go through float8
    """

    storage: str
    float8: bool = False
    limits: tuple[Limit, ...] = field(default=())

    @property
    def wide(self) -> bool:
        """Nothing is gained by computing again in float32."""
        return self.storage == "float32"


def precision_of(asked: str, capability: Capability | None) -> Precision:
    """`asked` as the settings have it. A device without a capability is a CPU."""
    if capability is None:
        if asked == "float8":
            return Precision("float32", limits=(Limit("float8", "a CPU has no float8 products: float32 is used"),))
        return Precision("float32" if asked == "auto" else asked)
    has = f"{capability[0]}.{capability[1]}"
    if asked == "float8":
        if capability >= FLOAT8_FROM:
            return Precision("float16", float8=True)
        told = f"float8 products need compute capability 8.9 (Ada, Hopper), this device has {has}: float16 is used"
        return Precision("float16", limits=(Limit("float8", told),))
    if asked == "bfloat16" and capability < BFLOAT16_FROM:
        told = f"bfloat16 needs compute capability 8.0 (Ampere), this device has {has}: float16 is used"
        return Precision("float16", limits=(Limit("bfloat16", told),))
    return Precision("float16" if asked == "auto" else asked)
