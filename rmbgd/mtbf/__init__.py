"""Mean time between failures, from event logs. Standard library only; knows nothing but the vocabulary of events."""

from __future__ import annotations

from rmbgd.mtbf.command import add_arguments, run

__all__ = ["add_arguments", "run"]
