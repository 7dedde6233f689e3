"""Measures inference of MobileNetV3-Large at 224, synthesized and static: time over N, batch size and devices.

    python benchmarks/inference.py [--json inference.json]
    python benchmarks/inference.py --devices 1 2 4 8 [--json devices.json]

The synthesized networks ('N = ...') get their coefficients from a preview of negligible cost; 'BasisNet' has the
preview of configs/imagenet_mbv3.py. With --devices the batch is split over that many devices. On a CPU these are forced
devices that share the cores, so the time should be the same as on one device. Wall time, float32.
"""

import argparse
import os
import pathlib
from collections.abc import Callable

import jax
import rivals
import timing

from basisnet_jax.host import compilation_cache, malloc, mesh
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.models.stages import normalize


def inference_call(model: BasisNet, batch: int, devices: int = 1) -> Callable[[], object]:
    """Returns a call that classifies a batch."""
    devices_mesh = mesh.make_mesh(jax.devices()[:devices])
    images = jax.device_put(rivals.batch_of(batch)["image"], mesh.batch_sharding(devices_mesh))
    one_image = normalize(rivals.batch_of(1)["image"])
    variables = rivals.run_once(lambda: model.init(jax.random.key(0), one_image, train=False))
    variables = jax.device_put(variables, mesh.replicated(devices_mesh))
    classify = jax.jit(lambda variables, images: model.apply(variables, normalize(images), train=False).logits_BxK)
    return lambda: jax.block_until_ready(classify(variables, images))


def main() -> None:
    """Prints a table; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, nargs="+", default=[1, 4, 16, 64], help="N, at batch 1")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 256], help="at N = 16")
    parser.add_argument("--devices", type=int, nargs="+", help="only these numbers of devices, at N = 16 and batch 32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.2, help="shortest duration of a turn, in seconds")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    if options.devices:  # read when JAX first looks for devices
        forced = f"--xla_force_host_platform_device_count={max(options.devices)}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"
    malloc.restart_with_malloc_settings()
    compilation_cache.use_compilation_cache()
    static, sixteen = rivals.network(0), rivals.network(16)
    groups: dict[str, dict[str, Callable[[], object]]] = {}
    if options.devices:
        groups["32 images"] = {f"{n} devices": inference_call(sixteen, 32, n) for n in options.devices}
    else:
        groups["1 image"] = {
            "static": inference_call(static, 1),
            **{f"N = {n}": inference_call(rivals.network(n), 1) for n in options.bases},
            "BasisNet, N = 16": inference_call(rivals.network(16, "large"), 1),
        }
        for batch in options.batches:
            if batch > 1:
                calls = {"static": inference_call(static, batch), "N = 16": inference_call(sixteen, batch)}
                groups[f"{batch} images"] = calls

    print(f"{jax.devices()[0].device_kind}, {timing.machine()}; medians of {options.rounds} rounds")
    print(f"{'':32}{'ms':>10}{'over the first':>16}")
    result = {}
    for group, calls in groups.items():
        times = timing.interleaved(calls, rounds=options.rounds, turn=options.turn)
        first, figures = next(iter(times)), timing.medians(times)
        for name in times:
            row = {"ms": figures[name], "over_first": timing.ratio(times, name, first), "all_ms": times[name]}
            result[f"{group}, {name}"] = row
            print(f"{group + ', ' + name:32}{row['ms']:10.2f}{row['over_first']:16.2f}", flush=True)
    timing.write_json(options.json, {"machine": timing.machine(), "rows": result})


if __name__ == "__main__":
    main()
