"""Paths that a user may not use, or of another kind: one line that names the path, never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmbgd.cli import main as cli
from rmbgd.clock import SystemClock
from rmbgd.errors import Exit
from rmbgd.store.ledger import Ledger
from tests.support.mounts import without_override
from tools.gen_reference import subcommands

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# One process for all cases, since loading the libraries takes most of the time.
PROGRAM = """
import contextlib, io, json, sys
from rmbgd.cli.main import main
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as leaving:
            status = leaving.code
    print(json.dumps([int(status), out.getvalue(), err.getvalue()]))
"""
ELSEWHERE = (
    '[recipe.default]\nmodel = "birefnet"\n[service]\nmodels_directory = "@/closed"\nstate_directory = "@/s"\n'
    'runtime_directory = "@/run"\n'
)


@dataclass(frozen=True)
class Case:
    """`words`, where @ is the folder of `base`, end with `status` and name the path below @."""

    words: str
    named: str
    status: int = Exit.FAILED

    def __str__(self) -> str:
        return self.words


OF_A_FLEET = [f"fleet {words}" for words in ("setup", "status", "drain host", "resume host", "sweep", "retry-dead")]
CASES = [
    Case("mtbf @/closed.jsonl", "closed.jsonl"),
    Case("mtbf @/closed", "closed"),
    Case("mtbf @/tree", "tree/closed"),
    Case("mtbf @/closed/events.jsonl", "closed/events.jsonl"),
    Case("mtbf A=@/closed/events.jsonl", "closed/events.jsonl"),
    Case("mtbf @/listed", "listed/events.jsonl"),
    Case("mtbf @/plain.txt", "plain.txt"),
    Case("mtbf @/empty.txt --html @/fixed/report.html", "fixed/report.html"),
    *(
        Case(f"hooks {verb} --config @/closed.toml", "closed.toml", Exit.CONFIGURATION)
        for verb in ("run", "test on_idle")
    ),
    Case("hooks test on_idle --config @/kept.toml", "kept.toml", Exit.CONFIGURATION),
    *(
        Case(f"models {verb} --models-dir @/closed", "closed")
        for verb in ("list", "show birefnet", "verify", "verify birefnet")
    ),
    *(Case(f"models {verb} birefnet --models-dir @/half", "half/birefnet") for verb in ("verify", "path")),
    Case("models verify @/closed/model.safetensors", "closed/model.safetensors"),
    Case("models verify @/closed", "closed"),
    Case("models path @/closed", "closed"),
    Case("models fetch birefnet --from @/closed --models-dir @/models", "closed"),
    Case("models fetch birefnet --from @/zeros --models-dir @/fixed", "fixed"),
    Case("models accept rmbg-2.0 --yes --models-dir @/fixed", "fixed"),
    Case("fleet keys @/fixed", "fixed"),
    Case("fleet keys @/plain.txt/keys", "plain.txt/keys"),
    Case("fleet check-broker --monitor file://@/a.png", "a.png"),
    Case("presets check @/closed", "closed"),
    Case("presets check @/listed/missing.jpg", "listed/missing.jpg"),
    Case("presets list --config @/closed.toml", "closed.toml", Exit.CONFIGURATION),
    Case("presets show etsy --config @/closed.toml", "closed.toml", Exit.CONFIGURATION),
    Case("models optimize birefnet --models-dir @/closed", ""),  # without a GPU it does not get that far
    *(Case(f"ledger {verb} --config @/lost.toml", "closed/ledger.sqlite") for verb in ("check", "backup", "restore")),
    Case("ledger backup @/fixed/copy --config @/kept.toml", "fixed/copy"),
    Case("ledger restore @/closed/a.png --config @/kept.toml", "closed/a.png"),
    Case("init @/plain.txt/shop", "plain.txt/shop/in"),
    Case("init @/fixed/shop", "fixed/shop"),
    Case("watch @/closed @/out", "closed"),
    Case("watch @/tree @/fixed/out", "fixed/out"),
    Case("watch @/tree @/plain.txt", "plain.txt"),
    Case("service install --user --config @/closed.toml", "closed.toml", Exit.CONFIGURATION),
    Case("service uninstall --user", ".config/systemd/user/rmbgd.service"),
    Case("once @/a.png @/fixed/new", "fixed/new"),
    Case("once @/a.png @/fixed", "fixed"),
    Case("once @/a.png @/fixed/x.png", "fixed"),
    Case("once @/a.png @/closed/x.png", "closed"),
    Case("once @/a.png @/closed/x", "closed/x"),
    Case("once @/a.png @/plain.txt/x", "plain.txt/x"),
    Case("once @/closed @/out", "closed"),
    Case("once @/tree @/out", "tree/closed"),
    Case("once @/closed/a.png @/out", "closed/a.png"),
    *(
        Case(f"once @/{words}", named, Exit.USAGE)
        for words, named in (
            ("a.png @/plain.txt", "plain.txt"),
            ("a.png @/file", "file"),
            ("tree @/file", "file"),
            ("nope.jpg @/out", "nope.jpg"),
            ("a.png @/nope.jpg @/out", "nope.jpg"),
            ("plain.txt/x @/out", "plain.txt/x"),
            ("pipe @/out", "pipe"),
            ("a.png @/a.png", "a.png"),
            ("a.png @/", "a.png"),
            ("tree @/tree", "tree"),
            ("a.png @/x.gif", "x.gif"),
            ("a.png @/x.jpg --format png", "x.jpg"),
            ("tree @/x.jpg", "x.jpg"),
        )
    ),
    Case("once @/a.png @/out --model birefnet --models-dir @/half", "half/birefnet", Exit.CONFIGURATION),
    Case("once @/a.png @/out --model birefnet --models-dir @/closed", "closed/birefnet", Exit.CONFIGURATION),
    Case("once @/a.png @/out --config @/closed.toml", "closed.toml", Exit.CONFIGURATION),
    *(
        Case(f"{command} --config @/{name}", name, Exit.CONFIGURATION)
        for command in ("check", "status", "run", "announce", "backfill shop", "bench", *OF_A_FLEET)
        for name in ("closed.toml", "closed/rmbgd.toml", "fixed")
    ),
    Case("check --config @/loop", "loop", Exit.CONFIGURATION),
    Case("check --config @/a\nb", "a\\nb", Exit.CONFIGURATION),
    Case("check --config @/model.toml", "closed/birefnet", Exit.CONFIGURATION),
    Case("check --config @/hidden.toml", "hidden.toml", Exit.OK),  # the service may look where this user may not
    Case("doctor --config @/closed.toml", "closed.toml"),
    Case("doctor --config @/seen.toml", "listed"),
    Case("doctor --config @/model.toml", "closed/birefnet"),
    *(
        Case(f"status {option}--config @/run-{kind}.toml", f"run-{kind}/status.json", Exit.NOT_RUNNING)
        for option, kinds in (("", ("folder", "list", "other")), ("--json ", ("torn", "bytes")))
        for kind in kinds
    ),
    Case("status --config @/run-closed.toml", "closed/status.json"),
    *(
        Case(f"{command} --config @/run-closed.toml", "closed/control.sock")
        for command in ("list waiting", "list failed", "retry --failed", "pause", "resume")
    ),
    *(
        Case(f"sequence {command} --config @/run-closed.toml", "closed/control.sock")
        for command in ("list", "end film take/")
    ),
    *(
        Case(f"review {command} --config @/run-closed.toml", "closed/control.sock")
        for command in ("list", "approve 7", "reject @/a.png")
    ),
    Case("review export --config @/lost.toml", "closed/ledger.sqlite"),
    Case("list done --config @/lost.toml", "closed/ledger.sqlite"),
    Case("report --json --config @/lost.toml", "closed/ledger.sqlite"),
    Case("report --json --config @/plain.toml", "plain.txt/ledger.sqlite"),
    Case("report --html @/fixed/report.html --config @/kept.toml", "fixed/report.html: "),
    Case("report --html @/fixed --config @/kept.toml", "fixed"),
    Case("report --html @/nope/report.html --config @/kept.toml", "nope: No such file or directory; make it"),
    Case("eval @/closed @/out", "closed"),
    Case("eval @/out @/closed", "closed"),
    Case("eval @/tree @/out", "tree/closed"),
    Case("eval @/out @/in", "in"),
    Case("eval @/nope @/out", "nope", Exit.USAGE),
    Case("eval @/a.png @/out", "a.png", Exit.USAGE),
    Case("eval @/a.png @/a.png --categories @/closed/a.csv", "closed/a.csv"),
    Case("eval @/a.png @/a.png --categories @/plain.txt", "plain.txt", Exit.USAGE),
    Case("eval @/a.png @/a.png --html @/fixed/report.html", "fixed/report.html: "),
    Case("eval @/a.png @/a.png --html @/fixed", "fixed"),
    Case("run --config @/state.toml", "fixed", Exit.CONFIGURATION),
    Case("bench --scratch @/closed/x", "closed/x"),
    Case("bench --pictures @/closed", "closed"),
    Case("bench --model birefnet --models-dir @/closed", "closed/birefnet", Exit.CONFIGURATION),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders `closed` (no right at all), `fixed` (no right to write), `listed` (names only), and what is in them."""
    base = tmp_path_factory.mktemp("mistakes")
    names = (
        "in",
        "out",
        "failed",
        "closed/birefnet",
        "fixed",
        "listed",
        "half/birefnet",
        "tree/closed",
        "models",
        "run-folder/status.json",
    )
    for name in names:
        (base / name).mkdir(parents=True)
    statuses = {"list": b"[1]", "other": b'{"phase": "stopped"}', "torn": b'{"phase": "re', "bytes": b"\xff\xfe"}
    written = {f"run-{kind}/status.json": data for kind, data in statuses.items()} | {"zeros/model.safetensors": b""}
    places = {f"run-{kind}": f"@/run-{kind}" for kind in ("folder", *statuses)} | {"run-closed": "@/closed"}
    texts = {name: f'[service]\nruntime_directory = "{place}"\n' for name, place in places.items()}
    texts |= {"model": ELSEWHERE, "closed": "", "closed/rmbgd": ""}
    texts["hidden"] = '[service]\nstate_directory = "@/closed/s"\nlog_file = "@/closed/log/events.jsonl"\n'
    texts |= {
        name: f'[service]\nstate_directory = "@/{place}"\n'
        for name, place in (("lost", "closed"), ("kept", "s"), ("plain", "plain.txt"))
    }
    texts["state"] = '[service]\nstate_directory = "@/fixed/s"\n'
    folder = '[[folder]]\nname = "shop"\noriginals = "keep"\ninput = "@/in"\noutput = "@/out"\nfailed = "@/failed"\n'
    written |= {f"{name}.toml": (text + folder).replace("@", str(base)).encode() for name, text in texts.items()}
    written["seen.toml"] = written["state.toml"].replace(b'/in"', b'/listed"').replace(b"/fixed/s", b"")
    written |= dict.fromkeys(
        ("plain.txt", "file", "closed.jsonl", "closed/events.jsonl", "listed/events.jsonl"), b"{}\n"
    )
    written["empty.txt"] = b""
    for name, data in written.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(data)
    (base / "loop").symlink_to("loop")
    (base / "s").mkdir()
    Ledger(base / "s" / "ledger.sqlite", SystemClock()).close()
    Image.new("RGB", (32, 24), "red").save(base / "a.png")
    os.mkfifo(base / "pipe")
    shutil.copy(base / "a.png", base / "closed" / "a.png")
    modes = {"fixed": 0o555, "listed": 0o444}
    modes |= dict.fromkeys(("closed", "half/birefnet", "tree/closed", "closed.jsonl", "closed.toml"), 0)
    for name, mode in modes.items():
        (base / name).chmod(mode)
    yield base
    for name in modes:
        (base / name).chmod(0o755)


