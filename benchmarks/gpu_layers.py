"""Compiles depthwise layers for an NVIDIA GPU that is not here: launches, bytes, registers and spills of each form.

    pip install -e '.[gpu-compile]'        # in an environment of its own
    python benchmarks/gpu_layers.py [--card=a100-80gb] [--layers=56x72k3s1,7x960k5s1] [--forms=taps,pallas]

A layer is norm, hard-swish and the depthwise convolution with one kernel an image, 128 images, bfloat16, forward and
backward; the norm's statistics are given. Nothing runs.

launches   GPU kernels that the compiled program starts; MB is what they read and write, as --mode=compile counts both.
kernels    registers and spilled bytes of a thread for each GPU kernel with more than 64 registers or with spills.
"""

import argparse
import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import tempfile

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from basisnet_jax.aot import hlo
from basisnet_jax.aot.chips import GPUS
from basisnet_jax.aot.costs import costs
from basisnet_jax.aot.topology import devices_of
from basisnet_jax.host.mesh import with_mesh_in_context
from basisnet_jax.ops import synthesis

IMAGES = 128
LAYERS = "112x64k3s2,56x72k3s1,28x120k5s1,14x672k5s2,7x960k5s1"


def compiled(mesh: Mesh, layer: str, pallas_kernels: bool) -> str:
    """Returns the program of a layer such as '7x960k5s1' (pixels, channels, kernel, stride) and its gradients."""
    size, channels, side, stride = map(int, re.fullmatch(r"(\d+)x(\d+)k(\d+)s(\d+)", layer).groups())

    def forward(x, kernels, *norm):
        normalized = synthesis.Normalized(x, *norm, nn.hard_swish)
        forms = {"default": functools.partial(synthesis.taps.depthwise, stride=stride, padding="same")}
        return synthesis._depthwise(normalized, kernels, forms, stride, "same", pallas_kernels)

    def both(dy, *arguments):
        y, vjp = jax.vjp(forward, *arguments)
        return y, vjp(dy)

    output = -(-size // stride)
    images = (IMAGES, output, output, channels), (IMAGES, size, size, channels), (IMAGES, side, side, channels)
    where = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in images]
    arguments += [jax.ShapeDtypeStruct((channels,), jnp.float32, sharding=where)] * 3
    return jax.jit(with_mesh_in_context(mesh, both), out_shardings=where).lower(*arguments).compile().as_text()


def registers(dump: str, ptxas: str) -> list[str]:
    """Returns 'kernel: registers, spilled bytes' of the PTX in `dump` with many registers or spills; deletes it."""
    lines = []
    for path in pathlib.Path(dump).iterdir():
        if path.suffix == ".ptx" and (target := re.search(r"\.target (\w+)", path.read_text())):
            command = [ptxas, "-v", f"-arch={target[1]}", str(path), "-o", os.devnull]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", told, re.S)
            lines += [f"{name}: {used}, {spilled}" for name, spilled, used in found if int(used) > 64 or int(spilled)]
        path.unlink()
    return lines


def main() -> None:
    """Prints a line for each layer and form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="h100", choices=GPUS)
    parser.add_argument("--layers", default=LAYERS)
    parser.add_argument("--forms", default="taps,pallas")
    options = parser.parse_args()
    dump = tempfile.mkdtemp()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump} --xla_dump_hlo_pass_re=^$"
    devices, chip = devices_of(f"{options.card}:1")
    mesh = Mesh(devices, ("data",))
    package = importlib.util.find_spec("nvidia").submodule_search_locations[0]
    ptxas = str(next(pathlib.Path(package).glob("cu*/bin/ptxas")))
    for layer in options.layers.split(","):
        for form in options.forms.split(","):
            program = hlo.parse(compiled(mesh, layer, form == "pallas"))
            cost = costs(program, lambda label: "", chip)[""]
            print(f"{layer} {form}: {cost.launches} launches, {cost.memory_bytes / 1e6:,.0f} MB", flush=True)
            for line in sorted(registers(dump, ptxas)):
                print(f"    {line}", flush=True)


if __name__ == "__main__":
    main()
