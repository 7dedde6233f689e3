"""What a compiled program costs: launches, floating-point operations, bytes of memory and of networks, by group."""

import jax
import jax.numpy as jnp
import pytest

from basisnet_jax.aot import hlo
from basisnet_jax.aot.chips import Chip
from basisnet_jax.aot.collectives import outside_bytes, sent_bytes
from basisnet_jax.aot.costs import costs
from basisnet_jax.aot.flops import count_flops
from basisnet_jax.aot.layer_groups import group_of
from basisnet_jax.aot.traffic import moved_bytes

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
    chip = Chip(memory_gib=1.0, flops=1e15, clock=1e6, bandwidth=1e9, network=1e6)
    got = costs(program, group_of, chip, places=(0,) * 8)
    padded = 16 * 256 * 4  # a row of 200 fills two tiles of 128 lanes
    assert set(got) == {"copies", "depthwise", "preview, coefficients", "collectives"}
    # The prefetch reads HBM, padded to a tile of 128, and writes VMEM.
    assert (got["copies"].cycles, got["copies"].memory_bytes) == (0, 128 * 2)
    depthwise = got["depthwise"]
    assert (depthwise.cycles, depthwise.memory_bytes, depthwise.unestimated) == (3 * 1000, 3 * 2 * padded, 0)
    assert depthwise.seconds == pytest.approx(3 * 1e-3)  # the cycles take longer than the bytes
    kernel = got["preview, coefficients"]
    assert (kernel.cycles, kernel.memory_bytes, kernel.unestimated) == (0, 2 * padded, 1)
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
    assert sent_bytes(program["ENTRY"]["y"], program["ENTRY"], devices=8) == sent


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
        ("state.params.groups['decayed']['specialist/block00/expand/bases']", "expand"),
        ("state.params.groups['plain']['']", "optimizer, averages"),
        ("state.opt_state[1][0].nu.groups['decayed']['specialist/block00/expand/bases']", "optimizer, averages"),
        ("jit(train_step)/jvp()/slice", "optimizer, averages"),
        ("jit(train_step)/jvp()/cond/branch_0_fun/copy_parts/pallas_call", "optimizer, averages"),
        ("jit(train_step)/transpose(jvp(jit(_pad)))/pad", "optimizer, averages"),
        ("jit(train_step)/transpose(jvp())/concatenate", "optimizer, averages"),
        ("jit(train_step)/add;jit(train_step)/mul", "optimizer, averages"),
        ("jit(train_step)/jit(_where)/select_n", "optimizer, averages"),
        ("jit(train_step)/jvp(BasisNet)/specialist/block03/add", "rest"),
        ("", "copies"),
    ],
)
def test_the_group_of_an_operation(label, group):
    assert group_of(label) == group


def entry(*lines):
    """A program of one computation, of x, f32[100], and the given lines."""
    text = ["ENTRY %main (x: f32[100]) -> f32[100] {", "%x = f32[100]{0} parameter(0)", *lines, "}"]
    return hlo.parse("\n".join(text))["ENTRY"]


