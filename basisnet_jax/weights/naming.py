"""Maps our names of a network's layers to each publisher's names, derived from the network's table.

A publisher is a library whose weights are files of named arrays. A publisher names a family of networks by a rule, so
the rule is written down once and holds for every width and depth of the family.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping

from basisnet_jax.models.architectures import ARCHITECTURES, Architecture, Conv, ResNetBlock, published_by

# {our layer: its name in the file}, in the order of the layers
Names = dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
    """How a publisher's file names and lays out the arrays of a network.

    Attributes:
      layers: returns the names of a table's layers; raises KeyError if the publisher has no such network.
      array: format of an array's name, with `layer` and `leaf`.
      leaves: {our leaf: the publisher's}.
      outputs_first: kernels are [O, I, K, K], as in PyTorch; otherwise [K, K, I, O], as here.
      matrices: our layers whose kernels are matrices; all other kernels are of convolutions.
      ignored: parts of the names of arrays that are not weights.
    """

    layers: Callable[[Architecture], Names]
    array: str = "{layer}.{leaf}"
    leaves: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {
            "kernel": "weight",
            "bias": "bias",
            "scale": "weight",
            "mean": "running_mean",
            "var": "running_var",
        }
    )
    outputs_first: bool = True
    matrices: tuple[str, ...] = ("classifier", "head_dense")
    ignored: tuple[str, ...] = ("num_batches_tracked",)

    def names(self, table: Architecture) -> dict[tuple[str, str], str]:
        """Returns {(our layer, our leaf): array name} of all leaves a layer might have; {} for an unknown network."""
        try:
            layers = self.layers(table)
        except KeyError:
            return {}
        return {
            (ours, leaf): self.array.format(layer=theirs, leaf=their_leaf)
            for ours, theirs in layers.items()
            for leaf, their_leaf in self.leaves.items()
        }


def _staged(table: Architecture) -> Iterator[tuple[str, int, int, tuple[Conv, ...]]]:
    """Yields (block, stage, place in the stage, convolutions); a stage begins where the shape changes."""
    stage = place = -1
    out = 0
    for name, inputs, block in table.named_blocks():
        stage, place = (stage + 1, 0) if block.out != out or block.stride > 1 else (stage, place + 1)
        out = block.out
        yield name, stage, place, block.convolutions(inputs)


def _is_resnet(table: Architecture) -> bool:
    return isinstance(table.blocks[0], ResNetBlock)


def _resnet(table: Architecture) -> Names:
    """Returns torchvision's names of a ResNet, which timm uses too."""
    names = {"stem": "conv1", "stem_norm": "bn1"}
    for block, stage, place, convs in _staged(table):
        for conv in convs:
            at = f"layer{stage + 1}.{place}"
            own = "downsample.0" if conv.kind == "shortcut" else conv.kind
            norm = "downsample.1" if conv.kind == "shortcut" else conv.kind.replace("conv", "bn")
            names |= {f"{block}/{conv.kind}": f"{at}.{own}", f"{block}/{conv.kind}_norm": f"{at}.{norm}"}
    return {**names, "classifier": "fc"}


def _torchvision(table: Architecture) -> Names:
    if _is_resnet(table):
        return _resnet(table)
    gated = any(conv.se for *_, convs in _staged(table) for conv in convs)
    v2, by_stage = not gated, gated and not table.head_dense
    names = {"stem": "features.0.0", "stem_norm": "features.0.1"}
    number = 0
    for index, (block, stage, place, convs) in enumerate(_staged(table), start=1):
        number = stage + 1 if by_stage else index
        at = f"features.{number}.{place}.block" if by_stage else f"features.{number}.{'conv' if v2 else 'block'}"
        step = 0
        for conv in convs:
            flat = v2 and conv.kind == "project"  # MobileNetV2's last convolution is not in a group with its norm
            names[f"{block}/{conv.kind}"] = f"{at}.{step}" if flat else f"{at}.{step}.0"
            names[f"{block}/{conv.kind}_norm"] = f"{at}.{step + 1}" if flat else f"{at}.{step}.1"
            step += 1
            if conv.se:
                names |= _gate(block, f"{at}.{step}", "fc1", "fc2")
                step += 1
    names |= {"head_conv": f"features.{number + 1}.0", "head_norm": f"features.{number + 1}.1"}
    if table.head_dense:
        return {**names, "head_dense": "classifier.0", "classifier": "classifier.3"}
    return {**names, "classifier": "classifier.1"}


def _timm(table: Architecture) -> Names:
    if _is_resnet(table):
        return _resnet(table)
    names, stages = {"stem": "conv_stem", "stem_norm": "bn1"}, 0
    for block, stage, place, convs in _staged(table):
        at, stages = f"blocks.{stage}.{place}", stage + 1
        kinds = ("conv_pw", "conv_dw", "conv_pwl") if len(convs) == 3 else ("conv_dw", "conv_pw")
        for number, (conv, kind) in enumerate(zip(convs, kinds, strict=True), start=1):
            names |= {f"{block}/{conv.kind}": f"{at}.{kind}", f"{block}/{conv.kind}_norm": f"{at}.bn{number}"}
            names |= _gate(block, f"{at}.se", "conv_reduce", "conv_expand") if conv.se else {}
    if table.head_dense:
        head = f"blocks.{stages}.0"
        names |= {"head_conv": f"{head}.conv", "head_norm": f"{head}.bn1", "head_dense": "conv_head"}
    else:
        names |= {"head_conv": "conv_head", "head_norm": "bn2"}
    return {**names, "classifier": "classifier"}


def _efficientnet_pytorch(table: Architecture) -> Names:
    names = {"stem": "_conv_stem", "stem_norm": "_bn0"}
    kinds = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    kinds["project"] = ("_project_conv", "_bn2")
    for index, (block, _, _, convs) in enumerate(_staged(table)):
        for conv in convs:
            own, norm = kinds[conv.kind]
            names |= {f"{block}/{conv.kind}": f"_blocks.{index}.{own}"}
            names |= {f"{block}/{conv.kind}_norm": f"_blocks.{index}.{norm}"}
            names |= _gate(block, f"_blocks.{index}", "_se_reduce", "_se_expand") if conv.se else {}
    return {**names, "head_conv": "_conv_head", "head_norm": "_bn1", "classifier": "_fc"}


def _keras(table: Architecture) -> Names:
    """Returns Keras 3's names: the layers of each class are numbered in order, whatever their own names."""
    if _is_resnet(table):
        raise KeyError("Keras's ResNets have biases, but these ResNets do not")
    counts: collections.Counter[str] = collections.Counter()
    names: Names = {}

    def add(ours: str, kind: str) -> None:
        names[ours] = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1

    def convolution(ours: str, kind: str = "conv2d") -> None:
        add(ours, kind)
        add("head_norm" if ours == "head_conv" else f"{ours}_norm", "batch_normalization")

    convolution("stem")
    for block, _, _, convs in _staged(table):
        for conv in convs:
            convolution(f"{block}/{conv.kind}", "depthwise_conv2d" if conv.depthwise else "conv2d")
            for gate in _gate(block, "", "", "") if conv.se else ():
                add(gate, "conv2d")
    convolution("head_conv")
    if table.head_dense:
        add("head_dense", "conv2d")
    add("classifier", "conv2d" if table.head_dense else "dense")
    return names


def _gate(block: str, at: str, reduce: str, expand: str) -> Names:
    ours = f"{block}/squeeze_excite"
    return {f"{ours}/reduce": f"{at}.{reduce}", f"{ours}/expand": f"{at}.{expand}"}


# {publisher: {our table: (its network, and where there is one, its network with TensorFlow's padding and epsilon)}}
NETWORKS: dict[str, dict[str, tuple[str, ...]]] = {
    "torchvision": {
        name: (name,)
        for name in (
            "mobilenet_v2",
            "mobilenet_v3_large",
            "mobilenet_v3_small",
            "efficientnet_b0",
            "efficientnet_b1",
            "efficientnet_b2",
            "resnet18",
            "resnet50",
        )
    },
    "timm": {
        "mobilenet_v2": ("mobilenetv2_100",),
        "mobilenet_v3_large": ("mobilenetv3_large_100", "tf_mobilenetv3_large_100"),
        "mobilenet_v3_small": ("mobilenetv3_small_100", "tf_mobilenetv3_small_100"),
        **{
            name: (name, f"tf_{name}")
            for kind in ("efficientnet_b", "efficientnet_lite")
            for name in (f"{kind}0", f"{kind}1", f"{kind}2")
        },
        "resnet18": ("resnet18",),
        "resnet50": ("resnet50",),
    },
}


def network_of(table: Architecture, publisher: str) -> str | None:
    """Returns the name of a publisher's network with this table; None if the publisher has none.

    The mean and the deviation of the input do not count: torchvision's and timm's networks leave those to the user.
    """
    for ours, theirs in NETWORKS[publisher].items():
        for name, conventions_of in zip(theirs, (publisher, "keras"), strict=False):
            if _without_input(published_by(ARCHITECTURES[ours], conventions_of)) == _without_input(table):
                return name
    return None


def _without_input(table: Architecture) -> Architecture:
    conventions = dataclasses.replace(table.conventions, input_mean=(), input_std=())
    return dataclasses.replace(table, conventions=conventions)


NAMINGS = {
    "torchvision": Naming(layers=_torchvision),
    "timm": Naming(layers=_timm, matrices=("classifier",)),
    "efficientnet_pytorch": Naming(layers=_efficientnet_pytorch),
    # the files of keras.applications
    "keras": Naming(
        layers=_keras,
        array="layers/{layer}/vars/{leaf}",
        leaves={"kernel": "0", "bias": "1", "scale": "0", "mean": "2", "var": "3"},
        outputs_first=False,
        ignored=("/normalization/",),  # of the input, which `architectures.published_by` declares
    ),
}
