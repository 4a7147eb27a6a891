"""What an operator asks of the running service: list, retry, review, pause, resume. Answered by the control thread."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import Reason, RmbgdError, StorageFault
from rmbgd.events import Emit
from rmbgd.intake.source import IntakeQuestion, Source
from rmbgd.publish.retry import REASON_SUFFIX, Retrier, WantedOriginals
from rmbgd.publish.review import Reviewer, UndecidableReview
from rmbgd.service.control import ControlPeer
from rmbgd.service.listing import ENDED, LIVE, ROWS_MAXIMUM, ended, nearest, no_such_folder, reviews
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import SetKey

LEFT_SHOWN = 1000  # originals that could not be retried, of one answer
INTAKE_PATIENCE = 5.0  # s that the intake may take to answer; more only where a disk hangs
Meant = tuple[set[str], set[str]]  # paths below the input, paths below the failed or the review folder
EVERY = ""  # in the table of pauses: every folder


class RefusedRequest(RmbgdError):
    """A request that asks for what cannot be."""


class Operator:
    """`answer` is the control thread's. The pauses are kept in the ledger, and begin again with the service."""

    def __init__(
        self, config: Config, ledger: Ledger, intake: Source, reviewer: Reviewer, emit: Emit, clock: Clock
    ) -> None:
        self._folders = {folder.name: folder for folder in config.folder}
        self._ledger, self._intake, self._emit, self._clock = ledger, intake, emit, clock
        self._reviewer = reviewer
        self._retrier = Retrier(self._folders, ledger, emit)
        self._pauses: dict[str, tuple[float, str]] = {}  # the control thread's, once that runs
        self._begin_pauses()

    def answer(self, request: Mapping[str, Any], peer: ControlPeer) -> dict[str, Any]:
        """Of one request: what was asked for, or `error`. Whatever it holds: it comes from anybody in the group."""
        try:
            return self._do(request, peer)
        except RefusedRequest as error:
            return {"error": str(error)}
        except StorageFault as fault:
            return {"error": f"the ledger cannot be used now: {fault.detail}"}
        except (OSError, ValueError) as error:  # of a disk, or of names in files that somebody else has written
            return {"error": str(error)}

    def _do(self, request: Mapping[str, Any], peer: ControlPeer) -> dict[str, Any]:
        match request.get("do"):
            case "list":
                return self._list(request)
            case "reviews":
                return self._reviews(request)
            case "sequences":
                return {"rows": self._ask(IntakeQuestion(False, self._folder(request), ROWS_MAXIMUM, "sequences"))}
            case "retry" | "approve" | "reject" | "pause" | "resume" | "end_sequence" as verb if not peer.may_act:
                raise RefusedRequest(f"user {peer.person} may look, but not {verb}: be root, or the service's user")
            case "retry":
                return self._retry(request, peer.person)
            case "approve" | "reject" as verb:
                return self._decide(verb, request, peer.person)
            case "pause":
                return self._pause(self._folder(request), peer.person)
            case "resume":
                return self._resume(self._folder(request), peer.person)
            case "end_sequence":
                about = (ROWS_MAXIMUM, "end", _text(request, "sequence"))
                return {"rows": self._ask(IntakeQuestion(False, self._folder(request), *about))}
        verbs = "list, retry, reviews, approve, reject, pause, resume, sequences, end_sequence"
        raise RefusedRequest(f"unknown request: `do` is one of {verbs}")

    def _folder(self, request: Mapping[str, Any]) -> str | None:
        name = _text(request, "folder")
        if name is not None and name not in self._folders:
            raise RefusedRequest(no_such_folder(name, self._folders))
        return name

    # ---------------------------------------------------------------------------------------------- list

    def _list(self, request: Mapping[str, Any]) -> dict[str, Any]:
        state, folder, limit = _text(request, "state"), self._folder(request), _limit(request)
        if state in ENDED:
            return {"rows": ended(self._ledger.path, state, folder, limit, self._folders)}
        if state not in LIVE:
            raise RefusedRequest(f"state is one of {', '.join((*LIVE, *ENDED))}")
        rows = self._ask(IntakeQuestion(state == "working", folder, limit))
        folders = self._intake.statistics().folders
        unseen = [name for name, facts in folders.items() if facts.get("more") and folder in (None, name)]
        return {"rows": rows, "unseen": unseen if state == "waiting" else [], "pauses": self._pauses}

    def _ask(self, question: IntakeQuestion) -> list[dict[str, object]]:
        if (rows := self._intake.ask(question, INTAKE_PATIENCE)) is None:
            text = f"the intake has not answered for {INTAKE_PATIENCE:g} s: perhaps a disk hangs; try again"
            raise RefusedRequest(text)
        return rows

    # ---------------------------------------------------------------------------------------------- retry

    def _retry(self, request: Mapping[str, Any], person: str) -> dict[str, Any]:
        """`paths`: pairs of a path as the operator wrote it, and the same as an absolute one; without any, all."""
        only, reason, paths = self._folder(request), _text(request, "reason"), _pairs(request.get("paths", []))
        if reason is not None and reason not in list(Reason):
            raise RefusedRequest(f"there is no reason '{reason}': {nearest(reason, list(Reason))}")
        meant = {text: _meant(self._folders, text, absolute) for text, absolute in paths}
        retried = in_place = 0
        left: list[tuple[str, str]] = []
        found: set[str] = set()  # of what was written
        for name in [only] if only else self._folders:
            here = {text: folders[name] for text, folders in meant.items() if name in folders}
            inputs, placed = ({path for sides in here.values() for path in sides[side]} for side in (0, 1))
            if paths and not inputs and not placed:
                continue
            result = self._retrier.retry(WantedOriginals(name, inputs, placed, reason), person)
            retried, in_place = retried + result.retried, in_place + result.in_place
            left += [(os.path.join(name, path), why) for path, why in result.left]
            found |= {text for text, (these, those) in here.items() if result.matched & (these | those)}
        unknown = "nothing of this name was rejected; see `rmbgd list failed`"
        left += [(text, unknown) for text in meant if text not in found]
        if in_place:
            self._intake.rescan()
        return {"retried": retried, "left": left[:LEFT_SHOWN], "more_left": max(0, len(left) - LEFT_SHOWN)}

    # ---------------------------------------------------------------------------------------------- review

    def _reviews(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"rows": reviews(self._ledger.path, self._folder(request), _limit(request), self._folders)}

    def _decide(self, verb: str, request: Mapping[str, Any], person: str) -> dict[str, Any]:
        """`paths` as of a retry; a number is that of a job. What cannot be decided about is left."""
        decide, done = (
            (self._reviewer.approve, "approved") if verb == "approve" else (self._reviewer.reject, "rejected")
        )
        decided, left = 0, []
        for text, absolute in _pairs(request.get("paths", [])):
            jobs = [int(text)] if re.fullmatch(r"[0-9]{1,18}", text) else self._waiting_at(text, absolute)
            if not jobs:
                left.append((text, "nothing of this name waits for review; see `rmbgd review list`"))
            for job in jobs:
                try:
                    decided += decide(job, person)
                except UndecidableReview as error:
                    left.append((text, str(error)))
                except StorageFault as fault:
                    left.append((text, f"{fault.detail}: it is {done} as soon as that can be done"))
        return {"decided": decided, "left": left}

    def _waiting_at(self, text: str, absolute: str) -> list[int]:
        """The jobs that a path means: of a file in the review folder, or of an input."""
        meant = _meant(self._folders, text, absolute, "review")
        found = []
        for review in self._ledger.reviews.waiting() if meant else ():
            inputs, placed = meant.get(review.folder, (set(), set()))
            root = self._folders[review.folder].review if review.folder in self._folders else None
            files = self._ledger.output_names.of(SetKey(str(root), review.folder, review.path)).values()
            if review.path in inputs or placed & {file.path for file in files}:
                found.append(review.job_id)
        return found

    # ---------------------------------------------------------------------------------------------- pause

    def _begin_pauses(self) -> None:
        """As the ledger has them, but for those of folders that the configuration has no more."""
        known = {EVERY, *self._folders}
        self._pauses = {name: pause for name, pause in self._ledger.pauses().items() if name in known}
        self._intake.pause_by_operator(self._pauses)

    def _pause(self, folder: str | None, person: str) -> dict[str, Any]:
        """The ledger first: a pause that was answered survives the next start."""
        name = folder or EVERY
        changed = name not in self._pauses
        if changed:
            self._ledger.pause(name, person)
            self._begin_pauses()
            self._emit("service.paused", **({"folder": folder} if folder else {}), person=person)
        return {"changed": changed, "pauses": self._pauses}

    def _resume(self, folder: str | None, person: str) -> dict[str, Any]:
        """Without a folder every pause ends."""
        ended_pauses = {name: since for name, (since, _) in self._pauses.items() if folder in (None, name)}
        if ended_pauses:
            self._ledger.end_pauses(ended_pauses)
            self._begin_pauses()
            now = self._clock.wall().timestamp()
            for name, since in ended_pauses.items():
                seconds = round(max(0.0, now - since), 3)
                self._emit("service.resumed", **({"folder": name} if name else {}), person=person, seconds=seconds)
        return {"changed": bool(ended_pauses), "pauses": self._pauses}


