"""Publishes results of leased images into their roots: no ledger, the root itself is the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rmbgd import naming as names
from rmbgd.events import Emit
from rmbgd.fleet.root import Root
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.publisher import copy_known
from rmbgd.publish.quarantine import Quarantine
from rmbgd.store.outbox import JobOutcome
from rmbgd.store.records import ContentKey, FileName, Job, Known, Published


class RootPublisher:
    """Serves all finish threads; a ResultPublisher. `roots`: by folder name. `quarantine` words the refusals."""

    def __init__(self, roots: Mapping[str, Root], quarantine: Quarantine, emit: Emit) -> None:
        self._roots, self._quarantine, self._emit = roots, quarantine, emit

    def publish(
        self,
        job: Job,
        write: Callable[[FileSet], None],
        outcome: JobOutcome,
        *,
        content: ContentKey | None = None,  # noqa: ARG002 - equal images of other machines are not known
        report: Mapping[str, object] | None = None,  # noqa: ARG002
    ) -> Published:
        root = self._roots[job.folder]
        with root.open_set(job) as files:
            write(files)
            return self._place(root, job, files, outcome)

    def publish_copy(
        self,
        job: Job,
        known: Known,
        outcome: JobOutcome,
        *,
        wanted: Sequence[FileName] = (),
        sidecar_facts: Mapping[str, object] | None = None,
    ) -> Published | None:
        root = self._roots[job.folder]
        wanted = wanted or [FileName.of_output(job.relative_path, names.EXTENSIONS[root.recipe.format])]
        with root.open_set(job) as files:
            files.sidecar_facts = sidecar_facts
            for name, file in zip(wanted, known.files, strict=True):
                if not copy_known(known.output, file, files.create(name, **file.facts)):
                    return None
            return self._place(root, job, files, outcome)

    def refuse(self, job: Job, outcome: JobOutcome) -> None:
        self._roots[job.folder].refuse(job, self._quarantine.story(job, outcome.keys))

    def deliver(self, outcome: JobOutcome) -> None:
        self._emit(outcome.event, **outcome.keys)

    @staticmethod
    def _place(root: Root, job: Job, files: FileSet, outcome: JobOutcome) -> Published:
        published, again = root.publish(job, files, outcome.keys)
        outcome.add(output=published.path, bytes_out=published.size, sha256_out=published.sha256)
        if not published.is_plain:
            outcome.add(outputs=published.outputs)
        if again:
            outcome.add(duplicate=True)
        return published
