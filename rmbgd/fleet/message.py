"""POLICY: what is announced of an image on the queue: which root, key, version and recipe; subjects and names there.

Data only: roots and recipes are names that each worker resolves in its own configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from rmbgd.errors import RmbgdError

BYTES_MAXIMUM = 32 << 10  # of one message; a path has at most 4096 bytes, and each may take six in JSON
FINGERPRINT_MAXIMUM = 200  # characters: with the longest path it fits into a message
LATELY = 86_400.0  # s; what came into its root longer ago waits behind what comes now
VERSION = 1

HOT, BULK, DEAD = "RMBGD_HOT", "RMBGD_BULK", "RMBGD_DEAD"
QUEUES = {HOT: "rmbgd.jobs.hot", BULK: "rmbgd.jobs.bulk"}
"""Stream -> its subjects, without the root; in the order in which workers look into them."""
DEAD_SUBJECT = "rmbgd.dead"


class BadMessage(RmbgdError):
    """What came from the queue is no announcement of ours, or asks for a path that may not be."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """One version of one image, to be processed.

    root         name of a [[folder]]
    key          path below its input, decoded with surrogateescape
    fingerprint  of the version: "SIZE-MTIME_NS" of a file, "etag:..." of an object
    """

    root: str
    key: str
    fingerprint: str
    recipe: str

    def encode(self) -> bytes:
        return json.dumps({"v": VERSION, **asdict(self)}, separators=(",", ":")).encode()

    @property
    def identity(self) -> str:
        """The same for every announcement of the same version: the broker drops those that come again soon."""
        told = json.dumps([self.root, self.key, self.fingerprint, self.recipe])
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def subject(self, stream: str) -> str:
        return f"{QUEUES[stream]}.{token(self.root)}"


def decode(data: bytes) -> Announcement:
    """Raises BadMessage: it says what is wrong."""
    if len(data) > BYTES_MAXIMUM:
        raise BadMessage(f"{len(data)} bytes; an announcement has at most {BYTES_MAXIMUM}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise BadMessage("no JSON") from None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise BadMessage(f"no announcement of version {VERSION}")
    texts = [found.get(name) for name in ("root", "key", "fingerprint", "recipe")]
    if set(found) - {"v", "root", "key", "fingerprint", "recipe"} or not all(isinstance(each, str) for each in texts):
        raise BadMessage("root, key, fingerprint and recipe are texts, and there is nothing besides")
    announced = Announcement(*map(str, texts))
    if why := unusable(announced.key):
        raise BadMessage(f"key {announced.key!r}: {why}")
    if not is_fingerprint(announced.fingerprint):
        raise BadMessage(f"fingerprint {announced.fingerprint[:FINGERPRINT_MAXIMUM]!r}: it is none")
    return announced


def queue_for(age: float) -> str:
    """The stream for what came into its root so many seconds ago."""
    return HOT if age < LATELY else BULK


def is_fingerprint(text: str) -> bool:
    return 0 < len(text) <= FINGERPRINT_MAXIMUM and text.isprintable()


def unusable(key: str) -> str:
    """Why a key is no path below a root; "" if it is one."""
    try:
        encoded = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "it has characters that no path has"
    if not key or b"\0" in encoded or len(encoded) > 4096:
        return "it is empty, too long, or has a NUL character"
    if key.startswith("/"):
        return "it is absolute"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "it has a part that is empty, '.' or '..'"
    return ""


def token(name: str) -> str:
    """A name as one word of a subject; other names give other words."""
    return re.sub(rb"[^A-Za-z0-9_-]", lambda found: b"=%02X" % found[0][0], name.encode()).decode()


def consumer(root: str) -> str:
    """The name of the consumer by which workers share the messages of a root; the same on both queues."""
    return f"workers-{token(root)}"
