"""What is told to the person who waits: lines in a log, a bar on a terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


def say(text: str) -> None:
    """Print a line with the time of day."""
    _line(f"[{time.strftime('%H:%M:%S')}] {text}")


def tell(command: str, text: str) -> None:
    """Print a line of a command to the standard error."""
    _line(f"{command}: {text}", stderr=True)


def _line(text: str, *, stderr: bool = False) -> None:
    # Made anew for each line: tests and callers may have replaced the streams.
    console = Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)
    console.print(text)
    console.file.flush()


class StepProgress:
    """Progress of a command in steps: a bar on a terminal, otherwise a line per step and per tenth of it.

    Parameters
    ----------
    command : str
        Name that the lines begin with.

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
        """Take note of the share of a step that is done."""
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
