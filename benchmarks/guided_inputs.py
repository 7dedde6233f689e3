"""Searches for bad inputs by coverage: atheris keeps an input that reaches new lines of a reader, and changes it again.

    pip install atheris
    python benchmarks/guided_inputs.py image --seconds 600 --folder campaigns/guided_inputs

bad_inputs.py draws its inputs; this finds those that need several changes at once. FOLDER/TARGET has the inputs that
reached something new, with which the same command resumes. Each kind of fault is kept once, in FOLDER/TARGET.faults.
"""

import argparse
import hashlib
import json
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Callable

TARGETS = ("image", "pth", "safetensors", "npy", "manifest")


def target(name: str, scratch: pathlib.Path) -> tuple[Callable[[bytes], object], list[bytes]]:
    """Returns a reader of bytes, and whole inputs to begin with; importing it under atheris has its lines counted."""
    import bad_input_targets
    import bad_run_targets
    from damage import refusing

    from basisnet_jax import runtime
    from basisnet_jax.host.command_line import on_one_line
    from basisnet_jax.images import decode, exif
    from basisnet_jax.serving.export import Export
    from basisnet_jax.weights import readers

    def image(content: bytes) -> None:
        try:
            decode.read_header(content)
        except decode.BadExampleError:
            assert exif.read_orientation(content) in range(1, 9)

    def from_file(file: str, printed: Callable[[str], str], read: Callable[[pathlib.Path], object]) -> Callable:
        def call(content: bytes) -> None:
            (scratch / file).write_bytes(content)
            with refusing(printed):
                read(scratch / file)

        return call

    if name == "image":
        return image, bad_input_targets.small.IMAGES
    if name == "npy":
        return from_file("x.npy", str, lambda path: runtime._pixels(str(path))), bad_input_targets._npy_files()
    if name == "manifest":
        whole = json.dumps(bad_run_targets._manifest()).encode()
        return from_file("manifest.json", str, lambda path: Export.open(str(path.parent))), [whole]
    return from_file(f"tiny.{name}", on_one_line, readers.read), bad_input_targets._weights(f".{name}")


def main() -> None:
    """Runs one target for so many seconds; never returns, as libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("guided_inputs"))
    options = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["basisnet_jax", "safetensors", "zipfile", "pickletools"]):
        run, originals = target(options.target, pathlib.Path(tempfile.mkdtemp()))
    corpus, faults = options.folder / options.target, options.folder / f"{options.target}.faults"
    for place in (corpus, faults):
        place.mkdir(parents=True, exist_ok=True)
    for content in originals:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    def one(content: bytes) -> None:
        try:
            run(content)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__}-{pathlib.Path(where.filename).stem}-{where.lineno}"
            if not (faults / kind).exists():
                (faults / kind).write_bytes(content)
                print(f"fault: {kind}: {error!r:.200}", flush=True)

    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={options.seconds}", "-max_len=20000"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
