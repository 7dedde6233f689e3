"""What a command shows while it works: one live line at the bottom of a terminal, dated lines in a log file.

All of it goes to stderr; stdout is for results.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

REDRAW_SECONDS = 0.25  # between two drawings of the live line
LOG_SECONDS = 60.0  # between two lines on the same stage in a log file
RATE_SECONDS = 30.0  # over which images/s are measured
SHORTEST_BAR = 5
LONGEST_BAR = 40

_lock = threading.RLock()
_shown: "Progress | None" = None  # a terminal has one bottom line


def on_terminal() -> bool:
    """Returns whether stderr is a terminal whose lines can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    """Returns how wide the terminal is; some do not know."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def say(line: str) -> None:
    """Prints a line to stderr, above the live line if there is one."""
    with _lock:
        if _shown is not None:
            _shown.erase()
        print(line, file=sys.stderr, flush=True)
        if _shown is not None:
            _shown.draw()


def log(line: str) -> None:
    """Prints a line as `say` does, in a log file with date and time."""
    say(line if on_terminal() else f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")


@dataclasses.dataclass
class Stage:
    """A part of the work: what it is called, and how far it is.

    Attributes:
      name: such as 'evaluating'.
      total: units of the whole stage; 0 where nobody knows.
      unit: what is counted, in the plural.
      images: images in a unit, for the rate.
      waiting: said until the first unit is done, such as 'compiling, once'.
      done: units done.
      figures: shown beside the bar, such as {'loss': '0.412'}.
    """

    name: str
    total: int = 0
    unit: str = "images"
    images: int = 1
    waiting: str = ""
    done: int = 0
    figures: dict[str, str] = dataclasses.field(default_factory=dict)
    began: float = dataclasses.field(default_factory=time.monotonic)
    logged: float = dataclasses.field(default_factory=time.monotonic)
    # (seconds, units done), from the end of the first unit on: its compilation is in no rate.
    marks: deque[tuple[float, int]] = dataclasses.field(default_factory=deque)

    def advance(self, units: int, now: float) -> None:
        """Counts units that have just ended."""
        self.done = min(self.done + units, self.total or self.done + units)  # the last batch may be padded
        self.marks.append((now, self.done))
        while len(self.marks) > 2 and now - self.marks[1][0] > RATE_SECONDS:
            self.marks.popleft()

    def pause(self, seconds: float) -> None:
        """Leaves so many seconds out of the rate."""
        self.began += seconds
        self.marks = deque((at + seconds, done) for at, done in self.marks)

    def rate(self) -> float | None:
        """Returns units a second over the newest `RATE_SECONDS`, or None before two units have ended."""
        if len(self.marks) < 2 or self.marks[-1][0] <= self.marks[0][0]:
            return None
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return (last - first) / (end - start)

    def left(self) -> str:
        """Returns the time left, such as '0:36 left', or '' where it is not known."""
        rate = self.rate()
        return f"{duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""


class Progress:
    """Shows the stages of a command's work, one at a time."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._stages: list[Stage] = []
        self._drawn = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        global _shown
        if not self._silent and on_terminal() and _shown is None:
            _shown = self
            self._thread = threading.Thread(target=self._keep_drawing, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _shown
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            with _lock:
                self.erase()
                _shown = None

    def say(self, line: str) -> None:
        """Prints a line above the live one, in a log file with date and time."""
        if not self._silent:
            log(line)

    def stage(self, name: str, total: int = 0, *, unit: str = "images", waiting: str = "") -> None:
        """Ends the stage before, and begins another one; see `Stage`."""
        self.begin(Stage(name, total, unit, waiting=waiting))
        self._log(name)

    def begin(self, stage: Stage) -> None:
        """As `stage`, for a stage that says more of itself; a log file does not hear of its beginning."""
        with _lock:
            self._stages = [stage]

    @contextlib.contextmanager
    def aside(self, name: str, total: int = 0, *, unit: str = "images", waiting: str = "") -> Iterator[None]:
        """Shows another stage in here; the one before then goes on, and its rate does not count the time between."""
        before, began = list(self._stages), time.monotonic()
        with _lock:
            self._stages = [*before, Stage(name, total, unit, waiting=waiting)]
        try:
            yield
        finally:
            with _lock:
                self._stages = before
                for stage in before:
                    stage.pause(time.monotonic() - began)

    def advance(self, units: int = 1, name: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Counts units of the stage that have ended; it may have another name now, and other figures beside its bar."""
        now = time.monotonic()
        with _lock:
            stage = self._stages[-1]
            waited, stage.name = not stage.marks and stage.waiting, name or stage.name
            stage.advance(units, now)
            stage.figures.update(figures or {})
        if waited or now - stage.logged >= LOG_SECONDS:
            stage.logged = now
            self._log(f"{stage.name}: {waited}: {duration(now - stage.began)}" if waited else plain_line(stage))

    def erase(self) -> None:
        """Takes the live line off the terminal."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = False

    def draw(self) -> None:
        """Draws the live line as things stand."""
        if self._stages:
            line = live_line(self._stages[-1], time.monotonic(), _columns() - 1)
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = True

    def _log(self, line: str) -> None:
        """Prints a line to a log file; on a terminal the live line says the same."""
        if not self._silent and not on_terminal():
            log(line)

    def _keep_drawing(self) -> None:
        while not self._ended.wait(REDRAW_SECONDS):
            with _lock:
                self.draw()


def share(value: float) -> str:
    """Returns a share of 1 as '.953' or '1.000'."""
    return f"{value:.3f}".removeprefix("0")


def duration(seconds: float) -> str:
    """Returns seconds as '0:36', '12:04', '3 h 12 min' or '2 d 4 h'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02}"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def live_line(stage: Stage, now: float, columns: int) -> str:
    """Returns the live line of a stage, at most so many columns wide.

    What has no room is left out: first the rate's unit, then the rate, then the bar.
    """
    if not stage.marks:
        waiting = f"  {stage.waiting}:" if stage.waiting else ":"
        return f"{stage.name}{waiting} {now - stage.began:.0f} s"[:columns]
    rate = stage.rate()
    long, short = (f"{rate * stage.images:,.0f}{unit}" if rate else "" for unit in (" images/s", "/s"))
    figures = [f"{name} {value}" for name, value in stage.figures.items()]
    percent = f"{stage.done / stage.total:.0%}" if stage.total else f"{stage.done:,} {stage.unit}"
    for speed in (long, short, ""):
        texts = [text for text in (percent, *figures, speed, stage.left()) if text]
        room = columns - len("  ".join([stage.name, "", *texts]))
        if stage.total and room >= SHORTEST_BAR:
            return "  ".join([stage.name, bar(stage.done / stage.total, min(room, LONGEST_BAR)), *texts])
    return "  ".join([stage.name, *texts])[:columns]


def bar(share: float, columns: int) -> str:
    """Returns a bar of which this share is filled."""
    filled = round(min(share, 1.0) * columns)
    full, empty = "█░" if "utf" in (getattr(sys.stderr, "encoding", None) or "").lower() else "#."
    return full * filled + empty * (columns - filled)


def plain_line(stage: Stage) -> str:
    """Returns the same in words, for a log file."""
    rate = stage.rate()
    whole = f" of {stage.total:,}" if stage.total else ""
    texts = [
        f"{stage.done:,}{whole} {stage.unit}",
        *(f"{name} {value}" for name, value in stage.figures.items()),
        f"{rate * stage.images:,.0f} images/s" if rate else "",
        stage.left(),
    ]
    return f"{stage.name}: {', '.join(text for text in texts if text)}"
