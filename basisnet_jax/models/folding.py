"""Folding of a trained network: batch norm goes into kernels, and bases with known coefficients become kernels.

Both functions take and return variables: {'params', 'batch_stats'}, float32 arrays of NumPy.
"""

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.ops import synthesis


def fold_batch_norm(model: BasisNet, variables: Variables) -> Variables:
    """Folds batch norm's scale into the kernel or bases before it, and its mean into its own bias.

    (x * kernel - mean) * scale + bias = x * (kernel * scale) + (bias - mean * scale), and bases are combined linearly.
    The remaining norm subtracts 0 and multiplies by 1, which compilers remove, and adds its bias.
    """
    stages = {"specialist": model.specialist, **({"preview": model.preview} if model.preview else {})}
    params, stats = (dict(flatten_dict(variables[name])) for name in ("params", "batch_stats"))
    for path in {path[:-1] for path in stats}:  # (stage, perhaps a block, 'expand_norm', 'batch_norm')
        epsilon = np.float32(stages[path[0]].architecture.conventions.epsilon)
        mean, var, scale = stats[*path, "mean"], stats[*path, "var"], params[*path, "scale"]
        multiplier = scale / np.sqrt(var + epsilon)
        layer = (*path[:-2], {"head_norm": "head_conv"}.get(path[-2], path[-2].removesuffix("_norm")))
        kernel = next(name for name in ((*layer, "kernel"), (*layer, "bases")) if name in params)
        params[kernel] = params[kernel] * multiplier  # output channels are the last axis
        params[*path, "bias"] = params[*path, "bias"] - mean * multiplier
        params[*path, "scale"] = np.ones_like(scale)
        stats[*path, "mean"] = np.zeros_like(mean)
        stats[*path, "var"] = np.full_like(var, np.float32(1.0) - epsilon)  # plus epsilon that rounds to 1 exactly
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def freeze(model: BasisNet, variables: Variables, coefficients_LxN: np.ndarray) -> tuple[BasisNet, Variables]:
    """Freezes the specialist with the same coefficients for all images: the result is a static network.

    Args:
      model: a network with a preview.
      variables: the network's.
      coefficients_LxN: a row for each of the model's coefficient vectors.

    Returns:
      A network without preview, bases or synthesis, and its variables.
    """
    params = dict(flatten_dict(variables["params"]["specialist"]))
    for layer, read in model.vectors().items():
        path = tuple(layer.split("/"))
        groups = synthesis.by_group(jnp.asarray(coefficients_LxN[None, list(read)]), params.pop((*path, "bases")))
        kernels = [np.tensordot(coefficients_1xN[0], bases_Nx, 1) for coefficients_1xN, bases_Nx in groups]
        params[*path, "kernel"] = np.concatenate(kernels, axis=-1)
    frozen = {"params": unflatten_dict(params), "batch_stats": variables["batch_stats"]["specialist"]}
    return BasisNet(model.specialist), {name: {"specialist": tree} for name, tree in frozen.items()}
