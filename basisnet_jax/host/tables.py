"""Text tables whose columns never touch."""

import unicodedata
from collections.abc import Collection, Sequence


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
