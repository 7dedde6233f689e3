"""Sentences of a process that lost another process of its run. Nothing here imports JAX."""

import re

RESUMES = "the same command resumes from the newest checkpoint"
# JAX aborts the process: its last words begin with the first of these lines, and end before the second.
FIRST_LINE = re.compile(rb"F\d{4} .*JAX distributed service detected fatal errors")
LAST_LINE = b"*** Check failure stack trace"
_SILENT = re.compile(r"stopped sending heartbeats\):\s*((?:\d+\s+)+)")
_NO_COORDINATOR = ("DEADLINE_EXCEEDED", "Failed to send RPC to coordination service")
_LONGEST_STATUS = 200  # characters of JAX's status that a sentence quotes


def explain_abort(last_words: str) -> str:
    """Returns what JAX's last words mean, and the way out.

    Args:
      last_words: lines from `FIRST_LINE` to `LAST_LINE`.
    """
    silent = _SILENT.search(last_words)
    numbers = silent[1].split() if silent else ["0"] if any(part in last_words for part in _NO_COORDINATOR) else []
    *others, last = sorted(numbers, key=int) or [""]
    if others:
        lost = f"processes {', '.join(others)} and {last} no longer answer; their logs say why, or the network is gone"
    elif last:
        lost = f"process {last} no longer answers; its log says why, or its node or the network is gone"
    else:
        status = last_words.partition("absl::Status: ")[2].strip().splitlines()
        reason = status[0][:_LONGEST_STATUS] if status else "JAX gave no reason"
        lost = f"this process lost the others, whose logs say why ({reason})"
    return f"{lost}; {RESUMES}."
