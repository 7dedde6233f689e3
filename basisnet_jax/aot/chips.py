"""The figures of TPU chips and of NVIDIA GPUs, by the name that --topology gives them."""

import dataclasses
import os
from collections.abc import Mapping

from basisnet_jax.errors import UserError

GIB = 2**30
# JAX's share of a GPU's memory (docs.jax.dev, GPU memory allocation); the first name is the newer one.
SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
DEFAULT_SHARE = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What every chip has. Rates are those of a chip, also where JAX sees several devices in it."""

    devices: int = 1  # devices that JAX sees in a chip: its cores, where they do not work as one
    memory_gib: float  # memory of a device, without what the system takes
    flops: float  # floating-point operations a second, in dense bfloat16 products
    clock: float | None = None  # Hz of the cycles that the compiler estimates, where it does
    bandwidth: float  # of the chip's memory, in bytes a second
    network: float  # bytes a second that a chip can send to others of its slice or host
    outside: float | None = None  # bytes a second that a chip can send to other slices or hosts: its part of the whole
    launch_seconds: float = 0.0  # from the start of an operation to its first instruction
    place: str = "slice"  # what the fast network connects

    def per_device(self, rate: float) -> float:
        """Returns the rate of one device from the rate of a chip."""
        return rate / self.devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A TPU chip. `memory_gib` is what libtpu 0.0.42 lets a program use, by its error; 0.0.50 says up to 0.01 less."""

    axes: int  # dimensions of the pod's network (2 or 3)
    pod: int  # chips in the largest slice


# Published: Cloud TPU's pages on system architecture (v4 and later); Jouppi et al., CACM 63(7), 2020 (v2, v3).
# The clock is flops / (2 * units' side**2 * units).
TPUS = {
    "v2": Tpu(axes=2, pod=256, devices=2, memory_gib=7.48, flops=46e12, clock=0.70e9, bandwidth=700e9, network=248e9),
    "v3": Tpu(
        axes=2, pod=1024, devices=2, memory_gib=15.48, flops=123e12, clock=0.94e9, bandwidth=900e9, network=328e9
    ),
    "v4": Tpu(axes=3, pod=4096, memory_gib=30.75, flops=275e12, clock=1.05e9, bandwidth=1228e9, network=300e9),
    "v5e": Tpu(
        axes=2,
        pod=256,
        memory_gib=15.75,
        flops=197e12,
        clock=1.50e9,
        bandwidth=819e9,
        network=200e9,
        outside=3.1e9,
    ),
    "v5p": Tpu(axes=3, pod=8960, memory_gib=95.74, flops=459e12, clock=1.75e9, bandwidth=2765e9, network=600e9),
    "v6e": Tpu(
        axes=2,
        pod=256,
        memory_gib=31.25,
        flops=918e12,
        clock=1.75e9,
        bandwidth=1640e9,
        network=400e9,
        outside=12.5e9,
    ),
    "tpu7x": Tpu(
        axes=3,
        pod=9216,
        devices=2,
        memory_gib=94.75,
        flops=2307e12,
        clock=2.2e9,
        bandwidth=7380e9,
        network=600e9,
        outside=12.5e9,
    ),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What GPUs of one compute capability share (CUDA C++ Programming Guide, compute capabilities)."""

    major: int
    minor: int
    shared_kib: int  # shared memory of a multiprocessor
    threads: int  # resident threads of a multiprocessor
    lanes: int  # float32 units of a multiprocessor
    accelerated: bool  # whether XLA compiles for the variant 'a', as sm_90a


AMPERE = Architecture(8, 0, shared_kib=164, threads=2048, lanes=64, accelerated=False)
ADA = Architecture(8, 9, shared_kib=100, threads=1536, lanes=128, accelerated=False)
HOPPER = Architecture(9, 0, shared_kib=228, threads=2048, lanes=128, accelerated=True)
BLACKWELL = Architecture(10, 0, shared_kib=228, threads=2048, lanes=128, accelerated=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """An NVIDIA GPU. `network` is what it sends by NVLink, or by PCIe where it has none; half of both directions."""

    name: str
    architecture: Architecture
    cores: int  # multiprocessors
    l2_bytes: int
    boost: float  # Hz
    launch_seconds: float = 4e-6  # assumed; CUDA graphs start kernels faster
    place: str = "host"
    a_host: int = 8  # GPUs of the largest host

    def target_config(self) -> str:
        """Returns XLA's description of the GPU, a GpuTargetConfigProto as text, to compile without one."""
        architecture = self.architecture
        extension = "ACCELERATED_FEATURES" if architecture.accelerated else "NONE"
        facts = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": architecture.shared_kib * 1024,
            "shared_memory_per_block_optin": (architecture.shared_kib - 1) * 1024,
            "threads_per_core_limit": architecture.threads,
            "core_count": self.cores,
            "fpus_per_core": architecture.lanes,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.l2_bytes,
            "clock_rate_ghz": self.boost / 1e9,
            "device_memory_size": int(self.memory_gib * GIB),
            "driver_version": '"13.0.0"',
            "runtime_version": '"13.0.0"',
            "compile_time_toolkit_version": '"13.0.0"',
            "dnn_version": '"9.10.0"',
        }
        lines = [f"  {name}: {value}" for name, value in facts.items()]
        capability = f"major: {architecture.major} minor: {architecture.minor} feature_extension: {extension}"
        return "\n".join(
            [
                "gpu_device_info {",
                *lines,
                f"  cuda_compute_capability {{ {capability} }}",
                "}",
                'platform_name: "CUDA"',
                "dnn_version_info { major: 9 minor: 10 }",
                f'device_description_str: "{self.name}"',
            ]
        )


