"""What a person sees of a one-shot run: a bar while it runs, a summary at its end. Decides nothing."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from rmbgd.verbs.options import printable

PROBLEMS_SHOWN = 20


class OnceView:
    """An Emit that moves a progress bar; any thread. Used as a context manager around the run."""

    def __init__(self, total: int, *, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,  # into a file or a pipe goes the summary alone
        )
        self._task = self._progress.add_task("loading the model", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: str, /, **keys: object) -> None:
        if event == "engine.started":
            self._progress.update(self._task, description=escape(f"on {keys['device']}"))
        elif event in ("image.done", "image.failed", "image.postponed"):
            self._progress.advance(self._task)
        elif event in ("engine.fault", "engine.failover", "storage.paused"):
            said = ", ".join(f"{key} {value}" for key, value in keys.items())
            self._progress.print(f"[yellow]{event}[/]: {escape(printable(said))}", soft_wrap=True)

    def sum_up(self, done: int, failed: int, skipped: int, seconds: float, problems: list[tuple[str, str]]) -> None:
        """Refused files with their reasons, then one line that says how it went."""
        for path, why in problems[:PROBLEMS_SHOWN]:
            self._console.print(f"[red]refused[/] {escape(printable(path))}: {escape(printable(why))}", soft_wrap=True)
        if len(problems) > PROBLEMS_SHOWN:
            self._console.print(f"... and {len(problems) - PROBLEMS_SHOWN} more")
        parts = [f"{done} done"]
        if failed:
            parts.append(f"[red]{failed} refused[/]")
        if skipped:
            parts.append(f"{skipped} skipped, as their output is there already (--overwrite makes them anew)")
        rate = f", {done / seconds:.1f} a second" if done > 1 and seconds > 0 else ""
        self._console.print(f"{', '.join(parts)}; {seconds:.1f} s{rate}", soft_wrap=True)
