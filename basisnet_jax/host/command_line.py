"""The command line: its output, whose reader may be gone (as `head` goes)."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

UNREAD = 141  # exit code of a command that ends for that, as a shell has it


@contextlib.contextmanager
def exit_quietly_on_broken_pipe() -> Iterator[None]:
    """Ends the process in silence where nobody reads any more what is printed in here."""
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
            poll.register(stream.fileno(), 0)  # that a pipe has lost its reader is told unasked
        unread = [descriptor for descriptor, _ in poll.poll(0)]
        if sys.stdout.fileno() not in unread:
            raise  # it was another pipe
        for descriptor in unread:  # Python flushes once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        sys.exit(UNREAD)


def on_one_line(text: str) -> str:
    """Escapes what would end the line or steer the terminal: the text may quote what a user gave."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)
