"""--mode=finetune: trains on a folder of photographs from published weights, evaluates, and says what to do next."""

import csv
import io
import json
import os
from collections.abc import Sequence

from basisnet_jax.errors import UserError
from basisnet_jax.modes import evaluate
from basisnet_jax.modes.mode import IMAGES, Command, Mode, next_command, read_flags

_SHOWN = 3  # unreadable photographs that the sentence on them names
_SIDE = 32  # pixels: photographs are read this small to see whether they can be read


def _defaults(argv: Sequence[str]) -> list[str]:
    """Returns --config and --workdir, both made from --images. Raises UserError if the folder cannot be trained on."""
    from basisnet_jax.data import folder, photographs
    from basisnet_jax.modes import config_files

    given = read_flags(argv, "images", "config")
    if given["config"] is not None:
        raise UserError(
            "--config is not for --mode=finetune, which makes its own from --images; change fields of it with "
            "--config.FIELD=..., or use --mode=train."
        )
    photos = os.path.expanduser(given["images"] or "")
    if not photos:
        raise UserError("--images is missing; name a folder with photographs of each class, as in --images=photos.")
    photographs.list_photographs(photos, "images")
    config = config_files.CONFIGS / "folder.py"
    return [f"--config={config}:{os.path.abspath(photos)}", f"--workdir={os.path.join('runs', folder.name_of(photos))}"]


def _run(command: Command) -> int:
    from basisnet_jax.loop.train import train
    from basisnet_jax.weights import pretrained

    config, workdir = command.config, command.workdir
    for stage in (config.model.specialist, config.model.preview):
        if stage.start_from in pretrained.PUBLISHED:
            pretrained.installed_file(stage.start_from)
    _check_same_photographs(command)
    _check_readable(config.data.dir)
    results = train(config, workdir)
    if results is None:
        print(f"stopped and saved; the same command resumes from there (workdir {workdir}).")
        return 0
    print(results.summary())
    evaluate.MODE.run(command)
    print(_advice(workdir))
    return 0


def _check_same_photographs(command: Command) -> None:
    """Raises UserError if the workdir has a run on other photographs."""
    from basisnet_jax.config import validate
    from basisnet_jax.experiment.run import open_data
    from basisnet_jax.host import files
    from basisnet_jax.host.records import read_object

    try:
        had = read_object(files.absolute(command.workdir) / "data.json")
    except (OSError, ValueError):  # no run, or one that was killed while it wrote
        return
    now = json.loads(json.dumps(open_data(validate(command.config).data).facts()))
    if any(had.get(name) != now[name] for name in ("name", "classes", "train_examples")):
        raise UserError(
            f"{command.workdir} has a run on other photographs ({had.get('train_examples')} to train on, now "
            f"{now['train_examples']}); train on these in another folder, as in --workdir={command.workdir}_2."
        )


def _check_readable(photos: str) -> None:
    """Raises UserError, which counts and names them, if some photographs cannot be read."""
    from basisnet_jax.data import photographs
    from basisnet_jax.host import terminal
    from basisnet_jax.images.crop import WHOLE_IMAGE
    from basisnet_jax.images.files import read_images

    splits = photographs.list_photographs(photos, "images")
    paths = sorted(os.path.relpath(os.path.join(split.root, file)) for split in splits for file in split.files)
    bad: list[str] = []
    with terminal.Progress() as progress:
        progress.stage("reading the photographs", len(paths))
        for _ in read_images(paths, _SIDE, 3, WHOLE_IMAGE, bad):
            progress.advance(1)
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise UserError(
            f"{len(bad)} of {len(paths)} photographs cannot be used ({'; '.join(bad[:_SHOWN])}{more}); remove or "
            "convert them."
        )


def _advice(workdir: str) -> str:
    """Returns lines on what to do after an evaluation: the class to photograph more, and the command to export."""
    from basisnet_jax.host import files

    table = (files.absolute(workdir) / "evaluation" / "classes.csv").read_text()
    weakest = min(csv.DictReader(io.StringIO(table)), key=lambda row: float(row["specialist"] or 1))
    right, count = float(weakest["specialist"] or 1), int(weakest["count"])
    weakest_class = (
        f"weakest class: {weakest['class']}, {round(right * count)} of {count} right; more photographs of it, as "
        "varied as those it will meet, help most.\n"
    )
    return (weakest_class if right < 1 else "") + next_command("export", workdir)


MODE = Mode(
    help="train on a folder of your own photographs, starting from published weights, and evaluate",
    examples=("--images=photos", "--images=photos --config.epochs=20 --workdir=runs/longer"),
    run=_run,
    flags=(IMAGES,),
    defaults=_defaults,
)
