"""Logits of torchvision's and timm's networks with weights that anybody can draw; writes torch_golden.json.

    pip install torch torchvision timm
    python -m tests.weights.torch_golden

tests/weights/test_naming.py compares ours with what is in the file, and so needs none of these. Run it again where a
network is added; it prints how far ours are from theirs, of all networks.
"""

import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np

PATH = pathlib.Path(__file__).with_suffix(".json")
CLASSES, SIDE = 12, 64
# {ours: {publisher: theirs}}
NETWORKS = {
    "mobilenet_v2": {"torchvision": "mobilenet_v2", "timm": "mobilenetv2_100"},
    "mobilenet_v3_large": {"torchvision": "mobilenet_v3_large", "timm": "mobilenetv3_large_100"},
    "mobilenet_v3_small": {"torchvision": "mobilenet_v3_small", "timm": "mobilenetv3_small_100"},
    "efficientnet_b0": {"torchvision": "efficientnet_b0", "timm": "efficientnet_b0"},
    "efficientnet_b2": {"torchvision": "efficientnet_b2", "timm": "efficientnet_b2"},
    "resnet18": {"torchvision": "resnet18", "timm": "resnet18"},
    "resnet50": {"torchvision": "resnet50", "timm": "resnet50"},
}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of that name: a function of it alone. Norms are far from what they are at the start of a training."""
    rng, last = np.random.default_rng(zlib.crc32(name.encode())), name.split(".")[-1]
    if len(shape) > 1:
        return (rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    low, high = (0.5, 1.5) if last in ("weight", "running_var") else (-0.2, 0.2)
    return rng.uniform(low, high, shape).astype(np.float32)


def images() -> np.ndarray:
    """float32 in [-1, 1], [2, SIDE, SIDE, 3]."""
    return np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)


def fingerprint(sizes: Mapping[str, int]) -> str:
    """Of the arrays' names and sizes."""
    return hashlib.sha256("".join(f"{name} {sizes[name]}\n" for name in sorted(sizes)).encode()).hexdigest()


def main() -> None:
    """Writes the file."""
    import timm
    import torch
    from torchvision import models

    from tests.weights.test_naming import our_logits

    mean, std = (torch.tensor(x)[None, :, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalized = ((torch.tensor(images()).permute(0, 3, 1, 2) + 1) / 2 - mean) / std
    golden = {}
    for ours, theirs in NETWORKS.items():
        for publisher, name in theirs.items():
            make = functools.partial(timm.create_model, name) if publisher == "timm" else getattr(models, name)
            network = make(num_classes=CLASSES).eval()
            shapes = {key: tuple(x.shape) for key, x in network.state_dict().items() if x.ndim}
            weights = {key: torch.tensor(drawn(key, shape)) for key, shape in shapes.items()}
            network.load_state_dict(weights, strict=False)
            with torch.no_grad():
                logits = network(normalized).numpy()
            sizes = {key: int(np.prod(shape)) for key, shape in shapes.items()}
            golden[f"{publisher} {ours}"] = {"names": fingerprint(sizes), "logits": logits.round(6).tolist()}
            largest = np.abs(logits).max()
            error = np.abs(our_logits(publisher, ours) - logits).max() / largest
            print(f"{publisher} {ours}: {len(shapes)} arrays, largest logit {largest:.3f}, ours differ by {error:.1e}")
    PATH.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
