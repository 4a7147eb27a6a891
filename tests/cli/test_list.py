"""`rmbgd list` and its siblings where no service runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmbgd.errors import Exit


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("list waiting", Exit.NOT_RUNNING, "rmbgd list: rmbgd is not running (no control socket at "),
        ("pause", Exit.NOT_RUNNING, "rmbgd pause: rmbgd is not running (no control socket at "),
        ("resume --json", Exit.NOT_RUNNING, "rmbgd resume: rmbgd is not running (no control socket at "),
        ("retry --failed --json", Exit.NOT_RUNNING, "rmbgd retry: rmbgd is not running (no control socket at "),
        ("list failed", Exit.FAILED, "/state/ledger.sqlite: there is no ledger; the service makes one when it starts"),
        ("ledger check", Exit.FAILED, "/state/ledger.sqlite: there is no ledger; the service makes one when it starts"),
        ("list done --folder shp", Exit.FAILED, "rmbgd list: there is no folder 'shp': did you mean 'shop'?"),
        ("list done --limit 0", Exit.USAGE, "rmbgd list: --limit: '0' is not between 1 and 10000; see "),
        ("list done --limit x", Exit.USAGE, "rmbgd list: --limit: 'x' is not a number; see "),
        ("review approve 1", Exit.NOT_RUNNING, "rmbgd review: rmbgd is not running (no control socket at "),
        ("review reject a.png --json", Exit.NOT_RUNNING, "rmbgd review: rmbgd is not running (no control socket at "),
        ("review list", Exit.FAILED, "/state/ledger.sqlite: there is no ledger; the service makes one when it starts"),
        ("review export", Exit.FAILED, "/state/ledger.sqlite: there is no ledger; the service makes one when it"),
        ("review export --folder shp", Exit.FAILED, "rmbgd review: there is no folder 'shp': did you mean 'shop'?"),
        ("review list --limit 0", Exit.USAGE, "--limit: '0' is not between 1 and 10000; see "),
        ("review approve", Exit.USAGE, "PATH|JOB"),
    ],
)
def test_without_a_service_one_line_says_why(
    words: str, status: Exit, said: str, rmbgd: Any, configuration: Callable[..., Path]
) -> None:
    found, out, err = rmbgd(*words.split(), "--config", configuration())
    assert (status, "") == (found, out)
    assert said in err
