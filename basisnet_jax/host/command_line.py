"""The command line's output, whose reader may end early (as `head` does)."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

UNREAD = 141  # exit code of a command whose reader is gone, as in a shell


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
