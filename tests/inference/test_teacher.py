"""Teachers, live and cached, and runs that start from trained weights."""

import functools
import json
import re

import cv2
import jax
import numpy as np
import pytest

from basisnet_jax.data import datasets, teacher_logits
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.experiment.teacher import load_teacher
from basisnet_jax.experiment.trained import load_trained, starting_weights
from basisnet_jax.inference import cache_teacher
from basisnet_jax.models.stages import normalize
from basisnet_jax.training.losses import Distillation
from basisnet_jax.workdir.checkpoint import Checkpoints

RNG = np.random.default_rng(0)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, variables, images):
    """Of both stages; the coefficients are uniform."""
    outputs = model.apply(variables, images, train=False, warm_start=1.0)
    return outputs.logits_BxK, outputs.preview_logits_BxK


def softmax(logits):
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@pytest.mark.parametrize(("hard", "temperature"), [(False, 1.0), (False, 3.0), (True, 3.0)])
def test_distillation_is_its_formula(hard, temperature):
    student, taught = RNG.normal(size=(2, 6, 5)).astype(np.float32) * 3
    label_loss = RNG.random(6).astype(np.float32)
    distillation = Distillation(weight=0.3, temperature=temperature, hard=hard)
    targets = distillation.targets(taught.astype(np.float16))
    got = distillation.loss(student, label_loss, targets)
    for b in range(6):
        t = 1.0 if hard else temperature
        p = np.eye(5)[taught[b].argmax()] if hard else softmax(taught[b] / t)
        q = softmax(student[b] / t)
        divergence = sum(p[k] * np.log(p[k] / q[k]) for k in range(5) if p[k])
        np.testing.assert_allclose(got[b], 0.7 * label_loss[b] + 0.3 * t**2 * divergence, rtol=2e-3)


def save_run(config, workdir):
    """What a run leaves that others read, without its training: random weights teach as well as any."""
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json())
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, make_experiment(config).init_state(), {})
        checkpoints.record(1, {"top1": 0.5})
    return str(workdir)


@pytest.fixture
def plain(config):
    """Nothing random between the data and the network, so that what a teacher sees is known."""
    config.data.max_shift = 0
    config.warm_start_epochs = 0.0
    config.model.specialist.dropout = config.model.preview.dropout = 0.0
    config.optimizer.update(name="sgd", learning_rate=0.05)
    return config


@pytest.fixture
def taught(plain, tmp_path):
    """A config with a static teacher at a resolution of its own, of other weights than the student's."""
    other = plain.copy_and_resolve_references()
    other.model.routing, other.seed = "static", 7
    other.model.specialist.resolution = 10
    plain.distill.update(teacher=save_run(other, tmp_path / "teacher"), weight=0.4, temperature=2.0)
    return plain


def one_step(config, devices=1):
    experiment = make_experiment(config, jax.devices()[:devices])
    batch = next(experiment.train_batches(0))
    state = experiment.init_state()
    return experiment.train_step()(state, batch, experiment.schedule, experiment.teacher_variables())


def test_a_teacher_in_the_step_is_its_network_beside_it(taught):
    """The loss by hand, from both networks' logits; the same on eight devices, and in two pieces each with its own."""
    taught.loss.label_smoothing = 0.0
    experiment = make_experiment(taught, jax.devices()[:1])
    batch, state = next(experiment.train_batches(0)), experiment.init_state()
    _, metrics = one_step(taught)
    images = normalize(batch["image"])
    network = load_trained(taught.distill.teacher)
    larger = jax.image.resize(images, (16, 10, 10, 1), "bilinear")
    wanted = softmax(np.asarray(logits_of(network.model, network.variables, larger)[0]) / 2.0)
    run = jax.jit(lambda variables: experiment.model.apply(variables, images, train=True, mutable=["batch_stats"])[0])
    outputs = run(state.variables(ema=False))
    loss = 0.0
    for logits in map(np.asarray, (outputs.logits_BxK, outputs.preview_logits_BxK)):
        label = -np.log(softmax(logits)[np.arange(16), batch["label"]])
        divergence = np.sum(wanted * np.log(wanted / softmax(logits / 2.0)), axis=-1)
        loss += np.mean(0.6 * label + 0.4 * 4.0 * divergence)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    assert float(metrics["teacher_top1"]) == pytest.approx(np.mean(wanted.argmax(-1) == batch["label"]))
    _, sharded = one_step(taught, devices=8)
    np.testing.assert_allclose(sharded["loss"], metrics["loss"], rtol=2e-5)
    taught.accumulate_steps = 2
    _, in_pieces = one_step(taught)
    np.testing.assert_allclose(in_pieces["teacher_top1"], metrics["teacher_top1"], rtol=1e-5)


