"""colab/evaluate.ipynb: it runs from top to bottom, and holds nothing that a run leaves."""

import json
import os
import pathlib
import re
import shutil
import sys

import cv2
import jax
import jaxlib
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from basisnet_jax.export.package import export_run
from configs import digits
from tests.conftest import save_untrained

NOTEBOOK = pathlib.Path("colab/evaluate.ipynb")


def test_no_outputs_are_kept():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        assert set(cell["metadata"]) <= {"tags"}, "clear the cell's metadata"
        assert len(cell["source"]) <= 16, "a cell is read at a glance"
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear all outputs before you commit a notebook"
            assert cell["execution_count"] is None, "clear all outputs before you commit a notebook"


def test_the_badge_opens_the_repository_that_is_installed():
    found = re.search(
        r"colab\.research\.google\.com/github/([\w-]+/\w+)/blob/main/(\S+?)\)", pathlib.Path("README.md").read_text()
    )
    assert found is not None, "README.md has lost its badge"
    repository, path = found.groups()
    assert path == str(NOTEBOOK)
    assert f"git clone --quiet https://github.com/{repository}\\n" in NOTEBOOK.read_text()


@pytest.fixture(autouse=True)
def pip_installs_nothing(monkeypatch):
    """The tests' own packages stay as they are, whatever the notebook asks pip for."""
    monkeypatch.setenv("PIP_DRY_RUN", "1")


@pytest.fixture
def digits_run(config, tmp_path):
    """A run of configs/digits.py from before its first step, and its export: what they say does not matter here."""
    wanted = digits.get_config()
    wanted.data.dir = config.data.dir
    wanted.data.eval_split = "test[:40]"
    wanted.eval.batch_size = 40
    wanted.export.formats = ("tflite",)
    save_untrained(wanted, tmp_path)
    export_run(wanted, str(tmp_path))
    return tmp_path


def test_it_runs_from_top_to_bottom_on_a_run_and_on_its_export(digits_run, monkeypatch):
    (digits_run / "photos").mkdir()
    for name in ("a.png", "b.png"):
        image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        cv2.imwrite(str(digits_run / "photos" / name), image)
    (digits_run / "photos" / "c.png").write_bytes(b"no image")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())  # where it stands, and not installed, is as good
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    # Jupyter starts a notebook in the notebook's own folder, other programs in the project's.
    for folder, where in ((digits_run, "."), (digits_run / "export", "colab")):
        said, drawn = executed(folder, f"{digits_run}/photos/*", where)
        assert "40 images at 24 x 24" in said["evaluate"]
        assert "shuffle_layers" in said["evaluate"]
        assert (drawn["plots"], drawn["show"]) == (4, 1)
        assert re.search(r"a\.png +\d +\d\.\d+ +preview", said["classify"])
        assert "c.png is not an image" in said["classify"]
        assert "No GPU and no TPU, JAX uses the CPU: all packages are installed, and fit." in said["install"]
        assert f"JAX {jax.__version__} sees 1 x cpu" in said["install"]
        assert not said["train"]


def executed(folder, photos, where):
    """What each cell said, and how many pictures it drew, when the notebook was opened in the folder `where`."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = f"workdir, data_dir, photos, threshold = {str(folder)!r}, '', {photos!r}, 0.0"
    run(notebook, where)
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = {name: "".join(x.text for x in found if x.output_type == "stream") for name, found in outputs.items()}
    return said, {name: sum("image/png" in x.get("data", {}) for x in found) for name, found in outputs.items()}


def run(notebook, where):
    """In a process of its own, as "restart and run all" does."""
    resources = {"metadata": {"path": str(where)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()


def test_it_finds_the_project_and_trains_with_its_own_python(tmp_path, monkeypatch):
    """From the project, from colab/, and from the folder that holds the project, where a restart on Colab begins."""
    project = tmp_path / "basisnet_jax"
    for folder in ("configs", "basisnet_jax", "colab"):
        (project / folder).mkdir(parents=True)
    (project / "configs" / "digits.py").write_text("")
    (project / "basisnet_jax" / "__init__.py").write_text("")
    (project / "basisnet_jax" / "host").mkdir()
    shutil.copy("basisnet_jax/host/accelerator.py", project / "basisnet_jax" / "host")  # all that is imported so early
    tells = "import os, sys; print(f'trains in {os.getcwd()} with {sys.executable}', *sys.argv[1:])"
    (project / "basisnet_jax" / "main.py").write_text(tells)
    programs = tmp_path / "programs"  # `python` on the path is another one
    programs.mkdir()
    (programs / "python").write_text("#!/bin/sh\necho another python\n")
    (programs / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for where in (project, project / "colab", tmp_path):
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        names = [cell.id for cell in notebook.cells]
        notebook.cells = notebook.cells[: names.index("train") + 1]
        run(notebook, where)
        said = "".join(x.text for x in notebook.cells[-1].outputs)
        command = "--config=configs/digits.py --workdir=runs/digits"
        assert said.strip() == f"trains in {project} with {sys.executable} {command}"


def test_the_install_cell_runs_pip_and_stops_for_a_restart(tmp_path, monkeypatch):
    """A machine with a GPU. A stand-in for %pip leaves the plugin that fits, beside a JAX that is imported already."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 550.54.15, 7.5\n")
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.getcwd()}")
    monkeypatch.delenv("JAX_PLATFORMS")
    plugin = tmp_path / f"jax_cuda12_plugin-{jaxlib.__version__}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: jax-cuda12-plugin\nVersion: {jaxlib.__version__}\n"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = [cell.id for cell in notebook.cells]
    notebook.cells = notebook.cells[: names.index("install") + 1]
    notebook.cells[0] = nbformat.v4.new_code_cell(STAND_IN.format(folder=str(plugin), metadata=metadata))
    notebook.cells.append(nbformat.v4.new_code_cell("print('a cell behind it')"))
    with pytest.raises(CellExecutionError, match="JAX was imported before its packages were installed: restart"):
        run(notebook, ".")
    said = "".join(x.get("text", "") for cell in notebook.cells[1:] for x in cell.get("outputs", []))
    assert "A GPU with NVIDIA driver 550.54.15 and compute capability 7.5: pip installs what is missing" in said
    assert re.search(rf'pip install --quiet --editable "\.\[.*cuda12\]" numpy=={np.__version__}', said)
    assert "a cell behind it" not in said


STAND_IN = """
import pathlib
import jax

def pip(line):
    print("pip", line)
    folder = pathlib.Path({folder!r})
    folder.mkdir()
    (folder / "METADATA").write_text({metadata!r})

get_ipython().register_magic_function(pip, "line", "pip")
"""
