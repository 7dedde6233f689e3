"""Finds the commands of the documentation, and says what the shell would make of each."""

import ast
import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
HEADERS = (*sorted((ROOT / "configs").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py")))
_PROMPT = "$ "
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as it stands in a page, on one line."""

    page: str  # path from the root
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclasses.dataclass(frozen=True)
class Block:
    """Lines of a page that are set as code: indented, or between fences."""

    page: str
    line: int
    language: str  # after the opening fence; '' for an indented block
    lines: tuple[str, ...]


def pages() -> Iterator[tuple[str, str]]:
    """Yields (path from the root, Markdown) of every page, and of the header of every config and benchmark."""
    for path in PAGES:
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in HEADERS:
        yield str(path.relative_to(ROOT)), ast.get_docstring(ast.parse(path.read_text())) or ""


def blocks() -> Iterator[Block]:
    """Yields every block of code of every page."""
    for page, text in pages():
        yield from _blocks(page, text)


def _blocks(page: str, text: str) -> Iterator[Block]:
    fence: tuple[int, str] | None = None
    found: list[str] = []
    start, blank_before = 0, True
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.startswith("```"):
            if fence:
                yield Block(page, fence[0] + 1, fence[1], tuple(found))
                fence, found = None, []
            else:
                fence = number, line.removeprefix("```").strip()
        elif fence:
            found.append(line)
        elif line.startswith("    ") and (found or blank_before):
            start = start if found else number
            found.append(line[4:])
        elif found:
            yield Block(page, start, "", tuple(found))
            found = []
        blank_before = not line.strip()


def commands() -> list[Command]:
    """Lists every command: of blocks, and of spans of code that begin with a program."""
    found = [command for block in blocks() if block.language in ("", "bash", "sh") for command in _of_block(block)]
    for page, text in pages():
        prose = _without_blocks(page, text)
        for span in _SPAN.finditer(prose):
            written = " ".join(span[1].split())
            if " " in written and is_program(first_word(written)):
                found.append(Command(page, prose[: span.start()].count("\n") + 1, written))
    return found


def _of_block(block: Block) -> Iterator[Command]:
    prompted = any(line.startswith(_PROMPT) for line in block.lines)
    logical, start = "", 0
    for number, line in enumerate(block.lines, block.line):
        start = start if logical else number
        logical += line.rstrip("\\").rstrip() + " " if line.endswith("\\") else line
        if line.endswith("\\"):
            continue
        written = " ".join(logical.split()) if "'" not in logical else re.sub(r" {2,}", " ", logical.strip())
        if (not prompted or written.startswith(_PROMPT)) and is_program(first_word(written.removeprefix(_PROMPT))):
            yield Command(block.page, start, written.removeprefix(_PROMPT))
        logical = ""


def _without_blocks(page: str, text: str) -> str:
    lines = text.splitlines()
    for block in _blocks(page, text):
        for number in range(block.line, block.line + len(block.lines)):
            lines[number - 1] = ""
    return "\n".join(line for line in lines)


def first_word(written: str) -> str:
    """Returns the program of a command, behind the variables that are set for it."""
    return next((word for word in written.split() if not re.match(r"[A-Z_]+=", word)), "")


def is_program(word: str) -> bool:
    """Returns whether a shell in the checkout, with its environment active, would find something to run."""
    if word in ("for", "."):
        return True
    if "/" in word:
        return word.startswith(".venv/bin/") or (os.access(ROOT / word, os.X_OK) and (ROOT / word).is_file())
    return shutil.which(word) is not None or word in ("python", "pip", "gcloud", "kubectl", "sbatch", "tensorboard")
