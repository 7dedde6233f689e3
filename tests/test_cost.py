"""Published and exact counts. Update a figure only if you meant to change a table or the convention of counting."""

import jax
import jax.numpy as jnp
import pytest

from basisnet_jax.experiment import make_model
from basisnet_jax.models import cost
from basisnet_jax.models.backbones import ARCHITECTURES, MOBILENET_V3_LARGE, make_divisible, scaled
from configs import digits


@pytest.mark.parametrize(
    ("name", "madds", "parameters"),
    [
        # Parameters are torchvision's.
        ("mobilenet_v2", 300_774_272, 3_504_872),
        ("mobilenet_v3_large", 216_589_760, 5_483_032),
        ("mobilenet_v3_small", 56_510_400, 2_542_856),
    ],
)
def test_static_networks_at_224(name, madds, parameters):
    got = cost.static_cost(ARCHITECTURES[name], 224, 1000)
    assert (got.total, got.parameters) == (madds, parameters)


@pytest.mark.parametrize(
    ("width", "granularity", "total", "parameters"),
    [
        (0.75, "block", 289_956_800, 29_002_600),
        (0.75, "layer", 290_550_720, 29_596_984),
        (0.5, "layer", 262_139_200, 28_292_976),
    ],
)
def test_basisnet_on_mobilenet_v3_large(width, granularity, total, parameters):
    got = cost.basisnet_cost(
        scaled(MOBILENET_V3_LARGE, width),
        128,
        MOBILENET_V3_LARGE,
        224,
        1000,
        num_bases=16,
        synthesized=MOBILENET_V3_LARGE.bottleneck_layers(),
        granularity=granularity,
    )
    assert (got.total, got.parameters) == (total, parameters)
    # The preview alone, with its coefficient head, and the specialist's kernels 16 times.
    assert got.synthesis == 16 * 1_281_240
    assert got.specialist == 216_589_760


@pytest.mark.parametrize("routing", ["static", "preview"])
@pytest.mark.parametrize("granularity", ["layer", "block", "model"])
@pytest.mark.parametrize("kinds", [("expand", "depthwise", "project"), ("depthwise",)])
def test_parameters_are_those_of_the_module(routing, granularity, kinds):
    """Counted from the tables, against the arrays that Flax makes."""
    config = digits.get_config().model
    config.update(routing=routing, granularity=granularity, synthesize=kinds, synthesize_from_block=2, num_bases=3)
    model = make_model(config, num_classes=10)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 1)), train=False))
    made = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    table = model.specialist.architecture
    if routing == "static":
        counted = cost.static_cost(table, 24, 10, channels=1)
    else:
        counted = cost.basisnet_cost(
            model.preview.architecture,
            12,
            table,
            24,
            10,
            num_bases=3,
            synthesized=model.synthesized,
            granularity=granularity,
            channels=1,
        )
    assert counted.parameters == made


def test_madds_are_those_of_the_program():
    """Counted from the tables, against the multiply-adds of every convolution and product that JAX traces."""
    config = digits.get_config().model
    config.routing = "static"
    model = make_model(config, num_classes=10)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 1)), train=False))
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, jnp.zeros((1, 24, 24, 1)), train=False).logits_BxK)(variables)
    dense = [x for x in cost.backbone_layers(model.specialist.architecture, 24, 10, 1) if "depthwise" not in x.name]
    assert _traced_madds(jaxpr.jaxpr) == sum(layer.madds for layer in dense)


def _traced_madds(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # side, side, inputs, outputs
            if equation.params["feature_group_count"] == 1:
                total += out.size * kernel[0] * kernel[1] * kernel[2]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out.size * equation.invars[0].aval.shape[contracted[0]]
        # Depthwise layers are left out: a platform has its own form of them.
        elif equation.primitive.name in ("jit", "pjit", "closed_call"):
            total += _traced_madds(equation.params["jaxpr"].jaxpr)
    return total


def test_make_divisible():
    assert [make_divisible(v) for v in (1, 12, 16.5, 18, 40 * 0.75, 67)] == [8, 16, 16, 24, 32, 64]
    # Never below 90%: 8 is under 0.9 of 11.
    assert make_divisible(11) == 16
