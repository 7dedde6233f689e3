"""The page of the command line is the one that the modes' declarations give."""

import pathlib

from basisnet_jax.modes import reference_page


def test_the_page_is_of_these_modes():
    page = pathlib.Path("docs/reference/command-line.md").read_text()
    assert page == reference_page.page(), "python -m basisnet_jax.modes.reference_page > docs/reference/command-line.md"
