"""The film process: decodes a film, asks for the matte of each frame, and encodes what comes of it.

Runs as `python -m rmbgd.film.child <connection> <film> <output> <parent>`, with three descriptors and a process number.
It may die of what it reads: nothing but its own output is lost then. Four threads: one decodes, the main one speaks to
the parent, one makes the frames, in order, and one encodes them, and reads the sound that goes with them. When one of
them fails, it says so and the process ends.

parent -> child   {"do": "start", "limits", "recipe", "steady", "look_ahead", "stem"}
                  {"do": "next"}
                  {"do": "alpha", "number"}, followed by the matte's bytes
                  {"do": "finish"}
child -> parent   {"header"}, for start
                  {"frame": number, "seconds"}, followed by the bytes of RGB, and of the alpha that it came with; or
                  {"frame": null}, for next
                  {"done": frames, "seconds", "notes", "flicker", or null}, for finish
                  whenever: {"alive"} | {"refused": reason, "detail", "maybe_incomplete"} | {"unread": errno, "detail"}
                  | {"unwritten": errno, "detail"} | {"memory"} | {"broke"}
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from queue import Queue
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings, Recipe
from rmbgd.deliver.arrange import flatten, zero_hidden
from rmbgd.engine import ipc
from rmbgd.engine.child import tie_to_parent
from rmbgd.errors import ImageError
from rmbgd.film.forms import ARCHIVE, FORMS
from rmbgd.film.reader import FilmFrame, FilmReader, UnreadableFilm
from rmbgd.film.writer import FilmArchive, FilmFile
from rmbgd.imaging.compose import with_alpha
from rmbgd.imaging.edges import clean_edges
from rmbgd.sequence.figures import SequenceFigures
from rmbgd.sequence.temporal import Memory, looked_ahead, steady

Bytes = NDArray[np.uint8]

FAILED_STATUS = 70  # EX_SOFTWARE
SIGN_EVERY = 5.0  # s
LEAST_PRIORITY = 19
AHEAD = 2  # decoded frames that wait to be asked for
BEHIND = 2  # frames with a matte that wait to be made, and as many made ones to be encoded


class Awaited:
    """A frame on its way: its matte comes later, uint8 [H, W]."""

    def __init__(self, frame: FilmFrame) -> None:
        self.frame = frame
        self.alpha: Future[Bytes] = Future()


class FilmMaker:
    """One film. `decode`, `make` and `encode` are bodies of threads; the others the main thread's."""

    def __init__(
        self, reader: FilmReader, writer: FilmFile | FilmArchive, recipe: Recipe, *, steadies: bool, look_ahead: int
    ) -> None:
        self._reader, self._writer, self._recipe, self._steadies = reader, writer, recipe, steadies
        self._window = 1 + (look_ahead if steadies else 0)  # frames that a matte is made from, beside the last one
        self._opaque = recipe.film != ARCHIVE and not FORMS[recipe.film].alpha
        self._colour = bytes.fromhex(recipe.background.removeprefix("#"))
        self._asked: Queue[Awaited | None] = Queue(AHEAD)
        self._items: Queue[Awaited | None] = Queue()  # as many as were asked for, and AHEAD
        self._made: Queue[tuple[FilmFrame, Bytes, Bytes | None] | None] = Queue(BEHIND)
        self._places = threading.BoundedSemaphore(BEHIND + self._window)
        self._given: dict[int, Awaited] = {}
        self._memory: Memory | None = None
        self._figures = SequenceFigures()
        self._count, self._end = 0, 0.0

    def decode(self) -> None:
        for frame in self._reader.frames():
            awaited = Awaited(frame)
            self._asked.put(awaited)
            self._items.put(awaited)
        self._items.put(None)
        self._asked.put(None)

    def next(self) -> FilmFrame | None:
        awaited = self._asked.get()
        if awaited is None:
            self._asked.put(None)
            return None
        self._given[awaited.frame.number] = awaited
        return awaited.frame

    def give(self, number: int, alpha: Bytes) -> None:
        """Waits while others have to be encoded before."""
        self._places.acquire()
        self._given.pop(number).alpha.set_result(alpha)

    def make(self) -> None:
        window: deque[tuple[FilmFrame, Bytes]] = deque()
        while (item := self._items.get()) is not None:
            window.append((item.frame, item.alpha.result()))
            if len(window) == self._window:
                self._make_first(window)
        while window:
            self._make_first(window)
        self._made.put(None)

    def _make_first(self, window: deque[tuple[FilmFrame, Bytes]]) -> None:
        matte = looked_ahead([(frame.rgb, alpha) for frame, alpha in window])
        frame, _ = window.popleft()
        self._made.put((frame, *self._shown(frame, matte)))
        self._places.release()

    def encode(self) -> None:
        while (made := self._made.get()) is not None:
            self._writer.write(*made)
        self._writer.close()

    def done(self) -> dict[str, Any]:
        flicker = self._figures.document() if self._steadies else None
        return {"done": self._count, "seconds": self._end, "notes": self._writer.notes, "flicker": flicker}

    def _shown(self, frame: FilmFrame, network: Bytes) -> tuple[Bytes, Bytes | None]:
        """What a frame shows: RGBA and its alpha, or RGB and None."""
        alpha = network
        if self._steadies:
            alpha, self._memory, figures = steady(frame.rgb, network, self._memory)
            self._figures.add(figures)
        self._count += 1
        self._end = float((frame.pts + frame.duration) * self._reader.time_base)
        return self._pixels(frame.rgb, alpha)

    def _pixels(self, rgb: Bytes, alpha: Bytes) -> tuple[Bytes, Bytes | None]:
        recipe = self._recipe
        if recipe.faint_below:
            alpha = np.asarray(np.where(alpha < round(255 * recipe.faint_below), np.uint8(0), alpha), np.uint8)
        if recipe.content == "mask":
            return np.asarray(cv2.merge((alpha, alpha, alpha)), np.uint8), None
        rgba = np.empty((*alpha.shape, 4), np.uint8)
        with_alpha(rgb, alpha, rgba)
        if recipe.edge_colours == "clean":
            clean_edges(rgb, np.multiply(alpha, np.float32(1 / 255), dtype=np.float32), rgba)
        if recipe.content == "rgba" and not self._opaque:
            return (zero_hidden(rgba, rgba) if recipe.hidden_colours == "zero" else rgba), alpha
        out = np.empty_like(rgb)
        flatten(rgba, (0, 0, 0) if recipe.content == "foreground" else self._colour, out)
        return out, None


