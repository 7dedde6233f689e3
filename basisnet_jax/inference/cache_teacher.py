"""--mode=teacher: computes a teacher's logits of every training example, once."""

import jax
import numpy as np
from etils import epath

from basisnet_jax.config import Config, validate
from basisnet_jax.data import pipeline, teacher_logits
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import open_data
from basisnet_jax.experiment.teacher import load_teacher, teacher_identity
from basisnet_jax.host import distributed, files, terminal
from basisnet_jax.host import mesh as mesh_lib
from basisnet_jax.models.basisnet import Variables
from basisnet_jax.models.stages import normalize
from basisnet_jax.settings.declare import fail
from basisnet_jax.training import step


def cache_logits(config: Config) -> str:
    """Fills `config.distill.cache`, resumes a stopped fill, and returns a sentence to print.

    The teacher sees images as in its own evaluation: the same part of each image, at the teacher's resolution. Each
    process makes its own files, on its own devices. A bad example gets the logits of a black image: training replaces
    that example.

    Raises:
      UserError: a value is out of range, data or teacher are missing or do not fit each other, the cache is of
        another teacher, data set or preprocessing, or the cache cannot be written.
    """
    config = validate(config)
    if not config.distill.cache:
        fail("distill.cache", "", "must name the folder for the teacher's logits")
    with distributed.raise_user_errors_on_all_processes():
        data = open_data(config.data)
        teacher = load_teacher(config, data)
        if teacher is None:
            fail("distill.teacher", "", "must name the teacher")
    mesh = mesh_lib.make_mesh(jax.local_devices())
    unit = len(jax.local_devices())
    batch_size = -(-config.eval.batch_size // jax.process_count() // unit) * unit
    variables = jax.device_put(teacher.variables, mesh_lib.replicated(mesh))
    logits_of = step.make_teacher(teacher.model, teacher.resolution)

    def of_pixels(variables: Variables, pixels_BxHxWxC: jax.Array) -> jax.Array:
        return logits_of(variables, normalize(pixels_BxHxWxC))

    apply = jax.jit(mesh_lib.with_mesh_in_context(mesh, of_pixels))

    folder = files.absolute(config.distill.cache)
    identity = teacher_identity(teacher, data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not teacher_logits.check_identity(folder, identity) and jax.process_index() == 0:
            files.write_json(folder / "identity.json", identity)
        missing = _missing(folder, len(data.train))
        hits = computed = 0
        with terminal.Progress(silent=not distributed.is_first()) as progress:
            progress.stage("computing the teacher's logits", sum(map(len, missing.values())))
            for name, indices in missing.items():
                logits: list[np.ndarray] = []
                for batch in pipeline.eval_batches(
                    pipeline.Reordered(data.train, indices),
                    batch_size=batch_size,
                    side=teacher.resolution,
                    channels=data.channels,
                    num_classes=data.num_classes,
                    crop=teacher.crop,
                    threads=config.data.threads,
                    blank_bad=True,
                ):
                    good = batch["mask"] > 0
                    logits_BxK = np.asarray(apply(variables, mesh_lib.to_global(mesh, batch)["image"]))
                    hits += int(np.sum((logits_BxK.argmax(-1) == batch["label"])[good]))
                    computed += int(good.sum())
                    logits.append(logits_BxK)
                    progress.advance(len(good))
                teacher_logits.write_file(folder / name, np.concatenate(logits)[: len(indices)])
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); name another config.distill.cache.") from None
    hits, computed = distributed.total(hits, computed)
    accuracy = f"; its top-1 on the {computed} computed now is {hits / computed:.4f}" if computed else ""
    return f"{folder}: logits of {config.distill.teacher} for {len(data.train)} training examples{accuracy}"


def _missing(folder: epath.Path, examples: int) -> dict[str, np.ndarray]:
    """Returns {file: indices of its examples} for the missing files that this process makes."""
    missing = {}
    for number, name in enumerate(teacher_logits.file_names(examples)):
        if number % jax.process_count() == jax.process_index() and not (folder / name).exists():
            start = number * teacher_logits.EXAMPLES_A_FILE
            missing[name] = np.arange(start, min(start + teacher_logits.EXAMPLES_A_FILE, examples))
    return missing
