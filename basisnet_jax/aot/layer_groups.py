"""The group of layers that an operation of a compiled step belongs to."""

import re

GROUPS = (
    "preview, coefficients",
    "stem",
    "expand",
    "depthwise",
    "project",
    "squeeze-excite",
    "norm, activation",
    "head",
    "optimizer, averages",
    "copies",
    "collectives",
    "rest",
)


# Labels of the operations of ops/vectors.py, which cut parameters from their vector and join them again.
VECTORS = (
    r"jit\(train_step\)/(transpose\()?jvp\((jit\(_pad\))?\)\)?/(cond/branch_\d+_fun/)?"
    r"(slice|pad|concatenate|reshape|copy_parts/pallas_call)"
)


def group_of(label: str) -> str:
    """Returns the group of layers of an operation with JAX's label; a fusion has its last operation's label.

    'jit(train_step)/transpose(jvp(BasisNet))/specialist/block03/depthwise_norm/...' -> 'norm, activation'.
    """
    label = label.split(";")[0]
    if not label:  # the compiler's copies: between memories, or to another layout
        return "copies"
    path = re.sub(r"'\]\['|\['|'\]", "/", label).split("/")
    if re.match(r"state\.(opt_state|ema|step|batch_stats)|state\.params\.groups\['\w+'\]\[''\]", label):
        return "optimizer, averages"
    if re.fullmatch(VECTORS, label):
        return "optimizer, averages"
    if "preview" in path or "coefficients" in path:
        return "preview, coefficients"
    if "specialist" in path:
        inside = [*path[path.index("specialist") + 1 :], "", ""]
        kind = inside[1] if inside[0].startswith("block") else inside[0]
        if kind.endswith("_norm"):
            return "norm, activation"
        if kind in ("stem", "expand", "depthwise", "project"):
            return kind
        if kind == "squeeze_excite":
            return "squeeze-excite"
        return "head" if kind in ("head_conv", "head_dense", "classifier") else "rest"
    # An operation of the training step itself, outside the model and its loss, belongs to the update. The update's last
    # operation keeps or skips the update, in a function of its own: 'jit(train_step)/jit(_where)/select_n'.
    return "optimizer, averages" if re.fullmatch(r"jit\(train_step\)/(jit\(\w+\)/)*[\w.]+", label) else "rest"
