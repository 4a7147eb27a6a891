"""What every table of settings is made of: checked words, and a field with its unit, bounds and reason.

Knows no setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

KIBI, MEBI = 1 << 10, 1 << 20


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"'{path}' is relative; write the whole path, starting with /")
    return path


def _octal(text: str) -> str:
    if not (len(text) in (3, 4) and all(digit in "01234567" for digit in text)):
        raise ValueError(f"'{text}' is no octal file mode; write it like \"0640\"")
    if int(text, 8) & 0o111:
        raise ValueError(f"'{text}' would make pictures executable; leave the execute bits out")
    return text


def _colour(text: str) -> str:
    digits = text.removeprefix("#")
    if len(digits) != 6 or not text.startswith("#") or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise ValueError(f"'{text}' is no colour; write it like \"#ffffff\"")
    return text.lower()


def _name(text: str) -> str:
    if not text or not all(c.isalnum() or c in "-_." for c in text) or text.startswith("."):
        raise ValueError(f"'{text}' is no name; use letters, digits, '-', '_' and '.'")
    return text


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
FileMode = Annotated[str, AfterValidator(_octal)]
Colour = Annotated[str, AfterValidator(_colour)]
Name = Annotated[str, AfterValidator(_name)]


def setting(default: Any = ..., *, unit: str = "", reason: str, **bounds: Any) -> Any:
    """A field with the unit it is measured in and the reason for its default; bounds are pydantic's ge, le, gt, lt."""
    return Field(default, description=reason, json_schema_extra={"unit": unit}, validate_default=True, **bounds)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
