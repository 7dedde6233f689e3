"""Times whole training steps of MobileNetV3-Large at 224 beside PyTorch's, in one process and in turns.

    pip install -e '.[benchmark]'
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/beside_pytorch.py [--json beside_pytorch.json]

- static: the project's own step (training/step.py), beside an eager PyTorch step in channels_last.
- synthesized: each convolution of a block has one kernel an image, combined from N bases. PyTorch runs the images as
  groups of one convolution, as timm's CondConv2d does, in NCHW: merging channels_last images into groups copies them.
  Both sides get their coefficients at a negligible cost.

Both steps turn uint8 pixels into [-1, 1], compute loss and gradients, and update parameters (SGD with Nesterov's
momentum and L2), the norms' running statistics, and moving averages of both. PyTorch's optimizer is its fused one; its
averages use its multi-tensor functions. Our step also computes the gradient's norm and metrics. All is float32, with
PyTorch's padding and without dropout. On a CPU a figure is CPU time, so use one core (taskset). Before the timing, the
PyTorch network gets our parameters and must have our loss and our gradients.
"""

import argparse
import os
import pathlib
import statistics
import time

import jax
import rivals
import timing
import training_step

from basisnet_jax.host import compilation_cache, malloc


def main() -> None:
    """Prints a table; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bases", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", choices=["static", "synthesized"], default=["static", "synthesized"])
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    malloc.restart_with_malloc_settings()
    compilation_cache.use_compilation_cache()
    import torch_network  # PyTorch is in the extra [benchmark] alone
    from torch import __version__, set_num_threads

    set_num_threads(len(os.sched_getaffinity(0)))
    data = rivals.batch_of(options.batch)
    calls = {}
    for name in options.networks:
        num_bases = options.bases if name == "synthesized" else 0
        model = rivals.network(num_bases)
        model = model.clone(specialist=model.specialist.clone(architecture=torch_network.TABLE, dropout=0.0))
        calls[f"{name}, PyTorch"] = torch_network.torch_call(torch_network.check(model, num_bases, data), data)
        calls[name] = training_step.training_call(model, "ours", "step", options.batch)
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times = timing.interleaved(calls, rounds=options.rounds, clock=clock)
    rows = {}
    what = f"batch {options.batch}, N = {options.bases}, jax {jax.__version__}, PyTorch {__version__}"
    print(f"{what}, {timing.machine()}\n{'ms: quartiles':22}{'ours':>24}{'PyTorch':>24}{'ours over PyTorch':>24}")
    for name in options.networks:
        ours, theirs = times[name], times[f"{name}, PyTorch"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows[name] = {"ours_ms": ours, "pytorch_ms": theirs, "ratio": statistics.median(ratios)}
        cells = [" ".join(f"{x:7.{d}f}" for x in timing.quartiles(y)) for y, d in ((ours, 0), (theirs, 0), (ratios, 3))]
        print(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))
    timing.write_json(options.json, {"what": what, "machine": timing.machine(), "rows": rows})


if __name__ == "__main__":
    main()
