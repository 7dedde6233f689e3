"""benchmarks/: study.py, which runs a study, keeps what came of it and draws it; and what the studies' data is."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation import early_exit, output_files
from basisnet_jax.evaluation.coefficients import CoefficientSums
from basisnet_jax.evaluation.report_data import Answers
from basisnet_jax.experiment.model import make_model, model_cost
from basisnet_jax.serving import exit_curve
from basisnet_jax.training.metrics import is_correct
from benchmarks import study, study_results, timing, turned
from benchmarks.coefficients_by_group import by_group
from benchmarks.studies import FOLDER, Study, load, path_of

STUDIES = {name: load(path_of(name)) for name in ("fashion_mnist", "fashion_mnist_turned", "glyphs", "glyphs_long")}


@pytest.mark.parametrize("name", STUDIES)
def test_rows_are_valid_and_a_rate_is_never_chosen_on_a_reported_split(name, tmp_path):
    for row in STUDIES[name].rows:
        for rate in ("", "4e-3"):
            settings = study.settings_of(study.Run(STUDIES[name], row, 1, rate, tmp_path, tmp_path))
            assert settings.seed == 1
            assert not rate or settings.optimizer.learning_rate == 4e-3
            assert not rate or settings.data.eval_split not in STUDIES[name].reported
        if name.startswith("fashion_mnist") and row != "teacher":
            total = model_cost(make_model(settings.model, 10), 28, 1).total
            assert total == pytest.approx(1_449_320, rel=0.02), "every row spends what the static network does"
    with pytest.raises(UserError, match="would choose learning rates on 'test', which it reports on"):
        Study(rows={}, reported=("test",), sweep={"data.eval_split": "test"})


def test_every_study_is_tested_and_an_unknown_one_is_a_sentence():
    assert set(STUDIES) == {path.stem for path in FOLDER.glob("[!_]*.py")}
    with pytest.raises(UserError, match="there is no study 'mnist'; give a file, or one of fashion_mnist, "):
        path_of("mnist")


def test_the_long_study_of_the_glyphs_trains_every_network_as_long_as_its_config_does():
    study_of = {name: STUDIES[name] for name in ("glyphs", "glyphs_long")}
    assert {*study_of["glyphs"].rows} - {*study_of["glyphs_long"].rows} == {
        "basisnet_n8_short_warm_start_0.5",
        "basisnet_n8_long_warm_start_0.5",
    }
    for row, (_, config, _) in study_of["glyphs_long"].rows.items():
        short, long = (study.settings_of(study.Run(x, row, 1, "", Path(), Path())) for x in study_of.values())
        own = importlib.import_module(f"configs.{config}").get_config()
        assert (long.epochs, long.warm_start_epochs, long.schedule.warmup_epochs) == (
            own.epochs,
            own.warm_start_epochs,
            own.schedule.warmup_epochs,
        )
        assert (short.model, short.optimizer) == (long.model, long.optimizer)


def test_a_preview_that_never_answers_costs_no_classifier():
    counted = study.without_exits(STUDIES["glyphs"], ["basisnet_n8_0.5", "static_0.6", "a row of old"])
    assert counted == {"basisnet_n8_0.5": 1_038_792 - 128 * 1_104, "static_0.6": 1_047_552}


def test_the_table_of_some_rows_has_the_ratios_of_the_whole_table():
    results = study_results.read(FOLDER / "glyphs")
    start = "| basisnet_n8_0.5 | BasisNet"
    whole, some = (
        study_results.tables(STUDIES["glyphs"], results, rows, {"basisnet_n8_0.5": 900_000})
        for rows in (list(STUDIES["glyphs"].rows), ["basisnet_n8_0.5"])
    )
    lines = [line for line in whole.splitlines() if line.startswith(start)]
    assert lines == [line for line in some.splitlines() if line.startswith(start)]
    assert all(re.search(r"\| 0\.\d\d \| 0\.\d\d \|$", line) for line in lines), "a ratio, and one without exits"
    assert len(lines) == 2
    assert "static_0.6" not in some


# What stands for basisnet_jax.main in these tests: it writes what a run and its evaluation leave, with made-up figures.
FAKE = """
import csv, json, pathlib, sys
flags = dict(x.lstrip("-").split("=", 1) for x in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "log").open("a") as log:
    log.write(flags["mode"] + "\\n")
