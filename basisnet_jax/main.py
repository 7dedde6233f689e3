"""Trains, evaluates, uses and exports two-stage image classifiers (BasisNet).

    python -m basisnet_jax.main --config=configs/digits.py                              train, or resume
    python -m basisnet_jax.main --config=configs/digits.py --config.batch_size=64 --workdir=runs/wide
    python -m basisnet_jax.main --mode=evaluate --workdir=runs/digits                   look at the run closely
    python -m basisnet_jax.main --mode=predict --workdir=runs/digits --images='photos/*.jpg'
    python -m basisnet_jax.main --mode=export --workdir=runs/digits                     files for phones and servers
    python -m basisnet_jax.main --mode=cost --config=configs/imagenet_mbv3.py           multiply-adds; needs no data

Every field of a config is a flag too; basisnet_jax/config.py has them all with their meaning. What other libraries
log is shown with --verbosity=0 (information) or --verbosity=-1 (warnings).
"""

# Data workers import this module again, so importing it starts nothing.

import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

try:
    from basisnet_jax import allocator, arguments, noise

    if __name__ == "__main__":  # before the imports that take long: it starts this program again
        training = arguments.read(sys.argv, "mode")["mode"] in (None, "train")
        allocator.keep_freed_memory(arenas=None if training else 1)
        noise.filter_native_stderr()

    from absl import app, flags
    from ml_collections import config_flags
except ModuleNotFoundError as error:  # basisnet_jax[runtime] is installed without them
    print(f"error: {error.name} is not installed; run pip install 'basisnet_jax[train]'.", file=sys.stderr)
    sys.exit(2)

from basisnet_jax import config as config_lib
from basisnet_jax import config_files, exit_rule
from basisnet_jax.errors import UserError
from basisnet_jax.output import ending_with_its_reader

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/, or the config.json of a run; any field of it is a flag too: --config.batch_size=64. "
    "Default: the config of the run in --workdir.",
)
flags.FLAGS["config"].parser = config_files.Parser()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; evaluate, predict: or of an export. Default: runs/<the config's name>."
)
_MODES = {
    "train": "train, evaluate and save",
    "evaluate": "whole-set metrics of a trained run or its export, its early termination and its coefficients",
    "predict": "classify image files in two stages",
    "export": "write files for phones and servers",
    "cost": "count multiply-adds",
    "teacher": "cache a teacher's logits",
    "compile": "compile the step for a TPU that is not here, and say what it would cost",
}
_SHARED = ("train", "evaluate", "teacher")  # modes that many processes can do together
_MODE = flags.DEFINE_enum("mode", "train", list(_MODES), "; ".join(f"{name}: {what}" for name, what in _MODES.items()))
_IMAGES = flags.DEFINE_string(
    "images", None, "predict: a folder of images, or their names, as in 'photos/*.jpg'; ** is any folders."
)
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "csv", "json"], "predict: how the answers are printed.")
_THRESHOLD = flags.DEFINE_float(
    "threshold",
    None,
    "predict, export: largest softmax probability at which the preview answers alone, from 0 to 1. Default: the rule "
    "that --mode=evaluate chose.",
)
_SPECIALIZE = flags.DEFINE_string(
    "specialize",
    None,
    "export: a folder or names of images of one place, as in 'photos/*.jpg', that a static network is frozen for.",
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "compile: the TPU, as in v5e:16x16 or v4:2x2x1.")
_SLICES = flags.DEFINE_integer("slices", 1, "compile: how many of that topology.")
_WHAT = flags.DEFINE_enum("what", "train", ["train", "eval"], "compile: the training step or the evaluation step.")
_PER_CHIP_BATCH = flags.DEFINE_integer("per_chip_batch", None, "compile: images a chip. Default: the config's batch.")
_FIT = flags.DEFINE_bool("fit", False, "compile: also find the largest batch that fits into memory.")
_PRICE = flags.DEFINE_float("price", None, "compile: of a chip-hour, to give the price of an epoch.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if the environment does not tell.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, if the environment does not tell.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one's number, from 0; likewise.")
_CONNECT_SECONDS = flags.DEFINE_integer("connect_seconds", 300, "How long the processes wait for each other to start.")
_VERSION = flags.DEFINE_bool("version", False, "Print the versions of this package, JAX and Python.")
_STOPPED_CODE = flags.DEFINE_integer(
    "stopped_code", 0, "Exit code after a signal; what starts a run again can tell it from a finished one's 0."
)


