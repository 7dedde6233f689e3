"""Runs command lines, each in a fork of a process that has imported everything: a hundredth of what starting one costs.

Reads a line of JSON, {'arguments': [...], 'whole': bool}, and answers with {'code': ..., 'text': stdout and stderr}.
A command that trains ends where it would make or restore its state. Without `whole` it ends after config and plan.
With 'parsed': true any command ends once its flags are parsed and its config is validated.
"""

import json
import os
import signal
import sys
import tempfile

from absl import app, logging

from basisnet_jax import config, main
from basisnet_jax.aot import compiling
from basisnet_jax.experiment import plan
from basisnet_jax.loop import train
from basisnet_jax.modes import parsing

SECONDS = 100  # after which a command hangs


def plan_alone(settings, *_):
    config.validate(settings)
    plan.derive(settings, train_examples=1297, eval_examples=500, devices=8, processes=2)


def enough(*_):
    raise SystemExit(0)


def validate_alone(_):
    settings = parsing.CONFIG.value
    if settings is not None:
        config.validate(settings)
    return 0


def run(arguments, whole, parsed):
    """In the fork: never returns."""
    signal.alarm(SECONDS)
    train._start = enough
    compiling.compile_for = plan_alone
    if not whole:
        train.train = plan_alone
    sys.argv = ["main.py", *arguments]
    app.run(validate_alone if parsed else main.main, flags_parser=parsing.parse_flags)


def outcome(arguments, whole=False, parsed=False):
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            for number in (1, 2):
                os.dup2(output.fileno(), number)
            try:
                run(arguments, whole, parsed)
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "text": output.read().decode(errors="replace")}


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    for line in sys.stdin:
        print(json.dumps(outcome(**json.loads(line))), flush=True)
