"""What must not be in a compiled program, and the whole way to a TPU or a GPU that is not here."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from basisnet_jax.aot import batch_checks, chips, compiling, hlo, report, topology
from basisnet_jax.aot.costs import costs
from basisnet_jax.config import validate
from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host import mesh as mesh_lib


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
    with pytest.raises(UserError, match=r"stage/.* and \d+ more: images or activations are sent"):
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
def test_an_unknown_tpu_topology_is_told_the_forms(name):
    with pytest.raises(UserError, match=r"v5e:2x4 to v5e:16x16 .* or v4:2x2x1"):
        topology.devices_of(name)


@pytest.mark.parametrize("name", ["h101:8", "h100", "h100:", "h100:2x4", "h100:eight", "gpu:8"])
def test_an_unknown_gpu_is_told_the_forms(name):
    with pytest.raises(UserError, match=rf"{name}.*h100:1 to h100:8 \(a100-80gb, h200, b200, l4, rtx4090 likewise\)"):
        topology.devices_of(name)


@pytest.mark.parametrize("name", ["h100:0", "a100-80gb:16"])
def test_a_host_has_at_most_eight_gpus(name):
    with pytest.raises(UserError, match=rf"{name}.*: a host has at most 8 GPUs; for more hosts add --slices=2"):
        topology.devices_of(name)


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install libtpu with `pip install -e '\.\[tpu\]'`"):
        topology.devices_of("v5e:2x4")
    with pytest.raises(UserError, match=r"h100:8 needs JAX's plugin .* with `pip install -e '\.\[gpu-compile\]'`"):
        topology.devices_of("h100:8")


def test_jax_takes_a_share_of_a_gpu_s_memory():
    h100 = chips.GPUS["h100"]
    assert chips.usable_bytes(h100, {}) == 84942979072 * 3 // 4
    old, new = "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"
    assert chips.usable_bytes(h100, {old: ".5"}) == 84942979072 // 2
    assert chips.usable_bytes(h100, {old: ".5", new: "0.25"}) == 84942979072 // 4
    assert chips.usable_bytes(chips.TPUS["v5e"], {new: "0.25"}) == int(15.75 * 2**30)
    for share in ("1.5", "0", "-1", "half"):
        with pytest.raises(UserError, match=rf"{new}='{share}' must be a number above 0 and up to 1"):
            chips.usable_bytes(h100, {new: share})


@pytest.mark.parametrize("name", list(chips.GPUS))
def test_the_description_of_a_gpu_agrees_with_its_published_figures(name):
    """Peak rates follow from multiprocessors, clock and units: 2 * lanes * cores * clock in float32."""
    gpu = chips.GPUS[name]
    float32 = {"a100-80gb": 19.5, "h100": 66.9, "h200": 66.9, "b200": 74.4, "l4": 30.3, "rtx4090": 82.6}[name] * 1e12
    assert 2 * gpu.architecture.lanes * gpu.cores * gpu.boost == pytest.approx(float32, rel=0.01)
    text = gpu.target_config()
    assert text.count("{") == text.count("}") == 3
    assert f"core_count: {gpu.cores}\n" in text


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

    chip = chips.Chip(memory_gib=1.0, flops=1.0, bandwidth=1.0, network=1.0)
    monkeypatch.setattr(compiling, "devices_of", lambda *_: (jax.devices()[:3], chip))
    monkeypatch.setattr(compiling, "estimate", estimate)
    monkeypatch.setattr(report, "table", lambda bill: bill["images"])
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


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_on_a_gpu_is_told_what_fits(config, monkeypatch, fits):
    """A GPU's compiler does not refuse a program that is too large; another program stands in for a GPU's here."""
    memory = {"peak": int(0.75 * chips.GPUS["h100"].memory_gib * 2**30) + (0 if fits else 2**30)}
    monkeypatch.setattr(compiling, "compile_step", lambda *_: (jax.jit(jnp.sin).lower(1.0).compile(), memory))
    experiment = make_experiment(validate(config), jax.devices()[:2])
    target = compiling.Target(topology="h100:2")
    described = compiling.describe(experiment, chips.GPUS["h100"], target)
    assert described["fits"] == fits
    printed = report.table(described)
    assert ("images/s" in printed) == fits
    assert printed.endswith("or a chip with more memory (h200, b200)") != fits


needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="JAX's plugin for CUDA is the extra [gpu-compile]"
)


@needs_plugin
def test_a_step_for_gpus_that_are_not_here(config, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    target = compiling.Target(topology="h100:2", slices=2, per_chip_batch=4, price=2.0)
    printed = compiling.compile_for(config, str(tmp_path), target)
    bill = json.loads((tmp_path / "compile.json").read_text())
    assert bill["fits"]
    assert (bill["chips"], bill["hosts"], bill["images"]) == (4, 2, {"step": 16, "per_chip": 4})
    assert bill["memory_bytes_per_device"]["available"] == 84942979072 * 3 // 4
    parameters = make_experiment(config).cost().parameters
    assert 4 * parameters < bill["memory_bytes_per_device"]["arguments"] < 2**22
    assert sum(group["launches"] for group in bill["groups"].values()) == bill["total"]["launches"] > 100
    assert bill["groups"]["depthwise"]["launches"] > 0
    # A ring of four sends 3/4 of the gradients twice, and sums of batch norm; each host passes that on by two cards.
    sent = bill["total"]["network_bytes"]
    assert 2 * 3 / 4 * 4 * parameters < sent < 2 * 3 / 4 * 4 * parameters + 2**16
    assert bill["total"]["outside_bytes"] == bill["between"]["bytes"] == pytest.approx(sent / 2, rel=0.01)
    # Three times the forward pass, and what synthesis adds.
    assert bill["total"]["flops"] > 2 * 4 * make_experiment(config).cost().total
    assert bill["seconds_per_step"] > 4e-6 * bill["total"]["launches"]
    assert bill["epoch_price"] == pytest.approx(2.0 * 4 * bill["epoch_hours"])
    for text in ("2 x h100:2: 4 chips, 2 hosts", "fits", "launches", "between hosts", "Too low: "):
        assert text in printed


@needs_plugin
@pytest.mark.parametrize("name", list(chips.GPUS))
def test_every_gpu_is_compiled_for(name):
    devices, _ = topology.devices_of(f"{name}:2", slices=2)
    assert [device.process_index for device in devices] == [0, 0, 1, 1]
    shape = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16, sharding=mesh_lib.replicated(mesh_lib.make_mesh(devices)))
    program = hlo.parse(jax.jit(lambda x: jnp.tanh(x @ x)).lower(shape).compile().as_text())
    assert sum(cost.launches for cost in costs(program, str, chips.GPUS[name]).values()) in (1, 2)


@needs_plugin
def test_a_batch_that_does_not_divide_over_the_gpus_is_told_what_does(config, tmp_path):
    with pytest.raises(UserError, match=r"batch_size.*16.*does not divide over 3 devices; use 15 or 18"):
        compiling.compile_for(config, str(tmp_path), compiling.Target(topology="h100:3"))


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is the extra [tpu]")


@needs_libtpu
def test_a_step_for_a_tpu_that_is_not_here(config, tmp_path):
    target = compiling.Target(topology="v5e:2x2", what="eval", per_chip_batch=4, price=2.0)
    printed = compiling.compile_for(config, str(tmp_path), target)
    bill = json.loads((tmp_path / "compile.json").read_text())
    assert bill["fits"]
    assert (bill["chips"], bill["hosts"], bill["images"]) == (4, 1, {"step": 16, "per_chip": 4})
    assert bill["memory_bytes_per_device"]["available"] == int(15.75 * 2**30)
    # Averages and statistics of all parameters, and four images of 8x8, are what a device is given.
    assert 4 * make_experiment(config).cost().parameters < bill["memory_bytes_per_device"]["arguments"] < 2**22
    assert sum(group["cycles"] for group in bill["groups"].values()) == bill["total"]["cycles"] > 0
    assert bill["groups"]["depthwise"]["cycles"] > 0
    assert bill["seconds_per_step"] == pytest.approx(16 / bill["images_per_second"])
    assert bill["epoch_price"] == pytest.approx(2.0 * 4 * 37 / bill["images_per_second"] / 3600)
    assert "fits" in printed
    assert "6 to 7 times" in printed


@needs_libtpu
@pytest.mark.parametrize("kind", chips.TPUS)
def test_a_chip_has_as_many_devices_as_libtpu_says(kind):
    sides = ("2", "2", "1")[: chips.TPUS[kind].axes]
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
