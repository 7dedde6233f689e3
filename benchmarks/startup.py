"""Times each phase from the command to the first training step, with an empty and with a warm compilation cache.

    python benchmarks/startup.py [--config configs/digits.py] [--json startup.json]

A child process does the same as `train` up to the first step, and notes the time since its start. The command itself is
timed, too, until it logs its first step, which happens when the second step has begun.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import timing


def child(config_file: str, started: float) -> dict[str, float]:
    """Returns {phase: seconds} of this process, which was started at that time of the monotonic clock."""
    phases, mark = {}, started

    def done(phase: str) -> None:
        nonlocal mark
        phases[phase], mark = time.monotonic() - mark, time.monotonic()

    from basisnet_jax.host import malloc

    malloc.restart_with_malloc_settings(arenas=None)
    import jax

    from basisnet_jax.host import compilation_cache
    from basisnet_jax.loop import train

    compilation_cache.use_compilation_cache()
    spec = importlib.util.spec_from_file_location("config", config_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    done("interpreter and imports")
    experiment = train.make_experiment(module.get_config())
    done("data and devices")
    from clu import metric_writers  # noqa: F401

    done("CLU's writers (TensorFlow)")
    state = jax.block_until_ready(experiment.init_state())
    done("initial state")
    batch = next(experiment.train_batches(0))
    done("first batch")
    lowered = experiment.train_step().lower(state, batch, experiment.schedule, None)
    done("tracing the step")
    compiled = lowered.compile()
    done("compiling the step")
    jax.block_until_ready(compiled(state, batch, experiment.schedule, None))
    done("first step")
    return phases


def phases_of(config_file: str, environment: dict[str, str]) -> dict[str, float]:
    """Returns {phase: seconds} of a fresh process, and their sum."""
    arguments = [sys.executable, __file__, "--config", config_file, "--child", str(time.monotonic())]
    printed = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout
    phases = json.loads(printed.splitlines()[-1])
    return {**phases, "in all": sum(phases.values())}


def command_of(config_file: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds until the command logs its first step."""
    with tempfile.TemporaryDirectory() as workdir:
        arguments = ["-m", "basisnet_jax.main", f"--config={config_file}", f"--workdir={workdir}"]
        arguments = [sys.executable, *arguments]
        start = time.monotonic()
        with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as run:
            if not any("compiling, once" in line for line in run.stderr or ()):
                raise RuntimeError(f"{' '.join(arguments)} ended before its first step")
            seconds = time.monotonic() - start
            run.kill()
    return {"the command itself": seconds}


def main() -> None:
    """Prints a row a phase; writes all rounds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.config, options.child)))
        return

    rounds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as caches:
            for kind in rounds:
                seconds = {}
                for run in (phases_of, command_of):
                    environment = {**os.environ, "XDG_CACHE_HOME": f"{caches}/{run.__name__}"}
                    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
                    seconds.update(run(options.config, environment))
                rounds[kind].append(seconds)
    table = {
        phase: {kind: statistics.median(seconds[phase] for seconds in rounds[kind]) for kind in rounds}
        for phase in rounds["cold"][0]
    }
    print(f"{options.config}; {timing.machine()}; medians of {options.rounds} rounds")
    print(f"{'seconds':28}{'cold':>8}{'warm':>8}")
    for phase, seconds in table.items():
        print(f"{phase:28}{seconds['cold']:8.2f}{seconds['warm']:8.2f}")
    timing.write_json(options.json, {"machine": timing.machine(), "seconds": table, "all": rounds})


if __name__ == "__main__":
    main()
