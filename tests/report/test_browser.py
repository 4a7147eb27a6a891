"""All pages in a real browser: nothing is wider than the window, nothing is wrong in its console, dark is dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmbgd.mtbf import html
from rmbgd.mtbf.command import make_report
from rmbgd.report import page
from rmbgd.store.reading import counts_of_kinds, oddest, reading
from tests.evaluate.test_page import evaluation
from tests.imaging.builders import photo, saved
from tests.mtbf.box import Box, options
from tests.support.workspace import Workspace, done, torn

pytestmark = pytest.mark.integration
LONG = "a-name-without-a-place-to-break-it-" * 5

# Elements that reach out of the window, but for what a person scrolls within its frame.
WIDER = """
const wide = [], width = document.documentElement.clientWidth;
for (const each of document.querySelectorAll("body *")) {
  if (each.closest(".plot, .scroll") && !each.matches(".plot, .scroll")) continue;
  if (each.getBoundingClientRect().right > width + 0.5) wide.push(each.outerHTML.slice(0, 80));
}
return wide;
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (rmbgd[test])")
    browser, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    wanted = webdriver.ChromeOptions()
    wanted.binary_location = browser
    wanted.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("chromium")
    # As root, and in a container with little shared memory, it starts no other way.
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", f"user-data-dir={profile}"):
        wanted.add_argument(f"--{word}")
    started = webdriver.Chrome(wanted, webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("pages")
    it = Workspace(base)
    page.prepare(it.config.limits)
    for number, size in enumerate([(60, 80), (800, 600), (30, 900), (900, 30)]):
        name = f"{LONG[: 40 * number]}{number}.png"
        it.drop(name, saved(photo(*size), "PNG"))
        outcome = done(job := it.claim(name))
        outcome.add(verdict=("ok", "empty", "full", "ok")[number], width=size[1], height=size[0])
        it.publish(job, saved(np.dstack([photo(*size), np.full(size, 99, np.uint8)]), "PNG"), outcome=outcome)
    it.drop(f"{LONG}.jpg", b"no image")
    outcome = torn(job := it.claim(f"{LONG}.jpg"))
    outcome.add(detail="0123456789" * 30)
    it.publisher.quarantine.set_aside(job, outcome)
    with reading(it.ledger.path) as db:
        found, counts = oddest(db, 0, 9), counts_of_kinds(db, 0)
    title = {"place": "shop", "begin": "2026-01-01 00:00", "end": "2026-01-02 00:00"}
    images = page.render(counts, list(page.cards(found, it.config)), title)
    it.close()
    box = Box("edge", heartbeat=60).start()
    for _ in range(20):
        box.sleep(30).image().health()
    box.refuse(LONG).failover(LONG).serve(600).image(device="cpu").failback().serve(600_000)
    box.recorded("signal", "killed", LONG).sleep(5).start().serve(600).write(base / "logs" / "edge.jsonl")
    Box(LONG, heartbeat=60).start().serve(600).write(base / "logs" / f"{LONG}.jsonl")
    logs = html.render(make_report(options(base / "logs", "--claim", 100)))
    evaluated = evaluation(base, hostile=LONG)[1]
    made = {name: base / f"{name}.html" for name in ("report", "mtbf", "eval")}
    for name, text in (("report", images), ("mtbf", logs), ("eval", evaluated)):
        made[name].write_text(text)
    return made


def shown(chromium: Any, path: Path, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chromium.get(path.as_uri())


@pytest.mark.parametrize("name", ["report", "mtbf", "eval"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(chromium: Any, pages: dict[str, Path], name: str, width: int) -> None:
    shown(chromium, pages[name], width)
    assert [] == chromium.execute_script(WIDER)
    page_width, window = chromium.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert page_width == window <= width
    assert [] == chromium.get_log("browser")


@pytest.mark.parametrize("name", ["report", "mtbf", "eval"])
def test_dark_is_dark_and_light_is_light(chromium: Any, pages: dict[str, Path], name: str) -> None:
    seen = []
    for scheme in ("light", "dark"):
        shown(chromium, pages[name], 390, scheme)
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        paper, ink = (sum(map(int, colour[4:-1].split(","))) for colour in chromium.execute_script(script))
        seen.append(paper > ink)
    assert [True, False] == seen


def test_every_thumbnail_is_drawn_as_wide_as_it_is_high_in_proportion(chromium: Any, pages: dict[str, Path]) -> None:
    """And on a checkerboard, where it is a cutout."""
    shown(chromium, pages["report"], 1280)
    script = "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth, i.clientHeight])"
    sizes = chromium.execute_script(script)
    assert 8 == len(sizes)
    for natural_width, natural_height, width, height in sizes:
        assert natural_width > 0
        assert abs(width - height * natural_width / natural_height) <= 1 + natural_width / natural_height
    script = "return [...document.querySelectorAll('.cutout img')].map(i => getComputedStyle(i).backgroundImage)"
    assert all("conic-gradient" in board for board in chromium.execute_script(script))
