"""The format 'web': what the folder holds, and what its page answers in a real browser."""

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import pathlib
import re
import shutil
import subprocess
import tarfile
import threading

import cv2
import numpy as np
import pytest
from etils import epath

from basisnet_jax.config import validate
from basisnet_jax.errors import UserError
from basisnet_jax.export import browser, package
from basisnet_jax.images import load
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.serving.exit_rule import CRITERIA, NEVER, ChosenRule, ExitRule
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.manifest import file_facts
from basisnet_jax.serving.tflite import LiteRTStage
from tests.browser import Watched, chromium

NASTY = "<img src=x onerror=alert(1)>"  # a name of a class


@pytest.fixture
def packages(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder of .tgz files with the names of LiteRT.js's, which are taken for the tested ones."""
    folder, stand_ins = tmp_path / "packages", []
    folder.mkdir()
    for real in browser.LITERT_JS:
        with tarfile.open(folder / real.archive, "w:gz") as tar:
            for name in (*real.files, "README.md"):
                content = f"{real.name} {name}".encode()
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        sha512 = hashlib.sha512((folder / real.archive).read_bytes()).digest()
        stand_ins.append(
            browser.NpmPackage(real.name, real.version, base64.b64encode(sha512).decode(), real.files, real.folder)
        )
    monkeypatch.setattr(browser, "LITERT_JS", tuple(stand_ins))
    return folder


def write_again(exported: pathlib.Path, out: pathlib.Path, runtime: dict[str, bytes]) -> str:
    """Writes a copy of an export as --mode=export does, with a page; returns what is printed."""
    export = Export.open(str(exported))
    files = {name: export.read(name) for name in export.manifest.files}
    return package.write(epath.Path(out), files, export.manifest, export.classes(), runtime, shown="runs/x/export")


def test_the_folder_is_whole(exported, packages, tmp_path):
    printed = write_again(exported[0], tmp_path / "out", browser.litert_js(str(packages)))
    assert printed.endswith("python -m http.server --directory runs/x/export/web")
    web = tmp_path / "out" / "web"
    names = {path.relative_to(web).as_posix() for path in web.rglob("*") if path.is_file()}
    own = {"index.html", "page.css", "page.js", "labels.txt", "manifest.json", "preview.tflite", "specialist.tflite"}
    runtime = {f"{package.folder}/{name}" for package in browser.LITERT_JS for name in package.files}
    assert names == own | runtime
    assert (web / "runtime/core/dist/index.js").read_text() == "@litertjs/core dist/index.js"

    whole = Export.open(str(tmp_path / "out")).manifest
    served = Export.open(str(web))  # verifies what it reads
    assert set(served.manifest.files) == {"preview.tflite", "specialist.tflite"}
    assert served.manifest.input == whole.input
    for name in ("preview.tflite", "specialist.tflite", "labels.txt"):
        assert served.read(name) == (tmp_path / "out" / name).read_bytes()

    # A rule that is chosen later reaches the page, and an export without one removes it.
    package.write_rule(epath.Path(tmp_path / "out"), ChosenRule(ExitRule(threshold=0.7)))
    assert Export.open(str(web)).manifest.rule == ChosenRule(ExitRule(threshold=0.7))
    assert "http.server" not in write_again(exported[0], tmp_path / "out", {})
    assert not web.exists()


def test_the_policy_allows_the_pages_own_files_alone():
    page = pathlib.Path(browser.__file__).with_name("browser_page").joinpath("index.html").read_text()
    (policy,) = re.findall(r'"Content-Security-Policy" content="([^"]*)"', page)
    (inline,) = re.findall(r"<script[^>]*>(.+?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert {kind: set(sources) for kind, *sources in map(str.split, policy.split(";"))} == {
        "default-src": {"'self'"},
        "script-src": {"'self'", f"'sha256-{digest}'", "'wasm-unsafe-eval'"},  # the hash of the inline script
        "img-src": {"'self'", "blob:", "data:"},
        "media-src": {"'self'", "blob:"},
    }


def test_a_page_is_made_from_an_export_that_is_there(exported, packages, tmp_path, capsys):
    site = tmp_path / "site"
    assert browser.main([str(exported[0]), str(site), f"--runtime={packages}"]) == 0
    assert f"python -m http.server --directory {site}" in capsys.readouterr().out
    assert Export.open(str(site)).read("preview.tflite") == (exported[0] / "preview.tflite").read_bytes()
    assert browser.main(["digits", str(tmp_path / "demo"), f"--runtime={packages}"]) == 0
    assert set(Export.open(str(tmp_path / "demo")).stages()) == {"preview", "specialist"}
    capsys.readouterr()
    assert browser.main([str(exported[0]), str(site), "--kind=int8.tflite", f"--runtime={packages}"]) == 2
    assert "has no specialist.int8.tflite" in capsys.readouterr().err


def test_what_cannot_be_had_is_told(packages, tmp_path, config, monkeypatch):
    core = packages / browser.LITERT_JS[0].archive
    core.write_bytes(core.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"is not @litertjs/core@.* as it was tested: .*--config.export.web_runtime"):
        browser.litert_js(str(packages))
    core.unlink()
    with pytest.raises(UserError, match=r"litertjs-core-.*tgz cannot be read \(No such file.*run npm pack @litertjs"):
        browser.litert_js(str(packages))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"from npm, which is not installed; run npm pack .*; or leave 'web' out"):
        browser.litert_js()

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command[:2])

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match=r"from npm, which failed \(.*exit status 1.*try again, or run npm pack"):
        browser.litert_js()
    config.export.formats = ("stablehlo", "web")
    with pytest.raises(UserError, match=r"'web' needs 'tflite' or a smaller kind of it"):
        validate(config)


