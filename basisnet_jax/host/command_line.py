"""What a command prints: text tables, and a quiet end where the reader ends early (as `head` does)."""

import contextlib
import os
import select
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence

UNREAD = 141  # exit code of a command whose reader is gone, as in a shell
# Unicode's categories of characters that break a line or control a terminal, and of bytes that are not text
_NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}


@contextlib.contextmanager
def exit_quietly_on_broken_pipe() -> Iterator[None]:
    """Ends the process silently where nobody reads any more what this context prints."""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        for stream in (sys.stdout, sys.stderr):
            poll.register(stream.fileno(), 0)  # a pipe that lost its reader is reported with any mask
        unread = [descriptor for descriptor, _ in poll.poll(0)]
        if sys.stdout.fileno() not in unread:
            raise  # another pipe broke
        for descriptor in unread:  # Python flushes once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        sys.exit(UNREAD)


def on_one_line(text: str) -> str:
    """Escapes characters that would end the line or control the terminal: the text may quote a user's input."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or the name of its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_text(name: str) -> str:
    """Returns a file's name, escaped if it has control characters or bytes that are not text."""
    return name if is_text(name) else repr(name)[1:-1]


def is_text(name: str) -> bool:
    """Returns whether a name has neither control characters nor bytes that are not text."""
    return not any(unicodedata.category(character) in _NO_TEXT for character in name)


def display_width(text: str) -> int:
    """Returns the columns that a text takes in a terminal: two for each wide character (Chinese, emoji)."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def align(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), gap: str = "  ") -> list[str]:
    """Lays out rows of cells in columns, each as wide as its widest cell.

    Args:
      rows: with the same number of cells each; the first row may be the header.
      left: the columns that are flush left, as words are. The others are flush right, as numbers are.
      gap: the text between two columns.

    Returns:
      One line for each row, without trailing spaces.
    """
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]

    def padded(cell: str, column: int) -> str:
        spaces = " " * (widths[column] - display_width(cell))
        return cell + spaces if column in left else spaces + cell

    return [gap.join(padded(cell, column) for column, cell in enumerate(row)).rstrip() for row in rows]
