"""Rules of the settings."""

import dataclasses
import importlib
import json
import pathlib

import pytest

from basisnet_jax import config as config_lib
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import plan as plan_lib
from basisnet_jax.settings.declare import as_json
from basisnet_jax.workdir import run_folder

CONFIGS = [path for path in sorted(pathlib.Path("configs").glob("*.py")) if path.stem != "recipes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_valid(path):
    config = importlib.import_module(f"configs.{path.stem}").get_config()
    config_lib.validate(config)
    plan = plan_lib.derive(config, train_examples=50_000, eval_examples=500, devices=8, processes=2)
    assert plan.total_steps > max(plan.warmup_steps, plan.warm_start_steps)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0.0),
        ("epochs", float("nan")),
        ("ema_decay", 1.0),
        ("batch_norm_momentum", 1.0),
        ("seed", -1),
        ("seed", 2**31),
        ("data.threads", 0),
        ("model.num_bases", 0),
        ("model.granularity", "kernel"),
        ("model.temperature", 0.0),
        ("model.warm_start", "none"),
        ("model.dtype", "float16"),
        ("model.synthesize", ("expand", "stem")),
        ("model.synthesize", ()),
        ("model.synthesize_from_block", 6),
        ("model.specialist.backbone", "resnet"),
        ("model.preview.width", -1.0),
        ("model.specialist.dropout", 1.0),
        ("loss.preview_weight", -0.1),
        ("eval.checkpoint", "latest"),
        ("eval.coefficients", ("predicted", "mean")),
        ("eval.max_accuracy_drop", -0.1),
        ("optimizer.name", "adam"),
        ("optimizer.learning_rate", 0.0),
        ("schedule.warmup_epochs", -1.0),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    config = config_lib.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert f"config.{field} = " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("model.num_base", "model.num_bases"),
        ("num_bases", "model.num_bases"),
        ("model.tpu_kernels", "model.pallas_kernels"),  # its name before
        ("zzz", ""),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(name, nearest):
    sentence = config_lib.nearest_field(name)
    assert f"did you mean config.{nearest}?" in sentence if nearest else "listed in" in sentence


def test_a_run_of_an_older_version_had_the_defaults_of_fields_that_it_lacks():
    config = config_lib.default()
    saved = json.loads(config.to_json())
    del saved["loss"]["label_smoothing"]
    run_folder.check_same_run(config, saved, "runs/old")
    config.loss.label_smoothing = 0.5
    with pytest.raises(UserError, match=r"loss.label_smoothing was 0.0 and is 0.5"):
        run_folder.check_same_run(config, saved, "runs/old")


def test_the_cache_of_the_teachers_logits_may_move_but_not_come_or_go():
    config = config_lib.default()
    config.distill.update(teacher="efficientnet_lite0", cache="here")
    saved = json.loads(config.to_json())
    config.distill.cache = "there"
    run_folder.check_same_run(config, saved, "runs/a")
    config.distill.cache = ""
    with pytest.raises(UserError, match=r"distill.cache was 'here' and is ''\); leave these settings as they were, or"):
        run_folder.check_same_run(config, saved, "runs/a")


def derive(config, devices=8, processes=1, **kwargs):
    sizes = {"train_examples": 1000, "eval_examples": 99}
    return plan_lib.derive(config, **sizes, devices=devices, processes=processes, **kwargs)


def test_epochs_become_steps():
    config = config_lib.default()
    config.update(batch_size=64, epochs=10.0, warm_start_epochs=2.0)
    plan = derive(config)
    assert (plan.total_steps, plan.warmup_steps, plan.warm_start_steps) == (156, 16, 31)
    due = [step for step in range(plan.total_steps + 1) if plan.due(step, 2.5)]
    assert due == [40, 79, 118, 156]
    # Warm-up and evaluation happen at the same share of the data whatever the batch.
    config.batch_size = 128
    assert derive(config).warmup_steps == 8


def test_batches_must_divide_over_devices():
    config = config_lib.default()
    config.batch_size = 1000
    with pytest.raises(UserError, match=r"config.batch_size = 1000: does not divide over 16 devices; use 992 or 1008"):
        derive(config, devices=16)
    config.batch_size = 4
    with pytest.raises(UserError, match=r"use 16\."):
        derive(config, devices=16)
    config.batch_size = 64
    config.mesh.fsdp = 3
    with pytest.raises(UserError, match=r"config.mesh.fsdp = 3: must divide"):
        derive(config)