# In a browser


@contextlib.contextmanager
def served(folder: pathlib.Path):
    """Yields the address of a folder, served as `python -m http.server` does."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def opened(exported, tmp_path_factory):
    """(the page in Chromium, the address of its folder, the export); a class has a name that HTML would read."""
    folder = shutil.copytree(exported[0], tmp_path_factory.mktemp("page"), dirs_exist_ok=True)
    export = Export.open(str(folder))
    labels = "".join(f"{name}\n" for name in (NASTY, *export.classes()[1:]))
    (folder / "labels.txt").write_text(labels)
    content = {**export.manifest.to_json(), "labels": vars(file_facts(labels.encode()))}
    (folder / "manifest.json").write_text(json.dumps(content))
    with chromium() as program:
        try:
            runtime = browser.litert_js()
        except UserError as error:
            pytest.skip(str(error))
        write_again(folder, folder / "out", runtime)
        with served(folder / "out") as address:
            watched = Watched(program, f"{address}web/", viewport={"width": 400, "height": 800})
            watched.page.wait_for_selector("html[data-ready]", state="attached")
            yield watched, f"{address}web/", Export.open(str(folder / "out"))


def in_page(watched: Watched, script: str, *arguments):
    """Calls an async function of (page.js, *arguments) in the page; images are sent and decoded as files are."""
    files = """const fileOf = (text) => new File([Uint8Array.from(atob(text), (x) => x.charCodeAt(0))], "image");"""
    call = f"async (given) => {{ const page = await import('./page.js'); {files} return await ({script})(...given); }}"
    return watched.page.evaluate(call, list(arguments))


def test_logits_are_those_of_the_files(opened):
    """The browser's WebAssembly against LiteRT in Python, the specialist on the browser's own coefficients."""
    watched, _, export = opened
    side, channels = export.manifest.input.side, export.manifest.input.channels
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, channels)).astype(np.float32)
    first, second = (LiteRTStage(export.read(name)) for name in ("preview.tflite", "specialist.tflite"))
    logits_BxK, coefficients_BxLxN = first(images)
    (specialist_BxK,) = second(images, coefficients_BxLxN)
    answers = in_page(
        watched,
        """async (images, threshold) => {
          const answers = [];
          for (const image of images) {
            const network = { ...page.network, rule: { ...page.network.rule, threshold } };
            const { preview, specialist } = await page.classify(network, Float32Array.from(image));
            answers.push([preview.logits, preview.coefficients, specialist.logits].map((x) => Array.from(x)));
          }
          return answers;
        }""",
        images.reshape(3, -1).tolist(),
        NEVER,
    )
    for answer, *expected in zip(answers, logits_BxK, coefficients_BxLxN, specialist_BxK, strict=True):
        for got, want in zip(answer, expected, strict=True):
            np.testing.assert_allclose(got, want.ravel(), rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_confidence_is_the_rules(opened):
    logits = np.random.default_rng(1).normal(0, 3, (4, 10))
    for criterion in CRITERIA:
        rule = {"criterion": criterion, "temperature": 1.7}
        got = in_page(opened[0], "(rule, rows) => rows.map((row) => page.confidence(rule, row))", rule, logits.tolist())
        np.testing.assert_allclose(got, ExitRule(criterion, 1.7).confidence(logits), atol=1e-9)


def picture(height: int, width: int, channels: int, suffix: str) -> bytes:
    """An image with smooth and with sharp parts."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 90 * np.sin(x / (5 + c) + y / (7 - c)) + 30 * ((x // 6 + y // 9) % 2) for c in range(channels)]
    content = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    return cv2.imencode(suffix, content, [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else [])[1].tobytes()


def pixels_of(watched: Watched, encoded: bytes, **how) -> np.ndarray:
    """Returns what the page makes of an image file, for an input that the manifest would describe so."""
    script = "async (how, text) => Array.from(page.preprocess(how, await page.decode(how, fileOf(text))))"
    got = in_page(watched, script, how, base64.b64encode(encoded).decode())
    return np.reshape(got, (how["side"], how["side"], how["channels"]))


CASES = (  # size, kind of file, side, channels, padding, gray levels that the browser may differ by
    ((97, 61, 3), ".png", 24, 3, None, 1),  # by area
    ((96, 48, 1), ".png", 24, 1, None, 1),  # by area, by whole numbers
    ((40, 33, 3), ".png", 24, 3, 4, 1),  # a central square, bilinear
    ((8, 8, 1), ".png", 24, 1, None, 1),  # grows
    ((11, 90, 1), ".png", 24, 1, None, 1),  # by area in one direction, grows in the other
    ((50, 40, 3), ".png", 24, 1, None, 2),  # to gray; OpenCV rounds the gray of a PNG down
    ((61, 97, 3), ".jpg", 48, 3, 8, 2),  # a JPEG: two decoders
    ((301, 250, 3), ".jpg", 24, 3, 4, 3),  # decoded at an eighth of its size
    ((301, 250, 1), ".jpg", 48, 1, None, 3),  # at a quarter
)


def test_pixels_are_those_of_python(opened):
    for size, suffix, side, channels, padding, tolerance in CASES:
        encoded = picture(*size, suffix)
        expected = load.load_image(encoded, side, channels, EvalCrop(padding))
        share = None if padding is None else side / (side + padding)
        how = {"side": side, "channels": channels, "crop_share": share, "exif_orientation": "applied"}
        error = np.abs(pixels_of(opened[0], encoded, **how) - expected.astype(np.float64))
        assert error.max() <= tolerance, (size, suffix, error.max(), error.mean())
        assert error.mean() <= 0.3 * tolerance, (size, suffix, error.mean())


def test_a_photograph_is_turned_as_the_manifest_says(opened):
    plain = picture(40, 30, 3, ".jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turn it right
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    for orientation in ("applied; the image is turned upright first", "ignored"):
        crop = EvalCrop(exif_orientation=orientation != "ignored")
        expected = load.load_image(turned, 24, 3, crop)
        got = pixels_of(opened[0], turned, side=24, channels=3, crop_share=None, exif_orientation=orientation)
        error = np.abs(got - expected.astype(np.float64))
        assert error.max() <= 2, (orientation, error.max(), error.mean())


ANSWERS = "Number(document.documentElement.dataset.answers ?? 0)"


def answers_after(watched: Watched, act) -> None:
    """Does something on the page, and waits for the answer to it."""
    before = watched.page.evaluate(ANSWERS)
    act()
    wait = f"async (n) => {{ while ({ANSWERS} <= n) await new Promise((done) => setTimeout(done, 5)); }}"
    watched.page.evaluate(wait, before)  # wait_for_function needs eval, which the page forbids


def set_threshold(watched: Watched, value: float) -> None:
    script = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    answers_after(watched, lambda: watched.page.locator("#threshold").evaluate(script, value))


def test_a_person_can_use_it(opened):
    watched, address, _ = opened
    page = watched.page
    assert page.locator("#threshold-value").inner_text() == "0.900 (a guess; the export has no rule)"
    answers_after(watched, lambda: page.locator("#paper").click())  # a dot
    set_threshold(watched, 0)
    assert page.locator("#answer").get_attribute("data-stage") == "preview"
    assert "not needed" in page.locator("#stages").inner_text()
    set_threshold(watched, 2)
    assert page.locator("#threshold-value").inner_text() == "more than 1: never"
    assert page.locator("#answer").get_attribute("data-stage") == "specialist"
    assert page.locator("#top li").count() == 5

    # By keyboard: pen down, a line.
    page.locator("#paper").focus()
    for key in (" ", "ArrowLeft", "ArrowUp"):
        answers_after(watched, lambda key=key: page.keyboard.press(key))
    page.keyboard.press(" ")
    assert "The pen is up" in page.locator("#paper-help").inner_text()

    # A file: its coefficients are the preview's.
    file = {"name": "a.png", "mimeType": "image/png", "buffer": picture(30, 20, 3, ".png")}
    answers_after(watched, lambda: page.locator("#file").set_input_files(file))
    vectors = page.locator(".vector .bars").all()
    sums = [sum(map(float, v.get_attribute("aria-label").partition(": ")[2].split(", "))) for v in vectors]
    np.testing.assert_allclose(sums, 1, atol=0.03)
    seen = page.locator("#seen").evaluate("(canvas) => canvas.toDataURL()")
    drop = """(text) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(text), (x) => x.charCodeAt(0))], "b.png"));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }"""
    other = base64.b64encode(picture(20, 30, 1, ".png")).decode()
    answers_after(watched, lambda: page.evaluate(drop, other))
    assert page.locator("#seen").evaluate("(canvas) => canvas.toDataURL()") != seen
    page.locator("#file").set_input_files({**file, "buffer": b"no image"})
    page.wait_for_selector("#status.error")
    assert page.locator("#status").inner_text() == "a.png is not an image that this browser reads."

    assert NASTY in page.locator("#about").inner_text()
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    without_gpu = [text for text in watched.complaints if "adapter" not in text.lower()]  # LiteRT.js looks for a GPU
    assert without_gpu == []
    assert all(url.startswith((address, "data:", "blob:")) for url in watched.requests), watched.requests


def test_a_damaged_file_is_told(opened):
    watched, address, export = opened
    path = export.folder / "web" / "specialist.tflite"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        other = Watched(watched.page.context.browser, address)
        other.page.wait_for_selector("#status.error")
        assert "specialist.tflite is damaged or of another export" in other.page.locator("#status").inner_text()
        assert other.page.locator("#main").is_hidden()
        other.page.close()
    finally:
        path.write_bytes(content)