(workdir / "fails").exists() and sys.exit(3)
two = "basisnet" in workdir.name
madds = {"preview": 100 * two, "synthesis": 0, "specialist": 1000, "total": 1000 + 100 * two}
if flags["mode"] == "train":
    rate = float(flags.get("config.optimizer.learning_rate", 0.1))
    results = {"step": 10, "train_seconds": 1.26, "images_per_second": None, "parameters": 7, "madds": madds}
    results |= {"config": {"optimizer": {"learning_rate": rate}}, "versions": {"jax": "0", "python": "3", "clu": "1"}}
    results |= {"eval": {"count": 4, "top1": rate, "loss": 1.0}}
    (workdir / "results.json").write_text(json.dumps(results))
else:
    out = workdir / "evaluation"
    out.mkdir(exist_ok=True)
    seed = int(workdir.name[-1])
    best = {"criterion": "margin", "temperature": 2.0, "mean_top1_gain": 0.0}
    results = {"count": 8, "specialist": {"top1": 0.8 + seed / 10}, "preview": {"top1": 0.5} if two else None}
    results |= {"reported_half": {"count": 4, "top1": 0.8}, "early_termination": {"best": best} if two else None}
    results |= {"coefficients": {"class_share": {"all": 0.5}}}
    (out / "results.json").write_text(json.dumps(results))
    (out / "classes.csv").write_text("class,count,specialist,preview\\na,1,1.0,\\nb,3,0.5,\\nc,0,,\\n")
    with (out / "early_termination.csv").open("w") as table:
        writer = csv.writer(table)
        writer.writerow(["criterion", "temperature", "threshold", "exit_rate", "top1", "madds"])
        for criterion in ("entropy", "margin"):
            for x in range(101):
                writer.writerow([criterion, "2", 0, x / 100, 0.8 - x / 1000, madds["total"] - 10 * x])
"""
TINY = """
from benchmarks.studies import Study
STUDY = Study(
    rows={
        "static_1": ("static", "digits_static", {}),
        "basisnet_1": ("BasisNet", "digits", {"model.synthesize": ("expand", "project")}),
    },
    seeds=(0, 1),
    reported=("test", "other"),
    sweep={"data.eval_split": "held_out"},
    group_of=lambda: {"a": "vowels", "b": "others", "c": "none"},
)
"""


@pytest.fixture
def run_study(tmp_path, monkeypatch, capsys):
    """run_study('run', ...) calls study.py with a study of two rows, whose commands are FAKE; returns code, output."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(study, "MAIN", [sys.executable, str(tmp_path / "fake.py")])

    def call(*arguments):
        argv = ["study.py", str(tmp_path / "tiny.py"), *arguments, f"--out={tmp_path / 'runs'}"]
        monkeypatch.setattr(sys, "argv", argv)
        code = study.main()
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def logs(folder):
    return {path.parent.name: path.read_text().split() for path in folder.glob("runs/*/log")}


def test_a_study_from_its_file_to_its_table_and_plot(run_study, tmp_path):
    code, said = run_study("run", "--part=1/2")
    assert (code, set(logs(tmp_path))) == (0, {"static_1-0", "static_1-1"})
    code, said = run_study("run")
    names = ("static_1-0", "static_1-1", "basisnet_1-0", "basisnet_1-1")
    assert logs(tmp_path) == {name: ["train", "evaluate", "evaluate"] for name in names}
    assert "| static_1 | static | 1,000 | 2 | 0.8500 ± 0.0707 |" in said
    # At 68% of the multiply-adds 36 images of 100 exit, (1,100 - 748) / 1,000; each of them loses 0.1 points.
    assert "| basisnet_1 | 0.7500 ± 0.0000 | 3.60 ± 0.00 |" in said
    assert "| vowels | 1 | 1.0000 ± 0.0000 | 1.0000 ± 0.0000 |" in said
    assert "none" not in said, "a group without images has no line"
    assert "static_1" not in run_study("table", "basisnet_1")[1]
    result = json.loads((tmp_path / "tiny" / "basisnet_1-1.json").read_text())
    assert (result["row"], result["seed"], result["madds"]["total"]) == ("basisnet_1", 1, 1100)
    assert result["overrides"] == {"model.synthesize": ["expand", "project"]}
    assert len(result["reported"]["test"]["early_exit"]["top1"]) == 101
    assert (tmp_path / "tiny" / "basisnet_1-1.json").stat().st_size < 10_000
    assert run_study("plot")[0] == 0
    assert (tmp_path / "tiny" / "test.png").stat().st_size > 10_000


