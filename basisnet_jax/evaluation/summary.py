"""What --mode=evaluate prints."""

from typing import Any

from basisnet_jax.host import tables
from basisnet_jax.serving.exit_rule import ChosenRule


def summary(results: dict[str, Any]) -> str:
    """The lines that a finished evaluation prints."""
    rows = {"specialist": results["specialist"], "preview": results["preview"], **results["ablations"]}
    lines = [f"step {results['step']}, {results['count']} images at {results['resolution']} x {results['resolution']}"]
    cells = [("", "top-1", "top-5", "loss", "ECE")]
    cells += [
        (name, *(f"{row[key]:.4f}" for key in ("top1", "top5", "loss", "ece"))) for name, row in rows.items() if row
    ]
    lines += tables.align(cells)
    if "coefficients" in results:
        share = results["coefficients"]["class_share"]["all"]
        lines.append(f"{share:.1%} of the coefficients' variance lies between the classes that the preview guesses")
    found = results["early_termination"]
    if not found:
        return "\n".join(lines)
    return "\n".join([*lines, "", *_termination_lines(results)])


def _termination_lines(results: dict[str, Any]) -> list[str]:
    """Says what each criterion gives, and which rule was chosen."""
    found, madds = results["early_termination"], results["madds"]["total"]
    count, top1 = results["reported_half"]["count"], results["reported_half"]["top1"]
    lines = [
        f"early termination, chosen on {results['count'] - count} images; exits, top-1 and multiply-adds on the other "
        f"{count} (top-1 {top1:.4f} with none, at {madds:,} multiply-adds):"
    ]
    points = [("criterion", "temperature", "mean top-1: chosen on", "other", "by", "exits", "top-1", "multiply-adds")]
    points += [
        (
            row["criterion"],
            f"{row['temperature']:.3f}",
            f"{row['chosen_mean_top1']:.4f}",
            f"{row['mean_top1']:.4f}",
            name,
            f"{point['exit_rate']:.1%}",
            f"{point['top1']:.4f}",
            f"{point['madds']:,.0f}",
        )
        for row in found["criteria"]
        for name, point in row["points"].items()
    ]
    lines += tables.align(points, left=(0, 4))
    best, chosen = found["best"], ChosenRule.from_json(found["rule"], "results.json")
    rule, was = chosen.rule, chosen.provenance
    assert was is not None  # --mode=evaluate chose it
    assert chosen.chosen_on is not None
    assert chosen.reported_on is not None
    lines += [
        f"best on the half that is chosen on: {best['criterion']} at temperature {best['temperature']:.3f}; on the "
        f"other, mean top-1 {best['mean_top1_gain']:+.4f} against the largest probability at temperature 1",
        "",
        f"the rule that predict and export take: {rule.criterion} at temperature {rule.temperature:.3f} of at least "
        f"{rule.threshold:.4f}, by {chosen.chosen_by}",
        f"chosen with {was.weights} on {was.images}",
    ]
    halves = (("chosen on", chosen.chosen_on), ("reported on", chosen.reported_on))
    return lines + tables.align(
        [
            ("", "images", "exits", "top-1", "multiply-adds"),
            *((name, f"{x.count}", f"{x.exit_rate:.1%}", f"{x.top1:.4f}", f"{x.madds:,.0f}") for name, x in halves),
        ]
    )
