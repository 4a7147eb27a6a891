"""HTML pages of one look, light and dark, without network or script. jinja2 is the extra rmbgd[report]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from rmbgd.errors import missing_extra

BASE = "page.html.j2"  # beside this module: what templates extend


@cache
def environment(package: str) -> Any:
    """A jinja2 Environment of the templates in `package`. Raises ConfigError where jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("jinja2", "report", "--html") from error

    def source(name: str) -> str:
        return resources.files("rmbgd" if name == BASE else package).joinpath(name).read_text(encoding="utf-8")

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def template(package: str, name: str, filters: Mapping[str, Callable[..., object]]) -> Any:
    """Raises ConfigError where jinja2 is not installed."""
    found = environment(package)
    found.filters |= filters
    return found.get_template(name)
