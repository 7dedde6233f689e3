"""A command's progress: one live line at the bottom of a terminal, dated lines in a log file.

Rich draws the live line and measures the rates. All of it goes to stderr; stdout is for results.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from rich import console, live, progress, text

REDRAWS_A_SECOND = 4.0  # of the live line
LOG_SECONDS = 60.0  # between two lines on the same stage in a log file
RATE_SECONDS = 300.0  # images/s are measured over this time, and over 1,000 units at most: a step may take a minute
SHORTEST_BAR = 5
LONGEST_BAR = 40

_console = console.Console(  # one console for all, so that Rich keeps two live lines apart
    stderr=True, force_terminal=True, color_system=None, soft_wrap=True, markup=False, emoji=False, highlight=False
)
_console.show_cursor = lambda show=True: False  # type: ignore[method-assign]  # a kill would leave it hidden


def on_terminal() -> bool:
    """Returns whether stderr is a terminal whose lines can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def log(line: str) -> None:
    """Prints a line to stderr: on a terminal above the live line, in a log file with date and time."""
    print(line if on_terminal() else f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)


def share(value: float) -> str:
    """Returns a share of 1 as '.953' or '1.000'."""
    return f"{value:.3f}".removeprefix("0")


class Progress:
    """Shows the stages of a command's work, one at a time."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent, self._aside_seconds = silent, 0.0
        self._tasks = progress.Progress(get_time=self._clock, speed_estimate_period=RATE_SECONDS, disable=True)
        self._live = live.Live(
            console=_console,
            get_renderable=self._draw,
            refresh_per_second=REDRAWS_A_SECOND,
            redirect_stdout=False,
            transient=True,
        )

    def __enter__(self) -> Self:
        if not self._silent and on_terminal():
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Prints a line above the live line, in a log file with date and time."""
        if not self._silent:
            log(line)

    def stage(
        self, name: str, total: int = 0, *, done: int = 0, step_images: int = 0, waiting: str = "", logged: bool = True
    ) -> None:
        """Ends the current stage, and begins the next one.

        Args:
          name: such as 'evaluating'.
          total: images or steps of the whole stage; 0 where the number is unknown.
          done: images or steps that were done before.
          step_images: images in a step; 0 where images are counted, not steps.
          waiting: shown until the first image or step is done, such as 'compiling, once'.
          logged: whether the name is written to a log file.
        """
        now = self._clock()
        fields: dict[str, Any] = {"step_images": step_images, "waiting": waiting, "figures": {}}
        self._tasks.add_task(name, start=False, total=total or None, completed=done, began=now, logged=now, **fields)
        if logged:
            self._log(name)

    @contextlib.contextmanager
    def aside(self, name: str, total: int = 0, *, waiting: str = "") -> Iterator[None]:
        """Shows another stage in this context. Then the stage before resumes; its rate leaves out the time between."""
        began = self._clock()
        self.stage(name, total, waiting=waiting, logged=False)
        try:
            yield
        finally:
            self._tasks.remove_task(self._tasks.task_ids[-1])
            self._aside_seconds += self._clock() - began

    def advance(self, units: int = 1, name: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Counts finished units of the stage; `name` and `figures` replace its name and the figures beside its bar."""
        task, now = self._tasks.tasks[-1], self._clock()
        waited = not task.started and task.fields["waiting"] and _waited(task)
        self._tasks.start_task(task.id)
        units = units if task.total is None else min(units, int(task.total - task.completed))  # a batch may be padded
        figures = task.fields["figures"] if figures is None else figures
        self._tasks.update(task.id, advance=units, description=name or None, figures=figures)
        if waited or now - task.fields["logged"] >= LOG_SECONDS:
            task.fields["logged"] = now
            self._log(waited or plain_line(task))

    def reached(self, done: int, total: int) -> None:
        """Counts the stage's units up to `done` as finished, of a total that is known only now."""
        task = self._tasks.tasks[-1]
        self._tasks.update(task.id, total=total)
        self.advance(done - int(task.completed))

    def _clock(self) -> float:
        """Returns seconds, without the time for which another stage was shown aside."""
        return time.monotonic() - self._aside_seconds

    def _log(self, line: str) -> None:
        """Prints a line to a log file; on a terminal the live line says the same."""
        if not on_terminal():
            self.say(line)

    def _draw(self) -> console.RenderableType:
        """Returns the current live line, as wide as the terminal is now."""
        with contextlib.suppress(OSError):  # Rich itself asks stdin and stdout, which may be files
            columns, rows = os.get_terminal_size(sys.stderr.fileno())
            _console.size = (columns or 80, rows or 24)
        tasks = self._tasks.tasks
        return live_line(tasks[-1], _console.width) if tasks else ""


def live_line(task: progress.Task, columns: int) -> text.Text:
    """Returns the live line of a stage. A narrow terminal leaves out the rate's unit, then the rate, then the bar.

    With overflow 'ignore' Rich crops the line without importing anything: TFDS's imports are lazy, and Rich's thread
    could not import at the same time.
    """
    if not task.started:
        return text.Text(_waited(task), no_wrap=True, overflow="ignore")
    for unit in (" images/s", "/s", ""):
        words = "  ".join([f"{task.percentage:.0f}%" if task.total else _done(task), *_details(task, unit)])
        room = columns - len(f"{task.description}    {words}")
        if room >= SHORTEST_BAR:
            break
    drawn = [_bar(task, min(room, LONGEST_BAR))] if task.total and room >= SHORTEST_BAR else []
    return text.Text("  ".join([task.description, *drawn, words]), no_wrap=True, overflow="ignore")


def _bar(task: progress.Task, columns: int) -> str:
    """Returns a bar that is filled as far as a stage is done, drawn with shapes: Rich's own bar needs colours."""
    full, empty = "█░" if "utf" in _console.encoding else "#."
    filled = int(columns * task.percentage / 100)
    return full * filled + empty * (columns - filled)


def plain_line(task: progress.Task) -> str:
    """Returns the state of a stage in words, for a log file."""
    return f"{task.description}: {', '.join([_done(task), *_details(task, ' images/s')])}"


def _done(task: progress.Task) -> str:
    """Returns how much of a stage is done, such as '500 of 1,621 steps'."""
    whole = f" of {task.total:,}" if task.total else ""
    return f"{task.completed:,}{whole} {'steps' if task.fields['step_images'] else 'images'}"


def _waited(task: progress.Task) -> str:
    """Returns the line of a stage before its first unit is done, such as 'evaluating: compiling, once: 12 s'."""
    words = (task.description, task.fields["waiting"], f"{task.get_time() - task.fields['began']:.0f} s")
    return ": ".join(filter(None, words))


def _details(task: progress.Task, unit: str) -> Iterator[str]:
    """Yields a stage's figures, its rate if `unit` is given, and the time left, as far as they are known."""
    yield from (f"{name} {value}" for name, value in task.fields["figures"].items())
    if unit and (speed := task.speed):
        yield f"{speed * (task.fields['step_images'] or 1):,.0f}{unit}"
    if task.time_remaining:
        yield f"{progress.TimeRemainingColumn(compact=True).render(task)} left"
