"""The modes of the command line: one module for each `--mode`."""

from basisnet_jax.modes import compile, cost, devices, evaluate, export, finetune, lists, predict, teacher, train

MODES = {
    "train": train.MODE,
    "finetune": finetune.MODE,
    "evaluate": evaluate.MODE,
    "predict": predict.MODE,
    "export": export.MODE,
    "cost": cost.MODE,
    "teacher": teacher.MODE,
    "compile": compile.MODE,
    "devices": devices.MODE,
    **lists.MODES,
}
