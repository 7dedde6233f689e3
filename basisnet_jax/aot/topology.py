"""The devices of a topology that is named, to compile for without having them.

Only libtpu (the extra [tpu]) knows TPUs, and only JAX's plugin for CUDA (the extra [gpu-compile]) compiles for NVIDIA
GPUs. Both compile without a device and without a driver.
"""

import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from basisnet_jax.aot.chips import GPUS, TPUS, Chip, Gpu, Tpu
from basisnet_jax.errors import UserError

TPU_FORMS = "v5e:2x4 to v5e:16x16 (v2, v3, v6e likewise) or v4:2x2x1 (v5p, tpu7x likewise), the chips along each axis"
GPU_FORMS = f"h100:1 to h100:8 ({', '.join(name for name in GPUS if name != 'h100')} likewise), the GPUs of a host"
INSTALL_TPU = "pip install -e '.[tpu]'"
_TILES_BY_COST = "--xla_gpu_experimental_cost_model_gemm_tiling_options=top=1"
INSTALL_GPU = "pip install -e '.[gpu-compile]'"


def devices_of(topology: str, slices: int = 1) -> tuple[list[jax.Device], Chip]:
    """Returns the devices of all slices or hosts, to compile for, and the figures of their chips.

    Args:
      topology: a TPU slice, such as 'v5e:16x16', or a host with GPUs, such as 'h100:8'.
      slices: number of such slices or hosts.

    Raises:
      UserError: the compiler is not installed, or there is no such topology.
    """
    kind, _, shape = topology.partition(":")
    known = re.fullmatch(r"\d+(x\d+)*", shape) if kind in TPUS else re.fullmatch(r"\d+", shape)
    if kind not in TPUS | GPUS or not known:
        raise UserError(
            f"--topology={topology!r} is not a topology of TPUs or GPUs; the forms are {TPU_FORMS}; and {GPU_FORMS}."
        )
    if slices < 1:
        raise UserError(f"--slices={slices}: must be at least 1.")
    if kind in TPUS:
        return _tpu_devices(topology, TPUS[kind], [int(side) for side in shape.split("x")], slices), TPUS[kind]
    return _gpu_devices(topology, GPUS[kind], int(shape), slices), GPUS[kind]


def _tpu_devices(topology: str, chip: Tpu, sides: list[int], slices: int) -> list[jax.Device]:
    kind = topology.partition(":")[0]
    if len(sides) != chip.axes or not 1 <= math.prod(sides) <= chip.pod:
        raise UserError(
            f"--topology={topology!r}: a {kind} slice has {chip.axes} axes and at most {chip.pod} chips; "
            f"the forms are {TPU_FORMS}."
        )
    _load_libtpu(topology)
    options: dict[str, object] = {"num_slices": slices}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores are one device, as on Cloud TPUs
    if math.prod(sides) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"--topology={topology!r} is not known to libtpu ({reason}); the forms are {TPU_FORMS}."
        ) from None


def _gpu_devices(topology: str, chip: Gpu, gpus: int, hosts: int) -> list[jax.Device]:
    if not 1 <= gpus <= chip.a_host:
        raise UserError(
            f"--topology={topology!r}: a host has at most {chip.a_host} GPUs; for more hosts add --slices=2, and so on."
        )
    if not any(importlib.util.find_spec(name) for name in ("jax_cuda13_plugin", "jax_cuda12_plugin")):
        raise UserError(
            f"--topology={topology} needs JAX's plugin for CUDA, the GPU's compiler, but no GPU; install it with "
            f"`{INSTALL_GPU}`."
        )
    # Else JAX looks for a GPU, and refuses to compile for one that is not here.
    jax.config.update("jax_platforms", "cpu")
    # Else, as there is no GPU to try them on, a product gets the first tiles of a list, which do not fit every program.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_TILES_BY_COST}"
    return topologies.get_topology_desc(
        topology, platform="cuda", target_config=chip.target_config(), topology=f"1x{hosts}x{gpus}"
    ).devices


def _load_libtpu(topology: str) -> None:
    """Prepares the process to compile for TPUs, and for nothing else: a TPU on this machine is left alone."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs libtpu, the TPU's compiler, but no TPU; install libtpu with `{INSTALL_TPU}`."
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
