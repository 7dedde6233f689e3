"""Steps and runs: the same on 1 and 8 devices, today and after a stop."""

import dataclasses
import json
import os
import re
import signal
import sys
import types

import jax
import ml_collections
import numpy as np
import pytest
from etils import epath

from basisnet_jax.config import validate
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.of_run import evaluate_run
from basisnet_jax.evaluation.whole_split import evaluate
from basisnet_jax.experiment import cost_table
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.export import checks, package
from basisnet_jax.host import trackers
from basisnet_jax.loop import train, training_loop
from basisnet_jax.loop.run_stats import RunStats
from basisnet_jax.models.stages import normalize
from basisnet_jax.training import step
from basisnet_jax.training.joined import whole
from basisnet_jax.workdir import checkpoint, integrity
from basisnet_jax.workdir.events import read_events
from basisnet_jax.workdir.results import RunResults
from tests.conftest import run_results
from tests.host.test_trackers import fake_tracker


def run_steps(config, devices, steps, fsdp=1):
    config.mesh.fsdp = fsdp
    experiment = make_experiment(config, jax.devices()[:devices])
    state, step, batches, losses = experiment.init_state(), experiment.train_step(), experiment.train_batches(0), []
    for _ in range(steps):
        state, metrics = step(state, next(batches), experiment.schedule, None)
        losses.append(float(metrics["loss"]))
    return experiment, state, losses


def test_a_preset_of_xla_changes_the_program_not_the_run(config):
    """On a CPU, GPU's options change nothing; a name that XLA does not know would be an error."""
    expected = run_steps(config, 1, 2)[2]
    config.mesh.xla_preset = "gpu"
    assert run_steps(config, 1, 2)[2] == expected


def test_one_device_equals_eight(config):
    """Dropout, augmentation, batch norm over the global batch, evaluation: nothing depends on the mesh."""
    config.model.specialist.dropout = 0.2
    config.warm_start_epochs = 0.0
    # Not Adam: it blows up the rounding of a gradient that is zero in theory, such as of a bias before a batch norm.
    config.optimizer.update(name="sgd", learning_rate=0.05)
    experiment, state, losses = run_steps(config, 1, 5)
    expected = evaluate(experiment, experiment.eval_step(), state)
    initial = make_experiment(config, jax.devices()[:1]).init_state()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params.tree(), initial.params.tree())
    assert min(jax.tree.leaves(moved["specialist"])) > 0, "every parameter must be trained"
    for fsdp in (1, 2):
        sharded_experiment, sharded, sharded_losses = run_steps(config, 8, 5, fsdp)
        np.testing.assert_allclose(sharded_losses, losses, rtol=2e-5)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(whole(state.params)),
            jax.tree.leaves(whole(sharded.params)),
            strict=True,
        ):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))
        got = evaluate(sharded_experiment, sharded_experiment.eval_step(), sharded)
        assert got["count"] == expected["count"] == 37
        assert got["top1"] == expected["top1"]
        np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-4)


def test_fsdp_shards_parameters(config, monkeypatch):
    monkeypatch.setattr("basisnet_jax.host.mesh.SMALLEST_SHARDED", 128)
    config.mesh.fsdp = 4
    state = make_experiment(config).init_state()
    bases = state.params.tree()["specialist"]["block01"]["project"]["bases"]  # 4 x 24 x 16
    assert bases.addressable_shards[0].data.shape == (4, 6, 16)
    moments = state.opt_state[1][0].mu.tree()["specialist"]["block01"]["project"]["bases"]
    assert moments.addressable_shards[0].data.shape == (4, 6, 16)
    assert state.step.sharding.is_fully_replicated


def test_a_checkpoint_of_eight_devices_goes_on_on_other_meshes(config, tmp_path, monkeypatch):
    """The same numbers, split as the new mesh has them, and the next batch; that a step is then the same is above."""
    monkeypatch.setattr("basisnet_jax.host.mesh.SMALLEST_SHARDED", 128)
    config.mesh.fsdp = 4
    old = make_experiment(config)
    state, batch = dataclasses.replace(old.init_state(), step=jax.numpy.int32(5)), next(old.train_batches(5))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {})
    for devices, fsdp in ((1, 1), (2, 2), (8, 1)):
        config.mesh.fsdp = fsdp
        new = make_experiment(config, jax.devices()[:devices])
        with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
            restored, _ = checkpoints.restore(5, new.abstract_state)
        for got, expected, wanted in zip(*map(jax.tree.leaves, (restored, state, new.abstract_state)), strict=True):
            np.testing.assert_array_equal(got, expected)
            assert got.sharding == wanted.sharding
        np.testing.assert_equal(*map(jax.device_get, (next(new.train_batches(int(restored.step))), batch)))


