"""--mode=configs, models, backbones, weights, datasets: lists what can be named in a command or a config."""

from collections.abc import Callable, Iterable

from basisnet_jax.host.command_line import align
from basisnet_jax.modes.mode import Command, Mode

Rows = Iterable[tuple[str, str]]


def _configs() -> Rows:
    from basisnet_jax.modes import config_files

    return config_files.included().items()


def _models() -> Rows:
    from basisnet_jax.serving import zoo

    return ((name, zoo.described(name)) for name in zoo.names())


def _backbones() -> Rows:
    from basisnet_jax.models.architectures import ARCHITECTURES
    from basisnet_jax.models.cost import static_cost

    for name, table in ARCHITECTURES.items():
        cost = static_cost(table, 224, 1000)
        yield (
            name,
            f"{cost.total / 1e6:,.0f}M multiply-adds, {cost.parameters / 1e6:.1f}M parameters (224 px, 1,000 classes)",
        )


def _weights() -> Rows:
    from basisnet_jax.weights.pretrained import PUBLISHED

    return ((name, published.install) for name, published in PUBLISHED.items())


def _datasets() -> Rows:
    from basisnet_jax.data.datasets import SIZES

    yield "digits", "scikit-learn's digits, included"
    yield "folder", "images in folders: split/class/*.jpg, or class/*.jpg"
    for name, splits in SIZES.items():
        yield name, ", ".join(f"{split} {count:,}" for split, count in splits.items())
    yield "any other", "a data set of TFDS with features 'image' and 'label': tfds.list_builders()"


def _mode(what: str, rows: Callable[[], Rows]) -> Mode:
    def run(command: Command) -> int:
        del command
        print(*align(list(rows()), left=(0, 1)), sep="\n")
        return 0

    return Mode(help=f"list {what}", examples=("",), run=run, keeps_programs=False, needs_config=False)


MODES = {
    "configs": _mode("the configs that are included, for --config", _configs),
    "models": _mode("the trained models that come along, for --model", _models),
    "backbones": _mode(
        "the backbones, for config.model.specialist.backbone and config.model.preview.backbone", _backbones
    ),
    "weights": _mode("the published weights, for start_from and config.distill.teacher", _weights),
    "datasets": _mode("the data sets, for config.data.name", _datasets),
}