def test_what_is_finished_is_not_run_again_even_without_its_workdir(run_study, tmp_path):
    workdir = tmp_path / "runs" / "static_1-0"
    workdir.mkdir(parents=True)
    (workdir / "fails").touch()
    code, said = run_study("run", "static_1", "--seeds", "0")
    assert code == 1
    assert "static_1-0 did not finish" in said
    (workdir / "fails").unlink()
    assert run_study("run", "static_1", "--seeds", "0")[0] == 0
    assert logs(tmp_path)["static_1-0"] == ["train", "train", "evaluate", "evaluate"]
    (tmp_path / "tiny" / "static_1-0.json").unlink()
    run_study("run", "static_1", "--seeds", "0")
    assert logs(tmp_path)["static_1-0"][4:] == ["evaluate", "evaluate"], "it was trained already"
    (tmp_path / "runs" / "static_1-0" / "log").unlink()
    run_study("run", "static_1", "--seeds", "0")
    assert not (tmp_path / "runs" / "static_1-0" / "log").exists()


def test_a_result_of_other_settings_is_refused(run_study, tmp_path):
    run_study("run", "static_1", "--seeds", "0")
    (tmp_path / "tiny.py").write_text(TINY.replace('"digits_static", {}', '"digits_static", {"epochs": 3.0}'))
    code, said = run_study("run", "static_1", "--seeds", "0")
    assert code == 2
    assert "static_1-0.json is of a run with another epochs than the study has; delete the file" in said


def test_rates_are_chosen_on_held_out_images_and_are_not_in_the_table(run_study, tmp_path):
    code, said = run_study("run", "basisnet_1", "--seeds", "0", "--rates", "4e-1", "8e-1")
    assert code == 0
    assert "| top-1 on `held_out` | 0.4 | 0.8 |\n|---|---|---|\n| basisnet_1 | 0.4000 | 0.8000 |" in said
    assert "Top-1 on `test`" not in said
    assert logs(tmp_path)["basisnet_1-rate4e-1-0"] == ["train"]
    commands = run_study("commands", "basisnet_1", "--seeds", "0", "--rates", "4e-1")[1]
    assert "--config.data.eval_split=held_out" in commands
    assert "--mode=evaluate" not in commands


def test_only_settings_that_may_change_come_from_the_command_line(run_study):
    code, said = run_study("run", "--config.epochs=3")
    assert code == 2
    assert "'--config.epochs=3' is no setting that a resumed run may change" in said
    code, said = run_study("commands", "static_1", "--seeds", "0", "--config.data.dir=DATA")
    assert said.count("--config.data.dir=DATA") == 3


