"""Uploads by real clients, cut off and resumed at random: none is lost, published half, or published twice.

Clients put images into the drop folder of the real service by way of Samba, SSH, FTP and rsync servers on loopback
ports, download into it from an HTTP server, or write there themselves. Each upload is sent whole, sent twice, or cut
off and then resumed, sent again, or left half. What is not installed is left out and named; servers need root. For all:

    apt-get install samba smbclient openssh-server openssh-client vsftpd curl lftp rclone aria2 rsync wget unzip
    python -m tools.clients [--uploads 500] [--each 250] [--seed 1] [--engine fake] [--out FILE]

The engine is a fake, or "real": u2netp. Counted for each client, of all uploads that were `sent`:

    whole    complete by the client's word              left   left half, and not published
    done     published from the bytes of the source, and the cutout is what its event says
    half     published from other bytes or too early    lost   refused, never taken, or its control file taken away
    doubled  published more often than it was sent      taken  control files, such as NAME.aria2, that were refused
    own      not completed by the client itself         Exit status 1 for half, lost or doubled ones.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.server
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.table import Table

from tests.support import audit
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest
from tools.campaign import main
from tools.tables import steps, table

SECONDS, QUICK = 0.8, 0.03  # that a slow upload takes, and a quick one
PIECES = 20  # of what a shell writes or feeds
PAUSES = (0.1, 0.1, 0.3, 0.6, 2.5)  # s from a cut to what follows: shorter and longer than the service waits for quiet
PATIENCE = 20.0  # s that the service waits for the rest of a file; well above the pauses
HUNG, START = 120.0, 10.0  # s after which a client is killed, and until a server listens
TOGETHER = 12  # uploads with the same parallelism
INTAKE = {"quiet_closed": 0.5, "quiet_unknown": 2.0, "quiet_remote": 5.0, "incomplete_timeout": PATIENCE}
WHOLE, CUT = ("whole", "whole", "twice"), ("resume", "resume", "again", "again", "left")  # ways, as often as they occur
DEATHS = (signal.SIGKILL, signal.SIGTERM)
COLUMNS = ("sent", "whole", "left", "done", "half", "lost", "doubled", "taken", "own")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
Hashes = Sequence[str | None]  # of contents
ENCODERS = {"gif": "GIF", "png": "PNG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP", "lossless.webp": "WEBP"}
ENCODERS |= dict.fromkeys(("jpg", "jpeg", "jpe"), "JPEG")
OPTIONS: dict[str, dict[str, Any]] = {"lossless.webp": {"lossless": True, "method": 0}, "jpg": {"quality": 97}}
OPTIONS |= {"jpeg": {"quality": 97, "progressive": True}, "jpe": {"quality": 97, "restart_marker_rows": 1}}

# The shell's: a file in pieces, with a pause after each. It feeds what cannot be slowed down itself.
SLOW = f'slow() {{ for i in $(seq 0 {PIECES}); do dd if="$1" bs=$2 skip=$i count=1 status=none; sleep $3; done; }}\n'
FEED = "slow {source} {piece} {pause}"
FILL = f"$(seq 0 {PIECES}); do dd if={{source}} of={{target}} bs={{piece}} seek=$i skip=$i count=1 conv=notrunc"
FILL += " status=none; sleep {pause}; done"
SSH = "-F none -i {keys}/key -oPort={sshd} -oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=no -oLogLevel=ERROR"
TO_SSH = "{source} 127.0.0.1:{target}"
SCP = f"-l {{kbit}} {SSH} {TO_SSH}"
SFTP = f"put {{source}} {{target}} | sftp -l {{kbit}} {SSH} -b - 127.0.0.1"
RSYNC, RSYNC_SSH = "exec rsync --bwlimit={kib}", f"exec rsync --bwlimit={{kib}} -e 'ssh {SSH}'"
RCLONE = "exec rclone --retries 1 --bwlimit {rate}B --sftp-host 127.0.0.1 --sftp-port {sshd} --sftp-key-file {keys}/key"
CURL, TO_FTP = "exec curl -sS --limit-rate {rate}", "-T {source} ftp://127.0.0.1:{vsftpd}/{name}"
LFTP = "exec lftp -c 'set cmd:fail-exit yes; set xfer:clobber yes; set net:max-retries 2; set net:limit-rate 0:{rate}"
LFTP_PUT, TO_LFTP = f"{LFTP}; open ftp://127.0.0.1:{{vsftpd}}; put", "{source} -o {name}'"
PGET = f"{LFTP}; set pget:save-status 1s; set pget:min-chunk-size 64k; pget -n 4"
SMB = f"{FEED} | smbclient -N -p {{smbd}} -s {{keys}}/smbd -c 'put - {{name}}' //127.0.0.1/"
ARIA2 = "exec aria2c -c -x4 -s4 -k1M --auto-save-interval=1 --console-log-level=error -d {input} -o {name} {url}"


@dataclass(frozen=True)
class Client:
    """Its commands, to be filled with the values of an upload; without `resume`, to send again may resume."""

    name: str
    programs: str
    send: str
    resume: str = ""
    cut: bool = True
    connections: int = 1  # at once; with several it wants a large file


CLIENTS = (
    Client("cp", "cp", f"{FEED} | cp /dev/stdin {{target}}"),
    Client("cp -a", "cp", "cp -a {source} {target}", cut=False),
    Client("mv from elsewhere", "mv", "cp {source} {scratch} && mv {scratch} {target}", cut=False),
    Client("write and rename", "mv", f"{FEED} > {{target}}.part && mv {{target}}.part {{target}}"),
    Client("tar", "tar", "tar -cf {scratch} -C {sources} {name}; slow {scratch} {piece} {pause} | tar -xC {input}"),
    Client("unzip", "unzip", "{python} -m zipfile -c {scratch} {source} && unzip -oq {scratch} -d {input}", cut=False),
    Client("dd in pieces", "dd", f"for i in {FILL}"),
    Client("dd, a late piece first", "dd", f"for i in {PIECES - 2} {FILL}"),
    Client("fallocate and dd", "fallocate", f"fallocate -l {{size}} {{target}}; for i in {FILL}"),
    Client("rsync", "rsync", f"{RSYNC} {{source}} {{target}}"),
    Client("rsync --partial", "rsync", f"{RSYNC} --partial {{source}} {{target}}"),
    Client("rsync --inplace", "rsync", f"{RSYNC} --inplace {{source}} {{target}}"),
    Client("rsync daemon", "rsync rsyncd", f"{RSYNC} -a {{source}} rsync://127.0.0.1:{{rsyncd}}/in/{{name}}"),
    Client("rsync --delay-updates", "rsync sshd", f"{RSYNC_SSH} -a --delay-updates {TO_SSH}"),
    Client("rsync --append", "rsync sshd", f"{RSYNC_SSH} --append {TO_SSH}", f"{RSYNC_SSH} --append-verify {TO_SSH}"),
    Client("scp", "scp sshd", f"exec scp {SCP}"),
    Client("scp -O", "scp sshd", f"exec scp -O {SCP}"),
    Client("sftp", "sftp sshd", f"echo {SFTP}", f"echo re{SFTP}"),
    Client("rclone", "rclone sshd", f"{RCLONE} copyto {{source}} :sftp:{{target}}"),
    Client("curl to ftp", "curl vsftpd", f"{CURL} {TO_FTP}", f"{CURL} -C - {TO_FTP}"),
    Client("lftp put", "lftp vsftpd", f"{LFTP_PUT} {TO_LFTP}", f"{LFTP_PUT} -c {TO_LFTP}"),
    Client("smbclient", "smbclient smbd", f"{SMB}in"),
    Client("smbclient, allocated", "smbclient smbd", f"{SMB}strict"),
    Client("wget", "wget", "exec wget -nv -O {target} {url}", "exec wget -nv -c -O {target} {url}"),
    Client("curl from http", "curl", f"{CURL} -o {{target}} {{url}}", f"{CURL} -C - -o {{target}} {{url}}"),
    Client("lftp pget", "lftp", f"{PGET} {{url}} -o {{target}}'", f"{PGET} -c {{url}} -o {{target}}'", connections=4),
    Client("aria2c", "aria2c", ARIA2, connections=4),
    Client("aria2c, not allocated", "aria2c", f"{ARIA2} --file-allocation=none", connections=4),
)

# Configurations of servers; ";" ends a line.
SSHD = "Port {port};ListenAddress 127.0.0.1;HostKey {keys}/key;AuthorizedKeysFile {keys}/key.pub;StrictModes no;"
SSHD += "UsePAM no;PidFile none;PermitRootLogin yes;Subsystem sftp internal-sftp;"
SMBD = "[global];smb ports = {port};interfaces = 127.0.0.1;bind interfaces only = yes;smb2 max write = 65536;"
SMBD += "private dir = {keys};state directory = {keys};lock directory = {keys};cache directory = {keys};"
SMBD += "pid directory = {keys};ncalrpc dir = {keys}/rpc;map to guest = Bad User;[in];path = {input};read only = no;"
SMBD += "guest ok = yes;force user = {user};[strict];copy = in;strict allocate = yes;"
FTPD = (
    "listen=YES;listen_address=127.0.0.1;listen_port={port};background=NO;run_as_launching_user=YES;write_enable=YES;"
)
FTPD += "anonymous_enable=YES;no_anon_password=YES;anon_upload_enable=YES;anon_other_write_enable=YES;anon_umask=022;"
FTPD += "anon_root={input};secure_chroot_dir={keys};seccomp_sandbox=NO;"
RSYNCD = "port = {port};address = 127.0.0.1;use chroot = no;[in];path = {input};read only = no;uid = 0;gid = 0;"
SERVERS = {  # the end of a command is the configuration
    "sshd": ("mkdir -p /run/sshd; ssh-keygen -qt ed25519 -N '' -f {keys}/key; $(command -v sshd) -D -e -f", SSHD),
    "smbd": ("exec smbd --foreground --no-process-group --debug-stdout -s", SMBD),
    "vsftpd": ("exec vsftpd", FTPD),
    "rsyncd": ("exec rsync --daemon --no-detach --config", RSYNCD),
}


class Downloads(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of /RATE/NAME in `folder`, RATE in bytes per second, with ranges."""

    protocol_version, folder = "HTTP/1.1", Path()

    def do_GET(self) -> None:
        _, rate, name = self.path.split("/")
        data, pieces_a_second = (self.folder / name).read_bytes(), 20
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(data)) + 1, len(data))
        if begin >= end:
            self.send_error(http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(http.HTTPStatus.PARTIAL_CONTENT if "Range" in self.headers else http.HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            piece = int(rate) // pieces_a_second + 1
            with contextlib.suppress(ConnectionError):  # cut off
                for place in range(begin, end, piece):
                    self.wfile.write(data[place : min(place + piece, end)])
                    time.sleep(1 / pieces_a_second)

    do_HEAD = do_GET  # noqa: N815, the library's name


@contextlib.contextmanager
def downloads(folder: Path) -> Iterator[int]:
    """An HTTP server, until the end: its port."""
    handler = type("DownloadsOfFolder", (Downloads,), {"folder": folder, "log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, contextlib.ExitStack() as stack:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client was cut off between two requests
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        yield server.server_port


@contextlib.contextmanager
def running(name: str, **values: Any) -> Iterator[int | str]:
    """A server, until the end: its port, or why it does not run."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command, configuration = (each.format(port=port, **values) for each in SERVERS[name])
    config, deadline = values["keys"] / name, time.monotonic() + START
    config.write_text(configuration.replace(";", "\n"))
    # A connection is a process that may outlive its server, but not the namespace whose first process that is.
    words = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", f"{command} {config}"]
    with tempfile.TemporaryFile() as said, started(words, said) as process:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port if process.poll() is None else f"{name}: {os.pread(said.fileno(), 300, 0)!r}"


@contextlib.contextmanager
def started(words: Sequence[str], said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process without settings of the user; it ends, with its whole group, at the latest here."""
    null, environment = subprocess.DEVNULL, {"PATH": PATH, "HOME": "/nonexistent", "LC_ALL": "C"}
    process = subprocess.Popen(words, stdin=null, stdout=said, stderr=said, start_new_session=True, env=environment)
    try:
        yield process
    finally:
        end(process, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], number: int) -> None:
    """Two seconds for what it wants to save; then the whole group is killed."""
    for each in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, each)
            process.wait(2.0)


@dataclass
class Upload:
    """What the dice say, and what the client made of it."""

    name: str
    client: Client
    source: Path
    digest: str
    way: str
    share: float  # at which it is cut off
    dies_of: int
    pause: float  # s from then on
    again: float  # seconds that it takes where it is not cut off
    complete: bool = False
    said: str = ""
    whole: int = 0  # times that all of it was in the folder, perhaps
    stood: bool = False  # a half file, when the client had gone


def planned(count: int, clients: Sequence[Client], folder: Path, dice: random.Random) -> list[Upload]:
    """In random order; as many of each client; each with an image of its own."""
    found, clients = [], dice.sample(clients, len(clients))
    for number in steps(count, "images"):
        client, kinds = clients[number % len(clients)], list(ENCODERS)
        kind = dice.choice(kinds[client.connections > 1 :])  # a large GIF takes seconds
        size = (1600, 1200) if client.connections > 1 else (dice.randint(320, 560), dice.randint(240, 400))
        data = sample_image(number, size=size, kind=ENCODERS[kind], **OPTIONS.get(kind, {}))
        source = folder / f"u{number:05}.{kind}"
        source.write_bytes(data)
        digest, way = hashlib.sha256(data).hexdigest(), dice.choice(WHOLE + CUT if client.cut else WHOLE)
        chances = dice.uniform(0.1, 0.9), dice.choice(DEATHS), dice.choice(PAUSES), dice.choice((SECONDS, QUICK))
        found.append(Upload(source.name, client, source, digest, way, *chances))
    dice.shuffle(found)
    return found


class Uploading:
    """Sends uploads side by side; `values` are those of every command."""

    def __init__(self, service: ServiceUnderTest, desk: Path, values: Mapping[str, object]) -> None:
        self._service, self._desk, self._values = service, desk, values
        self._over = threading.Event()  # also when interrupted, or when a thread fails

    def run(self, uploads: Sequence[Upload], dice: random.Random) -> None:
        for first in steps(-(-len(uploads) // TOGETHER), "uploads"):
            self._over.clear()
            with ThreadPoolExecutor(dice.randint(2, 4)) as pool, contextlib.ExitStack() as stack:
                stack.callback(pool.shutdown, wait=False, cancel_futures=True)
                stack.callback(self._over.set)
                list(pool.map(self._one, uploads[first * TOGETHER : (first + 1) * TOGETHER]))

    def _one(self, upload: Upload) -> None:
        assert not self._service.ended, self._service.tail()
        client, command = upload.client, upload.client.send
        self._send(upload, command, SECONDS if upload.way in CUT else upload.again)
        if upload.way == "whole" or (upload.way in CUT and upload.complete):
            return
        self._over.wait(upload.pause)
        if upload.way == "left":
            upload.stood = (self._service.input / upload.name).exists()
            return
        command = (upload.way == "resume" and client.resume) or command
        self._send(upload, command, upload.again, again=True)
        if not upload.complete and command != client.send:  # it finds nothing to resume
            self._send(upload, client.send, QUICK, again=True)

    def _send(self, upload: Upload, command: str, seconds: float, *, again: bool = False) -> None:
        size, target = upload.source.stat().st_size, self._service.input / upload.name
        rate = int(size / seconds / upload.client.connections)
        values = {"source": upload.source, "target": target, "name": upload.name, "size": size, "rate": rate}
        values |= {"kib": rate // 1024 + 1, "kbit": rate // 128 + 1, "scratch": self._desk / upload.name}
        values |= {"piece": (size + 20_480) // PIECES, "pause": seconds / PIECES}  # an archive is that much larger
        values |= {"url": f"http://127.0.0.1:{self._values['http']}/{rate}/{upload.name}"}
        words = ["sh", "-c", SLOW + command.format(**self._values, **values)]
        cut, stem, deadline = upload.way in CUT and not again, upload.name[:6], time.monotonic() + HUNG
        with tempfile.TemporaryFile() as said, started(words, said) as process:
            while process.poll() is None and time.monotonic() < deadline and not self._over.wait(0.02):
                if cut and any(stem in name for name in os.listdir(target.parent)):  # also a temporary name
                    self._over.wait(upload.share * seconds)
                    break
            upload.complete, stood = process.poll() == 0, target.exists()
            end(process, upload.dies_of)
            lines = os.pread(said.fileno(), 20_000, 0).decode(errors="replace").splitlines()
        upload.said = next((line for line in reversed(lines) if line.strip()), f"exit status {process.poll()}")
        upload.whole += upload.complete or content(target) in (upload.digest, None if stood else upload.digest)


def content(path: Path) -> str | None:
    """Its hash, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def judge(
    upload: Upload, done: Hashes, refused: Hashes, stands: str | None, *, taken: int = 0, right: bool = True
) -> tuple[Counter[str], str]:
    """Its figures, and what is wrong; `taken` control files, `right`: the cutout is what the event says."""
    whole, gone = done.count(upload.digest), not refused and stands is None
    found = Counter(sent=1, whole=upload.complete, taken=taken, half=len(done) - whole)
    found["doubled"] = max(0, whole - max(1, upload.whole))
    if found["half"] or found["doubled"]:
        return found, "published from other bytes or by another name" if found["half"] else "published again"
    if whole:
        verdict, why = ("done", "") if right else ("lost", "its cutout is not what its event says")
    elif upload.digest in (*refused, stands):
        verdict, why = "lost", "refused" if upload.digest in refused else "never taken"
    elif upload.way == "left" and not upload.complete:
        verdict, why = ("lost", "its half vanished") if upload.stood and gone else ("left", "")
    elif taken or (upload.complete and gone):
        verdict, why = "lost", "its control file was taken away" if taken else "vanished"
    else:
        verdict, why = "own", f"complete, it says, but other bytes: {upload.said}" if upload.complete else upload.said
    return found + Counter([verdict]), why


def wait(service: ServiceUnderTest, uploads: Sequence[Upload], *, outlast: bool) -> None:
    """Until no upload is open, but for halves that are held and not to be outlasted; or nothing ends any more."""
    complete = {upload.name for upload in uploads if upload.complete}
    halves = {upload.name for upload in uploads if upload.way == "left" and not outlast}
    last = [-1, 0.0]

    def over() -> bool:
        ended, held = service.endings(), {event["path"] for event in service.named("intake.incomplete")} & halves
        if len(ended) != last[0]:
            last[:] = len(ended), time.monotonic()
        late = complete - {event["path"] for event in ended}
        there = {upload.name for upload in uploads} & set(audit.files(service.input)) - held
        return time.monotonic() > last[1] + 2 * PATIENCE or not (late or there or audit.claimed(service.input))

    service.wait(over, "the outcomes", timeout=3600.0)


def report(service: ServiceUnderTest, uploads: Sequence[Upload]) -> dict[str, Any]:
    rows, own = ({client.name: Counter[str]() for client in CLIENTS} for _ in range(2))
    wrong, outcomes = [], (service.named("image.done"), service.named("image.failed"))
    for upload in uploads:
        done, refused = ([each for each in told if upload.name[:6] in each["path"]] for told in outcomes)
        figures, why = judge(
            upload,
            [event["sha256_in"] if event["path"] == upload.name else None for event in done],
            [content(service.failed / each.get("quarantine", "?")) for each in refused if each["path"] == upload.name],
            content(service.input / upload.name),
            taken=sum(event["path"] != upload.name for event in refused),
            right=all(content(service.output / event["output"]) == event["sha256_out"] for event in done[-1:]),
        )
        rows[upload.client.name] += figures
        if figures["own"]:
            own[upload.client.name][why.replace(upload.name, "NAME")[-150:]] += 1
        elif why:
            wrong.append(f"{upload.name}, {upload.client.name}, {upload.way}: {why}; it said: {upload.said}")
    clients = {name: {column: row[column] for column in COLUMNS} for name, row in rows.items() if row}
    findings = sum(row[column] for row in clients.values() for column in ("half", "lost", "doubled"))
    own = {name: row for name, row in own.items() if row}
    return {"findings": findings, "clients": clients, "own": own, "wrong": wrong}


def campaign(base: Path, count: int, seed: int, *, engine: str = "fake", outlast: bool = True) -> dict[str, Any]:
    """Below the folder `base`, which it makes. `outlast`: until what is left half is refused."""
    dice = random.Random(seed)
    service = ServiceUnderTest(base, settings={"intake": INTAKE})
    if engine == "real":
        real, service.fresh_interpreter = [sys.executable, "-m", "rmbgd", "run", "--config", str(service.config)], True
        service.command = lambda: real  # type: ignore[method-assign]
    with contextlib.ExitStack() as stack:
        temporary = (tempfile.TemporaryDirectory(prefix="rmbgd-clients-") for _ in range(3))
        keys, sources, desk = (Path(stack.enter_context(each)) for each in temporary)
        values: dict[str, Any] = {"input": service.input, "user": getpass.getuser(), "keys": keys}
        ports = {name: stack.enter_context(running(name, **values)) for name in SERVERS}
        values |= ports | {
            "sources": sources,
            "python": sys.executable,
            "http": stack.enter_context(downloads(sources)),
        }
        lacking = {name: str(port) for name, port in ports.items() if not isinstance(port, int)}
        programs = {each for client in CLIENTS for each in client.programs.split()} - ports.keys()
        lacking |= {each: f"{each} is not installed" for each in programs if shutil.which(each, path=PATH) is None}
        usable = [client for client in CLIENTS if not lacking.keys() & set(client.programs.split())]
        uploads = planned(count, usable, sources, dice)
        stack.enter_context(service)
        Uploading(service, desk, values).run(uploads, dice)
        wait(service, uploads, outlast=outlast)
        return {"uploads": count} | report(service, uploads) | {"left_out": sorted(lacking.values())}


def shown(name: str, found: Mapping[str, Any]) -> Table:
    rows = {client: list(row.values()) for client, row in found["clients"].items()}
    rows |= {"all": [sum(column) for column in zip(*rows.values(), strict=True)]}
    return table(name, "client", *COLUMNS, rows=[(client, *row) for client, row in rows.items()])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers end with it
    engines = ("fake", "real")
    sys.exit(main("clients", campaign, about=__doc__, unit="uploads", count=500, each=250, shown=shown, engine=engines))
