"""An export that --mode=export wrote: its files are verified before they are used. No JAX."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, Self

from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import is_text, on_one_line
from basisnet_jax.host.records import typed
from basisnet_jax.images.crop import EvalCrop, eval_crop
from basisnet_jax.serving.exit_rule import ChosenRule, ExitRule, Provenance, threshold_rule
from basisnet_jax.serving.manifest import LABELS, NAME, SCHEMA, Manifest, file_facts

_LOG = logging.getLogger(__name__)

MAX_BYTES = 2**24  # of manifest.json
MAX_NUMBER = 2**62  # of multiply-adds, steps and sides: NumPy's integers hold it
MAX_FILE_BYTES = 2**31  # of any other file: the most that a .tflite file can have
_AGAIN = "copy the whole folder again, or run --mode=export again"


@dataclasses.dataclass(frozen=True)
class Export:
    """A folder that --mode=export wrote."""

    folder: pathlib.Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str) -> Self:
        """Reads the manifest of an export.

        Raises:
          UserError: the folder is not an export, or its manifest is damaged, of another version, or names files
            outside the folder.
        """
        root = pathlib.Path(folder).expanduser()
        path = root / NAME
        if not path.exists():
            raise UserError(f"{root} has no {NAME}, so it is not an export; give the folder that --mode=export wrote.")
        content = _parsed(path)
        try:
            rule = content["rule"]
            manifest = typed(Manifest, {**content, "rule": None})
            image, madds = manifest.input, manifest.madds
            numbers = (manifest.step, image.side, image.channels, image.batch, madds["preview"], madds["total"])
            if min(numbers) < 0 or max(numbers) > MAX_NUMBER:
                raise TypeError
        except (KeyError, TypeError):
            raise UserError(f"{path} is damaged: it is not what --mode=export writes; {_AGAIN}.") from None
        if outside := [name for name in manifest.files if not _is_file_name(name)]:
            raise UserError(
                f"{path} names the file {outside[0]!r}, but an export's files are in its own folder; {_AGAIN}."
            )
        chosen = ChosenRule.from_json(rule, path) if rule else None
        return cls(root, dataclasses.replace(manifest, rule=chosen))

    def read(self, name: str) -> bytes:
        """Reads a file of the export.

        Raises:
          UserError: the file is missing, or it is not the file that was exported.
        """
        facts = self.manifest.labels if name == LABELS else self.manifest.files[name]
        path = self.folder / name
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size == facts.bytes <= MAX_FILE_BYTES else b""
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); {_AGAIN}.") from None
        if size != facts.bytes:
            raise UserError(f"{path} has {size:,} bytes, but was exported with {facts.bytes:,}; {_AGAIN}.")
        if (sha256 := file_facts(content).sha256) != facts.sha256:
            raise UserError(
                f"{path} is damaged or of another export: its SHA-256 is {sha256[:12]}..., but the manifest says "
                f"{on_one_line(facts.sha256[:12])}...; {_AGAIN}."
            )
        return content

    def classes(self) -> tuple[str, ...]:
        """Returns the classes' names, in the order of the logits.

        Raises:
          UserError: as in `read`, or the file is not UTF-8, or a name has control characters.
        """
        try:
            names = tuple(self.read(LABELS).decode().removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.folder / LABELS} is damaged: its byte {error.start} is not UTF-8; {_AGAIN}."
            ) from None
        for number, name in enumerate(names):
            if not is_text(name):
                raise UserError(
                    f"{self.folder / LABELS} has control characters in the name of class {number}, {name[:40]!r}; "
                    "rename the class, and export again."
                )
        return names

    def crop(self) -> EvalCrop:
        """Returns the part of an image file that the network was evaluated on.

        Raises:
          UserError: the manifest does not say.
        """
        try:
            data = self.manifest.config["data"]
            return eval_crop(data["eval_crop"], int(data["eval_padding"]), bool(data["exif_orientation"]))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{self.folder / NAME} is damaged: its config does not say how images are cropped; {_AGAIN}."
            ) from None

    def stages(self, suffix: str | None = None) -> dict[str, str]:
        """Returns the names of the LiteRT files of one kind.

        Args:
          suffix: the kind, such as 'int8.tflite'; None takes the first that the manifest names.

        Returns:
          {'preview': file, 'specialist': file}, without 'preview' where the network has no preview.

        Raises:
          UserError: there are no such files.
        """
        kinds = [name.partition(".")[2] for name in self.manifest.files if name.endswith("tflite")]
        suffix = suffix or next(iter(kinds), "tflite")
        names = {stage: f"{stage}.{suffix}" for stage in ("preview", "specialist")}
        if names["specialist"] not in self.manifest.files:
            raise UserError(f"{self.folder} has no {names['specialist']}; it has {', '.join(self.manifest.files)}.")
        return {stage: name for stage, name in names.items() if name in self.manifest.files}

    def rule(self, threshold: float | None, names: Sequence[str]) -> ExitRule:
        """Returns the rule to use with the export's files.

        Args:
          threshold: the user's threshold; None takes the manifest's rule.
          names: the files that the rule is used with.

        Raises:
          UserError: there is no rule, the threshold is not a probability, or the rule was chosen for another export,
            checkpoint or resolution.
        """
        if threshold is not None:
            return threshold_rule(threshold)
        if self.manifest.rule is None:
            raise UserError(
                f"the export in {self.folder} has no threshold; give one, or run --mode=evaluate "
                f"--workdir={self.folder}, which chooses it."
            )
        if self.manifest.rule.provenance:
            self._check_provenance(self.manifest.rule.provenance, names)
        return self.manifest.rule.rule

    def _check_provenance(self, was: Provenance, names: Sequence[str]) -> None:
        manifest = self.manifest
        hashes = {name: facts.sha256 for name, facts in manifest.files.items()}
        others = ", ".join(name for name, sha256 in was.files.items() if hashes.get(name) != sha256)
        if others or (was.step, was.resolution) != (manifest.step, manifest.input.side):
            raise UserError(
                f"{self.folder / NAME} has a rule that was chosen with {was.weights}"
                f"{others and f' and another {others}'}, but the files are of step {manifest.step} at "
                f"{manifest.input.side} pixels; run --mode=evaluate --workdir={self.folder}, or give --threshold."
            )
        if was.files and not was.files.keys() & set(names):
            _LOG.warning(
                "the exit rule in %s was chosen with %s, but %s are used now; run --mode=evaluate on these files.",
                self.folder / NAME,
                ", ".join(was.files),
                ", ".join(names),
            )


def _is_file_name(name: str) -> bool:
    """Returns whether a name is a plain file name on every system: no path, no drive."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\:\0")


def _parsed(path: pathlib.Path) -> dict[str, Any]:
    """Reads a manifest's JSON values. Raises UserError if they cannot be read, or have another schema."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, so it is not a manifest; {_AGAIN}.")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {_AGAIN}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({str(error).splitlines()[0]}); {_AGAIN}.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, but this version reads {SCHEMA}; update basisnet_jax.")
    if schema != SCHEMA:
        raise UserError(
            f"{path} has schema {schema!r}, but this version reads {SCHEMA}; run --mode=export again, or give the "
            "folder that it wrote."
        )
    return content
