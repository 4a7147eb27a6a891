"""Lines of the engine's process: whole, cut where they are too long, and not too many."""

from __future__ import annotations

from rmbgd.telemetry.captured_output import LAST_WORDS, LINE_MAXIMUM, LINES_AT_ONCE, OutputLines
from rmbgd.testing.clock import FakeClock


def test_lines_are_passed_on_whole_however_they_arrive():
    """Pieces are joined, empty lines dropped, bytes that are no UTF-8 shown, the rest comes at the end."""
    told: list[str] = []
    output = OutputLines(told.append, FakeClock())
    for piece in (b"one\ntw", b"o\n\n\xff three", b"\nfour"):
        output.feed(piece)
    output.finish()

    assert told == ["one", "two", "\\xff three", "four"]


def test_a_line_without_end_is_passed_on_in_pieces():
    """A process that never ends its line fills no memory."""
    told: list[str] = []
    output = OutputLines(told.append, FakeClock())
    output.feed(b"x" * (3 * LINE_MAXIMUM + 1))

    assert [len(line) for line in told] == [LINE_MAXIMUM] * 3


def test_a_flood_is_counted_and_the_last_words_kept():
    """Beyond the limit lines are left out, their number is told, and the last ones are known."""
    told: list[str] = []
    clock = FakeClock()
    output = OutputLines(told.append, clock)
    output.feed(b"".join(b"%d\n" % n for n in range(1000)))
    flood = len(told)
    clock.advance(1.0)
    output.feed(b"calm\n")

    assert flood == LINES_AT_ONCE
    assert told[LINES_AT_ONCE:] == [f"({1000 - LINES_AT_ONCE} lines left out)", "calm"]
    assert output.last_words() == " | ".join([str(n) for n in range(1000 - LAST_WORDS + 1, 1000)] + ["calm"])