@pytest.mark.parametrize("devices", [1, 3, 6, 8])
def test_an_evaluation_asks_for_no_training_batch_that_divides(devices):
    """A run of eight devices is evaluated on any number: its own batch is rounded up, and the rest is padding."""
    config = config_lib.default()
    config.update(batch_size=32, accumulate_steps=4, epochs=0.1)
    config.eval.batch_size = 32
    plan = derive(config, devices, training=False)
    assert plan.eval_batch_size % devices == 0
    assert 32 <= plan.eval_batch_size < 32 + devices
    if 32 % (4 * devices):
        with pytest.raises(UserError, match=r"does not divide over|must divide the"):
            derive(config, devices)


@pytest.mark.parametrize(("rule", "rate"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_learning_rate_follows_the_batch(rule, rate):
    config = config_lib.default()
    config.batch_size = 1024
    config.optimizer.update(learning_rate=0.1, scale_with_batch=rule, reference_batch=256)
    assert derive(config).learning_rate == pytest.approx(rate)


def test_pieces_must_divide_what_a_device_has():
    config = config_lib.default()
    config.update(batch_size=64, accumulate_steps=3)
    with pytest.raises(UserError, match=r"config.accumulate_steps = 3: must divide the 8 images"):
        derive(config)


def test_mixing_needs_pairs():
    config = config_lib.default()
    config.update(batch_size=36, accumulate_steps=4)
    config.loss.mix = "mixup"
    with pytest.raises(UserError, match=r"config.batch_size = 36: loss.mix pairs images; it must be a multip"):
        config_lib.validate(config)


def test_what_a_run_is_too_short_for_is_fitted_and_said():
    """A warm-up or warm start that would not end takes a tenth; averages have less to reach over than they could."""
    config = config_lib.default()
    config.update(batch_size=10, epochs=4.0, warm_start_epochs=10.0)
    config.schedule.warmup_epochs = 4.0
    config_lib.validate(config)
    plan = derive(config, devices=1)
    assert (plan.total_steps, plan.warmup_steps, plan.warm_start_steps) == (400, 40, 40)
    assert plan.notes == (
        "config.schedule.warmup_epochs = 4 and config.warm_start_epochs = 10 do not fit into config.epochs = 4; each "
        "is cut to a tenth of the run, 40 of 400 steps.",
        "config.ema_decay = 0.999 averages over 1,000 steps, but a run of 400 steps averages over its last 45.",
    )
    config.warm_start_epochs = 1.0
    assert derive(config, devices=1).notes[0].startswith("config.schedule.warmup_epochs = 4 does not fit into")
    config.update(epochs=15.0, ema_decay=0.99, warm_start_epochs=10.0)
    assert derive(config, devices=1).notes == ()
    # A single step has neither.
    config.update(epochs=0.001, ema_decay=0.0)
    plan = derive(config, devices=1)
    assert (plan.total_steps, plan.warmup_steps, plan.warm_start_steps) == (1, 0, 0)


def test_the_page_of_settings_is_of_these_settings():
    page = pathlib.Path("docs/reference/settings.md").read_text()
    assert page == config_lib.page(), "python -m basisnet_jax.config > docs/reference/settings.md"


def test_settings_are_typed_and_say_what_users_see():
    """The ConfigDict and the dataclasses hold the same values, and neither takes a misspelled name."""
    config = config_lib.default()
    config.update(batch_size=32, epochs=3)
    config.model.preview.width = 0.25
    config.eval.compare = ("runs/a", "runs/b")
    settings = config_lib.validate(config)
    assert (settings.batch_size, settings.epochs, settings.model.preview.width) == (32, 3.0, 0.25)
    assert settings.eval.compare == ("runs/a", "runs/b")
    assert settings.model.specialist.width == 1.0
    assert config_lib.validate(settings) is settings
    assert as_json(settings) == json.loads(config.to_json())
    for holder in (config, settings):
        with pytest.raises(AttributeError):
            holder.batchsize  # noqa: B018
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.batch_size = 1
    assert set(config_lib.DECLARED) == set(config_lib.flatten(config_lib.default()))
    assert "data.threads" in config_lib.MAY_CHANGE_ON_RESUME
    assert "model.num_bases" not in config_lib.MAY_CHANGE_ON_RESUME
