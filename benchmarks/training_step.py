"""Times the training step of MobileNetV3-Large at 224: synthesized from N bases, static, and two rivals.

    python benchmarks/training_step.py [--json training_step.json]

The steps are the project's own (training/step.py; SGD with momentum, moving averages, float32). 'synthesized' gets
its coefficients from a preview of negligible cost, 'BasisNet' from the preview of configs/imagenet_mbv3.py.
'XLA depthwise' and 'vmapped' have other forms of the same layers. Gradients alone are timed as well as whole steps,
since the optimizer and the averages pass over N times the parameters. Wall time; slow contestants get one turn.
"""

import argparse
import pathlib
from collections.abc import Callable

import jax
import optax
import rivals
import timing

from basisnet_jax.host import compilation_cache, malloc
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.training import step
from basisnet_jax.training.optimizers import make_optimizer
from basisnet_jax.training.schedule import exponential, make_schedule
from basisnet_jax.training.state import init_state

# {name: (bases (0 is static), preview, form of the layers, gradients alone or the whole step)}
CONTESTANTS = {
    "static, gradients": (False, "tiny", "ours", "gradients"),
    "synthesized, gradients": (True, "tiny", "ours", "gradients"),
    "static": (False, "tiny", "ours", "step"),
    "synthesized": (True, "tiny", "ours", "step"),
    "BasisNet": (True, "large", "ours", "step"),
    "static, XLA depthwise": (False, "tiny", "xla", "step"),
    "vmapped": (True, "tiny", "vmapped", "step"),
}
SLOW = ("static, XLA depthwise", "vmapped")


def training_call(model: BasisNet, form: str, what: str, batch: int) -> Callable[[], object]:
    """Returns a call that takes one step from where the last one ended."""
    settings = {"weight_decay": 1e-5, "momentum": 0.9, "decay": 0.9, "epsilon": 1e-3, "clip_norm": 0.0}
    # Gradients alone: the update is nothing, and what it would have passed over is left as it was.
    optimizer = make_optimizer("sgd", **settings)
    if what == "gradients":
        nothing = optax.chain(optax.set_to_zero())
        optimizer = optimizer._replace(init=nothing.init, update=nothing.update)
    settings = step.TrainSettings(
        preview_weight=1.0,
        label_smoothing=0.0,
        mix="none",
        mix_alpha=0.2,
        distillation=None,
        accumulate_steps=1,
        batch_norm_momentum=0.99,
        ema_decay=0.999,
        seed=0,
        fake_quantization=False,
        debug=False,
    )
    parts = step.Parts(model, optimizer, exponential, settings)
    train_step = step.make_train_step(parts)
    schedule = make_schedule(peak=1e-3, total_steps=1)

    def whole(state, data):
        return train_step(state, data, schedule, None)

    def gradients(state, data):
        _, metrics = train_step(state, data, schedule, None)
        return state, metrics["gradient_norm"]

    state = rivals.run_once(lambda: init_state(model, optimizer, (rivals.SIDE, rivals.SIDE, 3), 0))
    data = rivals.batch_of(batch)
    function = whole if what == "step" else gradients
    with rivals.layers_of(form):
        compiled = jax.jit(function, donate_argnums=0).lower(state, data).compile()

    def call():
        nonlocal state
        state, metrics = compiled(state, data)
        jax.block_until_ready((state, metrics))

    return call


def main() -> None:
    """Prints a table; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bases", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    malloc.restart_with_malloc_settings()
    compilation_cache.use_compilation_cache()
    times: dict[str, list[float]] = {}
    for names, rounds in ([n for n in options.contestants if n not in SLOW], options.rounds), (SLOW, 1):
        calls = {}
        for name in (name for name in names if name in options.contestants):
            synthesized, preview, form, what = CONTESTANTS[name]
            model = rivals.network(options.bases if synthesized else 0, preview)
            calls[name] = training_call(model, form, what, options.batch)
        times.update(timing.interleaved(calls, rounds=rounds))
    figures, rows = timing.medians(times), {}
    for name in options.contestants:
        static = figures.get("static, gradients" if name.endswith("gradients") else "static", float("nan"))
        rows[name] = {"ms": figures[name], "over_static": figures[name] / static, "all_ms": times[name]}
    what = f"batch {options.batch}, N = {options.bases}, {jax.devices()[0].device_kind}, {timing.machine()}"
    print(f"{what}\n{'':26}{'ms':>10}{'over static':>13}")
    for name, row in rows.items():
        print(f"{name:26}{row['ms']:10.1f}{row['over_static']:13.2f}")
    timing.write_json(options.json, {"what": what, "rows": rows})


if __name__ == "__main__":
    main()
