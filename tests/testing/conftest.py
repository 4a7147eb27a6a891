from __future__ import annotations

from tests.engine.conftest import images

__all__ = ["images"]