class Connection:
    """To the parent. Any thread may send; each message goes whole."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._lock = connection, threading.Lock()
        self._next_sign = time.monotonic() + SIGN_EVERY

    def alive(self) -> None:
        """A sign of life, now and then, of who has nothing else to say for long."""
        if time.monotonic() >= self._next_sign:
            self._next_sign = time.monotonic() + SIGN_EVERY
            self.send({"alive": True})

    def send(self, message: ipc.Message, *planes: Bytes | None) -> None:
        with self._lock:
            ipc.send(self._socket, message)
            for plane in planes:
                if plane is not None:
                    self._socket.sendall(plane.data.cast("B"))

    def receive(self) -> ipc.Message:
        return ipc.receive(self._socket)

    def receive_plane(self, height: int, width: int) -> Bytes:
        plane = np.empty((height, width), np.uint8)
        ipc.receive_into(self._socket, plane.data.cast("B"))
        return plane


def main(arguments: list[str]) -> None:
    connection_fd, film_fd, output_fd, parent = (int(argument) for argument in arguments)
    tie_to_parent(parent, "rmbgd-film")
    av.logging.set_level(av.logging.ERROR)
    av.logging.restore_default_callback()  # to standard error, where the parent looks for damage
    cv2.setNumThreads(1)
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:  # there are realtime folders: behind everything else of the service
        os.setpriority(os.PRIO_PROCESS, 0, LEAST_PRIORITY)
    with socket.socket(fileno=connection_fd) as raw:
        connection = Connection(raw)
        try:
            _serve(connection, film_fd, output_fd)
        except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone, or wants no more
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the parent is to learn it
            _fail(connection, error)


def _serve(connection: Connection, film_fd: int, output_fd: int) -> None:
    request = connection.receive()
    limits, recipe = LimitSettings(**request["limits"]), Recipe(**request["recipe"])
    reader = FilmReader(film_fd, limits)
    sound = reader.sound(connection.alive)
    path = f"/proc/self/fd/{output_fd}"
    writer: FilmFile | FilmArchive
    if recipe.film == ARCHIVE:
        writer = FilmArchive(path, reader, sound, recipe, request["stem"])
    else:
        writer = FilmFile(path, reader, sound, recipe)
    maker = FilmMaker(reader, writer, recipe, steadies=request["steady"], look_ahead=request["look_ahead"])
    threads = [_thread(connection, body) for body in (maker.decode, maker.make, maker.encode)]
    connection.send({"header": asdict(reader.header)})
    height, width = reader.header.height, reader.header.width
    while (request := connection.receive())["do"] != "finish":
        if request["do"] == "alpha":
            maker.give(request["number"], connection.receive_plane(height, width))
        elif (frame := maker.next()) is None:
            connection.send({"frame": None})
        else:
            seconds = float(frame.pts * reader.time_base)
            connection.send({"frame": frame.number, "seconds": seconds}, frame.rgb, frame.alpha)
    for thread in threads:
        thread.join()
    connection.send(maker.done())
    connection.receive()  # until the parent has it


def _thread(connection: Connection, body: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - likewise
            _fail(connection, error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _fail(connection: Connection, error: BaseException) -> None:
    """Say why, and end: other threads may wait for what never comes."""
    if isinstance(error, ImageError):
        message: ipc.Message = {
            "refused": error.reason,
            "detail": error.detail,
            "maybe_incomplete": error.maybe_incomplete,
        }
    elif isinstance(error, MemoryError):
        message = {"memory": str(error)}
    elif isinstance(error, OSError) and error.errno:
        what = "unread" if isinstance(error, UnreadableFilm) else "unwritten"
        message = {what: error.errno, "detail": str(error.strerror)}
    else:
        traceback.print_exception(error)
        message = {"broke": f"{type(error).__name__}: {error}"}
    try:
        connection.send(message)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED_STATUS)


if __name__ == "__main__":
    main(sys.argv[1:])
