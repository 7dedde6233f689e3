"""Published and exact counts. Update a figure only if you meant to change a table or the convention of counting."""

import importlib
import json

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from basisnet_jax.config import default
from basisnet_jax.experiment import cost_table
from basisnet_jax.experiment.model import make_model, model_cost
from basisnet_jax.models import cost
from basisnet_jax.models.architectures import ARCHITECTURES, MOBILENET_V3_LARGE, make_divisible, scaled
from basisnet_jax.models.layers import Backbone
from basisnet_jax.models.routing import static_route
from configs import digits


@pytest.mark.parametrize(
    ("name", "madds", "parameters"),
    [
        # Parameters are torchvision's.
        ("mobilenet_v2", 300_774_272, 3_504_872),
        ("mobilenet_v3_large", 216_589_760, 5_483_032),
        ("mobilenet_v3_small", 56_510_400, 2_542_856),
        ("resnet18", 1_814_073_344, 11_689_512),
        ("resnet50", 4_089_184_256, 25_557_032),
    ],
)
def test_static_networks_at_224(name, madds, parameters):
    got = cost.static_cost(ARCHITECTURES[name], 224, 1000)
    assert (got.total, got.parameters) == (madds, parameters)


@pytest.mark.parametrize(
    ("name", "resolution", "madds", "parameters"),
    [
        # B0 to B2: parameters are torchvision's; the paper's table 2 has 0.39B, 0.70B and 1.0B multiply-adds.
        ("efficientnet_b0", 224, 385_814_752, 5_288_548),
        ("efficientnet_b1", 240, 686_802_832, 7_794_184),
        ("efficientnet_b2", 260, 993_561_872, 9_109_994),
        # Lite0 to Lite2: tensorflow/tpu has 4.7M, 5.4M and 6.1M parameters; its 407M, 631M and 899M multiply-adds are
        # about 5% above this convention's.
        ("efficientnet_lite0", 224, 385_187_552, 4_652_008),
        ("efficientnet_lite1", 240, 600_185_232, 5_416_680),
        ("efficientnet_lite2", 260, 859_736_272, 6_092_072),
    ],
)
def test_efficientnets_at_their_resolution(name, resolution, madds, parameters):
    got = cost.static_cost(ARCHITECTURES[name], resolution, 1000)
    assert (got.total, got.parameters) == (madds, parameters)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_table_counts_the_parameters_of_its_module(name):
    table = scaled(ARCHITECTURES[name], 0.75)
    images, backbone = jnp.zeros((1, 32, 32, 3)), Backbone(table, num_classes=10)
    shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, static_route, train=False))
    made = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert cost.static_cost(table, 32, 10).parameters == made


def test_width_leaves_the_ends_of_a_lite_network():
    narrow, wide = (scaled(ARCHITECTURES["efficientnet_lite0"], width) for width in (0.5, 2.0))
    assert (narrow.stem, narrow.features, wide.stem, wide.features) == (32, 1280, 32, 1280)
    assert (narrow.blocks[-1].out, wide.blocks[-1].out) == (160, 640)


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
        synthesized=MOBILENET_V3_LARGE.block_layers(),
        granularity=granularity,
    )
    assert (got.total, got.parameters) == (total, parameters)
    # The preview alone, with its coefficient head, and the specialist's kernels 16 times.
    assert got.synthesis == 16 * 1_281_240
    assert got.specialist == 216_589_760
    # The preview as a routing: no classifier from 1,280 features to 1,000 classes, no answer.
    routing = got.without_exits()
    assert (routing.total, routing.parameters) == (total - 1_280_000, parameters - 1_281_000)
    assert (routing.preview, routing.specialist) == (0, got.specialist)


def test_coefficients_from_the_pool_leave_the_dense_layer_to_the_previews_prediction():
    """MobileNetV3-Large has a vector of 1,280 before its classifier, computed from a pool of 960."""
    large = MOBILENET_V3_LARGE
    common = {"num_bases": 16, "synthesized": large.block_layers(), "granularity": "layer"}
    one, other = (
        cost.basisnet_cost(large, 128, large, 224, 1000, coefficients_from=place, **common)
        for place in ("classifier", "pool")
    )
    vectors = len(large.block_layers())
    assert one.preview - other.preview == (1280 - 960) * vectors * 16
    assert other.total - other.without_exits().total == 960 * 1280 + 1280 * 1000
    assert other.parameters - other.without_exits().parameters == (960 + 1) * 1280 + (1280 + 1) * 1000


@pytest.mark.parametrize(
    ("routing", "coefficients_from"), [("static", "classifier"), ("preview", "classifier"), ("preview", "pool")]
)
@pytest.mark.parametrize("granularity", ["layer", "block", "model"])
@pytest.mark.parametrize("kinds", [("expand", "depthwise", "project"), ("depthwise",)])
def test_parameters_are_those_of_the_module(routing, coefficients_from, granularity, kinds):
    """Counted from the tables, against the arrays that Flax makes."""
    config = digits.get_config().model
    config.update(routing=routing, granularity=granularity, synthesize=kinds, synthesize_from_block=2, num_bases=3)
    config.coefficients_from = coefficients_from
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
            coefficients_from=coefficients_from,
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
        # Each platform may have its own form of a layer. Depthwise layers, as taps or in groups, are left out.
        elif inner := list(jax.extend.core.jaxprs_in_params(equation.params)):
            total += max(map(_traced_madds, inner))
    return total


