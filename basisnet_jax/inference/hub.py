"""Trained networks that travel: opened from a folder or from the Hugging Face Hub, and pushed there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from types import ModuleType

from basisnet_jax.errors import UserError
from basisnet_jax.experiment import network_files
from basisnet_jax.inference.jax_classifier import TwoStageClassifier
from basisnet_jax.serving import zoo
from basisnet_jax.serving.formats import CONFIG, WEIGHTS
from basisnet_jax.serving.manifest import CARD, LABELS, NAME


def from_pretrained(
    folder_or_hub_id: str, threshold: float | None = None, *, revision: str | None = None, endpoint: str | None = None
) -> TwoStageClassifier:
    """Opens a trained network that `--mode=export` wrote in the format 'safetensors'.

    Args:
      folder_or_hub_id: a run's `export/` or `specialized/`, or a copy; or a repository on the hub, such as
        'name/network', whose files are kept in huggingface_hub's cache; or a model that comes along, such as 'digits'.
      threshold: an image exits where its largest softmax probability is at least this; None takes the rule that
        --mode=evaluate chose.
      revision: a branch, tag or commit of the repository; None is the newest.
      endpoint: address of another hub; None is the one that huggingface_hub is set to.

    Returns:
      A classifier: `classify` takes uint8[B, side, side, channels].

    Raises:
      UserError: there is no such folder or repository, huggingface_hub is not installed, a file is missing or damaged,
        there is no rule and no threshold is given, or a threshold is given but no preview can answer.
    """
    folder = os.path.expanduser(folder_or_hub_id)
    if not os.path.isdir(folder) and folder_or_hub_id in zoo.names():
        folder = zoo.folder_of(folder_or_hub_id)
    if not os.path.isdir(folder):
        needed = [NAME, LABELS, WEIGHTS, CONFIG]
        with _hub(f"{folder_or_hub_id!r} is not a folder, and cannot be read from the hub") as hub:
            folder = hub.snapshot_download(
                folder_or_hub_id, revision=revision, endpoint=endpoint, allow_patterns=needed
            )
    return TwoStageClassifier.from_pretrained(folder, threshold)


def push_to_hub(folder: str, hub_id: str, *, private: bool | None = None, endpoint: str | None = None) -> str:
    """Pushes an export to a repository on the hub, which is made if it does not exist; its card becomes README.md.

    Args:
      folder: a run's `export/` or `specialized/`, with the format 'safetensors'; each file is verified first.
      hub_id: the repository, such as 'name/network'. You must be logged in (`hf auth login`).
      private: whether a new repository is private; None is the account's default.
      endpoint: as in `from_pretrained`.

    Returns:
      The commit's address.

    Raises:
      UserError: the folder is not an export with weights, a file is damaged, huggingface_hub is not installed, or the
        hub refuses.
    """
    export = network_files.open_export(folder)
    contents: dict[str, bytes | pathlib.Path] = {name: export.read(name) for name in (*export.manifest.files, LABELS)}
    contents |= {NAME: export.folder / NAME, "README.md": export.folder / CARD}
    with _hub(f"{export.folder} cannot be pushed to {hub_id!r}") as hub:
        api = hub.HfApi(endpoint=endpoint)
        api.create_repo(hub_id, private=private, exist_ok=True)
        commit = api.create_commit(
            hub_id,
            [hub.CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=f"Step {export.manifest.step}, exported by basisnet_jax",
        )
    return commit.commit_url


@contextlib.contextmanager
def _hub(trouble: str) -> Iterator[ModuleType]:
    """Yields huggingface_hub; raises UserError, beginning with `trouble`, if it is not installed or the hub refuses."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError
    except ImportError:
        raise UserError(f"{trouble}: huggingface_hub is not installed; run pip install -e '.[hub]'.") from None
    try:
        yield huggingface_hub
    except (HTTPError, OSError, ValueError) as error:  # ValueError: an id or a card that is not valid
        raise UserError(f"{trouble} ({str(error).strip().splitlines()[0]}).") from error
