"""Which packages pip installs, for machines that are not here."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from basisnet_jax.host import accelerator
from basisnet_jax.host.accelerator import Gpu, Machine, choose_install, has_tpu, read_gpus, what_remains

T4 = Gpu(driver=(550, 54, 15), capability=(7, 5))
V100 = Gpu(driver=(580, 65, 6), capability=(7, 0))
H100 = Gpu(driver=(580, 82, 7), capability=(9, 0))

# Colab in August 2026 (googlecolab/backend-info).
JAX = {"jax": "0.7.2", "jaxlib": "0.7.2", "flax": "0.11.2", "numpy": "2.1.3", "tensorflow-metadata": "1.21.0"}
COLAB = {**JAX, "tensorflow": "2.20.0", "protobuf": "5.29.6"}
COLAB_GPU = {**COLAB, "jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2"}
COLAB_TPU = {**JAX, "libtpu": "0.0.21.1", "protobuf": "7.35.1"}

# What pip leaves in each.
OURS = {"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.12", "clu": "0.0.12", "ai-edge-litert": "2.3.0"}
ON_CPU = {**COLAB, **OURS, "tensorflow-metadata": "1.17.3"}
ON_GPU = {**ON_CPU, "jax-cuda12-plugin": "0.11.2", "jax-cuda12-pjrt": "0.11.2"}
ON_TPU = {**COLAB_TPU, **OURS, "tensorflow-cpu": "2.21.0", "libtpu": "0.0.48.1"}


def chosen(machine):
    return choose_install(machine, in_checkout=True).pip


@pytest.mark.parametrize(
    ("machine", "command"),
    [
        (Machine(COLAB), '".[without-tensorflow]" numpy==2.1.3 "tensorflow-metadata<1.21"'),
        (Machine(COLAB_GPU, (T4,)), '".[without-tensorflow]" "jax[cuda12]" numpy==2.1.3 "tensorflow-metadata<1.21"'),
        (Machine(COLAB_TPU, tpu=True), '".[tpu]" numpy==2.1.3'),
    ],
)
def test_on_colab_jax_and_plugin_are_replaced_while_numpy_and_tensorflow_stay(machine, command):
    assert chosen(machine) == (f"install --quiet --editable {command}",)


@pytest.mark.parametrize(
    ("machine", "extra"),
    [
        (Machine({}), "train"),
        (Machine({}, (T4,)), "cuda12"),
        (Machine({}, (H100,)), "cuda13"),
        (Machine({}, (V100,)), "cuda12"),  # its driver knows CUDA 13, which has no code for it
        (Machine({}, (H100, V100)), "cuda12"),
        (Machine({"jax-cuda12-plugin": "0.10.2"}, (H100,)), "cuda12"),  # two plugins are one too many
        (Machine({}, tpu=True), "tpu"),
    ],
)
def test_an_empty_environment_gets_the_extra_of_its_device(machine, extra):
    assert chosen(machine) == (f'install --quiet --editable ".[{extra}]"',)


def test_an_installed_package_gets_the_extra_without_a_checkout():
    found = choose_install(Machine({}, (H100,)), in_checkout=False)
    assert found.pip == ('install --quiet "basisnet_jax[cuda13]"',)


def test_a_plugin_that_the_driver_cannot_run_makes_way():
    machine = Machine({"jax-cuda13-plugin": "0.11.2", "jax-cuda13-pjrt": "0.11.2"}, (T4,))
    removed, added = chosen(machine)
    assert removed == "uninstall --quiet --yes jax-cuda13-plugin jax-cuda13-pjrt"
    assert '".[cuda12]"' in added


def test_a_numpy_older_than_the_package_needs_is_replaced():
    assert "numpy" not in chosen(Machine({"numpy": "1.26.4"}))[0]


def test_a_driver_too_old_for_jax_leaves_the_cpu_and_a_sentence():
    found = choose_install(Machine({}, (Gpu((470, 256, 2), (7, 5)),)), in_checkout=True)
    assert '".[train]"' in found.pip[0]
    assert "NVIDIA driver 470.256.2" in found.sentence
    assert "needs at least driver 525.60 and capability 5.2; it uses the CPU" in found.sentence


FITTING = {
    "cpu": Machine(ON_CPU),
    "gpu": Machine(ON_GPU, (T4,)),
    "tpu": Machine(ON_TPU, tpu=True, libtpu_wanted="0.0.48"),
}


@pytest.mark.parametrize("name", FITTING)
def test_nothing_is_installed_where_everything_fits(name):
    found = choose_install(FITTING[name], in_checkout=True)
    assert found.pip == ()
    assert found.sentence.endswith("all packages are installed, and fit.")
    assert what_remains(FITTING[name], {"jax": "0.11.2", "numpy": "2.1.3"}, pip_ran=False) == ""


@pytest.mark.parametrize(
    ("name", "package", "version"),
    [
        ("gpu", "jax-cuda12-plugin", "0.7.2"),
        ("gpu", "jax-cuda12-plugin", None),
        ("tpu", "libtpu", "0.0.4.1"),
        ("tpu", "libtpu", None),
        ("tpu", "tensorflow-cpu", None),
        ("cpu", "jax", "0.9.2"),
        ("cpu", "jax", "0.13.0"),
        ("cpu", "clu", None),
        ("cpu", "tensorflow-metadata", "1.21.0"),
    ],
)
def test_one_package_that_is_missing_or_does_not_fit_is_installed(name, package, version):
    machine = FITTING[name]
    others = {key: value for key, value in machine.installed.items() if key != package}
    installed = {**others, package: version} if version else others
    wrong = Machine(installed, machine.gpus, machine.tpu, machine.libtpu_wanted)
    assert chosen(wrong)
    assert what_remains(wrong, {}, pip_ran=True).startswith("pip did not install the extra")


def test_an_imported_package_of_another_version_asks_for_a_restart():
    """Also when the cell is run again without one."""
    for pip_ran in (True, False):
        asked = what_remains(FITTING["gpu"], {"jax": "0.7.2", "numpy": "2.1.3"}, pip_ran)
        assert "jax 0.7.2 (now 0.11.2): restart the session" in asked
        assert "numpy" not in asked


def test_jax_imported_before_its_plugin_came_asks_for_a_restart():
    assert "restart the session" in what_remains(FITTING["gpu"], {"jax": "0.11.2"}, pip_ran=True)
    assert what_remains(FITTING["gpu"], {"numpy": "2.1.3"}, pip_ran=True) == ""


def test_nvidia_smi_is_read():
    assert read_gpus(["550.54.15, 7.5", "550.54.15, 7.5"]) == (T4, T4)
    messages = [
        "/bin/bash: line 1: nvidia-smi: command not found",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "No devices were found",
    ]
    assert read_gpus(messages) == ()


def test_a_tpu_is_found_by_what_colab_sets_or_by_its_devices(tmp_path):
    def machine(name, *files, vendor=""):
        root = tmp_path / name
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        device = root / "sys" / "bus" / "pci" / "devices" / "0000:00:04.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        return str(root)

    assert has_tpu({"TPU_ACCELERATOR_TYPE": "v5e-1"}, machine("colab"))
    assert has_tpu({}, machine("v4", "dev/accel0"))
    assert has_tpu({}, machine("v5e", "dev/vfio/0", vendor="0x1ae0"))
    assert not has_tpu({"TPU_ACCELERATOR_TYPE": ""}, machine("plain"))  # as on Colab's other machines
    assert not has_tpu({}, machine("cloud", "dev/vfio/vfio", vendor="0x1ae0"))  # Google's network card
    assert not has_tpu({}, machine("passthrough", "dev/vfio/12", vendor="0x10de"))
    assert not has_tpu({}, machine("npu", "dev/accel/accel0", vendor="0x8086"))


def test_this_machine_is_described(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    machine = accelerator.look(["550.54.15, 7.5"])
    assert (machine.gpus, machine.tpu) == ((), False)
    assert re.fullmatch(r"0\.0\.\d+", machine.libtpu_wanted)
    assert choose_install(machine, in_checkout=True).pip == ()
    imported = accelerator.imported_versions()
    assert imported["jax"] == sys.modules["jax"].__version__
    assert {name: machine.installed[name] for name in imported} == imported
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert accelerator.look(["550.54.15, 7.5"]).gpus == ((T4,) if sys.platform == "linux" else ())


def test_setup_has_the_extras_and_the_ranges():
    setup = pathlib.Path("setup.py").read_text()
    for extra in ("train", "tpu", "without-tensorflow", *(cuda.extra for cuda in accelerator.CUDA)):
        assert f'"{extra}": ' in setup
    lowest, too_new = (".".join(map(str, version)) for version in accelerator.JAX)
    assert f'JAX = ">={lowest},<{too_new}"' in setup
    assert f'"numpy>={".".join(map(str, accelerator.NUMPY))}"' in setup


def test_it_needs_python_alone():
    """The notebook imports it before anything is installed. What the package imports when it is used is not meant."""
    alone = "import sys; sys.path.insert(0, '.'); import basisnet_jax.host.accelerator"
    subprocess.run([sys.executable, "-I", "-S", "-c", alone], check=True)
    for module in ("basisnet_jax/host/accelerator.py", "basisnet_jax/host/__init__.py"):
        for node in ast.walk(ast.parse(pathlib.Path(module).read_text())):
            names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names), module
