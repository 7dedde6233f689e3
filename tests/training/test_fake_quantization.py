"""Quantization-aware training rounds what the int8 export will round, where it will."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.export import by_tensorflow, quantization
from basisnet_jax.models.layers import Convolution, Norm
from basisnet_jax.ops.synthesis import value_of
from basisnet_jax.serving.tflite import LiteRTStage
from basisnet_jax.training import fake_quantization


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_values_are_the_nearest_of_256_and_zero_is_one_of_them(low, high):
    x = np.append(np.random.default_rng(0).uniform(low, high, 500), [low, high, 0.0]).astype(np.float32)
    got = np.asarray(fake_quantization.rounded(jnp.asarray(x)))
    step = (max(high, 0) - min(low, 0)) / 255
    assert len(np.unique(np.round(got / step if step else got, 3))) <= 256
    assert got[-1] == 0
    assert np.abs(got - x).max() <= step * 0.501 + (step / 2 if low < 0 < high else 0)  # zero's own rounding
    assert (np.asarray(jax.grad(lambda x: fake_quantization.rounded(x).sum())(jnp.asarray(x))) == 1).all()


def test_the_range_is_of_the_whole_batch_on_any_number_of_devices():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    rounded = jax.jit(fake_quantization.rounded)
    np.testing.assert_array_equal(rounded(sharded), rounded(x))


class Layer(nn.Module):
    """A convolution and its norm, plain or synthesized."""

    act: str | None
    depthwise: bool = False

    @nn.compact
    def __call__(self, x, coefficients=None):
        """Maps [B, H, W, I] to [B, H, W, 6]."""
        return value_of(Norm(self.act)(Convolution(6, side=3, depthwise=self.depthwise)(x, coefficients), train=False))


@pytest.mark.parametrize("act", [None, "relu", "hard_swish"])
def test_a_convolution_is_rounded_as_litert_rounds_it(act):
    """Weights that int8 holds exactly, and ranges of the image itself: then nothing else differs."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 9, 9, 8)).astype(np.float32)
    kernel = rng.integers(-127, 128, (3, 3, 8, 6))
    kernel[0, 0, 0] = 127  # so that every output channel's scale is 1 / 127
    variables = Layer(act).init(jax.random.key(0), image)
    variables["params"]["Convolution_0"]["kernel"] = (kernel / 127).astype(np.float32)

    def layer(image):
        return Layer(act).apply(variables, image)

    def rounded(image):
        with fake_quantization.rounded_layers():
            return layer(image)

    content = by_tensorflow.to_tflite(layer, {"image": image.shape}, ("logits",))
    (litert,) = LiteRTStage(quantization.quantized(content, "int8", [{"image": image}]))(image)
    without, expected = np.abs(litert - layer(image)), np.abs(litert - jax.jit(rounded)(image))
    assert expected.mean() < 0.4 * without.mean()  # a sum between two steps may fall to the other one


@pytest.mark.parametrize(
    ("layer", "channels", "synthesized", "rounded"),
    [
        (Layer("relu"), 8, False, True),
        (Layer("relu"), 8, True, False),
        (Layer("relu"), 3, False, False),  # of pixels
        (Layer("relu", depthwise=True), 6, False, False),
    ],
)
def test_only_plain_convolutions_of_features_are_rounded(layer, channels, synthesized, rounded):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 5, 5, channels)).astype(np.float32)
    arguments = image, *([rng.dirichlet(np.ones(3), 2).astype(np.float32)] if synthesized else [])
    variables = layer.init(jax.random.key(0), *arguments)
    with fake_quantization.rounded_layers():
        got = layer.apply(variables, *arguments)
    assert rounded == (np.abs(got - layer.apply(variables, *arguments)).max() > 0)


def test_a_training_step_rounds_where_the_config_says_so(config):
    losses = []
    for config.export.qat in (False, True):
        experiment = make_experiment(config, jax.devices()[:1])
        batch = next(experiment.train_batches(0))
        _, metrics = experiment.train_step()(experiment.init_state(), batch, experiment.schedule, None)
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
