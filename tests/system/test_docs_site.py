"""The docs as a site: every page is in its navigation, begins with what it is for, and the strict build passes."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.system.doc_commands import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def pages_of(navigation: object) -> list[str]:
    """Lists the pages of a site's navigation, or of a part of it."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_of(part)]


def test_the_navigation_has_every_page_once():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages_of(navigation)) == PAGES, "give each page of docs/ its place under nav in mkdocs.yml"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_what_it_is_for(page):
    title, first, *_ = (DOCS / page).read_text().split("\n\n")
    assert re.match(r"# \S", title), f"{page} begins without a title"
    assert re.match(r"[A-Z*`\[].*[.:]$", " ".join(first.split())), f"{page}: say first what one can do after reading it"


@pytest.fixture
def build(tmp_path):
    """build() builds the site strictly, of copies of the pages in build.docs; returns what was printed."""
    program = pathlib.Path(sys.executable).parent / "zensical"
    if not program.exists():
        pytest.skip("zensical is not installed: pip install -e '.[docs]'")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(ROOT / "basisnet_jax", tmp_path / "basisnet_jax", ignore=shutil.ignore_patterns("__pycache__"))

    def run(code: int) -> str:
        command = [program, "build", "--clean", "--strict"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.docs, run.site = tmp_path / "docs", tmp_path / "site"
    return run


def test_the_site_builds_strictly(build):
    build(code=0)
    for page in PAGES:
        assert (build.site / page.removesuffix("index.md").removesuffix(".md") / "index.html").exists(), page


def test_a_link_to_no_heading_fails(build):
    with (build.docs / "index.md").open("a") as page:
        page.write("\n[x](results.md#nowhere)\n")
    assert "anchor does not exist" in build(code=1)
