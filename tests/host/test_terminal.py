"""The live line of a terminal, the lines of a log file, and a run in each."""

import builtins
import io
import os
import pty
import re
import sys
import termios
import threading
import time

import jax
import pytest
import rich.console

from basisnet_jax.host import devices, terminal
from basisnet_jax.loop import train

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def screen(text):
    """What a terminal of any width holds after these characters."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[\d*[KA]|\r|\n|[^\x1b\r\n]+", text.replace("\r\n", "\n")):
        if token == "\x1b[2K":
            lines[row] = ""
        elif token == "\x1b[1A":
            row -= 1
        elif token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + len(token) :]
            column += len(token)
    assert not any(lines[row + 1 :]), "nothing is left below the cursor"
    return [line.rstrip() for line in lines[: row + 1]]


class Terminal:
    """A pseudo-terminal in the place of stderr, and what was written to it."""

    def __init__(self, monkeypatch, columns=80):
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        self._pieces = []
        self._file = os.fdopen(slave, "w", encoding="utf-8")
        monkeypatch.setattr("sys.stderr", self._file)
        monkeypatch.setenv("TERM", "xterm")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:
                return
            if not piece:
                return
            self._pieces.append(piece)

    def text(self):
        time.sleep(0.1)  # the reader takes what the terminal was given
        return b"".join(self._pieces).decode()


@pytest.fixture
def now(monkeypatch):
    """The time, which stands still but for what a test adds."""
    seconds = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def running(now, done=500, total=1621, step_seconds=0.02, first_seconds=31.0):
    """A training whose first step took long."""
    progress = terminal.Progress(silent=True)
    progress.stage("epoch 13/40", total, step_images=32, waiting="compiling, once")
    now[0] += first_seconds
    steps(now, progress, done, step_seconds)
    return progress


def steps(now, progress, count, seconds):
    for _ in range(count):
        progress.advance(1, figures={"loss": "0.412", "top-1": ".953", "eval": ".966"})
        now[0] += seconds


def live_line(progress, columns):
    """The live line as a terminal of so many columns has it."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = rich.console.Console(file=file, width=columns, color_system=None)
    (line,) = console.render_lines(terminal.live_line(progress._tasks.tasks[-1], columns), pad=False)
    return "".join(segment.text for segment in line)


def test_the_rate_and_the_time_left_do_not_count_compilation(now):
    progress = running(now)
    assert "  1,600 images/s  00:23 left" in live_line(progress, 119)  # 1121 steps at 50 a second are 22.4 s
    assert terminal.plain_line(progress._tasks.tasks[-1]).endswith(", 1,600 images/s, 00:23 left")


def test_nothing_is_promised_before_two_units_have_ended(now):
    progress = running(now, done=1)
    for line in (live_line(progress, 119), terminal.plain_line(progress._tasks.tasks[-1])):
        assert "left" not in line
        assert "/s" not in line


@pytest.mark.parametrize(("slow", "fast"), [(1.0, 0.5), (0.01, 0.005)])
def test_the_rate_is_of_the_newest_steps(now, slow, fast):
    progress = running(now, done=1000, total=10_000, step_seconds=slow)
    steps(now, progress, 1000, fast)
    assert f"  {32 / fast:,.0f} images/s" in live_line(progress, 119)


def test_steps_of_a_minute_have_a_rate(now):
    progress = running(now, done=10, total=20, step_seconds=60.0)
    assert "10:00 left" in live_line(progress, 119)


def test_what_is_done_aside_is_not_in_the_rate(now):
    progress = running(now, done=10, step_seconds=1.0)
    with progress.aside("evaluating", 10):
        now[0] += 50.0
        assert live_line(progress, 119) == "evaluating: 50 s"
        with progress.aside("saving"):
            now[0] += 50.0
            assert live_line(progress, 119) == "saving: 50 s"
    steps(now, progress, 1, 1.0)
    assert "  32 images/s" in live_line(progress, 119)


