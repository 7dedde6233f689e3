"""Exports: what is folded and frozen changes nothing, every file is run, and the runtime needs no JAX."""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import cv2
import jax
import numpy as np
import pytest
from etils import epath

import basisnet_jax
from basisnet_jax import runtime
from basisnet_jax.config import default, validate
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.of_run import evaluate_run
from basisnet_jax.experiment import network_files
from basisnet_jax.experiment.model import make_model
from basisnet_jax.experiment.network_files import NetworkFacts
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.export import checks, freeze, package, stablehlo
from basisnet_jax.export.folded import Network
from basisnet_jax.export.freeze import mean_coefficients, specialize_run
from basisnet_jax.inference import TwoStageClassifier, trained_run
from basisnet_jax.models import folding
from basisnet_jax.models.stages import normalize
from basisnet_jax.serving.exit_rule import NEVER, ExitRule
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.formats import FORMATS
from basisnet_jax.serving.manifest import Accuracy, Top1
from basisnet_jax.workdir.run_folder import open_run
from tests.conftest import EXPORTED_FORMATS, save_untrained


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def make_network(config, **changes) -> Network:
    """Untrained, with statistics and scales that fold into something."""
    config.model.update(changes)
    model = make_model(config.model, 10)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), train=False)
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        kind = path[-1].key
        return np.asarray(leaf + (rng.uniform(0.1, 1, leaf.shape) if kind in ("mean", "var", "scale", "bias") else 0))

    return Network(model, jax.tree_util.tree_map_with_path(drawn, variables), 0.0, 8, 1)


def apply(network, images, *arguments, **keywords):
    run = jax.jit(lambda variables, pixels: network.model.apply(variables, pixels, *arguments, train=False, **keywords))
    return run(network.variables, normalize(images))


def test_folding_leaves_no_norm_and_changes_no_answer(config, images):
    network = make_network(config, granularity="block", synthesize=("blocks", "head_conv", "classifier"))
    folded = dataclasses.replace(network, variables=folding.fold_batch_norm(network.model, network.variables))
    was, now = apply(network, images), apply(folded, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), was, now)
    for path, leaf in jax.tree_util.tree_leaves_with_path(folded.variables["batch_stats"]):
        one = np.float32(leaf) + np.float32(1e-3)
        assert (leaf == 0).all() if path[-1].key == "mean" else (one == 1).all(), "the norm still does something"


@pytest.mark.parametrize("groups", [1, 3])
def test_a_frozen_specialist_is_the_one_of_its_coefficients(config, images, groups):
    synthesize = ("blocks", "head_conv", "classifier")
    network = make_network(config, granularity="block", channel_groups=groups, synthesize=synthesize)
    shape = mean_coefficients(network, [images]).shape
    coefficients = np.random.default_rng(2).dirichlet(np.ones(shape[1]), shape[0]).astype(np.float32)
    model, variables = folding.freeze(network.model, network.variables, coefficients)
    assert not any("bases" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables))
    frozen = dataclasses.replace(network, model=model, variables=variables)
    for_all = np.broadcast_to(coefficients, (len(images), *shape))
    expected = apply(network, images, for_all, method="second_stage")
    np.testing.assert_allclose(apply(frozen, images).logits_BxK, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_specialist_travels_as_a_static_network(config, images):
    network = make_network(config)
    facts = NetworkFacts.of(
        validate(config).model, classes=list("0123456789"), side=8, channels=1, warm_start=network.warm_start
    )
    coefficients = np.full(mean_coefficients(network, [images]).shape, 0.25)
    here = freeze.frozen(dataclasses.replace(network, facts=facts), coefficients)
    files, logits = checks.convert_and_check(here, ("safetensors",), [images])
    _, model, variables = network_files.from_files(files.__getitem__)
    assert model.preview is None
    assert not any("bases" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables))
    np.testing.assert_array_equal(logits["safetensors"].specialist, logits["jax"].specialist)


