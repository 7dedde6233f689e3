"""--mode=cost: counts multiply-adds and parameters."""

from basisnet_jax.modes.mode import Command, Mode


def _run(command: Command) -> int:
    from basisnet_jax.experiment.cost_table import cost

    print(cost(command.config, command.workdir))
    return 0


MODE = Mode(
    help="count multiply-adds and parameters, layer by layer; needs no data",
    examples=("--config=configs/imagenet_mbv3.py",),
    run=_run,
)