@pytest.mark.parametrize("what", ["train", "eval"])
def test_no_convolution_has_groups_that_grow_with_the_batch(config, what):
    """One group an image gives wrong values when the batch is sharded, and is slow when it is not."""
    groups = {}
    for batch in (16, 32):
        config.batch_size = config.eval.batch_size = batch
        experiment = make_experiment(config)
        batches = experiment.train_batches(0) if what == "train" else experiment.eval_batches()
        step = experiment.train_step() if what == "train" else experiment.eval_step()
        images = next(batches)
        if what == "train":
            traced = step.trace(experiment.abstract_state, images, experiment.schedule, None)
        else:
            traced = step.trace(experiment.abstract_variables, np.float32(0.0), images)
        optimized = traced.lower().compile().as_text()
        for_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert "convolution" in optimized
        assert "convolution" in for_tpu
        groups[batch] = sorted(re.findall(r"(?:feature|batch)_group_count ?= ?\d+", optimized + for_tpu))
        assert groups[batch], "the static depthwise layers have as many groups as channels on a TPU"
    assert groups[16] == groups[32]


def test_every_image_of_a_sharded_batch_is_right(config):
    """The network on eight devices against one image at a time on one."""
    config.batch_size = config.eval.batch_size = 16
    one, eight = make_experiment(config, jax.devices()[:1]), make_experiment(config)
    state, batch = one.init_state(), next(eight.eval_batches())
    variables = jax.device_get(state.variables(ema=False))
    together = jax.jit(lambda v, x: eight.model.apply(v, x, train=False))(variables, batch["image"] / 255.0)
    single = jax.jit(lambda v, x: one.model.apply(v, x, train=False))
    for index, image in enumerate(np.asarray(batch["image"])):
        alone = single(variables, image[None] / np.float32(255))
        np.testing.assert_allclose(together.logits_BxK[index], alone.logits_BxK[0], rtol=1e-4, atol=1e-5)


def leaves(workdir, config):
    with checkpoint.Checkpoints(workdir / "checkpoints", 2) as checkpoints:
        state, _ = checkpoints.restore(checkpoints.latest_step(), make_experiment(config).abstract_state)
    return jax.tree.leaves(jax.device_get(state))


def test_stop_and_resume_equals_going_straight_through(config, tmp_path, monkeypatch):
    """Bit for bit: parameters, statistics, averages, optimizer, and the figures of the result.

    The first life ends by a signal, the second in its first evaluation, as if it were killed there: the step is saved.
    """
    straight = train.train(config, str(tmp_path / "straight"))
    tracked = {}
    monkeypatch.setitem(trackers.TRACKERS, "json", fake_tracker(tracked))
    config.log.trackers = ("json",)
    take, stopped_at = train.RunStats.add, []

    class KilledError(Exception):
        pass

    def add_and_stop(self, metrics):
        take(self, metrics)
        if not stopped_at and self.summed_steps == 2:
            stopped_at.append(self.summed_steps)
            os.kill(os.getpid(), signal.SIGINT)

    def die(*_):
        raise KilledError

    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(train.RunStats, "add", add_and_stop)
        assert train.train(config, str(workdir)) is None
        patch.setattr(training_loop, "evaluate", die)
        with pytest.raises(KilledError):
            train.train(config, str(workdir))
    assert not (workdir / "results.json").exists()
    assert stopped_at
    newest = integrity.checkpoint_folders(epath.Path(workdir / "checkpoints"))[-1]
    assert newest.name == "9", "saved before it is evaluated"
    assert integrity.damage(newest) is None
    resumed = train.train(config, str(workdir))
    assert resumed is not None
    assert straight is not None
    assert resumed.eval == straight.eval
    for got, expected in zip(leaves(workdir, config), leaves(tmp_path / "straight", config), strict=True):
        np.testing.assert_array_equal(got, expected)
    kept = [sorted((tmp_path / name / "checkpoints").glob("*/evaluation.json")) for name in ("stopped", "straight")]
    assert [path.parent.name for path in kept[0]] == [path.parent.name for path in kept[1]]
    assert [path.read_text() for path in kept[0]] == [path.read_text() for path in kept[1]]
    # The curves too: each line of training metrics is there once, with the value that it would have had.
    curves = [read_events(tmp_path / name / "events") for name in ("stopped", "straight")]
    assert curves[0] == curves[1]
    assert sorted(curves[0]["train/loss"]) == [3, 6, 9, 12, 15, 16]
    assert sorted(curves[0]["eval/top1"]) == [9, 16]
    # A tracker has one run of all three lives, with the same curves, the settings once, and the files.
    (run,) = tracked.values()
    for name, curve in curves[0].items():
        assert run.series(name) == pytest.approx(curve, rel=1e-6), name
    assert [fields["model.num_bases"] for fields in run.configs] == [4]
    assert set(run.files) == {"config.json", "results.json", "curves.png"}
    assert run.ends == [False, False, True]


