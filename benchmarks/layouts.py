"""Trains 200 steps on 1, 2, 4 and 8 devices, with accumulation and fsdp, and compares each with one device.

    python benchmarks/layouts.py [--steps 200] [--optimizer adamw] [--only "4 devices"] [--json layouts.json]

All layouts train the tests' network of two blocks on the same batches, on forced CPU devices of this process; several
processes are compared by processes.py. A row has the largest relative difference of a training loss, over the first 20
steps and over all, and the differences of the evaluation's loss and top-1 after the last step. --only names the layouts
that are compared with one device.
"""

import argparse
import os
import pathlib
import tempfile

import forked_lives
import timing

LAYOUTS = {  # devices, fsdp, accumulate_steps
    "1 device": (1, 1, 1),
    "2 devices": (2, 1, 1),
    "4 devices": (4, 1, 1),
    "8 devices": (8, 1, 1),
    "4 devices, fsdp 2": (4, 2, 1),
    "8 devices, fsdp 4": (8, 4, 1),
    "1 device, accumulate 2": (1, 1, 2),
    "1 device, accumulate 4": (1, 1, 4),
    "4 devices, accumulate 4": (4, 1, 4),
}
REFERENCE, EARLY = "1 device", 20


def trained(
    scratch: pathlib.Path, layout: tuple[int, int, int], steps: int, optimizer: str
) -> tuple[list[float], dict]:
    """Returns the training losses and the evaluation of a layout."""
    import jax

    from basisnet_jax.evaluation.whole_split import evaluate
    from basisnet_jax.experiment.run import make_experiment
    from tests.configs import tiny

    devices, fsdp, accumulate = layout
    config = tiny.get_config()
    config.data.dir, config.epochs = str(scratch / "data"), steps * 16 / 1297
    config.mesh.fsdp, config.accumulate_steps, config.optimizer.name = fsdp, accumulate, optimizer
    if optimizer == "sgd":
        config.optimizer.learning_rate = 0.05
    experiment = make_experiment(config, jax.devices()[:devices])
    state, step, batches = experiment.init_state(), experiment.train_step(), experiment.train_batches(0)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, next(batches), experiment.schedule, None)
        losses.append(float(metrics["loss"]))
    return losses, evaluate(experiment, experiment.eval_step(), state)


def main() -> None:
    """Prints a row for each layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    flags = ["--xla_force_host_platform_device_count=8", *forked_lives.FAST_TO_COMPILE]
    os.environ.update(XLA_FLAGS=" ".join([os.environ.get("XLA_FLAGS", ""), *flags]), JAX_PLATFORMS="cpu")
    print(f"{options.steps} steps, {options.optimizer}; largest relative difference from 1 device")
    print(f"{'':26}{f'loss, {EARLY} steps':>16}{'loss, all':>12}{'eval loss':>12}{'eval top-1':>12}", flush=True)
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in dict.fromkeys([REFERENCE, *options.only]):
            losses, evaluation = trained(pathlib.Path(scratch), LAYOUTS[name], options.steps, options.optimizer)
            if not rows:
                expected, expected_evaluation = losses, evaluation
            differences = [abs(x / y - 1) for x, y in zip(losses, expected, strict=True)]
            loss = abs(evaluation["loss"] / expected_evaluation["loss"] - 1)
            top1 = evaluation["top1"] - expected_evaluation["top1"]
            rows[name] = [max(differences[:EARLY]), max(differences), loss, top1]
            print(f"{name:26}{rows[name][0]:16.1e}{rows[name][1]:12.1e}{loss:12.1e}{top1:12.4f}", flush=True)
    timing.write_json(options.json, {"optimizer": options.optimizer, "steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
