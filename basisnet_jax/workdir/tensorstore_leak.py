"""Works around a leak in TensorStore (found in 0.1.86), which Orbax meets once for each array that it saves.

TensorStore converts JSON to Python dictionaries and keeps a reference to each key and value, so they are never freed.
`benchmarks/tensorstore_leak.py` shows the leak without Orbax.
"""

import copy
import functools
import sys
from typing import Any

import tensorstore as ts

_KEPT = 16  # converted specs kept; all arrays of a save share one spec


@functools.cache
def avoid_leak() -> None:
    """Replaces the two functions of TensorStore that leak in each save; does nothing if TensorStore does not leak.

    Each spec of a key-value store is converted once, not once for each array. The counts of bytes read and written,
    which Orbax only logs and reports to JAX's monitoring, are empty.
    """
    if leaks():
        ts.KvStore.Spec.to_json = _converting_once(ts.KvStore.Spec.to_json)  # type: ignore[method-assign]
        ts.experimental_collect_matching_metrics = _no_metrics


def leaks() -> bool:
    """Returns whether TensorStore keeps references to what it converts."""
    converted = list(ts.KvStore.Spec({"driver": "memory"}).to_json().values())
    return sys.getrefcount(converted[0]) > sys.getrefcount(["".join(("mem", "ory"))][0])


def _converting_once(to_json: Any) -> Any:
    converted: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(to_json)
    def convert(spec: ts.KvStore.Spec, *arguments: Any, **named: Any) -> Any:
        key = (str(spec), arguments, *named.items())
        if key not in converted:
            while len(converted) >= _KEPT:
                converted.pop(next(iter(converted)), None)
            converted[key] = to_json(spec, *arguments, **named)
        return copy.deepcopy(converted[key])

    return convert


def _no_metrics(*_: Any, **__: Any) -> list[Any]:
    return []