def _limit(request: Mapping[str, Any]) -> int:
    limit = request.get("limit", ROWS_MAXIMUM)
    if type(limit) is not int or not 1 <= limit <= ROWS_MAXIMUM:
        raise RefusedRequest(f"limit is a number from 1 to {ROWS_MAXIMUM}")
    return limit


def _text(request: Mapping[str, Any], key: str) -> str | None:
    value = request.get(key)
    if value is not None and not (isinstance(value, str) and _is_path(value)):
        raise RefusedRequest(f"{key} is a text")
    return value


def _pairs(value: object) -> list[tuple[str, str]]:
    match value:
        case list() if all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_path, pair)) for pair in value):
            return [(text, absolute) for text, absolute in value]
    raise RefusedRequest("paths is a list of pairs of texts")


def _is_path(text: object) -> bool:
    """Could the kernel take it for one?"""
    try:
        return isinstance(text, str) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _meant(folders: Mapping[str, Folder], text: str, absolute: str, aside: str = "failed") -> dict[str, Meant]:
    """What a path may mean, by folder: below its input, or `aside`. One in no folder is meant below either of any."""
    for name, folder in folders.items():
        for side, root in enumerate((folder.input, getattr(folder, aside) or folder.input)):
            for each in (str(root), os.path.realpath(root)):
                if absolute.startswith(f"{each}/"):
                    below = {os.path.normpath(os.path.relpath(absolute, each)).removesuffix(REASON_SUFFIX)}
                    return {name: (below, set()) if side == 0 else (set(), below)}
    path = os.path.normpath(text)
    written = {name: {path, path.removeprefix(f"{name}/")} for name in folders}
    return {} if path.startswith(("/", "..")) else {name: (paths, set()) for name, paths in written.items()}