def test_a_finished_run_says_so_and_what_it_reached(config, trained_config, trained, monkeypatch, capsys):
    monkeypatch.setattr(train, "make_experiment", lambda *_: pytest.fail("nothing is opened, and nothing compiled"))
    results = train.train(trained_config, str(trained))
    assert dataclasses.asdict(results) == json.loads((trained / "results.json").read_text())
    told = capsys.readouterr().out
    assert f"{trained}: this run has already finished, at step 16" in told
    assert f"--config.model.specialist.start_from={trained}" in told
    trained_config.epochs = 1.0
    with pytest.raises(UserError, match=r"epochs was 0.2 and is 1.0\); leave .* or give another .*start_from="):
        train.train(trained_config, str(trained))


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_run_that_is_refused_before_its_first_step_leaves_nothing_behind(config, trained, tmp_path, monkeypatch):
    """Whether its folder was not there, empty, or held something: the mended config finds it as it was."""
    workdirs = [tmp_path / "runs" / "new", tmp_path / "empty", tmp_path / "counted"]
    workdirs[1].mkdir()
    workdirs[2].mkdir()
    (workdirs[2] / "cost.json").write_text("{}")
    before = everything(tmp_path)

    def refused(words):
        for workdir in workdirs:
            with pytest.raises(UserError, match=words):
                train.train(config, str(workdir))
            assert everything(tmp_path) == before

    config.model.specialist.start_from = "runs/nowhere"
    refused("'runs/nowhere' is neither a network")
    config.model.specialist.update(start_from=str(trained), width=2.0)
    refused("has the weights of tiny 1 wide, but the specialist is 2 wide")
    config.model.specialist.update(start_from="", width=1.0)
    config.data.name = "mnist"
    refused("is not prepared")
    config.data.name = "digits"
    config.batch_size = 12
    refused("does not divide over 8 devices")
    config.batch_size = 16

    def bad_image(self, start_step):
        raise UserError("every image is bad")
        yield

    monkeypatch.setattr("basisnet_jax.experiment.run.Experiment.train_batches", bad_image)
    refused("every image is bad")


def test_a_teacher_whose_weights_have_changed_is_refused(config, tmp_path):
    """By the fingerprint of its weights, as its name may be that of a folder in which training went on."""
    data = types.SimpleNamespace(facts=lambda: {"channels": 1})
    experiment = types.SimpleNamespace(config=validate(config), data=data)
    for fingerprint in (None, "first", "first"):  # a run without one, then one that begins and one that is resumed
        experiment.teacher_fingerprint = fingerprint
        train._write_start(experiment, epath.Path(tmp_path))
    config.distill.teacher = "runs/teacher"
    experiment.config, experiment.teacher_fingerprint = validate(config), "second"
    with pytest.raises(
        UserError, match=r"config.distill.teacher = 'runs/teacher' has other weights than when the run in"
    ):
        train._write_start(experiment, epath.Path(tmp_path))
    assert json.loads((tmp_path / "data.json").read_text()) == {"channels": 1, "teacher": "first"}


def test_a_resumed_run_must_have_the_data_that_it_began_with(config, tmp_path):
    """Other data has another order, so examples would be lost or repeated; before a checkpoint nothing was read."""
    experiment = types.SimpleNamespace(config=validate(config), teacher_fingerprint=None)

    def start(identity):
        experiment.data = types.SimpleNamespace(facts=lambda: {"identity": identity})
        train._write_start(experiment, epath.Path(tmp_path))

    start("12 files")
    start("13 files")
    checkpoint = tmp_path / "checkpoints" / "3"
    checkpoint.mkdir(parents=True)
    start("13 files")
    with pytest.raises(
        UserError, match=r"not those that the run in .* was started with \(then 13 files; now 14 files\)"
    ):
        start("14 files")
    (tmp_path / "data.json").write_text("{}")  # of an older version
    start("14 files")


