"""--mode=teacher: computes a teacher's logits of all training examples."""

from basisnet_jax.modes.mode import PROCESSES, Command, Mode


def _run(command: Command) -> int:
    from basisnet_jax.host import distributed
    from basisnet_jax.inference.cache_teacher import cache_logits

    distributed.say(cache_logits(command.config))
    return 0


MODE = Mode(
    help="compute a teacher's logits of all training examples once",
    examples=("--config=configs/imagenet_mbv3.py --config.distill.teacher=... --config.distill.cache=...",),
    run=_run,
    flags=PROCESSES,
    many_processes=True,
)
