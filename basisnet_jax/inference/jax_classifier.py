"""Two-stage inference: the preview sees every image, the specialist those that the preview is unsure of."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from basisnet_jax.config import Config
from basisnet_jax.experiment import network_files
from basisnet_jax.experiment.model import eval_crop, model_cost
from basisnet_jax.inference import batching
from basisnet_jax.inference.trained_run import open_trained, rule_of
from basisnet_jax.models.basisnet import FIRST_STAGE, BasisNet, Variables
from basisnet_jax.models.stages import Stages, make_stages
from basisnet_jax.serving import two_stage
from basisnet_jax.serving.exit_rule import rule_without_preview
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.formats import WEIGHTS
from basisnet_jax.workdir.run_folder import is_export, open_run


@dataclasses.dataclass(frozen=True)
class TwoStageClassifier(two_stage.TwoStageClassifier):
    """A trained model that runs the specialist only for the images that need it.

    The stages are any functions that can be called with b in `batching.SIZES`: jitted or exported functions.
    """

    @classmethod
    def from_folder(
        cls, workdir: str, threshold: float | None = None, config: Config | None = None
    ) -> "TwoStageClassifier":
        """Opens a run with `from_checkpoint`, an export with `from_export`, else with `from_pretrained`."""
        if not is_export(workdir):
            return cls.from_checkpoint(workdir, threshold, config)
        open_run(workdir, config, or_export=True)
        if any(name.endswith("tflite") for name in Export.open(workdir).manifest.files):
            return cls.from_export(workdir, threshold)
        return cls.from_pretrained(workdir, threshold)

    @classmethod
    def from_checkpoint(
        cls, workdir: str, threshold: float | None = None, config: Config | None = None
    ) -> "TwoStageClassifier":
        """Opens the trained model of a run on the first device, without its training data.

        Args:
          workdir: the run's folder.
          threshold: an image exits where its largest softmax probability is at least this; None takes the rule that
            --mode=evaluate chose.
          config: the run's config, with other `data.eval_crop`, `eval.checkpoint`, `eval.ema` or `eval.resolution`;
            None is the run's own.

        Raises:
          UserError: there is no run, no checkpoint or no rule, the config has another model, the rule was chosen with
            other weights, a threshold is given but there is no preview, or the routing needs more than an image.
        """
        opened = open_trained(workdir, config)
        stages = jit_stages(opened.model, opened.variables, opened.warm_start_left)
        return cls(
            first_stage=stages.first,
            second_stage=stages.second,
            rule=rule_of(opened, threshold).rule if opened.model.preview else rule_without_preview(threshold),
            cost=model_cost(opened.model, opened.side, opened.channels),
            classes=opened.classes,
            side=opened.side,
            channels=opened.channels,
            crop=eval_crop(opened.config.data),
        )

    @classmethod
    def from_pretrained(cls, folder: str, threshold: float | None = None) -> Self:
        """Opens the weights of an export in the format 'safetensors' on the first device.

        Args:
          folder: a run's `export/`, or a copy.
          threshold: an image exits where its largest softmax probability is at least this; None takes the manifest's
            rule.

        Raises:
          UserError: the folder is not an export or is damaged, has no such weights, has no rule and no threshold is
            given, or a threshold is given but no preview can answer.
        """
        export = network_files.open_export(folder)
        facts, model, variables = network_files.from_files(export.read)
        stages = jit_stages(model, variables, facts.warm_start)
        return cls(
            first_stage=stages.first,
            second_stage=stages.second,
            rule=export.rule(threshold, [WEIGHTS]) if model.preview else rule_without_preview(threshold),
            cost=model_cost(model, facts.side, facts.channels),
            classes=tuple(facts.classes),
            side=facts.side,
            channels=facts.channels,
            crop=export.crop(),
        )

    def _run(self, function: Callable[..., Any], *arrays_Bx: np.ndarray) -> list[np.ndarray]:
        return batching.run(function, *arrays_Bx)


def jit_stages(model: BasisNet, variables: Variables, warm_start: float) -> Stages:
    """Jits a model's stages and binds their variables and the rest of the warm start.

    A call costs a microsecond or two for every array that is passed. So each stage gets only the variables that it
    reads, and all vectors, which are most of the arrays, packed into one array.

    Returns:
      first(images uint8[B, H, W, C]) -> (logits_BxK, coefficients_BxLxN), None without a preview; and
      second(images, coefficients) -> logits_BxK. Outputs are float32.
    """
    first, second = make_stages(model)

    def given(stage: Callable[..., Any], reads: Callable[[str], bool]) -> functools.partial[Any]:
        read = {
            collection: {name: tree[name] for name in tree if reads(name)} for collection, tree in variables.items()
        }
        vectors, others = (
            jax.tree.map(lambda leaf, wanted=wanted: leaf if (leaf.ndim == 1) == wanted else None, read)
            for wanted in (True, False)
        )
        packed, unpack = ravel_pytree(vectors)

        def of_packed(weights: Any, *arrays_Bx: jax.Array) -> Any:
            warm_start, packed, others = weights
            unpacked = jax.tree.map(
                lambda vector, other: other if vector is None else vector,
                unpack(packed),
                others,
                is_leaf=lambda leaf: leaf is None,
            )
            return stage(unpacked, warm_start, *arrays_Bx)

        return functools.partial(jax.jit(of_packed), jax.device_put((jnp.float32(warm_start), packed, others)))

    return Stages(
        given(first, FIRST_STAGE.__contains__) if first else None, given(second, lambda name: name not in FIRST_STAGE)
    )