def test_a_run_that_died_after_its_first_step_keeps_its_folder(config, tmp_path, monkeypatch):
    def die(self, metrics):
        raise UserError("a step later")

    monkeypatch.setattr(train.RunStats, "add", die)
    with pytest.raises(UserError, match="a step later"):
        train.train(config, str(tmp_path / "run"))
    assert (tmp_path / "run" / "config.json").exists()


def test_stats_of_another_version_is_read():
    """Unknown fields are left out, and missing ones have their defaults."""
    saved = {**dataclasses.asdict(RunStats(train_seconds=3.0, sums={"loss": 1.0})), "renamed": 7}
    del saved["skipped_steps"]
    assert RunStats.from_saved(saved) == RunStats(train_seconds=3.0, sums={"loss": 1.0})


def test_a_run_whose_first_step_was_its_only_one_is_summed_up():
    """It has no speed: the first step of each process is not timed."""
    assert run_results(step=1, train_seconds=2.0).summary().endswith("1 steps in 2 s")


def test_a_signal_in_compilation_or_in_mid_save_stops_the_run_as_any_other(config, tmp_path, monkeypatch):
    """SIGTERM while the training step is traced, then from the thread that writes a checkpoint."""
    make_train_step, write_checksums = step.make_train_step, integrity.write_checksums

    def make_and_stop(*arguments):
        train_step = make_train_step(*arguments)

        def traced(*given):
            signal.raise_signal(signal.SIGTERM)
            return train_step(*given)

        return traced

    def write_and_stop(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # whoever passes signals on may do so twice
        write_checksums(folder)

    for name, function, patched in (
        ("make_train_step", step, make_and_stop),
        ("write_checksums", integrity, write_and_stop),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(function, name, patched)
            assert train.train(config, str(tmp_path)) is None
        steps = integrity.checkpoint_folders(epath.Path(tmp_path / "checkpoints"))
        assert all(integrity.damage(folder) is None for folder in steps)
        assert (name == "make_train_step") == ([folder.name for folder in steps] == ["1"])
    assert int(steps[-1].name) < 16
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_leaves_what_the_readme_says(config, tmp_path):
    config.profile_steps = 2
    results = train.train(config, str(tmp_path))
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == dataclasses.asdict(results)
    assert results == RunResults.load(epath.Path(tmp_path))
    assert set(written) == {
        *("config", "step", "train_seconds", "images_per_second", "input_wait_share"),
        *("skipped_steps", "recompilations"),
        *("eval", "madds", "parameters", "versions"),
    }
    assert set(written["eval"]) == {"count", "top1", "top5", "preview_top1", "loss"}
    assert results.eval.count == 37
    assert results.skipped_steps == results.recompilations == 0
    assert results.config == json.loads((tmp_path / "config.json").read_text())
    assert sum(results.madds[x] for x in ("preview", "synthesis", "specialist")) == results.madds["total"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
    assert tags(tmp_path / "events") == {
        *(f"train/{x}" for x in ("loss", "top1", "top5", "preview_top1", "learning_rate", "gradient_norm")),
        *("train/coefficient_entropy", "eval/coefficient_entropy"),
        *(f"eval/{x}" for x in ("loss", "top1", "top5", "preview_top1")),
        *(f"run/{x}" for x in ("images_per_second", "input_wait_share", "skipped_steps", "recompilations")),
        *("config", "_hparams_/session_start_info"),
    }
    assert list((tmp_path / "events").glob("plugins/profile/*/*.xplane.pb")), "the profiler's trace"
    assert 0 <= results.input_wait_share <= 1
    with checkpoint.Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.steps()[-1] == results.step == 16


def tags(folder):
    """Of all that TensorBoard shows of a run."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {*events.Tags()["tensors"], *events.PluginTagToContent("hparams")}


def test_a_static_network_trains_by_the_same_step(config, tmp_path):
    config.model.routing = "static"
    results = train.train(config, str(tmp_path))
    assert results.eval.preview_top1 is None
    assert results.madds["preview"] == results.madds["synthesis"] == 0


def test_another_configs_run_is_refused_and_left_alone(config, tmp_path):
    def written():
        files = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in files}

    train.train(config, str(tmp_path))
    before = written()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer.learning_rate was 0.001 and is 0.5"):
        train.train(config, str(tmp_path))
    assert before == written()


def test_the_newest_and_the_best_checkpoints_are_kept(config, tmp_path):
    experiment = make_experiment(config, jax.devices()[:1])
    state = experiment.init_state()
    # Each run of the loop is a process of its own: what is best must be known from the files.
    for run in (((1, None), (2, 0.3)), ((3, 0.9), (4, None)), ((5, 0.5), (6, None), (7, 0.4))):
        with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
            for step, top1 in run:
                checkpoints.save(step, state, {"train_seconds": float(step)})
                if top1 is not None:
                    checkpoints.record(step, {"top1": top1})
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == [3, 6, 7]
        assert checkpoints.best_step() == 3
        _, account = checkpoints.restore(3, experiment.abstract_state)
        assert account == {"train_seconds": 3.0}
        for like in (None, experiment.abstract_variables):
            for ema in (True, False):
                variables = checkpoints.restore_variables(3, ema=ema, like=like)
                jax.tree.map(np.testing.assert_array_equal, variables, state.variables(ema=ema))


def test_averages_and_weight_decay_follow_their_formulas(config):
    """One SGD step by hand: decay on kernels and bases alone, and averages without their initial values."""
    config.optimizer.update(name="sgd", momentum=0.0, weight_decay=0.1, learning_rate=0.5)
    config.schedule.update(name="exponential", warmup_epochs=0.0)
    config.warm_start_epochs = 0.0
    experiment = make_experiment(config, jax.devices()[:1])
    before = jax.device_get(experiment.init_state())
    batch = next(experiment.train_batches(0))
    after, _ = experiment.train_step()(experiment.init_state(), batch, experiment.schedule, None)
    without = ml_collections.ConfigDict(config)
    without.optimizer.weight_decay = 0.0
    undecaying = make_experiment(without, jax.devices()[:1])
    plain, _ = undecaying.train_step()(undecaying.init_state(), batch, undecaying.schedule, None)
    leaves = zip(
        *(jax.tree.leaves(s.params.tree()) for s in (before, after, plain)),
        jax.tree.leaves(after.ema_params.tree()),
        strict=True,
    )
    for old, new, undecayed, average in leaves:
        expected = -0.5 * 0.1 * old if old.ndim > 1 else np.zeros_like(old)
        np.testing.assert_allclose(new - undecayed, expected, atol=1e-6)
        np.testing.assert_allclose(average, new, rtol=1e-6, atol=1e-7)  # two fusions compute the new value
    jax.tree.map(np.testing.assert_array_equal, after.ema_batch_stats, after.batch_stats)


def test_running_statistics_are_averages_of_the_batches_alone(config):
    """By hand over four steps, one of them skipped, in two pieces: nothing is left of the initial 0 and 1."""
    config.optimizer.update(name="sgd", learning_rate=1e-20)  # so that each batch sees the same network
    config.model.specialist.dropout = config.model.preview.dropout = 0.0
    config.warm_start_epochs = 0.0
    config.accumulate_steps, config.batch_norm_momentum = 2, 0.15
    experiment = make_experiment(config, jax.devices()[:1])
    state, train_step, batches = experiment.init_state(), experiment.train_step(), experiment.train_batches(0)
    variables = jax.device_get(state.variables(ema=False))

    @jax.jit
    def statistics(image):
        return experiment.model.apply(variables, normalize(image), train=True, mutable=["batch_stats"])[1]

    expected, expected_average = None, None
    # At step t the old average keeps t / (9 + t), or the momentum if that is less.
    for number, (share, ema_share) in enumerate(((0, 0), (0.1, 0.1), (None, None), (0.15, 0.25))):
        batch = next(batches)
        image = np.array(batch["image"], np.float32)
        if share is None:
            image[3] = np.nan
        state, metrics = train_step(state, {**batch, "image": image}, experiment.schedule, None)
        assert metrics["skipped"] == (share is None), number
        if share is None:
            continue
        pieces = [statistics(image[piece::2])["batch_stats"] for piece in range(2)]
        newest = jax.tree.map(lambda *x: np.mean(x, axis=0), *pieces)
        if expected is None:
            expected = expected_average = newest
        expected = jax.tree.map(lambda old, new, share=share: share * old + (1 - share) * new, expected, newest)
        expected_average = jax.tree.map(
            lambda old, new, share=ema_share: share * old + (1 - share) * new, expected_average, expected
        )
    for got, wanted in ((state.batch_stats, expected), (state.ema_batch_stats, expected_average)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got.tree(), wanted)


def test_a_short_run_evaluates_as_it_trained(config, tmp_path):
    """Two epochs: batch norm's statistics and the averages know nothing of how they began."""
    config.epochs = config.eval_every_epochs = config.checkpoint.every_epochs = 2.0
    config.batch_size, config.warm_start_epochs, config.schedule.warmup_epochs = 64, 0.5, 0.5
    config.optimizer.learning_rate = 0.03
    config.data.max_shift = 0
    results = train.train(config, str(tmp_path))
    trained = read_events(tmp_path / "events")["train/top1"]
    assert results.eval.top1 > max(trained.values()) - 0.15


def test_accumulation_is_the_mean_over_pieces(config):
    """The update of a batch in two pieces is the mean of each piece's own; on eight devices as on one."""
    config.optimizer.update(name="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    config.schedule.warmup_epochs = 0.0
    config.model.specialist.dropout = config.model.preview.dropout = 0.0
    one = make_experiment(config, jax.devices()[:1])
    batch = jax.device_get(next(one.train_batches(0)))
    piece_step = one.train_step()
    pieces = [
        piece_step(one.init_state(), {k: v[i::2] for k, v in batch.items()}, one.schedule, None) for i in range(2)
    ]
    config.accumulate_steps = 2
    for devices in (1, 8):
        accumulating = make_experiment(config, jax.devices()[:devices])
        state, metrics = accumulating.train_step()(accumulating.init_state(), batch, one.schedule, None)
        trees = (state.params, *(piece.params for piece, _ in pieces))
        for mean, first, second in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-4, atol=1e-5)
        for name in ("loss", "top1", "preview_top1"):
            np.testing.assert_allclose(metrics[name], np.mean([m[name] for _, m in pieces]), rtol=1e-5)


def test_pieces_with_the_same_batch_statistics_are_accumulated_to_the_step_of_the_whole_batch(config):
    """So batch norm and dropout alone tell accumulation from a whole batch: each piece holds the same images here."""
    config.optimizer.update(name="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    config.schedule.warmup_epochs = 0.0
    config.model.specialist.dropout = config.model.preview.dropout = 0.0
    one = make_experiment(config, jax.devices()[:1])
    batch = jax.device_get(next(one.train_batches(0)))
    repeated = {name: np.repeat(array[: len(array) // 4], 4, axis=0) for name, array in batch.items()}
    expected, expected_metrics = one.train_step()(one.init_state(), repeated, one.schedule, None)
    config.accumulate_steps = 4
    accumulating = make_experiment(config, jax.devices()[:4])
    state, metrics = accumulating.train_step()(accumulating.init_state(), repeated, one.schedule, None)
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    for got, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_mixing_reaches_the_loss(config):
    losses = []
    for name in ("none", "cutmix"):
        config.loss.mix = name
        experiment = make_experiment(config, jax.devices()[:1])
        batch = next(experiment.train_batches(0))
        _, metrics = experiment.train_step()(experiment.init_state(), batch, experiment.schedule, None)
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_every_setting_is_read(config, tmp_path, monkeypatch):
    """A setting that nothing reads but its rule is a promise that is not kept."""
    config.data.eval_crop = "central"
    settings = validate(config)
    kinds = {type(settings), *map(type, vars(settings).values()), type(settings.model.specialist)}
    kinds = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    read = set()

    def noting(self, name):
        if sys._getframe(1).f_globals["__name__"] != "dataclasses":  # which reads all to copy them
            read.add((type(self), name))
        return object.__getattribute__(self, name)

    for kind in kinds:
        monkeypatch.setattr(kind, "__getattribute__", noting)
    train.train(settings, str(tmp_path))
    evaluate_run(settings, str(tmp_path))

    def unconverted(network, formats, images, *_):
        logits = checks.joined(list(map(checks.by_jax(network), images)))
        return {}, dict.fromkeys(("jax", *formats), logits)

    monkeypatch.setattr(package, "convert_and_check", unconverted)
    package.export_run(settings, str(tmp_path))
    dynamic = dataclasses.replace(settings.model, routing="dynamic")  # which reads what the preview does not
    cost_table.cost(dataclasses.replace(settings, model=dynamic), str(tmp_path))
    monkeypatch.undo()
    unread = [
        (kind.__name__, field.name)
        for kind in kinds
        for field in dataclasses.fields(kind)
        if (kind, field.name) not in read
    ]
    assert not unread, "delete these settings or read them"


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(config, tmp_path):
    config.optimizer.update(name="sgd", learning_rate=1e30)
    config.max_skipped_steps = 2
    with pytest.raises(UserError, match=r"numbers that are not finite|is no longer finite after step"):
        train.train(config, str(tmp_path))