def test_the_live_line_at_80_and_120_columns(now):
    progress = running(now)
    for columns in (80, 120):
        line = live_line(progress, columns)
        assert len(line.rstrip()) <= columns
        for word in ("epoch 13/40", "31%", "loss 0.412", "top-1 .953", "eval .966", "00:23 left", "█", "░"):
            assert word in line
    assert "1,600 images/s" in live_line(progress, 120)
    assert live_line(progress, 80) == (
        "epoch 13/40  █░░░░░  31%  loss 0.412  top-1 .953  eval .966  1,600/s  00:23 left"
    )
    assert live_line(progress, 70) == "epoch 13/40  █░░░░  31%  loss 0.412  top-1 .953  eval .966  00:23 left"
    assert live_line(progress, 60).startswith("epoch 13/40  31%  loss 0.412  top-1 .953")


@pytest.mark.parametrize("columns", [1, 5, 20, 40, 60, 79, 100, 119, 300])
def test_no_line_is_wider_than_the_terminal(now, columns):
    for done in (0, 1, 2, 1600):
        progress = running(now, done=done, total=123_456_789)
        assert len(live_line(progress, columns)) <= columns
        progress = running(now, done=done, total=0)
        assert len(live_line(progress, columns)) <= columns


def test_while_it_compiles_the_line_says_so_and_how_long(now):
    assert live_line(running(now, done=0, first_seconds=12.0), 79) == "epoch 13/40: compiling, once: 12 s"


def test_a_padded_batch_counts_no_more_than_there_is(now):
    progress = terminal.Progress(silent=True)
    progress.stage("evaluating", 37)
    progress.advance(32)
    progress.advance(32)
    assert terminal.plain_line(progress._tasks.tasks[-1]) == "evaluating: 37 of 37 images"


def test_a_total_that_is_known_later_shows_the_share_that_is_done(now):
    progress = terminal.Progress(silent=True)
    progress.stage("classifying")
    for done in (256, 512):
        now[0] += 1
        progress.reached(done, 600)
    assert live_line(progress, 80).startswith("classifying")
    assert "85%" in live_line(progress, 80)
    progress.reached(600, 600)
    assert "100%" in live_line(progress, 80)


def test_lines_stand_whole_above_the_live_line_which_goes_at_the_end(monkeypatch):
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAWS_A_SECOND", 100)
    with terminal.Progress() as progress:
        progress.stage("evaluating", 10, waiting="compiling, once")
        time.sleep(0.1)
        waiting = screen(looking.text())
        progress.say("first line")
        progress.advance(3)
        terminal.log("second line")
        time.sleep(0.1)
        print("a library's line", file=sys.stderr)
        progress.advance(3)
        with progress.aside("saving"):
            time.sleep(0.1)
            saving = screen(looking.text())
    assert waiting == ["evaluating: compiling, once: 0 s"]
    lines = ["first line", "second line", "a library's line"]
    assert saving == [*lines, "saving: 0 s"]
    assert screen(looking.text()) == [*lines, ""]
    assert "\x1b[?25l" not in looking.text(), "a killed process would leave the cursor hidden"


def test_the_line_is_drawn_while_another_thread_imports_lazily(monkeypatch):
    """TFDS is imported with an `__import__` of etils that refuses relative imports, in whatever thread they are."""
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAWS_A_SECOND", 100)
    imported = builtins.__import__

    def absolute_only(name, globals=None, locals=None, fromlist=(), level=0):
        if level:
            raise ValueError(f"Relative import statements not supported ({name}).")
        return imported(name, globals, locals, fromlist, level)

    with terminal.Progress() as progress:
        progress.stage("starting")
        monkeypatch.setattr(builtins, "__import__", absolute_only)
        progress.say("a line")
        time.sleep(0.1)
        drawn = screen(looking.text())
        monkeypatch.setattr(builtins, "__import__", imported)
    assert drawn == ["a line", "starting: 0 s"]