# Multiprocessors, clock, L2, memory and its bandwidth of H100, H200, A100 and B200: openxla/xla,
# xla/backends/gpu/target_config/specs. The others, flops and NVLink or PCIe: NVIDIA's data sheets (A100 80GB SXM,
# H100 SXM, H200 SXM, DGX B200, L4) and its Ada white paper (RTX 4090); memory of L4 and RTX 4090 as PyTorch reports it.
# Between hosts: the network cards of DGX A100 (8 x 200 Gb/s), DGX H100, H200 and B200 (8 x 400 Gb/s).
GPUS = {
    "a100-80gb": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        architecture=AMPERE,
        cores=108,
        l2_bytes=40 * 2**20,
        boost=1.41e9,
        memory_gib=85100068864 / GIB,
        flops=312e12,
        bandwidth=2039.04e9,
        network=300e9,
        outside=25e9,
    ),
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        architecture=HOPPER,
        cores=132,
        l2_bytes=50 * 2**20,
        boost=1.98e9,
        memory_gib=84942979072 / GIB,
        flops=989e12,
        bandwidth=3352.32e9,
        network=450e9,
        outside=50e9,
    ),
    "h200": Gpu(
        name="NVIDIA H200 141GB HBM3e",
        architecture=HOPPER,
        cores=132,
        l2_bytes=50 * 2**20,
        boost=1.98e9,
        memory_gib=151397597184 / GIB,
        flops=989e12,
        bandwidth=4800e9,
        network=450e9,
        outside=50e9,
    ),
    "b200": Gpu(
        name="NVIDIA B200",
        architecture=BLACKWELL,
        cores=148,
        l2_bytes=132644864,
        boost=1.965e9,
        memory_gib=191514411008 / GIB,
        flops=2250e12,
        bandwidth=7672.32e9,
        network=900e9,
        outside=50e9,
    ),
    "l4": Gpu(
        name="NVIDIA L4",
        architecture=ADA,
        cores=58,
        l2_bytes=48 * 2**20,
        boost=2.04e9,
        memory_gib=21.96,
        flops=121e12,
        bandwidth=300e9,
        network=32e9,
    ),
    "rtx4090": Gpu(
        name="NVIDIA GeForce RTX 4090",
        architecture=ADA,
        cores=128,
        l2_bytes=72 * 2**20,
        boost=2.52e9,
        memory_gib=23.64,
        flops=165.2e12,
        bandwidth=1008e9,
        network=32e9,
    ),
}


def usable_bytes(chip: Chip, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the bytes of a device's memory that a program can use; of a GPU's, JAX takes a share.

    Raises:
      UserError: the environment sets a share that is not a number above 0 and up to 1.
    """
    if not isinstance(chip, Gpu):
        return int(chip.memory_gib * GIB)
    for variable in SHARE_VARIABLES:
        if text := environment.get(variable):
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise UserError(f"{variable}={text!r} must be a number above 0 and up to 1; the default is 0.75.")
            return int(share * chip.memory_gib * GIB)
    return int(DEFAULT_SHARE * chip.memory_gib * GIB)