@pytest.mark.parametrize(
    ("line", "sent", "outside"),
    [
        # Four hosts with two devices each.
        ("all-reduce(%x), replica_groups={}", 2 * 7 * 50, 2 * 7 * 50 // 2),
        ("all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2 * 200, 0),
        ("all-reduce(%x), replica_groups=[4,2]<=[8]", 2 * 200, 0),
        ("all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0)", 2 * 3 * 100, 2 * 3 * 100),
        ("all-reduce(%x), replica_groups={{0,2,4,6},{1,3,5,7}}", 2 * 3 * 100, 2 * 3 * 100),
        ("all-gather(%x), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}", 3 * 400, 3 * 400),
        ("all-gather(%x), replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}", 400, 0),
        ("all-to-all(%x), replica_groups=[1,8]<=[8], dimensions={0}", 7 * 50, 6 * 50),
        ("collective-permute(%x), source_target_pairs={{0,1},{1,2}}", 400, 200),
        ("send(%x), channel_id=1, is_host_transfer=true", 0, 400),
        ("add(%x, %x)", 0, 0),
    ],
)
def test_what_leaves_a_host(line, sent, outside):
    computation = entry(f"ROOT %y = f32[100]{{0}} {line}")
    assert sent_bytes(computation["y"], computation, devices=8) == sent
    assert outside_bytes(computation["y"], computation, places=[0, 0, 1, 1, 2, 2, 3, 3]) == outside


FUSED = """HloModule m

%inner (p.0: f32[8,100]) -> f32[8,100] {
  %p.0 = f32[8,100]{1,0} parameter(0)
  ROOT %n.1 = f32[8,100]{1,0} negate(%p.0)
}

%two_slices (p.0: f32[8,100], p.1: f32[100]) -> f32[100] {
  %p.0 = f32[8,100]{1,0} parameter(0)
  %p.1 = f32[100]{0} parameter(1)
  %a.1 = f32[1,100]{1,0} slice(%p.0), slice={[0:1], [0:100]}
  %b.1 = f32[1,100]{1,0} slice(%p.0), slice={[3:4], [0:100]}
  %c.1 = f32[1,100]{1,0} add(%a.1, %b.1)
  %d.1 = f32[100]{0} bitcast(%c.1)
  ROOT %e.1 = f32[100]{0} multiply(%d.1, %p.1)
}

%slice_behind_arithmetic (p.0: f32[8,100]) -> f32[1,100] {
  %p.0 = f32[8,100]{1,0} parameter(0)
  %a.1 = f32[8,100]{1,0} exponential(%p.0)
  ROOT %b.1 = f32[1,100]{1,0} slice(%a.1), slice={[3:4], [0:100]}
}

%sum_of_some (p.0: f32[8,100]) -> f32[2] {
  %p.0 = f32[8,100]{1,0} parameter(0)
  %z.1 = f32[] constant(0)
  %a.1 = f32[8]{0} reduce(%p.0, %z.1), dimensions={1}, to_apply=%sum
  ROOT %b.1 = f32[2]{0} slice(%a.1), slice={[0:2]}
}

%whole (p.0: f32[8,100]) -> (f32[8,100], f32[100]) {
  %p.0 = f32[8,100]{1,0} parameter(0)
  %a.1 = f32[8,100]{1,0} fusion(%p.0), kind=kLoop, calls=%inner
  %b.1 = f32[1,100]{1,0} slice(%p.0), slice={[3:4], [0:100]}
  %c.1 = f32[100]{0} bitcast(%b.1)
  ROOT %t.1 = (f32[8,100]{1,0}, f32[100]{0}) tuple(%a.1, %c.1)
}

%update (p.0: f32[8,100], p.1: f32[1,100], p.2: s32[]) -> f32[8,100] {
  %p.0 = f32[8,100]{1,0} parameter(0)
  %p.1 = f32[1,100]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %a.1 = f32[1,100]{1,0} negate(%p.1)
  ROOT %b.1 = f32[8,100]{1,0} dynamic-update-slice(%p.0, %a.1, %p.2, %p.2)
}

ENTRY %main (x: f32[8,100], y: f32[100], r: f32[1,100], i: s32[]) -> f32[100] {
  %x = f32[8,100]{1,0} parameter(0)
  %y = f32[100]{0} parameter(1)
  %r = f32[1,100]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %two = f32[100]{0} fusion(%x, %y), kind=kLoop, calls=%two_slices
  %one = f32[1,100]{1,0} fusion(%x), kind=kLoop, calls=%slice_behind_arithmetic
  %some = f32[2]{0} fusion(%x), kind=kInput, calls=%sum_of_some
  %all = (f32[8,100]{1,0}, f32[100]{0}) fusion(%x), kind=kLoop, calls=%whole
  %bare = f32[1,100]{1,0} slice(%x), slice={[3:4], [0:100]}
  %taken = f32[1,100]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,100}
  %put = f32[8,100]{1,0} fusion(%x, %r, %i), kind=kLoop, calls=%update
  %start = ((f32[8,100]{1,0}), f32[1,100]{1,0}, u32[]) slice-start(%x), slice={[3:4], [0:100]}
  %done = f32[1,100]{1,0} slice-done(%start)
  %begin = ((f32[8,100]{1,0}, s32[], s32[]), f32[1,100]{1,0}, u32[]) dynamic-slice-start(%x, %i, %i)
  ROOT %sent = f32[8,100]{1,0} custom-call(%x, %y), custom_call_target="unknown"
}
"""


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("two", 2 * 100 + 100, 100),
        ("one", 100, 100),
        ("some", 200, 2),
        ("all", 800, 900),
        ("bare", 100, 100),
        ("taken", 100 + 2, 100),
        ("put", 100 + 1, 100),  # the row and where it goes; the rest of x stays where it is
        ("start", 100, 0),
        ("done", 0, 100),
        ("begin", 100 + 2, 0),
        ("sent", 900, 800),
    ],
)
def test_a_slice_of_an_operand_counts_as_the_slice(name, read, written):
    program = hlo.parse(FUSED)
    assert moved_bytes(program, program["ENTRY"][name], program["ENTRY"]) == 4 * (read + written)


def counted(function, *shapes):
    """(our count, XLA's count) of the floating-point operations of a function, compiled for the CPU."""
    compiled = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    program = hlo.parse(compiled.as_text())
    ours = sum(
        count_flops(part, where) or 0
        for op, computation, _ in hlo.scheduled(program)
        for part, where in hlo.inside(program, op, computation)
    )
    return ours, compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 3))])
