"""Makes a model that comes along with the package of a finished run: `basisnet predict --model=digits` then finds it.

    python benchmarks/zoo.py digits --workdir=runs/digits
    python benchmarks/zoo.py glyphs --workdir=runs/glyphs --check=1000 \
      --config.data.dir=DATA --config.data.eval_split=validation --config.eval.checkpoint=newest

It chooses the exit rule on the evaluation split, exports the run, which checks every file on every image of the split,
and puts the export into basisnet_jax/zoo/. With --check the files are checked, and their accuracy is stated, on the
first images of the split alone. `--mode=predict` runs the first format. All models together may have 5 MB:
leave out formats. Flags that start with --config. reach both commands.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

from basisnet_jax.errors import UserError
from basisnet_jax.serving import zoo
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.manifest import CARD, LABELS, NAME

MAIN = [sys.executable, "-m", "basisnet_jax.main"]
FORMATS = ("int8_weights.tflite", "safetensors")


def add(export: pathlib.Path, name: str) -> int:
    """Copies an export to basisnet_jax/zoo/NAME, replaces an older one, and returns the size of all models in bytes.

    Raises:
      UserError: the models would be too large together; nothing was copied. Or a file is damaged.
    """
    opened = Export.open(str(export))
    contents = {file: opened.read(file) for file in (*opened.manifest.files, LABELS)}
    contents |= {file: (export / file).read_bytes() for file in (NAME, CARD)}
    others = [path for path in zoo.FOLDER.glob("*/*") if path.parent.name != name]
    size = sum(map(len, contents.values())) + sum(path.stat().st_size for path in others)
    if size > zoo.MAX_BYTES:
        raise UserError(
            f"with {name} all models have {size:,} bytes, but at most {zoo.MAX_BYTES:,} may be in the package; leave "
            "out formats."
        )
    shutil.rmtree(zoo.FOLDER / name, ignore_errors=True)
    (zoo.FOLDER / name).mkdir(parents=True)
    for file, content in contents.items():
        (zoo.FOLDER / name / file).write_bytes(content)
    return size


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the model's name")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a finished run")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--check", type=int, help="number of images that files are checked on; default: all")
    options, flags = parser.parse_known_args()
    flags = [f"--workdir={options.workdir}", *flags]
    of_export = [f"--config.export.formats={tuple(options.formats)}", "--config.export.license=apache-2.0"]
    if code := subprocess.run([*MAIN, "--mode=evaluate", *flags]).returncode:
        return code
    if options.check:
        evaluated = json.loads((options.workdir / "evaluation" / "results.json").read_text())
        of_export.append(f"--config.data.eval_split={evaluated['config']['data']['eval_split']}[:{options.check}]")
    if code := subprocess.run([*MAIN, "--mode=export", *flags, *of_export]).returncode:
        return code
    try:
        size = add(options.workdir / "export", options.name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{zoo.described(options.name)}\nall models together: {size:,} of {zoo.MAX_BYTES:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
