"""Dashboard and alert rules: they name only metrics and labels that exist, and each alert fires when it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmbgd.config.load import Config
from rmbgd.events import RecordedEvents
from rmbgd.telemetry.metrics import Metrics

CONTRIB = Path(__file__).parents[1] / "contrib"
RULES = CONTRIB / "prometheus" / "rmbgd.rules.yml"
DASHBOARD = CONTRIB / "grafana" / "rmbgd.json"
OF_PROMETHEUS = {"instance", "le"}
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def alerts() -> dict[str, str]:
    """Each alert with its whole text."""
    return dict(re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - |\Z)", RULES.read_text(encoding="utf-8"), re.DOTALL))


def panels() -> dict[str, dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return {panel["title"]: panel for panel in found["panels"]}


def texts() -> Iterator[tuple[str, str]]:
    """(where, an expression with the labels that are shown beside it)"""
    yield from alerts().items()
    for title, panel in panels().items():
        for target in panel["targets"]:
            yield title, f"{target['expr']} {target['legendFormat']}"


def exported() -> dict[str, set[str]]:
    """Labels of every series that the service may write, by its name."""
    collectors = Metrics(RecordedEvents(), Config())._registry._names_to_collectors
    return {name: set(collector._labelnames) for name, collector in collectors.items()}


@pytest.mark.parametrize(("where", "text"), [*texts()], ids=lambda value: value[:30])
def test_metrics_and_labels_exist(where: str, text: str) -> None:
    known = exported()
    names = set(re.findall(r"\brmbgd_\w+", text))
    assert names or where == "RmbgdNotSeen"
    assert set() == names - known.keys()
    used = set(re.findall(r"(\w+)=~?\"", text)) | set(re.findall(r"\{\{(?:\s*\$labels\.)?(\w+)\s*\}\}", text))
    used |= {word.strip() for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for word in by.split(",")}
    allowed = OF_PROMETHEUS.union(*(known[name] for name in names), {"file"} if where == "RmbgdNotSeen" else ())
    assert set() == used - allowed


def test_panels_lie_beside_each_other() -> None:
    cells = [
        (x, y)
        for panel in panels().values()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)


def test_each_alert_says_what_to_do() -> None:
    assert len(alerts()) >= 8
    assert all("summary: " in text and "description: " in text for text in alerts().values())
    assert sorted(set(alerts())) == sorted({case[0] for case in CASES})


@needs_promtool
@pytest.mark.integration
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert done.stdout.strip().endswith(f" {len(alerts())} rules found")


def series(name: str, **labels: str) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in ({"instance": "a"} | labels).items())
    return f"{name}{{{inner}}}"


FAILED, DONE = series("rmbgd_image_failed_total", folder="shop"), series("rmbgd_image_done_total", folder="shop")
FAILOVER = series("rmbgd_engine_failover_total", to="cpu", reason="temperature")
SENT = series("rmbgd_image_done_total", folder="shop", verdict="review")
KEPT = series("rmbgd_image_done_total", folder="shop", verdict="ok")
REVIEWS = series("rmbgd_waiting_reviews")
MTIME = series("node_textfile_mtime_seconds", file="/x/rmbgd.prom")
OLDEST, UPTIME = series("rmbgd_oldest_waiting_seconds"), series("rmbgd_uptime_seconds")
PAUSED, RESUMED = series("rmbgd_storage_paused_total", kind="disk_full"), series("rmbgd_storage_resumed_total")
IS_PAUSED, SAFE = series("rmbgd_paused"), series("rmbgd_service_safe_mode_total")
REPLACED = series("rmbgd_ledger_replaced_total")
# Alert, series with a value a minute, and whether it fires after an hour and a half.
CASES: list[tuple[str, dict[str, str], bool]] = [
    ("RmbgdNotSeen", {MTIME: "0+60x70 4200x30"}, True),
    ("RmbgdNotSeen", {MTIME: "0+60x100"}, False),
    ("RmbgdOldestWaiting", {OLDEST: "0+60x100"}, True),
    ("RmbgdOldestWaiting", {OLDEST: "60x100"}, False),
    ("RmbgdImagesRejected", {FAILED: "0+1x100", DONE: "0+5x100"}, True),
    ("RmbgdImagesRejected", {FAILED: "0+1x100", DONE: "0+20x100"}, False),
    ("RmbgdImagesRejected", {FAILED: "0x85 1x15", DONE: "0x100"}, False),
    ("RmbgdManyInReview", {SENT: "0+1x100", KEPT: "0+3x100"}, True),
    ("RmbgdManyInReview", {SENT: "0+1x100", KEPT: "0+9x100"}, False),
    ("RmbgdReviewsPileUp", {REVIEWS: "501x100"}, True),
    ("RmbgdReviewsPileUp", {REVIEWS: "0x60 501x40"}, False),  # for half an hour
    ("RmbgdStoragePaused", {IS_PAUSED: "0x80 1x20", PAUSED: "_x80 1x20", RESUMED: "0x100"}, True),
    ("RmbgdStoragePaused", {IS_PAUSED: "1x100", PAUSED: "3x100", RESUMED: "3x100"}, False),
    ("RmbgdFailover", {FAILOVER: "_x80 1x20"}, True),
    ("RmbgdFailover", {FAILOVER: "1x80 2x20"}, True),
    ("RmbgdFailover", {FAILOVER: "_x50 1x50"}, False),
    ("RmbgdFailover", {FAILOVER: "_x80 0x20"}, False),  # the service was started
    ("RmbgdRestarts", {UPTIME: "0+60x40 0+60x10 0+60x10 0+60x40"}, True),
    ("RmbgdRestarts", {UPTIME: "0+60x40 0+60x60"}, False),
    ("RmbgdSafeMode", {SAFE: "1x100"}, True),
    ("RmbgdSafeMode", {SAFE: "0x100"}, False),
    ("RmbgdLedgerReplaced", {REPLACED: "0x60 1x40"}, True),
    ("RmbgdLedgerReplaced", {REPLACED: "1x99", UPTIME: "0+60x99"}, True),
    ("RmbgdLedgerReplaced", {REPLACED: "0x100"}, False),
]


@needs_promtool
@pytest.mark.integration
@pytest.mark.parametrize(("alert", "values", "fires"), CASES)
def test_alert_fires_when_it_should(alert: str, values: dict[str, str], fires: bool, tmp_path: Path) -> None:
    asked = f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{alert}"}})'
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if fires else []
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in values.items()],
        "promql_expr_test": [{"expr": asked, "eval_time": "90m", "exp_samples": samples}],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))  # is YAML
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