@pytest.mark.parametrize("what", ["forward", "images", "kernels"])
def test_flops_of_convolutions_are_those_that_xla_counts(groups, stride, padding, what):
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
        )

    def gradient(x, kernel, dy):
        return jax.vjp(convolve, x, kernel)[1](dy)[("images", "kernels").index(what)]

    shapes = [(4, 9, 7, 6), (3, 3, 6 // groups, 12)]
    result = jax.eval_shape(convolve, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).shape
    ours, xla = counted(convolve, *shapes) if what == "forward" else counted(gradient, *shapes, result)
    assert ours == xla > 0


def test_flops_of_products():
    ours, xla = counted(lambda x, y: jnp.einsum("bik,bkj->bij", x, y), (3, 4, 5), (3, 5, 6))
    assert ours == xla == 2 * 3 * 4 * 5 * 6


def test_flops_of_library_calls():
    """Four images of 9 x 7 x 6, 3 x 3 kernels to 12 channels, stride 2: the same work in each direction."""
    x, kernel, dy = "f32[4,9,7,6]{3,2,1,0}", "f32[12,3,3,6]{3,2,1,0}", "f32[4,5,4,12]{3,2,1,0}"
    pairs = (3 * 5 - 2) * (3 * 4 - 2)  # the first and the last position of an axis meet the padding
    window = "window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
    for target, (one, other, result) in {
        "convForward": (x, kernel, dy),
        "convBiasActivationForward": (x, kernel, dy),
        "convBackwardInput": (dy, kernel, x),
        "convBackwardFilter": (x, dy, kernel),
    }.items():
        computation = entry(
            f"%one = {one} parameter(1)",
            f"%other = {other} parameter(2)",
            f"ROOT %y = ({result}, u8[16]{{0}}) custom-call(%one, %other), {window}, "
            f'custom_call_target="__cudnn${target}"',
        )
        assert count_flops(computation["y"], computation) == 2 * pairs * 4 * 12 * 6
    computation = entry(
        "%one = f32[3,4,5]{2,1,0} parameter(1)",
        "%other = f32[3,5,6]{2,1,0} parameter(2)",
        'ROOT %y = (f32[3,4,6]{2,1,0}, s8[16]{0}) custom-call(%one, %other), custom_call_target="__cublas$gemm", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}',
    )
    assert count_flops(computation["y"], computation) == 2 * 3 * 4 * 5 * 6
    computation = entry('ROOT %y = f32[100]{0} custom-call(%x), custom_call_target="mine"')
    assert count_flops(computation["y"], computation) is None


# Written by hand in the form of the GPU compiler's: a product, a kernel of unknown arithmetic, a sum over devices.
GPU_PROGRAM = """HloModule jit_train_step, is_scheduled=true

%product (p.0: f32[64,256], p.1: f32[256,512]) -> f32[64,512] {
  %p.0 = f32[64,256]{1,0} parameter(0)
  %p.1 = f32[256,512]{1,0} parameter(1)
  ROOT %dot.1 = f32[64,512]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[64,256], w: f32[256,512]) -> f32[64,512] {
  %x = f32[64,256]{1,0} parameter(0), metadata={op_name="batch[\\'image\\']"}
  %w = f32[256,512]{1,0} parameter(1), metadata={op_name="state.params[\\'w\\']"}
  %gemm.1 = f32[64,512]{1,0} fusion(%x, %w), kind=kCustom, calls=%product, metadata={op_name="jit(train_step)/jvp(BasisNet)/specialist/block00/expand/dot_general"}
  %kernel.1 = f32[64,512]{1,0} custom-call(%gemm.1), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(train_step)/jvp(BasisNet)/specialist/block00/depthwise/pallas_call"}
  %bitcast.1 = f32[32768]{0} bitcast(%kernel.1)
  %all-reduce-start.1 = f32[32768]{0} all-reduce-start(%bitcast.1), replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %all-reduce-done.1 = f32[32768]{0} all-reduce-done(%all-reduce-start.1)
}
"""  # noqa: E501


def test_costs_of_a_gpu_program_written_by_hand():
    chip = Chip(memory_gib=1.0, flops=1e9, bandwidth=1e9, network=1e8, outside=1e6, launch_seconds=4e-6)
    got = costs(hlo.parse(GPU_PROGRAM), group_of, chip, places=(0, 0, 1, 1))
    array = 64 * 512 * 4
    expand, depthwise, summed = got["expand"], got["depthwise"], got["collectives"]
    assert (expand.launches, expand.flops, expand.unestimated) == (1, 2 * 64 * 256 * 512, 0)
    assert expand.memory_bytes == 4 * (64 * 256 + 256 * 512) + array
    assert expand.seconds == pytest.approx(expand.flops / 1e9 + 4e-6)  # slower than its bytes
    assert (depthwise.launches, depthwise.flops, depthwise.unestimated) == (1, 0, 1)
    assert depthwise.seconds == pytest.approx(2 * array / 1e9 + 4e-6)
    # Four devices on two hosts: a ring sends 2 * 3/4 of the array; a host passes that on by its two devices' cards.
    assert (summed.launches, summed.network_bytes, summed.outside_bytes) == (1, array * 3 // 2, array * 3 // 4)
    assert summed.seconds == pytest.approx(summed.outside_bytes / 1e6 + array / 1e9 + 4e-6)
    assert sum(cost.launches for cost in got.values()) == 3