def test_a_network_of_another_routing_is_one_file(config, images):
    """A batch that is full, and one that is not, of a file for two images at once."""
    network = dataclasses.replace(make_network(config, routing="condconv"), batch=2)
    files, logits = checks.convert_and_check(network, ("tflite",), [images])
    assert set(files) == {"specialist.tflite"}
    assert logits["tflite"].preview is None
    np.testing.assert_allclose(logits["tflite"].specialist, apply(network, images).logits_BxK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", ["preview", "condconv"])
def test_groups_of_channels_travel_in_every_format(config, images, routing):
    """For one image a phone's layers synthesize each group's channels; int8_weights in parts of its own.

    The preview's coefficients come from its pool.
    """
    config.model.update(routing=routing, channel_groups=3, num_bases=2, coefficients_from="pool")
    facts = NetworkFacts.of(validate(config).model, classes=list("0123456789"), side=8, channels=1, warm_start=0.0)
    network = dataclasses.replace(make_network(config), facts=facts)
    kinds = ("tflite", "float16.tflite", "int8_weights.tflite", "int8.tflite", "stablehlo", "safetensors")
    _, logits = checks.convert_and_check(network, kinds, [images])
    expected = apply(network, images).logits_BxK
    for kind, found in logits.items():
        tolerance = 0.05 if "int8" in kind or "float16" in kind else 1e-4
        np.testing.assert_allclose(found.specialist, expected, atol=tolerance * np.abs(expected).max(), err_msg=kind)


@pytest.mark.parametrize("place", ["classifier", "pool"])
def test_both_stages_in_one_file_leave_out_what_only_the_previews_prediction_needs(config, images, place):
    config.model.coefficients_from = place
    network = dataclasses.replace(make_network(config), batch=2)
    two, _ = checks.convert_and_check(network, ("tflite",), [images])
    one, logits = checks.convert_and_check(
        dataclasses.replace(network, early_exit=False), ("tflite", "stablehlo"), [images]
    )
    assert set(one) == {"specialist.tflite", "specialist.stablehlo"}
    for found in logits.values():
        assert found.preview is None
        np.testing.assert_allclose(found.specialist, apply(network, images).logits_BxK, rtol=1e-4, atol=1e-5)
    params = network.variables["params"]

    def has(file, stage, layer):
        return params[stage][layer]["bias"].tobytes() in file

    assert has(two["preview.tflite"], "preview", "classifier")
    assert has(two["preview.tflite"], "preview", "head_dense")
    assert not has(one["specialist.tflite"], "preview", "classifier")
    assert has(one["specialist.tflite"], "preview", "head_dense") == (place == "classifier")
    assert has(one["specialist.tflite"], "specialist", "classifier")


def test_an_export_without_early_exits_says_what_it_costs(trained, trained_config, images, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    trained_config.export.early_exit = False
    with pytest.raises(UserError, match=r"--threshold=0.5 is for a network whose preview can answer alone, .* leave"):
        package.export_run(trained_config, str(tmp_path), 0.5)
    printed = package.export_run(trained_config, str(tmp_path))
    assert "threshold" not in printed
    found = Export.open(str(tmp_path / "export")).manifest
    preview = make_model(trained_config.model, 10).preview
    assert found.outputs == {"specialist": ["logits"]}
    expected = TwoStageClassifier.from_checkpoint(str(trained), NEVER).classify(images)
    for open_export in (runtime.TwoStageClassifier.from_export, TwoStageClassifier.from_folder):
        answers = open_export(str(tmp_path / "export")).classify(images)
        np.testing.assert_array_equal(answers.labels, expected.labels)
        np.testing.assert_array_equal(answers.madds, expected.madds - 10 * preview.architecture.features)
        with pytest.raises(UserError, match=r"--threshold=0.5 is for a network whose preview can answer alone"):
            open_export(str(tmp_path / "export"), 0.5)


def test_a_file_that_answers_otherwise_is_not_written(config, images, monkeypatch):
    network = make_network(config, routing="static")
    convert = checks.convert

    def wrong(network, *arguments):
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: x * 1.01 if "stem" in str(path) else x, network.variables["params"]
        )
        return convert(dataclasses.replace(network, variables={**network.variables, "params": params}), *arguments)

    monkeypatch.setattr(checks, "convert", wrong)
    with pytest.raises(UserError, match=r"specialist.stablehlo, run by jax.export, is off by .*nothing was written"):
        checks.convert_and_check(network, ("stablehlo",), [images])


def test_an_export_says_what_it_is(exported, trained):
    folder, printed = exported
    assert "No threshold was chosen: run --mode=evaluate on this folder." in printed
    manifest = json.loads((folder / "manifest.json").read_text())
    answering = {FORMATS[name].file(stage, name) for stage in ("preview", "specialist") for name in EXPORTED_FORMATS}
    assert set(manifest["files"]) == answering | {"config.json"}
    for name, item in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert item["sha256"] == hashlib.sha256(content).hexdigest()
        assert item["bytes"] == len(content)
        assert (item["worst_relative_error"] or 0.0) <= checks.TOLERANCE
        assert (item["worst_relative_error"] is None) == (name == "config.json")
        assert name in printed
    results = json.loads((trained / "results.json").read_text())
    for name in ("jax", *EXPORTED_FORMATS):
        assert manifest["accuracy"]["top1"][name]["specialist"] == pytest.approx(results["eval"]["top1"])
        assert manifest["accuracy"]["top1"][name]["preview"] == pytest.approx(results["eval"]["preview_top1"])
    assert manifest["madds"] == results["madds"]
    assert (folder / "labels.txt").read_text().split() == list("0123456789")
    assert manifest["data"] == {"name": "digits", "train_split": "train"}
    assert manifest["input"]["exif_orientation"] == "applied; the image is turned upright first"
    card = (folder / "model_card.md").read_text()
    assert "8 x 8 x 1" in card
    assert f"JAX {jax.__version__} wrote" in manifest["expires"]["stablehlo"]
    assert manifest["expires"]["stablehlo"] in card


def test_stablehlo_takes_any_batch_on_every_platform(exported, trained, images):
    folder, _ = exported
    first, second = ((folder / f"{stage}.stablehlo").read_bytes() for stage in ("preview", "specialist"))
    assert jax.export.deserialize(bytearray(second)).platforms == stablehlo.PLATFORMS
    preview, specialist = stablehlo.load_stablehlo(first), stablehlo.load_stablehlo(second)
    classifier = TwoStageClassifier.from_checkpoint(str(trained), threshold=0.5)
    for count in (1, 3):
        logits, coefficients = preview(images[:count])
        expected = classifier.second_stage(images[:count], coefficients)
        np.testing.assert_allclose(specialist(images[:count], coefficients)[0], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(logits, classifier.first_stage(images[:count])[0], rtol=1e-3, atol=1e-4)


def test_the_runtime_answers_as_prediction_does(exported, trained, images):
    folder, _ = exported
    confidence = ExitRule().confidence(
        runtime.TwoStageClassifier.from_export(str(folder), threshold=0.0).first_stage(images)[0]
    )
    between = float(np.sort(confidence)[2:4].mean())
    for threshold in (0.0, between, NEVER):
        here = runtime.TwoStageClassifier.from_export(str(folder), threshold).classify(images)
        there = TwoStageClassifier.from_checkpoint(str(trained), threshold).classify(images)
        for name in ("labels", "exited_early", "madds"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        np.testing.assert_allclose(here.probabilities, there.probabilities, rtol=1e-3)
    assert all(len(x) == 0 for x in runtime.TwoStageClassifier.from_export(str(folder), 0.5).classify(images[:0]))


def test_an_export_is_evaluated_as_its_run_is(exported, trained_config, tmp_path):
    shutil.copytree(exported[0].parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / exported[0].name
    trained_config.eval.coefficients = ("uniform", "shuffle_images")
    of_run = evaluate_run(trained_config, str(tmp_path), jax.devices()[:1])
    of_files = evaluate_run(trained_config, str(folder))  # batches on 8 devices are the files' too
    for stage in ("specialist", "preview"):
        assert vars(getattr(of_files, stage)) == pytest.approx(vars(getattr(of_run, stage)), rel=1e-4, abs=1e-5)
    for name, found in of_run.ablations.items():
        assert vars(of_files.ablations[name]) == pytest.approx(vars(found), rel=1e-3, abs=1e-5)
    assert of_files.coefficients["wins"] == of_run.coefficients["wins"]
    for name in ("step", "count", "madds"):
        assert getattr(of_files, name) == getattr(of_run, name)
    assert sorted(x.name for x in (folder / "evaluation").iterdir()) == sorted(
        x.name for x in (tmp_path / "evaluation").iterdir()
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rule"] == of_files.early_termination.rule
    assert set(manifest["rule"]["provenance"]["files"]) == {"preview.tflite", "specialist.tflite"}
    assert "Chosen by max_accuracy_drop=0.003 with the moving averages" in (folder / "model_card.md").read_text()
    for classifier in (
        TwoStageClassifier.from_folder(str(folder)),
        runtime.TwoStageClassifier.from_export(str(folder)),
    ):
        assert vars(classifier.rule).items() <= manifest["rule"].items()
    assert TwoStageClassifier.from_folder(str(folder), 0.5).rule == ExitRule(threshold=0.5)


def test_an_export_that_cannot_be_evaluated_is_told(exported, trained_config, tmp_path, monkeypatch):
    folder, _ = exported
    fitting = trained_config.copy_and_resolve_references()
    trained_config.eval.resolution = 16
    with pytest.raises(UserError, match=r"config.eval.resolution = 16: must be 8, the side of the export's images"):
        evaluate_run(trained_config, str(folder))
    trained_config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match="another config"):
        evaluate_run(trained_config, str(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = manifest["files"]["specialist.tflite"]
    for files, message in (
        (["specialist.tflite"], "the specialist in .* has inputs .*coefficients.*but the manifest"),
        (["preview.onnx", "specialist.onnx"], "has no specialist.tflite; it has preview.onnx, specialist.onnx"),
    ):
        for name in ("specialist.tflite", "labels.txt"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": dict.fromkeys(files, facts)}))
        with pytest.raises(UserError, match=message):
            evaluate_run(fitting, str(tmp_path))
    frozen = dataclasses.replace(runtime.TwoStageClassifier.from_export(str(folder), 0.5), first_stage=None)
    monkeypatch.setattr(runtime.TwoStageClassifier, "from_export", lambda *_: frozen)
    with pytest.raises(UserError, match="has no file for the preview"):
        evaluate_run(fitting, str(folder))


def test_the_runtime_needs_numpy_and_litert_alone(exported, images, tmp_path):
    """In a process in which nothing else of what is installed here can be imported."""
    folder, _ = exported
    np.save(tmp_path / "pixels.npy", images)
    heavy = ("jax", "flax", "scipy", "tensorflow", "absl", "etils", "cv2", "optax", "ml_collections", "sklearn")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy})); from basisnet_jax import runtime; "
        "sys.exit(runtime.main(sys.argv[1:]))"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    done = run(folder, tmp_path / "pixels.npy", "--threshold=0.0")
    assert done.returncode == 0, done.stderr
    expected = runtime.TwoStageClassifier.from_export(str(folder), 0.0).classify(images)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(int(label), stage) for label, _, stage in lines] == [(x, "preview") for x in expected.labels]
    done = run(folder, tmp_path / "none.npy", "--threshold=0.0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.npy cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_without_its_packages_is_told():
    code = "import sys; sys.modules['absl'] = None; from basisnet_jax.main import run; run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr == "error: absl is not installed; run pip install 'basisnet_jax[train]'.\n"


def test_a_specialist_is_frozen_for_photographs(trained, trained_config, images, tmp_path):
    for number, image in enumerate(images):
        (tmp_path / str(number)).mkdir()
        cv2.imwrite(str(tmp_path / str(number) / "a.png"), image)
    trained_config.export.formats = ("stablehlo",)
    printed = specialize_run(trained_config, str(trained), f"{tmp_path}/*/*.png")
    assert "taking both stages' answers" not in printed
    folder = trained / "specialized"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"specialist.stablehlo"}
    assert manifest["madds"]["preview"] == manifest["madds"]["synthesis"] == 0
    classifier = TwoStageClassifier.from_checkpoint(str(trained), threshold=0.5)
    predicted = np.asarray(classifier.first_stage(images)[1])
    np.testing.assert_allclose(manifest["coefficients"], predicted.mean(axis=0), rtol=1e-3)
    mean = np.broadcast_to(np.float32(manifest["coefficients"]), predicted.shape)
    got = stablehlo.load_stablehlo((folder / "specialist.stablehlo").read_bytes())(images)[0]
    np.testing.assert_allclose(got, classifier.second_stage(images, mean), rtol=1e-3, atol=1e-4)
    right = np.asarray(got).argmax(-1) == np.arange(len(images))
    assert manifest["accuracy"]["top1"]["frozen here"]["specialist"] == pytest.approx(right.mean())

    (tmp_path / "unknown").mkdir()
    cv2.imwrite(str(tmp_path / "unknown" / "a.png"), images[0])
    assert "taking both stages' answers for true" in specialize_run(trained_config, str(trained), f"{tmp_path}/*/*")
    (tmp_path / "unknown" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b.png is not an image.*; 1 of 7 files of --specialize"):
        specialize_run(trained_config, str(trained), f"{tmp_path}/*/*")
    with pytest.raises(UserError, match="matches no files"):
        specialize_run(trained_config, str(trained), f"{tmp_path}/*.gif")


def test_images_of_a_place_may_be_those_of_the_data_set_with_a_feature(trained, trained_config):
    trained_config.data.eval_split = "test[:100]"
    opened = trained_run.open_trained(str(trained), trained_config)
    pixels, labels = freeze._images_with(opened, "label", "3")
    experiment = make_experiment(trained_config, jax.devices()[:1], training=False)
    batches = list(experiment.eval_batches())
    good = np.concatenate([batch["mask"] for batch in batches]) > 0
    images_of_all, labels_of_all = (np.concatenate([batch[x] for batch in batches])[good] for x in ("image", "label"))
    assert (labels == 3).all()
    np.testing.assert_array_equal(pixels, images_of_all[labels_of_all == 3])
    with pytest.raises(UserError, match="digits has no feature 'script' whose values have names; it has label"):
        freeze._images_with(opened, "script", "hangul")
    with pytest.raises(UserError, match="label = '12' is not one of 0, 1, 2, "):
        specialize_run(trained_config, str(trained), "label=12")


def test_an_exports_weights_open_as_their_run_does(exported, trained, trained_config):
    """So --specialize needs no run."""
    run = trained_run.open_trained(str(trained), trained_config)
    travelled = trained_run.open_trained(str(exported[0]))
    same = ("step", "data_name", "classes", "side", "channels", "warm_start_left")
    assert [getattr(travelled, x) for x in same] == [getattr(run, x) for x in same]
    jax.tree.map(np.testing.assert_array_equal, travelled.variables, run.variables)
    with pytest.raises(UserError, match="is an export; give the --workdir of a run, or freeze"):
        package.export_run(trained_config, str(exported[0]))


def test_a_file_that_its_runtime_refuses_is_told(config, images, monkeypatch):
    def refuse(content):
        raise RuntimeError("failed to create XNNPACK runtime\nNode number 69")

    monkeypatch.setattr(checks, "convert", lambda *_: {"specialist.int8.tflite": b""})
    monkeypatch.setitem(checks.LOADERS, "LiteRT", refuse)
    expected = (
        r"specialist.int8.tflite cannot be run by LiteRT \(failed to create XNNPACK runtime\); nothing was written"
    )
    with pytest.raises(UserError, match=expected):
        checks.convert_and_check(make_network(config, routing="static"), ("int8.tflite",), [images])


def test_numbers_that_are_not_finite_pass_no_tolerance(config, images, monkeypatch):
    """NaN is not more than a tolerance, and a quantized kind has none."""
    network = make_network(config, routing="static")
    nothing = np.full((5, 10), np.nan, np.float32)
    monkeypatch.setattr(checks, "convert", lambda *_: {})
    monkeypatch.setattr(checks, "by_files", lambda *_: lambda _: checks.Logits(None, nothing))
    for kind in ("tflite", "int8.tflite"):
        with pytest.raises(UserError, match=rf"specialist.{kind}, run by LiteRT, is off by nan .*nothing was written"):
            checks.convert_and_check(network, (kind,), [images])


def test_the_same_function_gives_the_same_bytes_from_any_folder(tmp_path):
    contents = []
    for lines, folder in enumerate((tmp_path / "a", tmp_path / "another")):
        folder.mkdir()
        (folder / "source.py").write_text("\n" * lines + "import jax.numpy as jnp\ndef f(x):\n  return jnp.sin(x)\n")
        spec = importlib.util.spec_from_file_location("source", folder / "source.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        contents.append(stablehlo.to_stablehlo(module.f, {"coefficients": (3,)}))
    assert contents[0] == contents[1]


def test_no_exported_file_says_on_which_machine_it_was_made(exported):
    folder, _ = exported
    run = json.loads((folder.parent / "config.json").read_text())
    assert run["data"]["dir"].startswith("/"), "the run's config has a path to hide"
    here = pathlib.Path(basisnet_jax.__file__).parent.parent
    for path in folder.iterdir():
        content = path.read_bytes()
        for private in (
            run["data"]["dir"],
            folder.parent,
            here,
            pathlib.Path.home(),
            sys.prefix,
            tempfile.gettempdir(),
        ):
            assert not re.search(re.escape(str(private)).encode() + rb"/", content), (path.name, private)


def test_the_run_beside_an_export_gives_its_folders_back(exported, tmp_path):
    folder, _ = exported
    assert open_run(str(folder), or_export=True)[1].data.dir.startswith("/")
    shutil.copytree(folder, tmp_path / "alone")
    assert open_run(str(tmp_path / "alone"), or_export=True)[1].data.dir == default().data.dir


def test_a_new_export_clears_what_the_old_one_left(exported, tmp_path):
    out = epath.Path(tmp_path / "export")
    shutil.copytree(exported[0], out)
    (out / "evaluation").mkdir()
    (out / "evaluation" / "results.json").write_text("{}")
    manifest = dataclasses.replace(Export.open(str(out)).manifest, files={})
    printed = package.write(out, {}, manifest, ["a", "b"], {}, shown="runs/digits/export")
    assert printed.endswith("\nruns/digits/export: the files, labels.txt, model_card.md, manifest.json")
    assert sorted(x.name for x in out.iterdir()) == ["labels.txt", "manifest.json", "model_card.md"]


def test_a_bfloat16_run_is_exported_in_float32_and_remains_that_run(config, exported, tmp_path):
    config.model.dtype = "bfloat16"
    run = tmp_path / "run"
    run.mkdir()
    save_untrained(config, run)
    opened, network = package.open_network(config, str(run))
    assert network.model.specialist.dtype == "float32"
    described = package.describe(opened, network, {}, {}, Accuracy("none", {"jax": Top1(0.5)}))
    assert (described.config["model"]["dtype"], described.computes_in) == ("bfloat16", "float32")
    folder = tmp_path / "export"
    shutil.copytree(exported[0], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "config": described.config}))
    assert TwoStageClassifier.from_folder(str(folder), 0.5, config).classes == tuple("0123456789")


def test_a_kind_that_loses_accuracy_is_warned_of():
    own = Top1(specialist=0.98, preview=0.96)
    kinds = {"tflite": own, "int8.tflite": Top1(specialist=0.762, preview=0.956)}
    assert list(package.lost_accuracy(own, kinds)) == [
        "specialist.int8.tflite loses 21.8 points of top-1: 0.7620, where the network has 0.9800"
    ]


def test_what_cannot_be_exported_is_told(config, trained, trained_config, monkeypatch):
    for formats in ((), ("onnx",), ("tflite", "coreml")):
        config.export.formats = formats
        with pytest.raises(
            UserError,
            match=r"config.export.formats = .*: (each must be one|must be one or more) of tflite, stablehlo, onnx",
        ):
            validate(config)
    config.export.update(formats=("safetensors",), early_exit=False)
    with pytest.raises(UserError, match=r"config.export.early_exit = False: is for files that run; leave 'safe"):
        validate(config)
    trained_config.export.formats = ("tflite", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with monkeypatch.context() as patch:
        patch.setattr(package, "open_network", None)  # it is told before anything is opened
        expected = (
            r"'onnx', for which .*onnxruntime must be installed; run pip install -e '\.\[onnx\]', or leave 'onnx' out"
        )
        with pytest.raises(UserError, match=expected):
            package.export_run(trained_config, str(trained))
        with pytest.raises(UserError, match=expected):
            specialize_run(trained_config, str(trained), "*")