def test_two_processes_share_a_study(run_study, tmp_path):
    """Both start at the first run, and each run is one's alone."""
    script = f"""
import sys
from benchmarks import study
study.MAIN = [sys.executable, {str(tmp_path / "fake.py")!r}]
sys.exit(study.main())
"""
    argv = [sys.executable, "-c", script, str(tmp_path / "tiny.py"), "run", f"--out={tmp_path / 'runs'}"]
    processes = [subprocess.Popen(argv, cwd=study.ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert list(logs(tmp_path).values()) == [["train", "evaluate", "evaluate"]] * 4


def test_a_run_that_another_process_has_is_left_to_it(run_study, tmp_path):
    (tmp_path / "runs").mkdir()
    with study.filelock.FileLock(tmp_path / "runs" / "static_1-0.lock"):
        assert run_study("run", "--seeds", "0")[0] == 0
    assert set(logs(tmp_path)) == {"basisnet_1-0"}


def test_an_array_job_has_a_task_for_each_missing_run(run_study, tmp_path):
    run_study("run", "static_1", "--seeds", "0")
    job = run_study("slurm")[1]
    assert "#SBATCH --array=2,3,4\n" in job
    assert job.endswith('--part="$SLURM_ARRAY_TASK_ID/4"\n')
    assert subprocess.run(["bash", "-n", "-c", job]).returncode == 0


def test_multiply_adds_of_a_static_network_of_the_same_accuracy():
    """Half way from .6 to .8 lies the geometric mean of 100 and 400; the dip at 800 changes nothing."""
    curve = [(400.0, 0.8), (100.0, 0.6), (800.0, 0.7), (1600.0, 0.9)]
    assert study_results.madds_of_same_top1(curve, 0.7) == pytest.approx(200)
    assert study_results.madds_of_same_top1(curve, 0.8) == pytest.approx(400)
    assert study_results.madds_of_same_top1(curve, 0.8 + 1e-9) == pytest.approx(800 * 2 ** (0.1 / 0.2), rel=1e-6)
    assert study_results.madds_of_same_top1(curve, 0.91) is None
    assert study_results.madds_of_same_top1(curve, 0.59) is None
    assert study_results.madds_of_same_top1([], 0.7) is None


def test_what_exits_lose_is_read_off_the_table(config, tmp_path):
    """With 100 images a half, a percent is an image, and the table has every threshold."""
    rng, cost = np.random.default_rng(0), model_cost(make_model(config.model, 5), 8, 1)
    labels = rng.integers(0, 5, 200).astype(np.int32)
    right = 2 * np.eye(5)[labels]
    logits, preview = (right + rng.normal(size=(200, 5)) * scale for scale in (1, 2))
    candidates = early_exit.candidates(preview, labels, *(is_correct(x, labels) for x in (preview, logits)), cost)
    (tmp_path / "early_termination.csv").write_text(output_files.exit_table(candidates))
    margin = candidates[4]
    best = {"criterion": "margin", "temperature": margin.temperature}
    results = {"count": 200, "specialist": {"top1": 0.9}, "preview": {"top1": 0.8}, "reported_half": {"top1": 0.9}}
    results |= {"early_termination": {"best": best}, "coefficients": {"class_share": {"all": 0.5}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    facts = study_results.evaluation_facts(tmp_path, None)
    run = {"row": "x", "what": "x", "madds": cost.madds(), "train": {}, "reported": {"test": facts}}
    network = study_results.Network([run], "test")
    for share in study_results.SHARES:
        index = exit_curve.at_most_madds(margin.chosen_on, share * cost.total, "config.eval.madds_target")
        madds, top1 = (values[network.percent_at(share)] for values in network.exits())
        assert top1 == pytest.approx(margin.reported_on.top1[index], abs=1e-5)
        assert madds == pytest.approx(margin.reported_on.madds[index], abs=0.5)
        assert top1 != facts["early_exit"]["top1"][0]


def test_top1_of_each_class_is_counted():
    labels = np.array([0, 0, 2], np.int32)
    answers = {
        stage: Answers(np.array(answer), is_correct(np.eye(3)[answer], labels))
        for stage, answer in (("specialist", [0, 1, 2]), ("preview", [1, 1, 2]))
    }
    assert output_files.class_table(["a", "b,c", "d"], labels, answers).splitlines() == [
        "class,count,specialist,preview",
        "a,2,0.5,0",
        '"b,c",0,,',
        "d,1,1,1",
    ]


def test_one_round_has_quartiles():
    assert timing.quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert timing.quartiles([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)


def test_rotations_are_classes_of_their_own(config, tmp_path, monkeypatch):
    """Read as a run reads it, with nothing of the builder's code at hand: each image four times, in order."""
    upright = datasets.open_dataset("digits", config.data.dir, "train[:40]", "test[:12]")
    monkeypatch.setattr(turned, "PIECE", 16)
    builder = turned.FashionMnistTurned(upright, data_dir=str(tmp_path))
    builder.download_and_prepare()
    made = datasets.open_dataset("fashion_mnist_turned", str(tmp_path), "train", "test")
    assert (len(made.train), len(made.eval), made.num_classes, made.channels) == (160, 48, 40, 1)
    assert made.classes[7] == "1 turned by 270"

    def image(example):
        return cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)

    for source, of in ((made.train, upright.train), (made.eval, upright.eval)):
        examples, originals = source.__getitems__(range(len(source))), of.__getitems__(range(len(of)))
        mirrored = 0
        for index, example in enumerate(examples):
            original = originals[index // 4]
            assert example["label"] == 4 * original["label"] + index % 4
            back = np.rot90(image(example), -(index % 4))
            mirrored += not np.array_equal(back, image(original))
            np.testing.assert_array_equal(np.rot90(image(examples[index // 4 * 4]), index % 4), image(example))
            assert np.array_equal(back, image(original)) or np.array_equal(back, image(original)[:, ::-1])
        assert (0 < mirrored < 160) if of is upright.train else mirrored == 0
    held_out = datasets.open_dataset("fashion_mnist_turned", str(tmp_path), "train[120:]", "test").train
    assert held_out.__getitems__([0])[0]["image"] == made.train.__getitems__([120])[0]["image"]


def test_coefficients_of_a_group_are_the_mean_over_its_images():
    rng = np.random.default_rng(0)
    labels, coefficients = rng.integers(0, 5, 60), rng.random((60, 3, 4))
    sums = CoefficientSums.zero(5, 3, 4)
    sums.add(coefficients, labels, labels)
    names, grouped = by_group(sums, ["b", "a", "b", "a", "c"])
    assert names == ["a", "b", "c"]
    for name, mean in zip(names, grouped.means()["by_class"], strict=True):
        members = [label for label, group in enumerate("babac") if group == name]
        np.testing.assert_allclose(mean, coefficients[np.isin(labels, members)].mean(axis=0))
