"""Which engine the configuration asks for: devices found, stand-ins chosen, lanes and processes built, and taken away.

Does not choose between devices while the service runs: the routing that is built here does.
"""

from rmbgd.engines.build import Machine, build, default_engine, default_machine
from rmbgd.engines.room import EngineFactory, EngineParts, EngineRoom, EngineWatch

__all__ = [
    "EngineFactory",
    "EngineParts",
    "EngineRoom",
    "EngineWatch",
    "Machine",
    "build",
    "default_engine",
    "default_machine",
]
