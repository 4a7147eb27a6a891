"""Adopts outputs after the ledger was replaced: originals that were kept and have theirs are not computed again."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from rmbgd import naming as names
from rmbgd.config.load import Config, Folder
from rmbgd.errors import ImageError
from rmbgd.fs import FileVersion, version_of
from rmbgd.intake.ignored import Ignored
from rmbgd.intake.scanner import scan
from rmbgd.publish import sidecar
from rmbgd.publish.temporary import hash_of
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Adopted, FileName, Published, PublishedFile, SetKey

AT_ONCE = 256  # originals in one commit


class Adoption:
    """Used by recovery, in its thread. Raises LedgerFault."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._knows_content = ledger.knows_content()
        # Not looked at yet. A set is computed anew: where the same bytes stand already, they count as its files.
        self.folders = {
            folder.name
            for folder in config.folder
            if folder.originals == "keep" and not config.recipe_of(folder).deliver
        }

    def adopt(self, folder: Folder, alive: Callable[[], None]) -> tuple[int, int]:
        """(originals whose outputs are known to be theirs, originals of which that cannot be known)."""
        found: list[Adopted] = []
        counts = [0, 0]
        for each in self._originals(folder, alive):
            if each.version is not None:
                counts[each.published is None] += 1
            found.append(each)
            if len(found) == AT_ONCE:
                self._ledger.adopt(found)
                found.clear()
        self._ledger.adopt(found)
        self.folders.discard(folder.name)
        return counts[0], counts[1]

    def _originals(self, folder: Folder, alive: Callable[[], None]) -> Iterator[Adopted]:
        root, ignored = str(folder.input), Ignored(folder.ignore)
        extension = self._config.extension_of(folder)
        for path, status in scan(root, "", ignored, recursive=folder.recursive):
            if isinstance(status, OSError) or not stat.S_ISREG(status.st_mode):
                continue
            alive()
            version = version_of(status)
            if not self._ledger.handled(folder.name, path, version):
                key, name = SetKey(str(folder.output), folder.name, path), FileName.of_output(path, extension)
                with contextlib.suppress(OSError, ImageError):  # it has just gone, or is no file: an arrival like any
                    yield from self._judge(key, name, version, os.path.join(root, path))

    def _judge(self, key: SetKey, name: FileName, version: FileVersion, source: str) -> Iterator[Adopted]:
        """Nothing where it has no output, or has one that is known to be of an older version."""
        target = self._ledger.output_names.of(key).get(name.slot)
        possible = (name.plain, name.later) if target is None else (target.path,)
        unknown = False
        for path in possible:
            output = os.path.join(key.output, path)
            if not os.path.isfile(output) or os.path.islink(output):
                continue
            facts = sidecar.read_json(os.path.join(key.output, names.sidecar_name(path)))
            named = (facts.get("folder"), facts.get("path"))
            if named not in ((None, None), (key.folder, key.relative_path)):
                continue  # another input's
            digest, size = hash_of(output)
            status = os.lstat(output)
            file = PublishedFile(name.slot, path, digest, size, inode=status.st_ino, mtime_ns=status.st_mtime_ns)
            published = Published(key.output, (file,), sidecar=bool(facts))
            if "source" in facts and facts.get("sha256") == digest:
                same = facts["source"] == sidecar.source_of(version)
                yield Adopted(key, version if same else None, published)
                return
            if self._knows_content and digest in self._ledger.made_from(hash_of(source)[0], key.output, path):
                yield Adopted(key, version, published)
                return
            if target is not None and digest == target.sha256:
                return
            unknown = True
        if unknown:
            yield Adopted(key, version, None)
