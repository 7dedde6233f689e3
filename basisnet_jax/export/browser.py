"""The format 'web': a folder that a static web server serves, and that runs an export's .tflite files in a browser.

The page is `browser_page/`. LiteRT.js, which runs the files, comes from npm when the export is made.
`python -m basisnet_jax.export.browser digits FOLDER` makes the folder of a model that comes along, or of an export.
"""

import argparse
import base64
import dataclasses
import hashlib
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping

from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import files as file_lib
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe
from basisnet_jax.serving import zoo
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.manifest import LABELS, NAME, Manifest

FOLDER = "web"
PAGE = pathlib.Path(__file__).parent / "browser_page"


@dataclasses.dataclass(frozen=True)
class NpmPackage:
    """A package of npm and what the page needs of it.

    Attributes:
      name: the package's name.
      version: its version.
      sha512: of the .tgz file that `npm pack` writes, in Base64, as npm's own lock files state it.
      files: the files that are served.
      folder: where in `web/` they are.
    """

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]
    folder: str

    @property
    def spec(self) -> str:
        """The package and its version, as npm reads them."""
        return f"{self.name}@{self.version}"

    @property
    def archive(self) -> str:
        """The name of the file that `npm pack` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


# 'compat' needs no WebAssembly feature that is missing in any browser of 2023 or later, nor cross-origin headers.
LITERT_JS = (
    NpmPackage(
        "@litertjs/core",
        "2.5.3",
        "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        (
            "package.json",
            "dist/index.js",
            "wasm/litert_wasm_compat_internal.js",
            "wasm/litert_wasm_compat_internal.wasm",
        ),
        "runtime/core",
    ),
    NpmPackage(
        "@litertjs/wasm-utils",
        "2.5.3",
        "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        ("package.json", "dist/index.js"),
        "runtime/wasm-utils",
    ),
)


def litert_js(folder: str = "") -> dict[str, bytes]:
    """Gets LiteRT.js.

    Args:
      folder: has the packages' .tgz files; '' has npm get them.

    Returns:
      {path in `web/`: content}.

    Raises:
      UserError: npm is missing or fails, or a package is missing or is not the one that was tested.
    """
    if folder:
        return _unpacked(pathlib.Path(folder).expanduser())
    with tempfile.TemporaryDirectory() as made:
        _npm_pack(made)
        return _unpacked(pathlib.Path(made))


def _way_out() -> str:
    specs = " ".join(package.spec for package in LITERT_JS)
    return (
        f"run npm pack {specs} where npm is, and give the folder of the .tgz files with "
        "--config.export.web_runtime=FOLDER; or leave 'web' out of config.export.formats"
    )


def _npm_pack(folder: str) -> None:
    """Has npm write the packages' .tgz files into a folder, from its cache if it can. Raises UserError if npm fails."""
    options = ["--ignore-scripts", "--prefer-offline", "--silent", f"--pack-destination={folder}"]
    command = ["npm", "pack", *(package.spec for package in LITERT_JS), *options]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except FileNotFoundError:
        raise UserError(f"the format 'web' gets LiteRT.js from npm, which is not installed; {_way_out()}.") from None
    except subprocess.SubprocessError as error:
        raise UserError(
            f"the format 'web' gets LiteRT.js from npm, which failed ({error}); try again, or {_way_out()}."
        ) from None


def _unpacked(folder: pathlib.Path) -> dict[str, bytes]:
    """Reads the packages' files. Raises UserError if a package is missing or is another."""
    contents = {}
    for package in LITERT_JS:
        path = folder / package.archive
        try:
            archive = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); {_way_out()}.") from None
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != package.sha512:
            raise UserError(f"{path} is not {package.spec} as it was tested: its SHA-512 is another; {_way_out()}.")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for name in package.files:
                member = tar.extractfile(f"package/{name}")
                assert member is not None  # the archive is the one that was tested
                contents[f"{package.folder}/{name}"] = member.read()
    return contents


def served_files(files: Mapping[str, bytes], runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns {path in `web/`: content} of all but labels.txt and manifest.json.

    Args:
      files: {name: content} of the stages' files; the page runs the first kind of .tflite files.
      runtime: what `litert_js` returned.
    """
    suffix = next(name.partition(".")[2] for name in files if name.endswith("tflite"))
    stages = {name: content for name, content in files.items() if name.partition(".")[2] == suffix}
    page = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir())}
    return {**page, **stages, **runtime}


def write(folder: epath.Path, contents: Mapping[str, bytes]) -> None:
    """Writes {path in the folder: content}. Raises OSError if a file cannot be written."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file_lib.write(path, content)


def write_manifest(folder: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest of those of an export's files that the folder has. Raises OSError if it cannot."""
    files = {name: facts for name, facts in manifest.files.items() if (folder / name).exists()}
    file_lib.write_json(folder / NAME, dataclasses.replace(manifest, files=files).to_json())


def main(arguments: list[str] | None = None) -> int:
    """Writes the page of an export into a folder. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m basisnet_jax.export.browser", description="Make a page that runs an export in a browser."
    )
    parser.add_argument("export", help="a folder that --mode=export wrote, or a model of --mode=models")
    parser.add_argument("folder", help="the folder to write the page into")
    parser.add_argument("--kind", help="the files to run, such as int8.tflite; default: the manifest's first")
    parser.add_argument("--runtime", default="", help="a folder with LiteRT.js's .tgz files; default: npm gets them")
    given = parser.parse_args(arguments)
    try:
        export = Export.open(zoo.folder_of(given.export) if given.export in zoo.names() else given.export)
        files = {name: export.read(name) for name in export.stages(given.kind).values()}
        contents = served_files(files, litert_js(given.runtime)) | {LABELS: export.read(LABELS)}
        folder = file_lib.absolute(given.folder)
        write(folder, contents)
        write_manifest(folder, export.manifest)
    except OSError as error:
        print(f"error: cannot write to {given.folder} ({error.strerror}); make it writable.", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"python -m http.server --directory {given.folder}")
    return 0


if __name__ == "__main__":
    with exit_quietly_on_broken_pipe():
        sys.exit(main())
