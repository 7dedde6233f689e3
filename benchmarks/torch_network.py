"""MobileNetV3-Large and its training step written in PyTorch, for benchmarks/beside_pytorch.py."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import rivals
import torch
from torch import Tensor
from torch.nn import functional

from basisnet_jax.models.architectures import MOBILENET_V3_LARGE, Conv, Conventions
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.models.stages import normalize

TABLE = dataclasses.replace(MOBILENET_V3_LARGE, conventions=Conventions(padding="symmetric"))
ACTIVATIONS = {"relu": functional.relu, "hard_swish": functional.hardswish, None: lambda x: x}


class TorchNetwork:
    """MobileNetV3-Large in PyTorch; its parameters have our names, such as 'block00/depthwise/kernel'.

    With N bases, each block gets its coefficients from the image's mean colour ('route').
    """

    def __init__(self, params: dict[str, np.ndarray], num_bases: int) -> None:
        """Copies the parameters of our specialist; num_bases = 0 is the static network."""
        self.num_bases = num_bases
        self.layout = torch.contiguous_format if num_bases else torch.channels_last
        self.params = {}
        for name, value in params.items():
            layer, leaf = name.rsplit("/", 1)
            tensor = torch.from_numpy(np.array(value))
            if leaf in ("kernel", "bases"):
                tensor = self._reordered(layer, tensor, dense=f"{layer}/bias" in params)
            self.params[name] = tensor.requires_grad_()
        if num_bases:
            self.params["route/kernel"] = torch.zeros(3, num_bases * len(TABLE.blocks), requires_grad=True)
        scales = {name.removesuffix("/scale"): value for name, value in params.items() if name.endswith("/scale")}
        self.statistics = {name: (torch.zeros(x.shape), torch.ones(x.shape)) for name, x in scales.items()}

    def _reordered(self, layer: str, kernel: Tensor, dense: bool) -> Tensor:
        """Returns a kernel or bases in PyTorch's order: [O, I] of a dense layer, else [..., O, I, K, K]."""
        if dense:
            return kernel.t().contiguous()
        if layer.endswith("depthwise"):  # [..., K, K, C]
            kernel = kernel.movedim(-1, -3).unsqueeze(-3)
        elif layer == "stem":  # [K, K, I, O]
            kernel = kernel.permute(3, 2, 0, 1)
        else:  # [..., I, O]
            kernel = kernel.transpose(-1, -2)[..., None, None]
        return kernel.contiguous() if self.num_bases else kernel.contiguous(memory_format=torch.channels_last)

    def convolve(self, name: str, conv: Conv, x: Tensor, coefficients_BxN: Tensor | None = None) -> Tensor:
        """Runs a convolution, its batch norm and its activation: [B, I, H, W] -> [B, O, P, Q]."""
        groups = conv.out if conv.depthwise else 1
        how: dict[str, Any] = {"stride": conv.stride, "padding": conv.side // 2}
        if coefficients_BxN is None:
            y = functional.conv2d(x, self.params[f"{name}/kernel"], groups=groups, **how)
        else:
            bases = self.params[f"{name}/bases"]
            kernels = (coefficients_BxN @ bases.flatten(1)).view(-1, *bases.shape[2:])
            y = functional.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=groups * len(x), **how)
            y = y.view(len(x), -1, *y.shape[2:])
        norm = f"{name.removesuffix('_conv')}_norm/batch_norm"
        scale, bias = (self.params[f"{norm}/{leaf}"] for leaf in ("scale", "bias"))
        y = functional.batch_norm(
            y, *self.statistics[norm], scale, bias, training=True, momentum=0.01, eps=TABLE.conventions.epsilon
        )
        return ACTIVATIONS[conv.act](y)

    def dense(self, name: str, x: Tensor) -> Tensor:
        """Runs a dense layer: [B, I] -> [B, O]."""
        return functional.linear(x, self.params[f"{name}/kernel"], self.params[f"{name}/bias"])

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Maps [B, 3, H, W] in [-1, 1] -> the mean loss."""
        coefficients: Any = [None] * len(TABLE.blocks)
        if self.num_bases:
            scores_BxLxN = (images.mean((2, 3)) @ self.params["route/kernel"]).view(len(images), -1, self.num_bases)
            coefficients = scores_BxLxN.softmax(2).unbind(1)
        stem = Conv(kind="stem", inputs=3, out=TABLE.stem, side=3, stride=2, act=TABLE.stem_act)
        x = self.convolve("stem", stem, images)
        for (name, inputs, block), coefficients_BxN in zip(TABLE.named_blocks(), coefficients, strict=True):
            shortcut = x
            for conv in block.convolutions(inputs):
                x = self.convolve(f"{name}/{conv.kind}", conv, x, coefficients_BxN)
                if conv.se:
                    hidden = functional.relu(self.dense(f"{name}/squeeze_excite/reduce", x.mean((2, 3))))
                    gate = functional.hardsigmoid(self.dense(f"{name}/squeeze_excite/expand", hidden))
                    x = x * gate[:, :, None, None]
            x = x + shortcut if block.stride == 1 and block.out == inputs else x
        head = Conv(kind="head_conv", inputs=block.out, out=TABLE.head_conv, act=TABLE.head_act)
        x = self.convolve("head_conv", head, x).mean((2, 3))
        return functional.cross_entropy(
            self.dense("classifier", functional.hardswish(self.dense("head_dense", x))), labels
        )


def torch_call(network: TorchNetwork, data: dict[str, jax.Array]) -> Callable[[], None]:
    """Returns a call that takes one PyTorch step."""
    images, labels = torch.from_numpy(np.array(data["image"])), torch.from_numpy(np.array(data["label"])).long()
    decays = [p for name, p in network.params.items() if name.endswith(("/kernel", "/bases"))]
    others = [p for name, p in network.params.items() if not name.endswith(("/kernel", "/bases"))]
    groups = [{"params": decays, "weight_decay": 1e-5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    tensors = [*network.params.values(), *(x for pair in network.statistics.values() for x in pair)]
    averages = [x.detach().clone() for x in tensors]

    def call() -> None:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=network.layout)
        optimizer.zero_grad()
        network.loss(pixels / 127.5 - 1.0, labels).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, tensors, 1.0 - 0.999)

    return call


def check(model: BasisNet, num_bases: int, data: dict[str, jax.Array]) -> TorchNetwork:
    """Makes the PyTorch network with our parameters, and compares its loss and gradients with ours.

    Both networks combine the bases uniformly.

    Raises:
      AssertionError: the loss or a gradient differs.
    """
    images, labels = normalize(data["image"]), data["label"]
    variables = rivals.run_once(lambda: model.init(jax.random.key(0), images, train=False))

    def loss(specialist: Any) -> jax.Array:
        params = {"params": {**variables["params"], "specialist": specialist}, "batch_stats": variables["batch_stats"]}
        outputs, _ = model.apply(params, images, train=True, warm_start=1.0, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits_BxK, labels).mean()

    ours, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"]["specialist"])
    network = TorchNetwork(named(variables["params"]["specialist"]), num_bases)
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous(memory_format=network.layout)
    theirs = network.loss(pixels, torch.from_numpy(np.array(labels)).long())
    np.testing.assert_allclose(theirs.item(), ours, rtol=1e-4)
    theirs.backward()
    norm = torch.linalg.vector_norm
    expected = {name: x.detach() for name, x in TorchNetwork(named(gradients), num_bases).params.items()}
    for name, gradient in expected.items():
        # A norm's bias before another norm has no gradient but rounding, so the whole gradient's size counts, too.
        allowed = 0.02 * norm(gradient) + 1e-4 * norm(expected["classifier/kernel"])
        if name != "route/kernel":
            assert norm(network.params[name].grad - gradient) <= allowed, f"the gradients of {name} differ"
    return network


def named(tree: Any) -> dict[str, np.ndarray]:
    """Returns {'block00/depthwise/kernel': array, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
