"""Compares two finished runs bit for bit: their last checkpoints, results, curves and batches."""

import hashlib
import json
import pathlib
from typing import Any


def differences(killed: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """Lists the differences of two finished runs: arrays of the state, figures of the result, points of the curves."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from basisnet_jax.workdir.events import read_events

    results = [json.loads((run / "results.json").read_text()) for run in (killed, whole)]
    found = [f"result {name}" for name in ("eval", "step", "config") if results[0][name] != results[1][name]]
    with ocp.PyTreeCheckpointer() as checkpointer:
        states = [
            _arrays(checkpointer, run / "checkpoints" / str(results[0]["step"]) / "state") for run in (killed, whole)
        ]
    flat = [dict(jax.tree_util.tree_flatten_with_path(state)[0]) for state in states]
    found += [f"arrays {flat[0].keys() ^ flat[1].keys()}"] if flat[0].keys() != flat[1].keys() else []
    same = (np.asarray(flat[0][path]).tobytes() == np.asarray(flat[1].get(path)).tobytes() for path in flat[0])
    found += [f"array {jax.tree_util.keystr(path)}" for path, equal in zip(flat[0], same, strict=True) if not equal]
    curves = [read_events(run / "events") for run in (killed, whole)]
    for name in sorted(curves[0].keys() | curves[1].keys()):
        ours, theirs = (curve.get(name, {}) for curve in curves)
        wrong = [step for step in sorted(ours.keys() | theirs.keys()) if ours.get(step) != theirs.get(step)]
        if wrong:
            found.append(f"curve {name} at {wrong}")
    return found


def _arrays(checkpointer: Any, folder: pathlib.Path) -> Any:
    """Returns a checkpoint's arrays on whatever devices there are."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    tree = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def digest(batch: dict[str, Any]) -> str:
    """Returns the digest of what this process holds of a batch."""
    import numpy as np

    found = hashlib.sha256()
    for name, array in sorted(batch.items()):
        found.update(b"".join([name.encode(), *(np.asarray(x.data).tobytes() for x in array.addressable_shards)]))
    return found.hexdigest()[:16]
