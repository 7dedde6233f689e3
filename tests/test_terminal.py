"""The live line of a terminal, the lines of a log file, and a run in each."""

import os
import pty
import re
import termios
import threading
import time

import jax
import pytest

from basisnet_jax import opening, terminal, train

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def screen(text):
    """What a terminal of any width holds after these characters."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[K|\r\n|\r|\n|[^\x1b\r\n]+", text):
        if token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif token == "\r":
            column = 0
        elif token.endswith("\n"):
            lines, column = [*lines, ""], 0
        else:
            lines[-1] = lines[-1][:column] + token + lines[-1][column + len(token) :]
            column += len(token)
    return lines


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


def running(done=500, total=1621, step_seconds=0.02, first_seconds=31.0):
    """A training stage whose first step took long, and how late it is."""
    stage = terminal.Stage("epoch 13/40", total, unit="steps", images=32, waiting="compiling, once", began=0.0)
    now = first_seconds
    for _ in range(done):
        stage.advance(1, now)
        now += step_seconds
    stage.figures.update({"loss": "0.412", "top-1": ".953", "eval": ".966"})
    return stage, now


def test_the_rate_and_the_time_left_do_not_count_compilation():
    stage, _ = running()
    assert stage.rate() == pytest.approx(50)
    assert stage.left() == "0:22 left"  # 1121 steps at 50 a second


def test_nothing_is_promised_before_two_units_have_ended():
    stage, now = running(done=1)
    assert stage.rate() is None
    assert stage.left() == ""
    assert "left" not in terminal.live_line(stage, now, 79)


def test_the_rate_is_of_the_last_half_minute():
    stage, now = running(done=100, total=10_000, step_seconds=1.0)
    for _ in range(100):
        stage.advance(1, now)
        now += 0.5
    assert stage.rate() == pytest.approx(2.0, rel=0.05)


def test_what_is_done_aside_is_not_in_the_rate():
    stage, now = running(done=10, step_seconds=1.0)
    stage.pause(100.0)
    stage.advance(1, now + 100.0)
    assert stage.rate() == pytest.approx(1.0)


def test_the_live_line_at_80_and_120_columns():
    stage, now = running()
    for columns in (79, 119):
        line = terminal.live_line(stage, now, columns)
        assert len(line) <= columns
        for word in ("epoch 13/40", "31%", "loss 0.412", "top-1 .953", "eval .966", "0:22 left", "█", "░"):
            assert word in line
    assert "1,600 images/s" in terminal.live_line(stage, now, 119)
    assert terminal.live_line(stage, now, 79) == (
        "epoch 13/40  ██░░░░  31%  loss 0.412  top-1 .953  eval .966  1,600/s  0:22 left"
    )


@pytest.mark.parametrize("columns", [1, 5, 20, 40, 60, 79, 100, 119, 300])
def test_no_line_is_wider_than_the_terminal(columns):
    for done in (0, 1, 2, 1600):
        stage, now = running(done=done, total=123_456_789)
        assert len(terminal.live_line(stage, now, columns)) <= columns
        stage.total = 0
        assert len(terminal.live_line(stage, now, columns)) <= columns


def test_while_it_compiles_the_line_says_so_and_how_long():
    stage, _ = running(done=0)
    assert terminal.live_line(stage, 12.0, 79) == "epoch 13/40  compiling, once: 12 s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00"), (36, "0:36"), (724, "12:04"), (3600, "1 h 0 min"), (11540, "3 h 12 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds, words):
    assert terminal.duration(seconds) == words


def test_lines_stand_whole_above_the_live_line_which_goes_at_the_end(monkeypatch):
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0.01)
    with terminal.Progress() as progress:
        progress.stage("evaluating", 10, waiting="compiling, once")
        time.sleep(0.1)
        waiting = screen(looking.text())
        progress.say("first line")
        progress.advance(3)
        terminal.log("second line")
        time.sleep(0.1)
        progress.advance(3)
        with progress.aside("saving"):
            time.sleep(0.1)
            saving = screen(looking.text())
    assert waiting == ["evaluating  compiling, once: 0 s"]
    assert saving == ["first line", "second line", "saving: 0 s"]
    assert screen(looking.text()) == ["first line", "second line", ""]


def test_a_narrow_terminal_gets_a_short_line(monkeypatch):
    looking = Terminal(monkeypatch, columns=30)
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0.01)
    with terminal.Progress() as progress:
        progress.stage("a stage whose name has no room in thirty columns")
        time.sleep(0.1)
        assert screen(looking.text()) == ["a stage whose name has no roo"]


def interrupted(progress):
    progress.stage("evaluating", 10)
    time.sleep(0.1)
    raise KeyboardInterrupt


def test_an_error_leaves_no_half_line(monkeypatch):
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0.01)
    with pytest.raises(KeyboardInterrupt), terminal.Progress() as progress:
        interrupted(progress)
    assert screen(looking.text()) == [""]
    assert terminal._shown is None


def test_a_log_file_gets_dated_lines_at_a_sane_rate_and_no_escapes(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with terminal.Progress() as progress:
        stage = terminal.Stage("epoch 1/40", 18_000, unit="steps", images=32, waiting="compiling, once", began=0.0)
        progress.begin(stage)
        now[0] = 31.0
        for step in range(18_000):
            progress.advance(1, f"epoch {1 + step // 450}/40", {"loss": "0.412"})
            now[0] += 1 / 128
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(DATED, line) for line in lines)
    assert [re.sub(DATED, "", line) for line in lines] == [
        "epoch 1/40: compiling, once: 0:31",
        "epoch 18/40: 7,681 of 18,000 steps, loss 0.412, 4,096 images/s, 1:21 left",
        "epoch 35/40: 15,361 of 18,000 steps, loss 0.412, 4,096 images/s, 0:21 left",
    ]


@pytest.mark.parametrize(("cores", "words"), [(1, "1 core"), (2, "2 cores")])
def test_cores_are_counted_in_words(cores, words, monkeypatch):
    monkeypatch.setattr(opening.cache, "usable_cores", lambda: cores)
    assert opening._devices(jax.devices()[:1]) == f"1 x CPU ({words})"


def test_of_many_processes_the_others_are_silent(capsys):
    with terminal.Progress(silent=True) as progress:
        progress.stage("evaluating", 10)
        progress.say("nothing")
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_a_run_on_a_terminal(config, tmp_path, monkeypatch):
    """The first lines say what runs, the live line that it compiles; each evaluation is told once."""
    looking = Terminal(monkeypatch)
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    train.train(config, "runs/new")
    text = looking.text()
    lines = screen(text)
    evaluations = [line for line in lines if line.startswith("step ")]
    head = lines[: lines.index(evaluations[0])]
    assert len(head) <= 10
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
        ],
        strict=True,
    ):
        assert re.fullmatch(words, line), line
    assert [line.split(":")[0] for line in evaluations] == ["step 9, epoch 1", "step 16, epoch 1"]
    assert lines[-1] == "", "the live line is gone"
    assert "making the network: " in text
    assert "epoch 1/1  compiling, once" in text
    assert re.search(r"epoch 1/1  .*\d+%  loss \d\.\d{3}  top-1 \.\d{3}", text)
    assert "| Name" not in text, "a table of parameters"
