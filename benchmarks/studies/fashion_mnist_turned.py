"""Fashion-MNIST as a harder task: 40 classes, class times rotation. Its data: `python benchmarks/turned.py`."""

from benchmarks.studies import Study
from benchmarks.studies.fashion_mnist import PREVIEW, STATIC, bases

# As many steps as four epochs of the upright images; benchmarks/turned.py has mirrored them.
TURNED = {"data.name": "fashion_mnist_turned", "data.flip": False, "epochs": 1.0, "warm_start_epochs": 0.25}
TURNED |= {"eval_every_epochs": 0.5, "checkpoint.every_epochs": 0.5, "schedule.warmup_epochs": 0.125}
LONG = {"epochs": 3.0, "warm_start_epochs": 0.75, "schedule.warmup_epochs": 0.375}

STUDY = Study(
    rows={
        "static": ("static", STATIC, {}),
        "preview_n4": ("BasisNet, N = 4", PREVIEW, {}),
        "preview_n8": ("BasisNet, N = 8", PREVIEW, bases(8, 0.84, 0.5, 10)),
        "preview_n16": ("BasisNet, N = 16", PREVIEW, bases(16, 0.7, 0.5, 16)),
        "static_long": ("static, three times as long", STATIC, LONG),
        "preview_n8_long": ("BasisNet, N = 8, three times as long", PREVIEW, bases(8, 0.84, 0.5, 10) | LONG),
    },
    reported=("test",),
    sweep={"data.train_split": "train[:200000]", "data.eval_split": "train[200000:]"},  # four examples an image
    common=TURNED | {"optimizer.learning_rate": 16e-3},
)
