"""What a compiled program costs, what must not be in it, and the whole way to a TPU that is not here."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from basisnet_jax.aot import batch_checks, compiling, hlo, topology
from basisnet_jax.config import validate
from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host import mesh as mesh_lib

# Written by hand in the form of the TPU compiler's: a loop of three fusions, a prefetch into VMEM, a sum over devices.
PROGRAM = """HloModule jit_train_step, is_scheduled=true

%scale (p.0: f32[16,200]) -> f32[16,200] {
  %p.0 = f32[16,200]{1,0:T(8,128)} parameter(0)
  ROOT %multiply.1 = f32[16,200]{1,0:T(8,128)} multiply(%p.0, %p.0), metadata={op_name="jit(train_step)/x"}
}

%body (carry.1: (s32[], f32[16,200])) -> (s32[], f32[16,200]) {
  %carry.1 = (s32[], f32[16,200]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  %x.1 = f32[16,200]{1,0:T(8,128)} get-tuple-element(%carry.1), index=1
  %fusion.1 = f32[16,200]{1,0:T(8,128)} fusion(%x.1), kind=kLoop, calls=%scale, metadata={op_name="jit(train_step)/jvp(BasisNet)/specialist/block03/depthwise/mul"}, backend_config={"window_config":{"estimated_cycles":"1000"},"iteration_data":{"estimated_cycles":"7"}}
  ROOT %tuple.1 = (s32[], f32[16,200]{1,0:T(8,128)}) tuple(%i.1, %fusion.1)
}

%condition (carry.2: (s32[], f32[16,200])) -> pred[] {
  %carry.2 = (s32[], f32[16,200]{1,0:T(8,128)}) parameter(0)
  ROOT %less.1 = pred[] constant(true)
}

ENTRY %main.1_spmd (param.0: bf16[40], param.1: f32[16,200]) -> (f32[16,200], f32[16,200]) {
  %param.0 = bf16[40]{0:T(128)(2,1)} parameter(0), metadata={op_name="state.params[\\'specialist\\'][\\'stem\\'][\\'kernel\\']"}
  %param.1 = f32[16,200]{1,0:T(8,128)} parameter(1), metadata={op_name="batch[\\'image\\']"}
  %copy-start.1 = (bf16[40]{0:T(128)(2,1)S(1)}, bf16[40]{0:T(128)(2,1)}, u32[]{:S(2)}) copy-start(%param.0)
  %zero.1 = s32[] constant(0)
  %tuple.2 = (s32[], /*index=1*/f32[16,200]{1,0:T(8,128)}) tuple(%zero.1, %param.1)
  %while.1 = (s32[], f32[16,200]{1,0:T(8,128)}) while(%tuple.2), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %copy-done.1 = bf16[40]{0:T(128)(2,1)S(1)} copy-done(%copy-start.1)
  %x.2 = f32[16,200]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
  %custom-call.1 = f32[16,200]{1,0:T(8,128)} custom-call(%x.2, %copy-done.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/jvp(BasisNet)/preview/stem/pallas_call"}
  %all-reduce.1 = f32[16,200]{1,0:T(8,128)} all-reduce(%custom-call.1), replica_groups=[2,4]<=[8], to_apply=%scale
  ROOT %tuple.3 = (f32[16,200]{1,0:T(8,128)}, f32[16,200]{1,0:T(8,128)}) tuple(%x.2, %all-reduce.1)
}
"""  # noqa: E501


def test_costs_of_a_program_written_by_hand():
    program = hlo.parse(PROGRAM)
    assert list(program) == ["scale", "body", "condition", "ENTRY"]
    got = hlo.costs(program, compiling.group_of, clock=1e6, bandwidth=1e9, ring=1e6, devices=8)
    padded = 16 * 256 * 4  # a row of 200 fills two tiles of 128 lanes
    assert set(got) == {"copies", "depthwise", "preview, coefficients", "collectives"}
    # The prefetch reads HBM, padded to a tile of 128, and writes VMEM.
    assert (got["copies"].cycles, got["copies"].hbm_bytes) == (0, 128 * 2)
    depthwise = got["depthwise"]
    assert (depthwise.cycles, depthwise.hbm_bytes, depthwise.unestimated) == (3 * 1000, 3 * 2 * padded, 0)
    assert depthwise.seconds == pytest.approx(3 * 1e-3)  # the cycles take longer than the bytes
    kernel = got["preview, coefficients"]
    assert (kernel.cycles, kernel.hbm_bytes, kernel.unestimated) == (0, 2 * padded, 1)
    assert kernel.seconds == pytest.approx(2 * padded / 1e9)
    # A ring of four sends each of four shares three times, twice over; unpadded.
    sent = 16 * 200 * 4 * 3 // 4 * 2
    assert got["collectives"].network_bytes == sent
    assert got["collectives"].seconds == pytest.approx(sent / 1e6)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 3 * 400),
        ("all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", 3 * 400),
        ("all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}", 7 * 400),
        ("all-reduce-start(%x), replica_groups={}, to_apply=%add", 2 * 7 * 50),
        ("reduce-scatter(%x), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add", 7 * 50),
        ("all-to-all(%x), replica_groups=[4,2]<=[8], dimensions={0}", 200),
        ("collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}", 400),
        ("add(%x, %x)", 0),
    ],
)
def test_what_a_collective_sends(line, sent):
    lines = [
        "ENTRY %main (x: f32[100]) -> f32[100] {",
        "%x = f32[100]{0} parameter(0)",
        f"ROOT %y = f32[100]{{0}} {line}",
    ]
    program = hlo.parse("\n".join([*lines, "}"]))
    assert hlo.sent_bytes(program["ENTRY"]["y"], program["ENTRY"], devices=8) == sent


@pytest.mark.parametrize(
    ("label", "group"),
    [
        ("jit(train_step)/jvp(BasisNet)/specialist/block03/depthwise_norm/batch_norm/reduce_sum", "norm, activation"),
        ("jit(train_step)/transpose(jvp(BasisNet))/specialist/block03/project/bio,bn->nio/dot_general", "project"),
        ("jit(train_step)/jvp(BasisNet)/specialist/block11/squeeze_excite/reduce/dot_general", "squeeze-excite"),
        ("jit(train_step)/jvp(BasisNet)/specialist/stem/stem._plain/conv_general_dilated", "stem"),
        ("jit(eval_step)/BasisNet/specialist/classifier/dot_general", "head"),
        ("jit(train_step)/jvp(BasisNet)/preview/block00/expand/conv_general_dilated", "preview, coefficients"),
        ("jit(train_step)/jvp(BasisNet)/coefficients/dot_general", "preview, coefficients"),
        ("state.params['specialist']['block00']['expand']['bases']", "expand"),
        ("state.opt_state[1][0].nu['specialist']['block00']['expand']['bases']", "optimizer, averages"),
        ("jit(train_step)/add;jit(train_step)/mul", "optimizer, averages"),
        ("jit(train_step)/jit(_where)/select_n", "optimizer, averages"),
        ("jit(train_step)/jvp(BasisNet)/specialist/block03/add", "rest"),
        ("", "copies"),
    ],
)
def test_the_group_of_an_operation(label, group):
    assert compiling.group_of(label) == group


def gathers(function, weights_sharding, out_sharding=None):
    """`batch_gathers` of function(weights_64x64, images_16x64), compiled for eight devices."""
    mesh = mesh_lib.make_mesh(jax.devices(), fsdp=8)
    weights = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=weights_sharding(mesh))
    batch = {"image": jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))}
    compiled = jax.jit(lambda weights, batch: function(weights, batch["image"], mesh)).lower(weights, batch).compile()
    return batch_checks.batch_gathers(hlo.parse(compiled.as_text()), lambda label: label.startswith("batch["))


def split(mesh):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))


def whole(x, mesh):
    return jax.lax.with_sharding_constraint(x, mesh_lib.replicated(mesh))


def test_parameters_may_be_gathered_and_gradients_summed():
    def step(weights, x, mesh):
        gradient = jax.grad(lambda w: jnp.mean(jnp.tanh(x @ whole(w, mesh)) ** 2))(weights)
        return jax.lax.with_sharding_constraint(weights - gradient, split(mesh))

    def looped(weights, x, mesh):
        pieces = jnp.moveaxis(x.reshape(-1, 2, 64), 1, 0)
        total, _ = jax.lax.scan(lambda w, piece: (step(w, piece, mesh), None), weights, pieces)
        return total

    assert gathers(step, split) == []
    assert gathers(looped, split) == []


def test_a_gathered_batch_is_found_and_named():
    def step(weights, x, mesh):
        with jax.named_scope("head"):
            return jnp.sum(whole(jnp.tanh(x @ weights), mesh)[:, :5] ** 2, axis=0)

    def looped(weights, x, mesh):
        return jax.lax.scan(lambda total, row: (total + step(weights, x * row, mesh), None), jnp.zeros(5), weights)[0]

    for function in (step, looped):
        (label,) = gathers(function, mesh_lib.replicated)
        assert "head" in label


def test_a_batch_that_turns_into_channels_is_found():
    def step(weights, x, mesh):
        hidden = jnp.tanh(x @ weights)
        by_channel = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, ("data", "fsdp")))
        return jax.lax.with_sharding_constraint(hidden, by_channel).max(axis=0)

    assert len(gathers(step, mesh_lib.replicated)) == 1


def test_fsdp_gathers_parameters_and_not_the_batch(config, monkeypatch):
    """Left to itself XLA splits the products as the parameters are split, and gathers the batch for it."""
    monkeypatch.setattr("basisnet_jax.host.mesh.SMALLEST_SHARDED", 128)
    config.mesh.fsdp = 8
    compiled, memory = compiling.compile_step(make_experiment(config), "eval")
    batch_checks.refuse_gathers(hlo.parse(compiled.as_text()))
    assert memory["arguments"] > 0
    monkeypatch.setattr(Experiment, "_gather", lambda self, params: params)
    compiled, _ = compiling.compile_step(make_experiment(config), "eval")
    with pytest.raises(UserError, match=r"specialist/.* and \d+ more: images or activations are sent"):
        batch_checks.refuse_gathers(hlo.parse(compiled.as_text()))


def test_the_batch_in_a_convolution_s_groups_is_refused_and_named():
    def convolve(x_HxWxI, kernel, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x_HxWxI[None], kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )[0]

    def step_of(one_kernel_an_image):
        def step(x, kernels):
            with jax.named_scope("block00/expand"):
                x = jax.vmap(convolve, (0, 0 if one_kernel_an_image else None))(x, kernels)
            return jnp.sum(x**2)

        return jax.grad(step, 1)

    def traced(one_kernel_an_image, batch):
        kernels = (*((batch,) if one_kernel_an_image else ()), 3, 3, 4, 4)
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, 6, 6, 4), kernels)]
        # Inside another jit, as in a layer that is one.
        return jax.jit(lambda *x: jax.jit(step_of(one_kernel_an_image))(*x)).trace(*arguments).jaxpr.jaxpr

    batch_checks.refuse_groups(traced(False, 4), traced(False, 8))
    with pytest.raises(UserError, match=r"block00/expand.*: a convolution has the batch in its groups"):
        batch_checks.refuse_groups(traced(True, 4), traced(True, 8))


@pytest.mark.parametrize("start", [8, 64, 1024])
@pytest.mark.parametrize("available", [10, 999, 1000, 5000, 123_456])
@pytest.mark.parametrize("needed", [lambda n: 700 + 11 * n, lambda n: 900 + n**1.3, lambda n: n // 64 * 500])
def test_the_largest_batch_that_fits(needed, available, start):
    asked = []

    def count(batch):
        assert batch % 8 == 0
        assert batch not in asked, "each call compiles for minutes"
        asked.append(batch)
        return needed(batch)

    expected = (
        max((n for n in range(0, 20_000, 8) if needed(n) <= available), default=0) if needed(8) <= available else 0
    )
    assert compiling.largest_that_fits(count, available, start, 8) == expected


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v9:2x2", "v5e:2xtwo", "v5e:2x2x2", "v4:2x2", "v6e:32x32", "v5e:0x4"])
def test_an_unknown_topology_is_told_the_forms(name):
    with pytest.raises(UserError, match=r"v5e:2x4 to v5e:16x16 .* or v4:2x2x1"):
        topology.devices_of(name)


def test_without_libtpu_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install libtpu with `pip install -e '\.\[tpu\]'`"):
        topology.devices_of("v5e:2x4")


def test_the_batch_of_a_chip(config):
    config = validate(config)
    changed = compiling.with_batch(config, "train", 128, chips=256)
    assert (changed.batch_size, changed.eval.batch_size) == (128 * 256, 16)
    changed = compiling.with_batch(config, "eval", 128, chips=256)
    assert (changed.batch_size, changed.eval.batch_size) == (16, 128 * 256)
    assert config.batch_size == compiling.with_batch(config, "train", None, 256).batch_size == 16
    with pytest.raises(UserError, match=r"--per_chip_batch=0: must be at least 1"):
        compiling.with_batch(config, "train", 0, 256)


def test_the_evaluation_step_is_compiled_as_it_would_run(config, tmp_path, monkeypatch):
    """At its own resolution, on devices that the training batch does not divide over, without the teacher."""
    config.eval.resolution = 12
    config.distill.update(teacher="runs/not-here", cache="cache")
    programs = []

    def estimate(compiled, *_):
        programs.append(compiled)
        return {"seconds_per_step": 1.0}

    chip = topology.Chip(axes=2, pod=4, hbm_gib=1.0, clock=1.0, bandwidth=1.0, network=1.0)
    monkeypatch.setattr(compiling, "devices_of", lambda *_: (jax.devices()[:3], chip))
    monkeypatch.setattr(compiling, "estimate", estimate)
    monkeypatch.setattr(compiling, "table", lambda bill: bill["images"])
    images = compiling.compile_for(config, str(tmp_path), compiling.Target(topology="three devices", what="eval"))
    assert images == {"step": 18, "per_chip": 6}
    ((_, _, batch), _) = programs[0].in_avals
    assert {name: array.shape for name, array in batch.items()} == {
        "image": (18, 12, 12, 1),
        "label": (18,),
        "mask": (18,),
    }


def test_sizes_of_data_that_is_not_here(tmp_path):
    data = datasets.describe_dataset("imagenet2012", str(tmp_path), "train[:90%]", "validation")
    assert (len(data.train), len(data.eval), data.num_classes, data.channels) == (1_153_050, 50_000, 1000, 3)
    with pytest.raises(UserError, match=r"'test' is not a split of 'imagenet2012'.*it has train, validation"):
        datasets.describe_dataset("imagenet2012", str(tmp_path), "train", "test")
    with pytest.raises(UserError, match=r"'cifar10' is not prepared"):
        datasets.describe_dataset("cifar10", str(tmp_path), "train", "test")


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is the extra [tpu]")


@needs_libtpu
def test_a_step_for_a_tpu_that_is_not_here(config, tmp_path):
    target = compiling.Target(topology="v5e:2x2", what="eval", per_chip_batch=4, price=2.0)
    printed = compiling.compile_for(config, str(tmp_path), target)
    bill = json.loads((tmp_path / "compile.json").read_text())
    assert bill["fits"]
    assert (bill["chips"], bill["hosts"], bill["images"]) == (4, 1, {"step": 16, "per_chip": 4})
    assert bill["hbm_bytes_per_device"]["available"] == int(15.75 * 2**30)
    # Averages and statistics of all parameters, and four images of 8x8, are what a device is given.
    assert 4 * make_experiment(config).cost().parameters < bill["hbm_bytes_per_device"]["arguments"] < 2**22
    assert sum(group["cycles"] for group in bill["groups"].values()) == bill["total"]["cycles"] > 0
    assert bill["groups"]["depthwise"]["cycles"] > 0
    assert bill["seconds_per_step"] == pytest.approx(16 / bill["images_per_second"])
    assert bill["epoch_price"] == pytest.approx(2.0 * 4 * 37 / bill["images_per_second"] / 3600)
    assert "fits" in printed
    assert "6 to 7 times" in printed


@needs_libtpu
@pytest.mark.parametrize("kind", topology.CHIPS)
def test_a_chip_has_as_many_devices_as_libtpu_says(kind):
    sides = ("2", "2", "1")[: topology.CHIPS[kind].axes]
    devices, chip = topology.devices_of(f"{kind}:{'x'.join(sides)}")
    assert len(devices) == 4 * chip.devices


@needs_libtpu
def test_slices_are_the_outermost_axis():
    devices, chip = topology.devices_of("v5e:2x4", slices=2)
    mesh = mesh_lib.make_mesh(devices, fsdp=4)
    assert chip.devices == 1
    assert dict(mesh.shape) == {"data": 4, "fsdp": 4}
    assert [{device.slice_index for device in row} for row in mesh.devices] == [{0}, {0}, {1}, {1}]


@needs_libtpu
def test_what_does_not_fit_says_how_much_it_needs(config, monkeypatch):
    devices, _ = topology.devices_of("v2:2x2")
    config.model.specialist.resolution = 4096
    config.batch_size = config.eval.batch_size = 8 * 64
    config.epochs = 400.0
    experiment = make_experiment(config, devices, datasets.describe_dataset)
    compiled, memory = compiling.compile_step(experiment, "eval")
    assert compiled is None
    assert memory["peak"] > 7.48 * 2**30