def test_a_cache_is_the_teacher_and_goes_on_where_it_was_stopped(plain, tmp_path, monkeypatch):
    """At the student's resolution and without augmentation both ways to a teacher's logits are one."""
    other = plain.copy_and_resolve_references()
    other.seed = 7
    plain.distill.update(teacher=save_run(other, tmp_path / "teacher"), temperature=2.0)
    live_state, live = one_step(plain)
    plain.distill.cache = str(tmp_path / "cache")
    monkeypatch.setattr(teacher_logits, "EXAMPLES_A_FILE", 500)
    with pytest.raises(UserError, match=r"holds 0 of 3 files of teacher logits; make the others .* --mode=teacher"):
        make_experiment(plain)

    write, written = teacher_logits.write_file, []

    def write_one(path, logits):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, logits)

    monkeypatch.setattr(teacher_logits, "write_file", write_one)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher.cache_logits(plain)
    with pytest.raises(UserError, match="holds 1 of 3 files"):
        make_experiment(plain)
    monkeypatch.setattr(teacher_logits, "write_file", write)
    assert "for 1297 training examples; its top-1 on the 797 computed now is 0." in cache_teacher.cache_logits(plain)
    assert cache_teacher.cache_logits(plain).endswith("1297 training examples")

    cached_state, cached = one_step(plain)
    np.testing.assert_allclose(cached["loss"], live["loss"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(cached_state.params), jax.tree.leaves(live_state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    plain.data.train_split = "train[:1200]"
    for read in (make_experiment, cache_teacher.cache_logits):
        with pytest.raises(UserError, match=r"logits in .* have data .*, train, 1297 examples.*, not .*1200"):
            read(plain)
    plain.data.train_split, other.seed = "train", 8
    plain.distill.teacher = save_run(other, tmp_path / "other")
    with pytest.raises(UserError, match=r"logits in .* have teacher"):
        make_experiment(plain)


def test_a_bad_example_leaves_the_others_their_logits(config, tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(9):
                image = RNG.integers(0, 256, (12, 12, 3), np.uint8)
                cv2.imwrite(str(tmp_path / "photos" / split / name / f"{number}.png"), image)
    (tmp_path / "photos/train/a/3.png").write_bytes(b"no image")
    config.data.update(name="folder", dir=str(tmp_path / "photos"), train_split="train", eval_split="val")
    config.update(epochs=2.0)
    config.distill.update(teacher=save_run(config, tmp_path / "teacher"), cache=str(tmp_path / "cache"))
    assert "on the 17 computed now" in cache_teacher.cache_logits(config)
    source = make_experiment(config).data.train
    logits = np.stack([example["teacher_logits"] for example in source.__getitems__(range(18))])
    trained = load_trained(config.distill.teacher)
    encoded = [example["image"] for example in source.__getitems__(range(18))]
    pixels = [cv2.imdecode(np.frombuffer(x, np.uint8), cv2.IMREAD_COLOR_RGB) for x in encoded]
    small = np.stack([np.zeros((8, 8, 3), np.uint8) if x is None else cv2.resize(x, (8, 8)) for x in pixels])
    assert [index for index, x in enumerate(pixels) if x is None] == [3]
    expected = jax.jit(lambda v, x: trained.model.apply(v, x, train=False).logits_BxK)(
        trained.variables, normalize(small)
    )
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)


def start(config, images):
    """The parameters that a run begins with, and the logits that they give with uniform coefficients."""
    experiment = make_experiment(config, jax.devices()[:1])
    state = experiment.init_state()
    variables = state.variables(ema=True)
    return state.params.tree(), *logits_of(experiment.model, variables, images)


def test_a_run_starts_from_a_static_one_or_from_its_like(plain, tmp_path):
    """With uniform coefficients, the bases of one kernel are that kernel; a BasisNet gives all it has."""
    images = RNG.uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    static = plain.copy_and_resolve_references()
    static.model.routing, static.seed = "static", 7
    static_run = save_run(static, tmp_path / "static")
    _, expected, _ = start(static, images)
    plain.model.specialist.start_from = plain.model.preview.start_from = static_run
    params, logits, preview_logits = start(plain, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    bases = np.asarray(params["specialist"]["block00"]["expand"]["bases"])
    assert 0.001 < np.std(bases - bases.mean(0)) / bases.std() < 0.1
    small = jax.image.resize(images, (3, 6, 6, 1), "bilinear")
    np.testing.assert_allclose(preview_logits, start(static, small)[1], rtol=1e-4, atol=1e-5)

    again = plain.copy_and_resolve_references()
    again.seed = 3
    again.model.specialist.start_from = again.model.preview.start_from = save_run(plain, tmp_path / "basisnet")
    copied, _, _ = start(again, images)
    for a, b in zip(jax.tree.leaves(copied), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # programs of two seeds may round differently
    plain.model.preview.width = 2.0
    with pytest.raises(UserError) as error:
        starting_weights("preview", plain.model.preview)
    assert str(error.value) == (
        f"config.model.preview.start_from = '{static_run}' has the weights of tiny 1 wide, but the preview is 2 wide; "
        "take --config.model.preview.width=1, or other weights."
    )


def test_sources_that_do_not_fit_are_answered_with_a_sentence(config, tmp_path):
    config.model.specialist.start_from = str(tmp_path)
    with pytest.raises(UserError, match=r"is neither a network with published weights \(.*\) nor the workdir of a run"):
        make_experiment(config).init_state()
    config.model.specialist.start_from = ""
    config.distill.teacher = "efficientnet_lite9"
    with pytest.raises(UserError, match="'efficientnet_lite9' is neither a network with published weights"):
        make_experiment(config)
    make_experiment(config, training=False)  # an evaluation asks for no teacher
    (tmp_path / "config.json").write_text("[1]")
    config.distill.teacher = str(tmp_path)
    with pytest.raises(UserError, match=r"the workdir of a run with a readable config.json"):
        make_experiment(config)
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "checkpoints").mkdir()
    config.distill.teacher = str(tmp_path)
    with pytest.raises(UserError, match="has no usable checkpoint"):
        make_experiment(config)
    config.distill.update(teacher="", cache="x")
    with pytest.raises(UserError, match=re.escape("config.distill.cache = 'x': needs config.distill.teacher")):
        make_experiment(config)


def test_a_teacher_must_know_the_same_images_and_classes(config, tmp_path):
    config.distill.teacher = save_run(config, tmp_path / "teacher")
    rgb = datasets.Dataset([], [], classes=tuple("0123456789"), channels=3, identity="", name="digits")
    with pytest.raises(UserError, match=r"has 10 classes and images with 1 channels, but 'digits' has 10 and 3"):
        load_teacher(config, rgb)
