"""The printed report of --mode=compile, and what is known about its estimates."""

from typing import Any

from basisnet_jax.aot.chips import GIB, SHARE_VARIABLES, Chip, Gpu

TPU_BIAS = (
    "Seconds are the sum of max(cycles / clock, HBM bytes / bandwidth) over the operations, with the compiler's "
    "estimate of cycles; nothing was run. The estimate is too high for sums of shifted taps (6 to 7 times), static "
    "convolutions (2 to 5.5 times) and memory-bound bfloat16 operations (2.5 to 3 times); a Pallas kernel has no "
    "estimate and counts by its bytes alone. Compare like with like. Memory and bytes are the compiler's own figures "
    "and can be relied on."
)
GPU_BIAS = (
    "Seconds are the sum of max(FLOPs / peak, bytes / bandwidth, sent bytes / network) over the launches, and "
    "{launch:.0f} us for each launch, an assumption; nothing was run. Too low: kernels that do not reach the bandwidth "
    "(reductions, small arrays) or the peak (float32 products have half of it or less; cuDNN's convolutions), the "
    "arithmetic of elementwise loops, and the latency of collectives, 10 us or more each. Too high: launches that XLA "
    "collects into CUDA graphs, arrays that stay in the L2 cache, and collectives that run beside other work. A custom "
    "call of unknown arithmetic, such as a Pallas kernel, counts by its bytes alone. Launches are exact, but for calls "
    "of cuDNN and cuBLAS, which may be several kernels. Memory is without the work space of these calls, which is "
    "chosen on the GPU."
)

_COLUMNS = (
    ("launches", "launches", 1, 0),
    ("M cycles", "cycles", 1e6, 2),
    ("GFLOP", "flops", 1e9, 2),
    ("MB", "memory_bytes", 1e6, 1),
    ("sent MB", "network_bytes", 1e6, 2),
)


def bias(chip: Chip) -> str:
    """Returns what is known about the estimates for a chip."""
    return GPU_BIAS.format(launch=chip.launch_seconds * 1e6) if isinstance(chip, Gpu) else TPU_BIAS


def usable_memory(chip: Chip) -> str:
    """Returns in words which part of a device's memory a program can use."""
    if not isinstance(chip, Gpu):
        return "what libtpu lets a program use"
    return f"JAX's share of the {chip.memory_gib:.1f} GiB, 0.75 unless {SHARE_VARIABLES[0]} is set"


def table(report: dict[str, Any]) -> str:
    """Returns the report as lines to print."""
    memory, images = report["memory_bytes_per_device"], report["images"]
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    lines = [
        f"{report['what']} step on {slices}{report['topology']}: {report['chips']} chips, {report['hosts']} hosts, "
        f"{images['step']} images a step, {images['per_chip']} a chip, fsdp {report['fsdp']}",
        "",
        "memory of a device, GiB: " + ", ".join(f"{name} {size / GIB:.3f}" for name, size in memory.items()),
        f"  (available: {report['usable_memory']}) -> {'fits' if report['fits'] else 'DOES NOT FIT'}",
    ]
    largest = report.get("largest_per_chip_batch")
    if largest is not None:
        lines.append(f"largest batch that fits: {largest} images a chip")
    if not report["fits"]:
        batch = "fewer images a chip (--fit finds how many)" if largest is None else f"{largest} images a chip"
        roomier = ", ".join(report["fits_on"])
        chips = f"a chip with more memory ({roomier})" if roomier else "a larger --config.mesh.fsdp"
        return "\n".join([*lines, f"what fits instead: {batch}, or {chips}"])
    total = report["total"]
    columns = [column for column in _COLUMNS if total[column[1]]]
    heads = "".join(f"{head:>10}" for head, *_ in columns)
    lines += ["", f"{'estimates, a step':24}{'ms':>9}{'share':>7}{heads}"]
    for name, cost in [*report["groups"].items(), ("total", total)]:
        values = "".join(f"{cost[field] / unit:10.{digits}f}" for _, field, unit, digits in columns)
        lines.append(f"{name:24}{cost['seconds'] * 1e3:9.3f}{cost['seconds'] / total['seconds']:7.1%}{values}")
    between = report["between"]
    if between["bytes"]:
        took = "at an unknown rate, left out" if between["seconds"] is None else f"{between['seconds'] * 1e3:.3f} ms"
        lines.append(f"{between['what']:24}{between['bytes'] / 1e6:.2f} MB a device, {took}")
    price = "" if report["epoch_price"] is None else f", price {report['epoch_price']:,.2f}"
    lines += [
        f"{total['unestimated']} custom calls have no estimate and count by their bytes",
        f"FLOPs of a device's products and convolutions: {total['flops']:.4g}",
        f"{report['images_per_second']:,.0f} images/s; an epoch: {report['epoch_hours'] * 60:,.2f} minutes, "
        f"{report['epoch_chip_hours']:,.3f} chip-hours{price}; "
        f"all {report['epochs']:g} of them: {report['epochs'] * report['epoch_chip_hours']:,.1f} chip-hours",
        "",
        report["bias"],
    ]
    return "\n".join(lines)
