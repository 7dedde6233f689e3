"""Versions that do not belong together get one sentence, with the command that mends them."""

import functools
import re

import pytest

from basisnet_jax.host import installed

OURS = ("Requires-Python: >=3.11,<3.14", "Requires-Dist: jax<0.13,>=0.10; extra == 'train'", "Provides-Extra: train")
OURS += (
    "Requires-Dist: numpy>=2.0",
    "Requires-Dist: jax[cuda13]<0.13,>=0.10; extra == 'cuda13'",
    "Provides-Extra: cuda13",
)
JAX = (  # as jax 0.12.0 declares them
    "Requires-Dist: jaxlib<=0.12.0,>=0.11.2",
    *(
        f"Requires-Dist: {what}; extra == '{extra}'"
        for extra in ("cuda12", "cuda13")
        for what in ("jaxlib<=0.12.0,>=0.12.0", f"jax-{extra}-plugin[with-cuda]<=0.12.0,>=0.12.0")
    ),
    "Requires-Dist: jaxlib<=0.12.0,>=0.12.0; extra == 'tpu'",
    "Requires-Dist: libtpu==0.0.50.*; extra == 'tpu'",
    "Requires-Dist: jaxlib==0.11.2; extra == 'minimum-jaxlib'",
    *(f"Provides-Extra: {extra}" for extra in ("cuda12", "cuda13", "tpu", "minimum-jaxlib")),
)
FITS = {"jax": "0.12.0", "jaxlib": "0.12.0", "numpy": "2.5.0"}


@pytest.fixture
def finds(tmp_path):
    """Makes a function that finds packages of these versions, and the metadata of ours and of JAX."""

    def install(versions):
        for name, version in {"basisnet_jax": "0.1.0", **versions}.items():
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            lines = {"basisnet_jax": OURS, "jax": JAX}.get(name, ())
            text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
            (folder / "METADATA").write_text(text + "\n")
        return functools.partial(installed.find_installed, path=[str(tmp_path)])

    return install


@pytest.mark.parametrize(
    "plugins", [{}, {"jax-cuda13-plugin": "0.12.0"}, {"libtpu": "0.0.50.1"}, {"jax-cuda12-plugin": "0.12.0"}]
)
def test_versions_that_belong_together_are_no_problem(finds, plugins):
    find = finds({**FITS, **plugins})
    assert installed.mismatches("3.13.1", find) == {}
    assert installed.plugins(find) == plugins


def test_an_older_jaxlib_is_fine_only_without_a_plugin(finds):
    assert installed.mismatches("3.13.1", finds({**FITS, "jaxlib": "0.11.2"})) == {}


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (
            {"jax-cuda12-plugin": "0.7.2"},
            r"jax-cuda12-plugin 0\.7\.2 does not fit jax 0\.12\.0, which needs jax-cuda12-plugin.*0\.12\.0; run "
            r"pip install --upgrade 'jax\[cuda12\]==0\.12\.0'\.",
        ),
        ({"libtpu": "0.0.21.1"}, r"libtpu 0\.0\.21\.1 .*libtpu==0\.0\.50\.\*; run .*'jax\[tpu\]==0\.12\.0'\."),
        (
            {"jaxlib": "0.11.2", "jax-cuda13-plugin": "0.12.0"},
            r"jaxlib 0\.11\.2 does not fit jax 0\.12\.0, .* run pip install --upgrade 'jax\[cuda13\]==0\.12\.0'\.",
        ),
        ({"jaxlib": "0.10.0"}, r"jaxlib 0\.10\.0 does not fit jax 0\.12\.0.*'jax==0\.12\.0'\."),
        (
            {"numpy": "1.26.4"},
            r"numpy 1\.26\.4 does not fit basisnet_jax 0\.1\.0.*pip install --upgrade 'numpy>=2\.0'\.",
        ),
    ],
)
def test_versions_that_do_not_are_told_with_the_command(finds, versions, words):
    (sentence,) = installed.mismatches("3.13.1", finds({**FITS, **versions})).values()
    assert re.fullmatch(words, sentence)


def test_a_jax_outside_the_range_is_told_with_its_plugin(finds):
    find = finds({**FITS, "jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2"})
    sentence = installed.mismatches("3.13.1", find)["jax"]
    assert sentence.startswith("jax 0.7.2 does not fit basisnet_jax 0.1.0, which needs jax<0.13,>=0.10; run ")
    assert sentence.endswith("'jax[cuda12]<0.13,>=0.10'.")


@pytest.mark.parametrize("python", ["3.10.13", "3.14.0"])
def test_a_python_outside_the_range_is_told(finds, python):
    assert installed.mismatches(python, finds(FITS)) == {
        "Python": f"Python {python} does not fit basisnet_jax, which needs >=3.11,<3.14; make a virtual environment "
        "with a Python that fits."
    }


def test_these_packages_belong_together():
    assert installed.mismatches() == {}