def test_make_divisible():
    assert [make_divisible(v) for v in (1, 12, 16.5, 18, 40 * 0.75, 67)] == [8, 16, 16, 24, 32, 64]
    # Never below 90%: 8 is under 0.9 of 11.
    assert make_divisible(11) == 16


@pytest.mark.parametrize(
    ("name", "total", "parameters"),
    [
        ("imagenet_mbv3", 289_956_800, 29_002_600),
        ("imagenet_mbv3_small_preview", 261_545_280, 27_698_592),
        ("imagenet_mbv3_phone", 288_491_072, 27_628_480),
        ("imagenet_mbv3_static", 216_589_760, 5_483_032),
        ("imagenet_mbv2_static", 300_774_272, 3_504_872),
        ("imagenet_efficientnet_b0_static", 385_814_752, 5_288_548),
        ("compare.imagenet_condconv_mbv2", 328_137_856, 27_450_768),
        ("compare.imagenet_condconv_efficientnet_b0", 407_213_024, 24_013_284),
        ("compare.imagenet_dynamic_mbv2", 310_194_368, 11_149_736),
        ("compare.imagenet_dynamic_mbv3", 223_345_624, 10_960_602),
        ("compare.imagenet_resnet50_static", 4_089_184_256, 25_557_032),
    ],
)
def test_cost_mode_needs_no_data(name, total, parameters, tmp_path):
    """ImageNet's number of classes is known though nothing of it is here; the layers add up to the whole."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.dir = str(tmp_path / "nothing")
    printed = cost_table.cost(config, str(tmp_path))
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written["madds"]["total"] == total == sum(layer["madds"] for layer in written["layers"])
    assert written["parameters"] == parameters == sum(layer["parameters"] for layer in written["layers"])
    assert f"{total:,}" in printed


def profiled(table, resolution):
    """Of the static network: half of the operations that a profiler counts, element-wise ones among them."""
    layers = cost.backbone_layers(table, resolution, 1000, 3)
    outputs = {x.name: x.madds // x.weights * x.others // 2 for x in layers}  # elements, of a convolution
    operations = 2 * sum(x.madds for x in layers) + outputs["head_conv"]  # the last pool
    operations += (outputs["stem"] + outputs["head_conv"]) * (table.stem_act == "swish")
    for name, inputs, block in table.named_blocks():
        for conv in block.convolutions(inputs):
            # Swish's product; the pool of a squeeze-excite, and its product.
            operations += outputs[f"{name}/{conv.kind}"] * ((conv.act == "swish") + 2 * conv.se)
        operations += outputs[f"{name}/project"] * (block.stride == 1 and block.out == inputs)
    return operations / 2


@pytest.mark.parametrize(("backbone", "published"), [("mobilenet_v2", 301), ("efficientnet_b0", 391)])
def test_what_publishers_count_besides(backbone, published):
    """CondConv's paper has 391M for EfficientNet-B0, where the kernels multiply 385.8M times (README, Counting)."""
    assert round(profiled(ARCHITECTURES[backbone], 224) / 1e6) == published


CONDCONV = {"routing": "condconv", "num_bases": 8}
CONDCONV_MBV2 = {**CONDCONV, "synthesize_from_block": 6, "synthesize": ("blocks", "head_conv", "classifier")}
CONDCONV_B0 = {**CONDCONV, "synthesize_from_block": 8}


@pytest.mark.parametrize(
    ("backbone", "routing", "ours", "published", "parameters"),
    [
        # Millions: multiply-adds by our convention and as published, parameters as published (arXiv 1904.04971).
        ("mobilenet_v2", CONDCONV_MBV2, 328.1, 329, 27.5),
        ("efficientnet_b0", {**CONDCONV_B0, "num_bases": 4}, 396.5, 402, 13.3),
        ("efficientnet_b0", CONDCONV_B0, 407.2, 413, 24.0),
        # arXiv 1912.03458; its 313M are not reproduced.
        ("mobilenet_v2", {"routing": "dynamic", "num_bases": 4}, 310.2, None, 11.1),
    ],
)
def test_published_networks_with_routings(backbone, routing, ours, published, parameters):
    config = default().model
    config.specialist.update(backbone=backbone, width=1.0, resolution=224)
    config.update(routing)
    counted = model_cost(make_model(config, 1000), 224, channels=3)
    assert round(counted.parameters / 1e6, 1) == parameters
    assert round(counted.total / 1e6, 1) == ours
    if published:
        with_besides = profiled(ARCHITECTURES[backbone], 224) + counted.synthesis
        assert with_besides / 1e6 == pytest.approx(published, abs=0.8)


def test_networks_to_compare_have_equal_multiply_adds():
    totals = []
    for name in ("static", "condconv", "dynamic", "preview"):
        config = importlib.import_module(f"configs.compare.fashion_mnist_{name}").get_config()
        totals.append(model_cost(make_model(config.model, 10), config.model.specialist.resolution, channels=1).total)
    assert max(totals) <= 1.02 * min(totals)


def test_early_termination_saves_what_the_paper_says():
    """The paper's 198M on average is met where 38.8% of images exit early (docs: ours, by the default config)."""
    config = importlib.import_module("configs.imagenet_mbv3").get_config()
    counted = model_cost(make_model(config.model, 1000), 224, channels=3)
    assert counted.average(0.388) == pytest.approx(198e6, rel=1e-3)
    assert counted.average(0.0) == counted.total
    assert counted.average(1.0) == counted.preview