@pytest.fixture(scope="module")
def answers(base: Path) -> dict[str, tuple[int, str, str]]:
    """Exit status, stdout and stderr of every case, run by a process that file modes bind."""
    prefix = [] if os.geteuid() else without_override()
    environ = os.environ | {"HOME": str(base)}  # what is written or removed for this user is so here
    asked = json.dumps([case.words.replace("@", str(base)).split(" ") for case in CASES])
    command = [*prefix, sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, cwd=base, env=environ)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]  # others are events
    return {case.words: line for case, line in zip(CASES, lines, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_path_that_cannot_be_used_is_told_in_one_line(
    case: Case, base: Path, answers: dict[str, tuple[int, str, str]]
) -> None:
    status, out, err = answers[case.words]
    assert "Traceback" not in out + err
    named = str(base / case.named) if case.named else ""
    told = [line for line in err.splitlines() if line[0] != " "]
    told = told or [line for line in out.splitlines() if named in line and line[0] != " "]
    assert (case.status, 1) == (status, len(told))
    assert named in told[0]
    if err and case.status != Exit.USAGE:  # of doctor it stands in the line below
        assert re.search(r"; |: be root|Run the command as", told[0]), "what to do"
    assert len(told[0]) < 400


GROUPS = ("sequence", "fleet", "models", "presets", "ledger", "hooks", "review", "service")  # of commands


def test_no_command_is_left_out() -> None:
    every = set()
    for name in cli.COMMANDS:
        inner = subcommands(subcommands(cli.build_parser(name))[name])
        every |= {f"{name} {verb}" for verb in inner} or {name}
    tried = {" ".join(case.words.split()[: 1 + case.words.startswith(GROUPS)]) for case in CASES}
    assert every - {"help", "completion"} == tried  # which take no path


# What each command prints that is quick to make; the work of `run`, `once` and `bench` has tests of its own.
PRINTED = {
    **dict.fromkeys(cli.COMMANDS, "--help"),
    "check": "--print-default",
    "status": "--config @/run-closed.toml --json",
    "doctor": "--config @/closed.toml",
    "ledger": "check --config @/kept.toml",
    "models": "list",
    "presets": "list",
    "mtbf": "@/empty.txt",
    "completion": "bash",
    "help": "once",
}
Streams = Callable[[str], tuple[int, str]]


@pytest.fixture(params=PRINTED)
def printing(request: pytest.FixtureRequest, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Streams:
    """A command that prints to a given kind of stdout -> (exit status, stderr)."""
    words = [request.param, *PRINTED[request.param].replace("@", str(base)).split()]

    def call(kind: str) -> tuple[int, str]:
        if kind == "closed":
            writer = os.open(os.devnull, os.O_WRONLY)
        elif kind == "pipe":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(kind, os.O_WRONLY)
        with open(writer, "w", encoding="ascii") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout if kind != "closed" else None)
            try:
                status = cli.main(words)
            except SystemExit as leaving:
                status = int(leaving.code or 0)
            if kind == "closed":
                sys.stdout.close()  # which stands in for it
        return status, capsys.readouterr().err

    return call


def test_output_on_a_full_disk_is_told(printing: Streams) -> None:
    status, err = printing("/dev/full")
    assert (Exit.FAILED, 1) == (status, len(err.splitlines()))
    assert re.match("rmbgd( [a-z]+)?: No space left on device; make room", err)


def test_reader_that_has_left_is_no_error_to_tell(printing: Streams) -> None:
    assert (Exit.FAILED, "") == printing("pipe")


def test_closed_output_is_like_none_wanted(printing: Streams) -> None:
    """And a terminal that knows only ASCII, as that of LC_ALL=C may, gets escapes."""
    status, err = printing("/dev/null")
    assert status in (Exit.OK, Exit.FAILED, Exit.NOT_RUNNING)
    assert "Traceback" not in err
    assert (status, err) == printing("closed")


def test_name_that_the_terminal_cannot_show_is_shown_as_an_escape(tmp_path: Path) -> None:
    path = tmp_path / "b\u00fccher.toml"
    path.write_text("")
    command = [sys.executable, "-m", "rmbgd", "doctor", "--config", str(path)]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (b"", True) == (done.stderr, b"cher.toml" in done.stdout)


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_what_was_meant_for_a_closed_stream(closed: str, base: Path) -> None:
    """The events of --json go to descriptor 1, whichever file has that number."""
    kept, out = base / "s" / "ledger.sqlite", base / "closed-streams"
    before = kept.read_bytes()
    words = f"{sys.executable} -m rmbgd once --json {base}/a.png {out}/a.png --overwrite"
    done = subprocess.run(["sh", "-c", f"exec {words} {closed}"], stderr=subprocess.PIPE, text=True, check=False)
    assert (Exit.OK, "", before) == (done.returncode, done.stderr, kept.read_bytes())
    with Image.open(out / "a.png") as cutout:
        assert (32, 24) == cutout.size
