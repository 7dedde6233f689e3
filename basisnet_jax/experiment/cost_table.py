"""--mode=cost: multiply-adds and parameters of any config, layer by layer, without its data and without a device."""

from typing import Any

from basisnet_jax.config import Config, validate
from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import make_model, model_cost
from basisnet_jax.host import command_line, files
from basisnet_jax.models.cost import Cost


def cost(config: Config, workdir: str) -> str:
    """Counts the cost, writes `cost.json` into the workdir, and returns the table to print.

    Raises:
      UserError: a value is out of range, the data set is not known, or the workdir cannot be written.
    """
    config = validate(config)
    data = config.data
    classes, channels = datasets.classes_and_channels(
        data.name, data.dir, data.train_split, data.eval_split, data.eval_share
    )
    datasets.check_classes(data.name, classes)
    counted = model_cost(make_model(config.model, len(classes)), config.eval_resolution, channels)
    folder = files.absolute(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "cost.json", as_json(counted, config.eval.exit_rate))
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another place with --workdir.") from None
    return table(counted, config.eval.exit_rate)


def as_json(counted: Cost, exit_rate: float) -> dict[str, Any]:
    """Returns the content of `cost.json`."""
    layers = [{"name": x.name, "madds": x.madds, "parameters": x.parameters} for x in counted.layers]
    average = {"exit_rate": exit_rate, "madds": counted.average(exit_rate)}
    return {"layers": layers, "madds": counted.madds(), "parameters": counted.parameters, "average": average}


def table(counted: Cost, exit_rate: float) -> str:
    """Returns the table: a row for each layer, the stages, and the average under early termination."""
    cells = [("layer", "multiply-adds", "parameters")]
    cells += [(layer.name, f"{layer.madds:,}", f"{layer.parameters:,}") for layer in counted.layers]
    layers = len(cells)
    cells += [(stage, f"{madds:,}", "") for stage, madds in counted.madds().items() if stage != "total"]
    cells.append(("total", f"{counted.total:,}", f"{counted.parameters:,}"))
    if counted.preview:
        average = f"{round(counted.average(exit_rate)):,}"
        cells.append((f"average, {exit_rate:.1%} of images exit early", average, ""))
        both = counted.without_exits()
        cells.append(("total without early exits (export.early_exit=False)", f"{both.total:,}", f"{both.parameters:,}"))
    lines = command_line.align(cells)
    return "\n".join([*lines[:layers], "", *lines[layers:]])
