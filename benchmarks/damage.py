"""Damages bytes and JSON values at random, as a broken disk, a cut download or an enemy could; checks refusals."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from basisnet_jax.errors import UserError

LONGEST = 30_000  # characters of a refusal, which may quote a value of 10,000

EDGES = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80", b"\xff" * 8)
TOO_DEEP = b"[" * 100_000
DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "../x", "/etc/passwd", "a\nb", "\x1b[31m", "\ud800", "\0", "x" * 10_000, "nan", "\u2028", "C:\\x"),
    *([], {}, [[]], [None], {"a": {}}, {"": None}, [1, "2"], DEEP),
)


@contextlib.contextmanager
def refusing(printed: Callable[[str], str] = str) -> Iterator[list[str]]:
    """Catches a `UserError`, and checks that its text is one printable sentence.

    Yields the outcome: ['read'], or ['refused'] after the error.

    Args:
      printed: how the command prints a refusal.
    """
    outcome = ["read"]
    try:
        yield outcome
    except UserError as error:
        sentence = printed(str(error))
        refused = sentence.isprintable(), sentence.endswith((".", "?")), len(sentence) <= LONGEST
        if not all(refused):
            raise AssertionError(f"not one sentence ({len(sentence)} characters): {sentence[:300]!r}") from error
        outcome[0] = "refused"


def damaged(rng: random.Random, originals: Sequence[bytes], times: int = 4) -> bytes:
    """Returns one of the originals, changed up to `times` times: cut, bits flipped, bytes put in, over or out."""
    content = bytearray(rng.choice(originals))
    for _ in range(rng.randint(1, times)):
        at = rng.randrange(len(content) + 1)
        if rng.random() < 0.4:  # most parsers' decisions are in the first bytes
            at = min(at, rng.randrange(128))
        match rng.choice(("cut", "flip", "flip", "over", "over", "in", "out", "twice")):
            case "cut":
                del content[at:]
            case "flip" if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case "over":
                patch = rng.choice((*EDGES, rng.randbytes(rng.randint(1, 8))))
                content[at : at + len(patch)] = patch
            case "in":
                content[at:at] = rng.randbytes(rng.randint(1, 8))
            case "out":
                del content[at : at + rng.randint(1, 40)]
            case "twice":
                content[at:at] = content[at : at + rng.randint(1, 40)]
    return bytes(content)


def damaged_json(rng: random.Random, original: Any) -> Any:
    """Returns JSON values with up to three of them replaced, removed, renamed or added."""
    content = copy.deepcopy(original)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.02 or not isinstance(content, dict | list):
            return _value(rng)
        holder = content
        while True:  # to a random place, each level equally likely to be the last
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            inner = [key for key in keys if isinstance(holder[key], dict | list) and holder[key]]
            if not inner or rng.random() < 0.4:
                break
            holder = holder[rng.choice(inner)]
        if not keys:
            continue
        key = rng.choice(keys)
        match rng.choice(("replace", "replace", "replace", "remove", "add")):
            case "replace":
                other = _other(holder[key], rng)
                holder[key] = _value(rng) if other is None or rng.random() < 0.7 else other
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[rng.choice(("", "extra", "../x", "a\nb", f"{key} "))] = copy.deepcopy(holder[key])
            case "add":
                holder.insert(rng.randrange(len(holder) + 1), _value(rng))
    return content


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))  # it may be damaged next, and must not be another in the next case


def _other(value: Any, rng: random.Random) -> Any:
    """Returns another value of the same kind, which checks of types let pass; None for other kinds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return value + rng.choice(("x", "\n", "/", "\x07"))
    return value * rng.choice((-1, 2, 1000, 10**9)) + rng.choice((0, 1))
