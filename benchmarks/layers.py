"""Times every distinct synthesized layer of MobileNetV3-Large at 224: ours, the static layer, and two rivals.

    taskset -c 0 python benchmarks/layers.py [--json layers.json] [--layers 112x112]
    taskset -c 0 python benchmarks/layers.py --forms synthesized vmapped

- synthesized: ops/synthesis.py; each image has its own kernel, combined from N bases.
- static: the same layer with one kernel for all images.
- pytorch: the images as groups of one convolution, as timm's CondConv2d has them; needs the extra `[benchmark]`.
- vmapped: `jax.vmap` of a convolution over (image, kernel); in a separate run, since its memory slows the others.

Forward alone, and forward with the gradients of images, bases and coefficients. On a CPU a figure is CPU time, so
use one core (taskset) for a fair comparison; elsewhere it is wall time.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import rivals
import timing

from basisnet_jax.host import malloc
from basisnet_jax.models.architectures import MOBILENET_V3_LARGE
from basisnet_jax.ops import synthesis

MODES = ("forward", "training")


def layers() -> dict[str, tuple[int, int, int, int, int]]:
    """Returns {name: (image side, input channels, output channels or 0 if depthwise, kernel side, stride)}."""
    found, side = {}, 112

    def pointwise(inputs: int, outputs: int) -> None:
        found[f"pointwise {side}x{side} {inputs}->{outputs}"] = (side, inputs, outputs, 1, 1)

    for _, inputs, block in MOBILENET_V3_LARGE.named_blocks():
        if block.expand > inputs:
            pointwise(inputs, block.expand)
        name = f"depthwise {side}x{side} {block.expand} {block.kernel}x{block.kernel}/{block.stride}"
        found[name] = (side, block.expand, 0, block.kernel, block.stride)
        side = -(-side // block.stride)
        pointwise(block.expand, block.out)
    return found


def synthesized(x, bases, coefficients, stride):
    """Ours."""
    if bases.ndim == 3:
        return synthesis.pointwise(x, bases, coefficients)
    return synthesis.depthwise(x, bases, coefficients, stride)


def static(x, bases, coefficients, stride):
    """Returns a static convolution: one kernel for all images, the first basis."""
    return rivals.convolution(x, bases[0], 1) if bases.ndim == 3 else synthesis.static_depthwise(x, bases[0], stride)


FORMS = {"synthesized": synthesized, "static": static, "vmapped": rivals.vmapped}


def jax_call(form: Callable[..., jax.Array], mode: str, arrays: list[np.ndarray], dy: np.ndarray, stride: int):
    """Returns a call of a JAX form that returns when its work is done."""

    @jax.jit
    def run(inputs, dy):
        if mode == "forward":
            return form(*inputs, stride)
        y, vjp = jax.vjp(partial(form, stride=stride), *inputs)
        return y, vjp(dy)

    inputs = jax.device_put((arrays, dy))
    return lambda: jax.block_until_ready(run(*inputs))


def torch_call(mode: str, arrays: list[np.ndarray], dy: np.ndarray, stride: int):
    """Returns a call of a PyTorch form that returns when its work is done."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, bases, coefficients = (torch.tensor(array, device=device) for array in arrays)
    x, gradient = (z.permute(0, 3, 1, 2).contiguous() for z in (x, torch.tensor(dy, device=device)))
    batch, channels = x.shape[:2]
    if bases.dim() == 3:  # [N, I, O] -> [N, O, I, 1, 1]
        bases, side = bases.transpose(1, 2)[..., None, None].contiguous(), 1
    else:  # [N, K, K, C] -> [N, C, 1, K, K]
        bases, side = bases.permute(0, 3, 1, 2)[:, :, None].contiguous(), bases.shape[1]
    groups = batch * channels if side > 1 else batch
    height = x.shape[2]
    total = max((-(-height // stride) - 1) * stride + side - height, 0)
    before, after = total // 2, total - total // 2
    leaves = [x, bases, coefficients]
    for leaf in leaves:
        leaf.requires_grad_(mode == "training")

    def run():
        kernels = (coefficients @ bases.flatten(1)).view(-1, *bases.shape[2:])
        images = x if before == after else functional.pad(x, (before, after, before, after))
        merged = images.reshape(1, -1, *images.shape[2:])
        padding = before if before == after else 0
        y = functional.conv2d(merged, kernels, stride=stride, padding=padding, groups=groups)
        y = y.view(batch, -1, *y.shape[2:])
        result = [y, *torch.autograd.grad(y, leaves, gradient)] if mode == "training" else [y]
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def contestants(
    layer: tuple[int, int, int, int, int], mode: str, forms: list[str], batch: int, num_bases: int
) -> dict[str, Callable[[], Any]]:
    """Returns {form: call}, all on the same numbers, and checks that they compute the same where they should."""
    side, inputs, outputs, kernel, stride = layer
    rng, out_side = np.random.default_rng(0), -(-side // stride)
    shape = (inputs, outputs) if outputs else (kernel, kernel, inputs)
    x = rng.normal(size=(batch, side, side, inputs))
    bases = rng.normal(size=(num_bases, *shape))
    coefficients = rng.dirichlet(np.ones(num_bases), batch)
    arrays = [array.astype(np.float32) for array in (x, bases, coefficients)]
    dy = rng.normal(size=(batch, out_side, out_side, outputs or inputs)).astype(np.float32)
    calls = {
        form: jax_call(FORMS[form], mode, arrays, dy, stride) if form in FORMS else torch_call(mode, arrays, dy, stride)
        for form in forms
    }
    if "pytorch" in forms:
        theirs = calls["pytorch"]()[0].detach().cpu().permute(0, 2, 3, 1)
        np.testing.assert_allclose(jax.tree.leaves(calls["synthesized"]())[0], theirs, rtol=1e-3, atol=1e-3)
    return calls


def main() -> None:
    """Prints a row a layer and mode; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=[*FORMS, "pytorch"], default=["synthesized", "static", "pytorch"])
    parser.add_argument("--layers", default="", help="only layers whose name holds this")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bases", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.03, help="shortest duration of a turn, in seconds")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    malloc.restart_with_malloc_settings()
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    rows, others = [], [form for form in options.forms if form != "synthesized"]
    what = f"batch {options.batch}, N = {options.bases}, float32, medians of {options.rounds} rounds"
    print(f"{what}; {jax.devices()[0].device_kind}, {timing.machine()}")
    print(f"{'milliseconds':30}{'':9}{'synthesized':>12}" + "".join(f"{form:>10}{'ratio':>7}" for form in others))
    for name, layer in layers().items():
        for mode in MODES if options.layers in name else ():
            calls = contestants(layer, mode, options.forms, options.batch, options.bases)
            times = timing.interleaved(calls, rounds=options.rounds, turn=options.turn, clock=clock)
            figures = timing.medians(times)
            ratios = {form: timing.ratio(times, form, "synthesized") for form in others}
            rows.append({"layer": name, "mode": mode, "ms": figures, "over_synthesized": ratios, "all_ms": times})
            cells = "".join(f"{figures[form]:10.2f}{ratios[form]:7.2f}" for form in others)
            print(f"{name:30}{mode:9}{figures['synthesized']:12.2f}{cells}", flush=True)
    timing.write_json(options.json, {"what": what, "machine": timing.machine(), "rows": rows})


if __name__ == "__main__":
    main()
