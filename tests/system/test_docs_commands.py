"""Every command of every page: those that a CPU can finish run in a clean checkout, the rest parse.

Nothing is classified by default: a command that no rule knows fails, and says what to do.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from basisnet_jax import config as config_lib
from tests.system import doc_commands
from tests.system.doc_commands import ROOT, Command

EXTRAS = re.compile(r"\.\[([a-z,-]+)\]")
FIELDS = config_lib.flatten(config_lib.default())


# Commands that are words of a sentence, and not to be typed as they stand.
MAIN = "python -m basisnet_jax.main"
FRAGMENTS = ("taskset -c 0", "pip install --no-compile", "sha256sum --check", MAIN, f"{MAIN} ...")

# What the pages name to make a run short. It learns nothing, and passes through every part of the code.
SHORT = "--config.epochs=1 --config.warm_start_epochs=0.5 --config.schedule.warmup_epochs=0.5"
FEW = f"{SHORT} --config.data.eval_split=test[:40]"
DIGITS = f"{MAIN} --config=configs/digits.py"
FORMATS = """--config.export.formats='("tflite", "float16.tflite", "int8_weights.tflite", "int8.tflite")'"""

# In this order, in one clean checkout: the command as a page has it, what makes it short, what it prints (a pattern).
RUNS = (
    (DIGITS, SHORT, "digits: top-1"),
    (
        f"{DIGITS} --config.batchsize=64",
        "",
        "error: there is no field config.batchsize; did you mean config.batch_size?",
    ),
    (f"{DIGITS} --mode=evaluate", FEW, "early termination, chosen on 20 images"),
    (f"{DIGITS} --mode=export {FORMATS}", FEW, "specialist.int8.tflite"),
    (
        f"{DIGITS} --mode=export",
        f"{FEW} --config.export.formats=('tflite','stablehlo','safetensors')",
        "specialist.tflite",
    ),
    (
        "python -m basisnet_jax.main --mode=predict --workdir=runs/digits --images='photos/*.jpg' --threshold=0.9",
        "",
        "a.jpg",
    ),
    ("python -m basisnet_jax.runtime runs/digits/export 'photos/*.jpg'", "", "a.jpg"),
    ("python -m basisnet_jax.runtime runs/digits/export pixels.npy", "", r"\d  [01]\.\d{4}  (preview|specialist)"),
    ("python -m basisnet_jax.compare runs/fashion_mnist_*", "", "fashion_mnist_static"),
    ("python benchmarks/study.py glyphs list", "", r"basisnet_n8_0.5 .* 1,038,792"),
    ("python benchmarks/study.py glyphs commands static_0.5 --seeds 0", "", "--mode=evaluate"),
    ("cp launch/settings.sh.example launch/settings.sh", "", ""),
    ("launch/tpu_vm.sh --dry-run up", "", "gcloud"),
)
# Python of the pages that runs in the same checkout afterwards, in this folder.
SNIPPETS = (
    ('from_checkpoint("runs/digits", threshold=0.9)', "."),
    ('from_checkpoint("runs/digits", threshold=0.95)', "."),
    ('from_export("runs/digits/export")  # or with threshold=0.9', "."),
    ('from_pretrained("runs/digits/export")  # or with threshold=0.9', "."),
    ('with open("photo.jpg", "rb") as file:', "."),
    ("with TwoStagePipeline(", "."),
    ('with open("preview.stablehlo", "rb") as file:', "runs/digits/export"),
)


def test_every_command_has_a_rule():
    rules = [rule_of(command) for command in doc_commands.commands()]
    assert len(rules) > 100, "the pages' commands are not found any more"
    assert all(map(callable, rules))


def test_every_command_that_is_run_stands_in_a_page():
    texts = {written(command, everything) for command in doc_commands.commands() for everything in (False, True)}
    for command, *_ in RUNS:
        assert command in texts, f"no page has this command any more; change or remove it in RUNS: {command}"


def test_every_field_that_a_page_names_is_one():
    for page, text in doc_commands.pages():
        for field in re.findall(r"--config\.([a-z_.]+[a-z_])", text):
            deliberate = field == "batchsize"
            assert deliberate or any(x == field or x.startswith(f"{field}.") for x in FIELDS), (
                f"{page}: --config.{field}"
            )


# Rules: how much of a command is checked, by what it begins with.


def written(command: Command, everything: bool = False) -> str:
    """The command without its comment and dots, and without what stands in brackets, or with it."""
    text = re.sub(r"\s+#.*$", "", command.text).removesuffix(" ...")

    def optional(match: re.Match) -> str:
        inside = match[1]
        return f" {inside.removesuffix(' ...')}" if everything and "|" not in inside and inside[-4:] != "l..." else ""

    return re.sub(r" \[(-[^\]]*)\]", optional, text)


def check_make(command: Command) -> None:
    target = command.text.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"{command}: the Makefile has no {target}"


def check_pip(command: Command) -> None:
    known = set(re.findall(r'^        "([\w-]+)": ', (ROOT / "setup.py").read_text(), re.M))
    for extras in EXTRAS.findall(command.text):
        assert set(extras.split(",")) <= known, f"{command}: setup.py has the extras {', '.join(sorted(known))}"


def test_every_extra_is_on_the_page_of_the_installation():
    extras = re.findall(r'^        "([\w-]+)": ', (ROOT / "setup.py").read_text(), re.M)
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "start" / "install.md").read_text(), re.M)
    assert sorted(extras) == sorted(re.findall(r"`([\w-]+)`", " ".join(rows)))


def check_launch(command: Command) -> None:
    script, step = ROOT / command.text.split()[0], written(command).split()[-1]
    assert step in re.findall(r"^#   (\w+) ", script.read_text(), re.M), f"{command}: {script.name} has no step {step}"


def check_syntax(command: Command) -> None:
    done = subprocess.run(["bash", "-n", "-c", command.text], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def check_files(command: Command) -> None:
    assert (ROOT / command.text.split()[1]).exists(), command


def check_nothing(command: Command) -> None:
    """The test of the clean checkout does what the command says."""


def check_python(command: Command) -> None:
    for everything in (False, True):
        for argv in python_calls(written(command, everything)):
            kind = next((kind for kind in PYTHON if " ".join(argv).startswith(kind)), None)
            assert kind is not None, f"{command}: add what it begins with to PYTHON, and how far it is checked"


RULES: tuple[tuple[str, Callable[[Command], None]], ...] = (
    (r"([A-Z_]+=\S+ )*(taskset -c 0 )?(\.venv/bin/)?(python|pytest) |for \w+ in ", check_python),
    (r"make ", check_make),
    (r"pip install ", check_pip),
    (r"pip wheel |basisnet ", check_nothing),  # test_wheel.py builds the wheel, and calls the command outside of here
    (r"(gcloud|docker|npm|adb|litert|g\+\+) ", check_syntax),
    (r"launch/\w+\.sh ", check_launch),
    (r"cp ", check_files),
    (r"mkdir |apt-get |ls \*\.deb ", check_syntax),  # packages of fonts: nothing is fetched in a test
    (r"git clone |\. \.venv/bin/activate|\.venv/bin/pre-commit install|tensorboard --logdir=runs", check_nothing),
    ("|".join(f"{re.escape(fragment)}$" for fragment in FRAGMENTS), check_nothing),
)


def rule_of(command: Command) -> Callable[[Command], None]:
    """The first of `RULES` that knows a command."""
    for fragment in FRAGMENTS:
        if command.text == fragment:
            return check_nothing
    for begins, rule in RULES:
        if re.match(begins, command.text):
            return rule
    pytest.fail(
        f"{command}: no rule says how far this command is checked. If it is one, add what it begins with to RULES "
        "(and to RUNS, if a CPU finishes it in seconds); if it is not, set it in another way."
    )


def test_every_command_passes_its_rule():
    commands = doc_commands.commands()
    for command in commands:
        rule_of(command)(command)
    assert len(commands) > 100, "the pages' commands are not found any more"


# What `python` is called with


def python_calls(text: str) -> list[list[str]]:
    """The words of each call of Python that a shell would make of a command, loops unrolled."""
    stub = 'python() { printf "%q " "$@"; echo; }; pytest() { python -m pytest "$@"; }; taskset() { shift 2; "$@"; }\n'
    script = stub + re.sub(r"\.venv/bin/(python|pytest)\b", r"\1", text)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT / "launch")
    assert done.returncode == 0, f"{text}: {done.stderr}"
    return [shlex.split(line) for line in done.stdout.splitlines()]


def all_python_calls() -> list[tuple[Command, list[str]]]:
    found = {}
    for command in doc_commands.commands():
        if rule_of(command) is check_python:
            for everything in (False, True):
                for argv in python_calls(written(command, everything)):
                    found.setdefault(tuple(argv), command)
    return [(command, list(argv)) for argv, command in found.items()]


PYTHON = (
    "-m basisnet_jax.main ",
    "-m basisnet_jax.",
    "-m http.server ",
    "benchmarks/",
    "-m tests.",
    "-m pytest ",
    "-c ",
)


def calls_of(kind: str) -> list[tuple[Command, list[str]]]:
    return [
        (command, argv)
        for command, argv in all_python_calls()
        if next((x for x in PYTHON if " ".join(argv).startswith(x)), None) == kind
    ]


def test_command_lines_of_main_parse_and_costs_are_counted(tmp_path):
    """Any mode: flags, config file, values; `--mode=cost` runs."""
    photos = tmp_path / "photos"
    for number in range(10):
        (photos / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (photos / "ab"[number % 2] / f"{number}.jpg").touch()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.system.command_lines",
        ],  # as a script it would find tests/configs/ in place of configs/
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    with process:
        for command, argv in calls_of("-m basisnet_jax.main "):
            costs = "--mode=cost" in argv
            extra = [f"--workdir={tmp_path}"] if costs else []
            if "--mode=finetune" in argv:
                argv = [f"--images={photos}" if word.startswith("--images=") else word for word in argv]
            elif not any(word.startswith(("--config=", "--model=")) for word in argv):
                extra.append("--config=configs/digits.py")  # in place of the run's own: there is no run here
            request = {"arguments": [*extra, *argv[2:]], "whole": costs, "parsed": not costs}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            expected = 2 if "--config.batchsize=64" in argv else 0
            assert answer["code"] == expected, f"{command}\n{shlex.join(argv)}\n{answer['text']}"
        process.stdin.close()


class Parsed(BaseException):
    """Raised in place of what a command would have done after its arguments were parsed."""


def test_benchmarks_and_modules_start_and_know_their_arguments(monkeypatch):
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        if unknown and not all(x.startswith("--config.") for x in unknown):
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for command, argv in [*calls_of("benchmarks/"), *calls_of("-m basisnet_jax.")]:
        name, *arguments = argv[1:] if argv[0] == "-m" else argv
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        run = runpy.run_module if argv[0] == "-m" else lambda name, **kwargs: runpy.run_path(str(ROOT / name), **kwargs)
        with pytest.raises((Parsed, SystemExit)) as end:
            run(name, run_name="__main__")
        assert end.type is Parsed, f"{command}: {shlex.join(argv)} is refused"


def test_every_benchmark_is_named_by_a_page():
    """So each of them has its help, and starts: the test above starts what pages name."""
    called = {argv[0] for _, argv in calls_of("benchmarks/")}
    scripts = {path for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text()}
    assert called == {str(path.relative_to(ROOT)) for path in scripts}


def test_other_python_of_the_pages_is_python():
    for command, argv in calls_of("-c "):
        compile(argv[1], str(command), "exec")
    for command, argv in calls_of("-m tests."):
        assert importlib.util.find_spec(argv[1]), command
    for command, argv in calls_of("-m pytest "):
        for pattern in argv[2:]:
            assert pattern.startswith("-") or list(ROOT.glob(pattern)), f"{command}: there is no {pattern}"
    for block in doc_commands.blocks():
        if block.language == "python":
            source = textwrap.dedent("\n".join(block.lines))
            for line in source.splitlines() if not source.startswith('"') else ():
                if re.match(r"(from|import) (?!onnxruntime|timm)", line):  # which are extras
                    exec(compile(line, f"{block.page}:{block.line}", "exec"), {})


# A clean checkout


def clean_checkout(folder: pathlib.Path) -> pathlib.Path:
    """The files that git knows, with an environment as `make` makes it: installed from there, for editing.

    All else that the environment has is what this process has, so that nothing is downloaded.
    """
    checkout = folder / "basisnet_jax"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, checkout / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (site,) = (checkout / ".venv").glob("lib/python*/site-packages")
    (site / "everything_else.pth").write_text(sysconfig.get_paths()["purelib"])
    install = [sys.executable, "-m", "pip", "--python", checkout / ".venv" / "bin" / "python", "install", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--ignore-installed"]
    subprocess.run([*install, *offline, "-e", "."], cwd=checkout, check=True)
    for mark in ("installed", "pretrained"):
        (checkout / ".venv" / mark).touch()
    return checkout


@pytest.fixture
def shell(tmp_path):
    """shell(text, folder) runs a command in a clean checkout with a home of its own; returns what it printed."""
    checkout, home = clean_checkout(tmp_path), tmp_path / "home"
    home.mkdir(exist_ok=True)
    flags = " ".join(x for x in os.environ["XLA_FLAGS"].split() if "device_count" not in x)
    caches = ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH", "XDG_CACHE_HOME", "TFDS_DATA_DIR", "VIRTUAL_ENV")
    # A make that calls the tests hands on its own flags, and what its command line says, to the ones in here.
    of_make = ("MAKEFLAGS", "PYTHON", "VENV")
    environment = {name: value for name, value in os.environ.items() if name not in caches + of_make}
    environment |= {"HOME": str(home), "XLA_FLAGS": flags}

    def run(text: str, folder: str = ".", code: int = 0) -> str:
        script = f". {checkout}/.venv/bin/activate && {text}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=checkout / folder, env=environment, capture_output=True, text=True, timeout=3600
        )
        assert done.returncode == code, f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    run.checkout = checkout
    return run


def make_what_is_the_users_own(checkout: pathlib.Path) -> None:
    """The photographs, pixels and finished runs that the pages' commands are given."""
    (checkout / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("photos/a.jpg", "photos/b.jpg", "photo.jpg"):
        cv2.imwrite(str(checkout / name), rng.integers(0, 256, (30, 40, 3), np.uint8))
    np.save(checkout / "pixels.npy", rng.integers(0, 256, (3, 24, 24, 1), np.uint8))


def finish_two_seeds(runs: pathlib.Path) -> None:
    """The digits' run, twice under the name of a Fashion-MNIST network's: as if of seeds 0 and 1."""
    for seed in (0, 1):
        workdir = shutil.copytree(runs / "digits", runs / f"fashion_mnist_static-{seed}")
        for name in ("config.json", "results.json"):
            text = (workdir / name).read_text()
            (workdir / name).write_text(text.replace('"seed": 0', f'"seed": {seed}'))


def test_commands_run_in_a_clean_checkout(shell):
    """The configs are found from benchmarks/ too, as only an installation that has them on the path does."""
    checkout = shell.checkout
    make_what_is_the_users_own(checkout)
    assert shell("python -c 'from configs import digits; print(digits.__file__)'", "benchmarks").strip() == str(
        checkout / "configs" / "digits.py"
    )
    assert shell("make --silent --dry-run train").strip() == f".venv/bin/{DIGITS}", "make train is the first of RUNS"
    for command, short, printed in RUNS:
        said = shell(with_flags(command, short), code=2 if printed.startswith("error") else 0)
        assert re.search(printed, said), f"{command} {short}\n{said}"
        if command == DIGITS:
            finish_two_seeds(checkout / "runs")
    snippets = ["\n".join(block.lines) for block in doc_commands.blocks() if block.language == "python"]
    for begins, folder in SNIPPETS:
        (snippet,) = (x for x in snippets if begins in x)
        images = "import numpy as np\nimages = np.zeros((3, 24, 24, 1), np.uint8)\n"
        (checkout / folder / "snippet.py").write_text(f"{images}{snippet}\n")
        shell("python snippet.py", folder)


def with_flags(command: str, flags: str) -> str:
    """The command, then the flags quoted: none of them holds a space."""
    return f"{command} {shlex.join(flags.split())}"


def test_an_unknown_command_is_told_what_to_do():
    with pytest.raises(pytest.fail.Exception, match=r"docs/new\.md:3: rsync a b: no rule says .* add what it begins"):
        rule_of(Command("docs/new.md", 3, "rsync a b"))


def test_commands_are_found_in_blocks_fences_and_spans(monkeypatch):
    page = """Title

    python a.py --b \\
      c        # why
    printed by it

A list of `make x`, `no command`, and `config.py`:

- item
    not a block

```
$ pip install 'x y'
pip was here
```

```kotlin
make(it)
```
"""
    monkeypatch.setattr(doc_commands, "pages", lambda: [("page.md", page)])
    found = [(command.line, command.text) for command in doc_commands.commands()]
    assert found == [(3, "python a.py --b c # why"), (13, "pip install 'x y'"), (7, "make x")]
