"""The training step and the evaluation step: pure, and written once for any mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from basisnet_jax.losses import joint_loss
from basisnet_jax.metrics import Metrics, measure
from basisnet_jax.models.basisnet import BasisNet, Outputs
from basisnet_jax.state import TrainState

Batch = dict[str, jax.Array]  # image uint8[B, H, W, C], label int32[B], mask float32[B]


def normalize(images_BxHxWxC: jax.Array) -> jax.Array:
    """uint8 pixels -> float32 in [-1, 1] (Inception's preprocessing)."""
    return images_BxHxWxC.astype(jnp.float32) / 127.5 - 1.0


def uniform_mix(step: jax.Array, warm_start_steps: int) -> jax.Array:
    """The warm start's epsilon: 1 at step 0, falling linearly to 0 at `warm_start_steps`, and 0 from there."""
    return jnp.clip(1.0 - step / warm_start_steps, 0.0, 1.0) if warm_start_steps else jnp.zeros(())


def make_train_step(
    model: BasisNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    preview_weight: float,
    label_smoothing: float,
    warm_start_steps: int,
    ema_decay: float,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns train_step(state, batch) -> (state after one update, float32 scalars that describe it)."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        mix = uniform_mix(state.step, warm_start_steps)

        def loss_of(params):
            outputs, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                normalize(batch["image"]),
                train=True,
                uniform_mix=mix,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            loss_B = joint_loss(outputs, batch["label"], preview_weight, label_smoothing)
            return jnp.mean(loss_B), (outputs, updated["batch_stats"])

        (loss, (outputs, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early averages forget the initial values sooner, as TensorFlow's ExponentialMovingAverage does.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))

        def average(old, new):
            return jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, old, new)

        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            ema_params=average(state.ema_params, params),
            ema_batch_stats=average(state.ema_batch_stats, batch_stats),
            opt_state=opt_state,
        )
        measured = measure(outputs, batch["label"], batch["mask"])
        metrics = {
            **{name: average.compute() for name, average in measured.items()},
            "loss": loss,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "gradient_norm": optax.tree.norm(gradients),
        }
        return new_state, metrics

    return train_step


def make_eval_step(model: BasisNet, *, ema: bool, warm_start_steps: int) -> Callable[[TrainState, Batch], Metrics]:
    """Returns eval_step(state, batch) -> metrics over the images whose mask is 1."""

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        params, batch_stats = (state.ema_params, state.ema_batch_stats) if ema else (state.params, state.batch_stats)
        outputs: Outputs = model.apply(  # type: ignore[assignment]
            {"params": params, "batch_stats": batch_stats},
            normalize(batch["image"]),
            train=False,
            uniform_mix=uniform_mix(state.step, warm_start_steps),
        )
        return measure(outputs, batch["label"], batch["mask"])

    return eval_step