def test_a_narrow_terminal_gets_a_short_line(monkeypatch):
    looking = Terminal(monkeypatch, columns=30)
    monkeypatch.setattr(terminal, "REDRAWS_A_SECOND", 100)
    with terminal.Progress() as progress:
        progress.stage("a stage whose name has no room in thirty columns")
        time.sleep(0.1)
        assert screen(looking.text()) == ["a stage whose name has no room"]


def interrupted(progress):
    progress.stage("evaluating", 10)
    time.sleep(0.1)
    raise KeyboardInterrupt


def test_an_error_leaves_no_half_line(monkeypatch):
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAWS_A_SECOND", 100)
    with pytest.raises(KeyboardInterrupt), terminal.Progress() as progress:
        interrupted(progress)
    assert screen(looking.text()) == [""]
    assert isinstance(sys.stderr, io.TextIOWrapper), "stderr is what it was before"


def test_a_log_file_gets_dated_lines_at_a_sane_rate_and_no_escapes(capsys, now):
    with terminal.Progress() as progress:
        progress.stage("epoch 1/40", 18_000, step_images=32, waiting="compiling, once", logged=False)
        now[0] = 31.0
        for step in range(18_000):
            progress.advance(1, f"epoch {1 + step // 450}/40", {"loss": "0.412"})
            now[0] += 1 / 128
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(DATED, line) for line in lines)
    assert [re.sub(DATED, "", line) for line in lines] == [
        "epoch 1/40: compiling, once: 31 s",
        "epoch 18/40: 7,681 of 18,000 steps, loss 0.412, 4,096 images/s, 01:21 left",
        "epoch 35/40: 15,361 of 18,000 steps, loss 0.412, 4,096 images/s, 00:21 left",
    ]


@pytest.mark.parametrize(("cores", "words"), [(1, "1 core"), (2, "2 cores")])
def test_cores_are_counted_in_words(cores, words, monkeypatch):
    monkeypatch.setattr(devices.compilation_cache, "usable_cores", lambda: cores)
    assert devices.described(jax.devices()[:1]) == f"1 x CPU ({words})"


def test_of_many_processes_the_others_are_silent(capsys):
    with terminal.Progress(silent=True) as progress:
        progress.stage("evaluating", 10)
        progress.say("nothing")
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_a_run_on_a_terminal(config, tmp_path, monkeypatch):
    """The first lines say what runs, the live line that it compiles; each evaluation is told once."""
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAWS_A_SECOND", 100)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "problems", lambda platform: [f"JAX uses the {platform}; run pip install x."])
    train.train(config, "runs/new")
    text = looking.text()
    lines = screen(text)
    evaluations = [line for line in lines if line.startswith("step ")]
    head = lines[: lines.index(evaluations[0])]
    assert len(head) <= 11
    for line, words in zip(
        head,
        [
            r"basisnet_jax [\d.]+, JAX [\d.]+, Python 3[\d.]+",
            r"  devices    8 x CPU \(\d+ cores\)",
            r"  data       digits, 10 classes: 1,297 images to train on, 37 to evaluate",
            r"  preview    tiny, 6 px: 12,632 multiply-adds",
            r"  specialist tiny, 8 px, 4 bases: 23,200 multiply-adds",
            r"  both       35,832 multiply-adds an image, 11,444 parameters",
            r"  training   0.2 epochs, 16 steps of 16 images, seed 0",
            r"  workdir    runs/new \(new\)",
            r"  note       .*",  # the run is too short for its averages
            r"  problem    JAX uses the cpu; run pip install x\.",
        ],
        strict=True,
    ):
        assert re.fullmatch(words, line), line
    assert [line.split(":")[0] for line in evaluations] == ["step 9, epoch 1", "step 16, epoch 1"]
    assert lines[-1] == "", "the live line is gone"
    assert "making the network: " in text
    assert "epoch 1/1: compiling, once" in text
    assert re.search(r"epoch 1/1  .*\d+%  loss \d\.\d{3}  top-1 \.\d{3}", text)
    assert "| Name" not in text, "a table of parameters"
