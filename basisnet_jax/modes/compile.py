"""--mode=compile: compiles the step for TPUs or GPUs that are not here."""

from collections.abc import Mapping
from typing import Any

from basisnet_jax.errors import UserError
from basisnet_jax.modes.mode import Command, Flag, Mode


def _check(flags: Mapping[str, Any]) -> None:
    if flags["topology"] is None:
        raise UserError("--mode=compile needs --topology, as in --topology=v5e:2x4 or --topology=h100:8.")


def _run(command: Command) -> int:
    from basisnet_jax.aot import compiling

    print(compiling.compile_for(command.config, command.workdir, compiling.Target(**command.flags)))
    return 0


MODE = Mode(
    help="compile the step for TPUs or GPUs, without having any, and print its memory and time",
    examples=(
        "--config=configs/imagenet_mbv3.py --topology=v5e:16x16",
        "--config=configs/imagenet_mbv3.py --topology=h100:8 --slices=2",
    ),
    run=_run,
    flags=(
        Flag("topology", "The TPU slice, as in v5e:16x16 or v4:2x2x1, or the GPUs of a host, as in h100:8."),
        Flag("slices", "Number of such slices or hosts.", 1, int),
        Flag("what", "The training step or the evaluation step.", "train", ("train", "eval")),
        Flag("per_chip_batch", "Images per chip. Default: the config's batch.", kind=int),
        Flag("fit", "Also find the largest batch that fits into memory.", False, bool),
        Flag("price", "Price of a chip-hour, to print the price of an epoch.", kind=float),
    ),
    check=_check,
    keeps_programs=False,  # JAX caches programs for absent machines, but cannot read them back
)
