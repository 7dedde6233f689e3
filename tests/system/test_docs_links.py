"""Every link between the pages leads to a file, and to a heading in it."""

import pathlib
import re

import pytest

from tests.system.doc_commands import ROOT

PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").rglob("*.md")))
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def links(text: str) -> list[str]:
    """Returns the targets of a page's links within the repository."""
    found = LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text)))
    return [target for target in found if not re.match(r"https?:|mailto:", target)]


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings; of equal ones the second ends in -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        repeated = sum(x == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", x) is not None for x in found)
        found.append(f"{anchor}-{repeated}" if repeated else anchor)
    return set(found)


def broken(page: pathlib.Path, root: pathlib.Path) -> list[str]:
    """Returns a sentence for each link of a page that leads nowhere."""
    sentences = []
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(root.resolve()) or not file.exists():
            sentences.append(f"{page.relative_to(root)}: {target}: there is no {path}")
        elif anchor and anchor not in anchors(file.read_text()):
            sentences.append(f"{page.relative_to(root)}: {target}: {file.name} has no heading #{anchor}")
    return sentences


def test_every_link_leads_somewhere():
    assert sum(len(links(page.read_text())) for page in PAGES) > 30, "the pages' links are not found any more"
    assert [sentence for page in PAGES for sentence in broken(page, ROOT)] == []


def test_every_page_that_code_names_exists():
    named = {
        (page, path.relative_to(ROOT))
        for folder in ("basisnet_jax", "benchmarks", "configs", "launch")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".npz")
        for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(errors="ignore"))
    }
    assert len(named) > 20, "the pages that code names are not found any more"
    assert [f"{path}: there is no {page}" for page, path in named if not (ROOT / page).exists()] == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("there.md", None),
        ("there.md#a-heading-of-code-and-links", None),
        ("there.md#twice-1", None),
        ("#here", None),
        ("https://example.com/nowhere", None),
        ("gone.md", "there is no gone.md"),
        ("../outside.md", "there is no ../outside.md"),
        ("there.md#twice-2", "there.md has no heading #twice-2"),
        ("there.md#in-a-fence", "there.md has no heading #in-a-fence"),
    ],
)
def test_a_broken_link_is_named(tmp_path, link, said):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.md").write_text("")
    (root / "there.md").write_text(
        "# A heading of `code`, and [links](x)\n\n## Twice\n\n## Twice\n\n```\n# In a fence\n```\n"
    )
    page = root / "page.md"
    page.write_text(f"# Here\n\n`[no](link.md)` and [a\nlink]({link})\n")
    assert broken(page, root) == ([f"page.md: {link}: {said}"] if said else [])


def test_every_test_that_a_page_names_exists():
    named = set()
    for page in PAGES:
        file = ""
        for path, name in re.findall(r"`(tests/[\w/]+\.py)?::(test_\w+)`", page.read_text()):
            file = path or file  # `::test_b` is in the file of the test named before
            named.add((file, name))
    assert len(named) > 15, "the tests that pages name are not found any more"
    assert [test for test in named if not re.search(rf"^def {test[1]}\(", (ROOT / test[0]).read_text(), re.M)] == []
