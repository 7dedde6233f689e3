"""TPU topologies by name, to compile for without a TPU: their devices, and the figures of their chips.

Only libtpu (the extra [tpu]) knows the topologies; it compiles without a TPU.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from basisnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The figures of a chip.

    `hbm_gib` is what libtpu 0.0.42 lets a program use, by its error where one needs more. libtpu 0.0.50 says at most
    0.01 GiB less.
    """

    axes: int  # dimensions of the pod's network (2 or 3)
    pod: int  # chips in the largest slice
    devices: int = 1  # devices that JAX sees in a chip: its cores, where they do not work as one
    hbm_gib: float  # memory of a device
    clock: float  # Hz: peak bfloat16 rate / (2 * units' side**2 * units)
    bandwidth: float  # of a chip's HBM, in bytes a second
    network: float  # bytes a second that a chip can send to others of its slice
    outside: float | None = None  # bytes a second that a chip can send to other slices: its part of the host's share

    def per_device(self, rate: float) -> float:
        """Returns the rate of one device from the rate of a chip."""
        return rate / self.devices


# Published: Cloud TPU's pages on system architecture (v4 and later); Jouppi et al., CACM 63(7), 2020 (v2, v3).
CHIPS = {
    "v2": Chip(axes=2, pod=256, devices=2, hbm_gib=7.48, clock=0.70e9, bandwidth=700e9, network=248e9),
    "v3": Chip(axes=2, pod=1024, devices=2, hbm_gib=15.48, clock=0.94e9, bandwidth=900e9, network=328e9),
    "v4": Chip(axes=3, pod=4096, hbm_gib=30.75, clock=1.05e9, bandwidth=1228e9, network=300e9),
    "v5e": Chip(axes=2, pod=256, hbm_gib=15.75, clock=1.50e9, bandwidth=819e9, network=200e9, outside=3.1e9),
    "v5p": Chip(axes=3, pod=8960, hbm_gib=95.74, clock=1.75e9, bandwidth=2765e9, network=600e9),
    "v6e": Chip(axes=2, pod=256, hbm_gib=31.25, clock=1.75e9, bandwidth=1640e9, network=400e9, outside=12.5e9),
    "tpu7x": Chip(
        axes=3, pod=9216, devices=2, hbm_gib=94.75, clock=2.2e9, bandwidth=7380e9, network=600e9, outside=12.5e9
    ),
}
FORMS = "v5e:2x4 to v5e:16x16 (v2, v3 and v6e likewise) or v4:2x2x1 (v5p and tpu7x likewise), the chips along each axis"
INSTALL = "pip install -e '.[tpu]'"


def devices_of(topology: str, slices: int = 1) -> tuple[list[jax.Device], Chip]:
    """Returns the devices of all slices, to compile for, and the figures of their chips.

    Args:
      topology: topology of one slice, such as 'v5e:16x16'.
      slices: number of slices.

    Raises:
      UserError: libtpu is not installed, or there is no such topology.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(f"--topology={topology!r} is not a TPU topology; the forms are {FORMS}.")
    chip, sides = CHIPS[kind], [int(side) for side in shape.split("x")]
    if len(sides) != chip.axes or not 1 <= math.prod(sides) <= chip.pod:
        raise UserError(
            f"--topology={topology!r}: a {kind} slice has {chip.axes} axes and at most {chip.pod} chips; "
            f"the forms are {FORMS}."
        )
    if slices < 1:
        raise UserError(f"--slices={slices}: must be at least 1.")
    _load_libtpu()
    options: dict[str, object] = {"num_slices": slices}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores are one device, as on Cloud TPUs
    if math.prod(sides) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices, chip
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology={topology!r} is not known to libtpu ({reason}); the forms are {FORMS}.") from None


def _load_libtpu() -> None:
    """Prepares the process to compile for TPUs, and for nothing else: a TPU on this machine is left alone."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--mode=compile needs libtpu, the TPU's compiler, but no TPU; install libtpu with `{INSTALL}`."
        )
    jax.config.update("jax_platforms", "cpu")
    for name, value in {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock in /tmp allows one process, and outlives a killed one
        "TPU_SKIP_MDS_QUERY": "1",  # else libtpu asks Google Cloud where it runs
        # libtpu complains about an unknown machine without this, but compiles for any topology all the same.
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
    }.items():
        os.environ.setdefault(name, value)
