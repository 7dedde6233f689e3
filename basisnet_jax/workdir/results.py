"""What a run says when it is done: the lines that are printed, and files in its workdir."""

from typing import Any


def summary(results: dict[str, Any]) -> str:
    """The lines that a finished run prints."""
    evaluation, madds = results["eval"], results["madds"]
    top1 = f"top-1 {evaluation['top1']:.4f} (top-5 {evaluation['top5']:.4f}) on {evaluation['count']} images"
    if evaluation["preview_top1"] is not None:
        top1 += f"; the preview alone {evaluation['preview_top1']:.4f}"
    stages = " + ".join(f"{name} {madds[name]:,}" for name in ("preview", "synthesis", "specialist") if madds[name])
    rate = results["images_per_second"]  # None where no step was timed: the first step of each process is not
    speed = "" if rate is None else f", {rate:.0f} images/s"
    return "\n".join(
        [
            top1,
            f"{madds['total']:,} multiply-adds an image ({stages}), {results['parameters']:,} parameters",
            f"{results['step']} steps in {results['train_seconds']:.0f} s{speed}",
        ]
    )


def evaluation_line(step: int, epoch: int, evaluation: dict[str, float]) -> str:
    """Returns the line that is printed of an evaluation while a run trains."""
    preview = f", the preview alone {evaluation['preview_top1']:.4f}" if "preview_top1" in evaluation else ""
    return f"step {step:,}, epoch {epoch}: top-1 {evaluation['top1']:.4f}{preview}, loss {evaluation['loss']:.4f}"
