"""Messages to the user: lines on the screen and in a log, progress bars on a terminal."""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

SILENCE_SECONDS = 14.0
"""Longest silence: after this time a line is printed, so that nobody waits 15 s for one."""
_SHARE_LINE = re.compile(r"^.*?: (.+?) +(\d+)% \(\d+ s\)$")
_REFRESH_SECONDS = 1.0

_log = logging.getLogger("moesr_bids.lines")
_log.setLevel(logging.INFO)
_log.propagate = False
_log.addHandler(logging.NullHandler())


def say(text: str) -> None:
    """Print a line with the time of day."""
    _line(f"[{time.strftime('%H:%M:%S')}] {text}")


def tell(command: str, text: str) -> None:
    """Print a line to the standard error, after the name of the command."""
    _line(f"{command}: {text}", stderr=True)


def _line(text: str, *, stderr: bool = False) -> None:
    # Not by a rich console: it would overwrite the standing line at the bottom of a terminal.
    print(text, file=sys.stderr if stderr else sys.stdout, flush=True)
    _log.info(text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in ``1 image``, ``2 images``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _LinesFile(logging.FileHandler):
    """Log file that ignores write errors: a full disk ends the run elsewhere, with its own message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Go on without the line."""

    def close(self) -> None:
        """Close the file, whether the last line could be written or not."""
        with suppress(OSError):
            super().close()


@contextmanager
def lines_kept() -> Iterator[Callable[[Path], None]]:
    """Keep the lines that are printed inside the context.

    Yields
    ------
    callable
        Call it with a path to write all lines to that file, earlier ones too; without a call no file is written.

    """
    memory = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL, flushOnClose=False)

    def write_to(path: Path) -> None:
        memory.setTarget(_LinesFile(path, encoding="utf-8"))
        memory.flush()
        memory.capacity = 1  # from now on each line is written at once

    _log.addHandler(memory)
    try:
        yield write_to
    finally:
        _log.removeHandler(memory)
        if memory.target is not None:
            memory.target.close()
        memory.close()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print every `SILENCE_SECONDS` that something goes on; no process may be forked inside the context."""
    ended, start = threading.Event(), time.monotonic()

    def repeat() -> None:
        while not ended.wait(SILENCE_SECONDS):
            say(f"{what}, {duration_words(time.monotonic() - start)} so far")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def duration_words(seconds: float) -> str:
    """Return a time in words, as in ``45 s``, ``4 min``, ``2 h 10 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class StandingLine:
    """Line about the present work: at the bottom of a terminal, else printed after `SILENCE_SECONDS` of silence."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._live: Live | None = None
        if sys.stdout.isatty():
            # Without a thread of its own, since worker processes are forked from this one.
            self._live = Live(console=Console(), auto_refresh=False, transient=True)
            self._live.start()

    def said(self) -> None:
        """Note that a line was printed."""
        self._said = time.monotonic()

    def tell(self, text: Callable[[], str]) -> None:
        """Show the text, if it is time."""
        silent = time.monotonic() - self._said
        if self._live is not None and silent >= _REFRESH_SECONDS:
            self._live.update(Text(text(), overflow="ellipsis", no_wrap=True), refresh=True)
        elif self._live is None and silent >= SILENCE_SECONDS:
            say(text())
        else:
            return
        self.said()

    def close(self) -> None:
        """Leave the terminal on a new line."""
        if self._live is not None:
            self._live.stop()


class StepProgress:
    """Progress of a command in steps: a bar on a terminal, else a line per tenth of a step.

    Parameters
    ----------
    command : str
        Name at the start of each line.

    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._step, self._tenth, self._start = "", -1, time.monotonic()
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            self._bars = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
            self._bars.start()

    def __call__(self, step: str, share: float) -> None:
        """Show the share of a step that is done, 0 to 1."""
        if self._bars is not None:
            if step != self._step or self._bar is None:
                self._bar = self._bars.add_task(step, total=1.0)
            self._bars.update(self._bar, completed=share)
        elif step != self._step or int(share * 10) > self._tenth:
            tell(self._command, f"{step} {share:4.0%} ({time.monotonic() - self._start:.0f} s)")
        self._step, self._tenth = step, int(share * 10)

    def close(self) -> None:
        """Leave the terminal on a new line."""
        if self._bars is not None:
            self._bars.stop()


def last_share(log: Path, since: float) -> tuple[str, float] | None:
    """Read how far a command is from the lines of its `StepProgress`.

    Parameters
    ----------
    log : pathlib.Path
        File with its output so far.
    since : float
        Start of the command, seconds since the epoch; an older file is from another run.

    Returns
    -------
    tuple of str and float, or None
        Present step, and the share of it that is done; None before the first line.

    """
    try:
        if log.stat().st_mtime < since:
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = next((match for line in reversed(lines) if (match := _SHARE_LINE.match(line))), None)
    return (found[1], int(found[2]) / 100) if found else None
