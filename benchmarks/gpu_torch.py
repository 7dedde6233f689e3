"""timm's networks beside ours: MobileNetV3-Large, EfficientNet-B0, and its CondConv form by grouped convolution."""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import gpu_tasks
import timing


def tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields training and inference of each of timm's networks; one sentence where PyTorch or timm is missing."""
    missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    for network in sizes.torch_networks:
        for what in ("training", "inference"):
            yield f"{network}, {sizes.batch} images, {what}", functools.partial(timed, network, what, missing, sizes)


def timed(network: str, what: str, missing: list[str], sizes: gpu_tasks.Sizes) -> dict[str, Any]:
    """Returns images a second of a network: channels_last, autocast to bfloat16, SGD with momentum.

    Raises:
      SkippedError: PyTorch or timm is not installed, or PyTorch has no GPU.
    """
    if missing:
        raise gpu_tasks.SkippedError(f"{' and '.join(missing)} not installed")
    import torch

    if not torch.cuda.is_available() and not sizes.tiny:
        raise gpu_tasks.SkippedError(f"PyTorch {torch.__version__} finds no GPU")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    call = training_call(network, device, sizes) if what == "training" else inference_call(network, device, sizes)
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    ms = statistics.median(timing.interleaved({"": call}, rounds=sizes.rounds, turn=sizes.turn)[""])
    figures = {"images_per_second": 1e3 * sizes.batch / ms, "ms": ms, "first_call_seconds": seconds}
    if device == "cuda":
        figures["device_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return figures


def network_and_images(network: str, device: str, sizes: gpu_tasks.Sizes) -> tuple[Any, Any]:
    """Returns timm's network and random images, both on the device in channels_last."""
    import timm
    import torch

    model = timm.create_model(network, num_classes=sizes.classes).to(device, memory_format=torch.channels_last)
    side = max(sizes.side, 32)
    images = torch.randn(sizes.batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    return model, images


def training_call(network: str, device: str, sizes: gpu_tasks.Sizes) -> Callable[[], Any]:
    """Returns a call that takes a training step, and waits for it."""
    import torch

    model, images = network_and_images(network, device, sizes)
    labels = torch.randint(sizes.classes, (sizes.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-5)

    def call() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def inference_call(network: str, device: str, sizes: gpu_tasks.Sizes) -> Callable[[], Any]:
    """Returns a call that classifies the images, and waits for the logits."""
    import torch

    model, images = network_and_images(network, device, sizes)
    model.eval()

    def call() -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return model(images)[0, 0].item()

    return call