_NO_CONFIG = (
    "--config is missing; give a file of configs/, as in --config=configs/digits.py, or the --workdir of a run, which "
    "has its own."
)
INTERRUPTED = 130  # exit code after a second Ctrl-C, as a shell has it


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Absl's parsing, with a sentence for each mistake."""
    try:
        argv = _with_config(argv)
        positional = flags.FLAGS(argv)
        if _VERSION.value:
            from basisnet_jax import report

            print(report.versions_line())
            sys.exit(0)
        if len(positional) > 1:
            raise UserError(
                f"unknown argument {positional[1]!r}; flags start with --, as in --config=configs/digits.py."
            )
        if _TOPOLOGY.value and _MODE.value != "compile":
            raise UserError(f"--topology={_TOPOLOGY.value} is not for --mode={_MODE.value}; say --mode=compile.")
        if _THRESHOLD.value is not None:
            exit_rule.threshold_rule(_THRESHOLD.value)
            if _MODE.value not in ("predict", "export") or _SPECIALIZE.value:
                raise UserError("--threshold is for --mode=predict, and for --mode=export without --specialize.")
        if _SPECIALIZE.value and _MODE.value != "export":
            raise UserError(f"--specialize={_SPECIALIZE.value} is not for --mode={_MODE.value}; say --mode=export.")
        if _MODE.value == "predict" and _IMAGES.value is None:
            raise UserError("--images is missing; name image files, as in --images='photos/*.jpg'.")
        if _CONFIG.value is None:
            raise UserError(_NO_CONFIG)
        return positional
    except UserError as error:
        _fail(error)
    except flags.Error as error:
        _fail(str(error).strip().splitlines()[0])
    except (AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        _fail(_config_mistake(error, argv))


def _with_config(argv: Sequence[str]) -> Sequence[str]:
    """Returns the command line, with the config of the run in --workdir if it names none.

    Raises:
      UserError: there is no run in that folder.
    """
    given = arguments.read(argv, "config", "workdir", "mode")
    if given["config"] is not None:
        return argv
    if not given["workdir"]:
        if any(argument.lstrip("-").startswith("config.") for argument in argv[1:]):
            raise UserError(_NO_CONFIG)  # config_flags would say that it knows no such flag
        return argv
    path = config_files.of_workdir(given["workdir"], or_export=given["mode"] in ("evaluate", "predict"))
    sys.argv = [argv[0], f"--config={path}", *argv[1:]]  # where config_flags looks for overrides
    return sys.argv


def _config_mistake(error: Exception, argv: Sequence[str]) -> str:
    """A sentence for what went wrong in a config file or in an override of one of its fields."""
    known = config_lib.flatten(config_lib.default())
    for argument in argv:
        name = argument.lstrip("-").split("=")[0].removeprefix("no")
        if name.startswith("config.") and name.removeprefix("config.") not in known:
            return config_lib.nearest_field(name.removeprefix("config."), config_lib.default())
    return f"a --config. flag cannot be read: {str(error).strip().splitlines()[0]}"


def _on_one_line(text: str) -> str:
    """With escapes for what would end the line or steer the terminal: the text may quote what was given."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def _fail(message: object) -> NoReturn:
    print(f"error: {_on_one_line(str(message))}", file=sys.stderr)
    sys.exit(2)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    del argv
    from basisnet_jax import distributed, noise, terminal

    if flags.FLAGS["verbosity"].present:
        noise.show_everything()
    else:
        noise.log_own_lines(terminal.log)
    # Threads that decode small images hold Python's lock, and each step waits for it: by default 5 ms every time.
    sys.setswitchinterval(0.0005)

    with distributed.not_waiting_for_the_lost():
        return _run()


def _run() -> int:
    """Meets the other processes, if there are any, and dispatches on --mode."""
    from basisnet_jax import terminal

    with terminal.Progress() as progress:
        progress.stage("starting", logged=False)  # these imports take seconds
        from basisnet_jax import cache, costing, distributed, evaluation, evaluation_summary, report, teacher, train

    if _MODE.value != "compile":  # JAX keeps programs for machines that are not here, but cannot read them back
        cache.use_compilation_cache()
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or config_files.default_workdir(filename)
    name = os.path.basename(os.path.normpath(workdir))
    try:
        if _MODE.value in _SHARED:
            distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CONNECT_SECONDS.value)
        match _MODE.value:
            case "train":
                results = train.train(_CONFIG.value, workdir)
                if results is None:
                    distributed.say(f"stopped and saved; the same command goes on from there (workdir {workdir}).")
                    return _STOPPED_CODE.value
                distributed.say(f"{name}: {report.summary(results)}")
                distributed.say(f"{workdir}: results.json, curves.png, config.json, checkpoints, events")
                distributed.say(f"next: {_command('evaluate', workdir)}")
            case "evaluate":
                results = evaluation.evaluate_run(_CONFIG.value, workdir)
                distributed.say(evaluation_summary.summary(results))
                rule = ", early_termination.csv, exit_rule.json" if results["early_termination"] else ""
                distributed.say(f"{workdir}/evaluation: results.json{rule}, plots")
                distributed.say(f"next: {_command('predict', workdir)} --images='photos/*.jpg'")
            case "predict":
                _predict(workdir)
            case "export":
                print(_export(workdir))
            case "cost":
                print(costing.cost(_CONFIG.value, workdir))
            case "teacher":
                distributed.say(teacher.cache_logits(_CONFIG.value))
            case "compile":
                print(_compile(workdir))
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("error: stopped at once; the same command goes on from the newest checkpoint.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    return 0


def _command(mode: str, workdir: str) -> str:
    """Returns the command line for another mode on a run."""
    return f"python -m basisnet_jax.main --mode={mode} --workdir={shlex.quote(workdir)}"


def _predict(workdir: str) -> None:
    """Exits with 1 if an image could not be classified."""
    from basisnet_jax import predict

    assert _IMAGES.value is not None  # parse_flags saw to it
    classifier = predict.TwoStageClassifier.from_folder(workdir, _THRESHOLD.value, _CONFIG.value)
    rows, bad = predict.predict_files(classifier, _IMAGES.value)
    print(predict.table(rows, _FORMAT.value))
    for sentence in bad:
        print(f"error: {_on_one_line(sentence)}", file=sys.stderr)
    if bad:
        sys.exit(1)


def _export(workdir: str) -> str:
    from basisnet_jax import exporting, specializing

    if _SPECIALIZE.value is None:
        return exporting.export_run(_CONFIG.value, workdir, _THRESHOLD.value)
    return specializing.specialize_run(_CONFIG.value, workdir, _SPECIALIZE.value)


def _compile(workdir: str) -> str:
    from basisnet_jax import compiling, topology

    if _TOPOLOGY.value is None:
        raise UserError(f"--mode=compile needs --topology; the forms are {topology.FORMS}.")
    target = compiling.Target(
        topology=_TOPOLOGY.value,
        slices=_SLICES.value,
        what=_WHAT.value,
        per_chip_batch=_PER_CHIP_BATCH.value,
        fit=_FIT.value,
        price=_PRICE.value,
    )
    return compiling.compile_for(_CONFIG.value, workdir, target)


if __name__ == "__main__":
    with ending_with_its_reader():
        app.run(main, flags_parser=parse_flags)
