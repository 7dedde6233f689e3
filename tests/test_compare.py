"""Tables and plots of finished runs."""

import csv
import json
import re

import numpy as np
import pytest
from etils import epath

from basisnet_jax import compare
from basisnet_jax.errors import UserError
from basisnet_jax.workdir.results import FinalEvaluation
from tests.conftest import run_results


def finished(folder, seed, top1, routing="static", madds=100, split="test", data=(), classes=()):
    folder.mkdir()
    data = {"name": "digits", "dir": "", "eval_split": split, **dict(data)}
    config = {"seed": seed, "data": data, "model": {"routing": routing}}
    if classes:
        (folder / "data.json").write_text(json.dumps({"classes": classes}))
    run_results(
        config=config,
        train_seconds=10.0 * seed,
        eval=FinalEvaluation(count=500, top1=top1, top5=1.0, preview_top1=None, loss=0.1),
        madds={"total": madds},
    ).save(epath.Path(folder))
    return folder


def test_seeds_of_one_network_are_one_row(tmp_path, capsys, monkeypatch):
    top1 = [0.9, 0.94, 0.92]
    runs = [finished(tmp_path / f"net-{seed}", seed, x) for seed, x in enumerate(top1)]
    runs.append(finished(tmp_path / "other", 3, 0.5, routing="condconv", madds=50))
    monkeypatch.setattr("sys.argv", ["compare", *map(str, runs), f"--out={tmp_path / 'out'}"])
    compare.main()
    said = capsys.readouterr()
    *_, other, net = said.out.strip().splitlines()
    assert other == "| other | condconv | 0.5000 | 3 | 50 | 7 | 30 s |"
    assert net == f"| net | static | {np.mean(top1):.4f} ± {np.std(top1, ddof=1):.4f} | 0, 1, 2 | 100 | 7 | 10 s |"
    with open(tmp_path / "out" / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["other", "net"]
    np.testing.assert_allclose(float(rows[1]["spread"]), np.std(top1, ddof=1))
    assert rows[0]["spread"] == ""
    assert said.err == f"written: {tmp_path}/out/comparison.csv, {tmp_path}/out/comparison.png\n"
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_finished_run_or_the_same_run_again_is_named_and_left_out(tmp_path, capsys, monkeypatch):
    good, unfinished, damaged = finished(tmp_path / "good", 0, 0.9), tmp_path / "unfinished", tmp_path / "damaged"
    for folder, content in ((unfinished, ""), (damaged, '{"config": {}}')):
        folder.mkdir()
        (folder / "results.json").write_text(content)
    file = tmp_path / "comparison.csv"  # of a comparison before, where runs/* finds it
    file.write_text("")
    runs = [good, unfinished, damaged, file, f"{good}/"]
    monkeypatch.setattr("sys.argv", ["compare", *map(str, runs), f"--out={tmp_path / 'out'}"])
    compare.main()
    said = capsys.readouterr()
    assert said.out.splitlines()[2:] == ["| good | static | 0.9000 | 0 | 100 | 7 | 0 s |"]
    assert said.err.splitlines()[:-1] == [
        f"left out: {unfinished} has no results.json of a finished run",
        f"left out: {damaged} has no results.json of a finished run",
        f"left out: {file} is not a folder",
        f"left out: {good}/ is the same folder as {good}, and counts once",
    ]


@pytest.mark.parametrize(
    "change",
    [{"config": {"seed": 0}}, {"config": {"seed": 0, "data": [], "model": {}}}, {"madds": {}}],
    ids=["no data", "data is a list", "no total"],
)
def test_results_that_lack_what_a_row_needs_are_left_out(tmp_path, change):
    good, other = finished(tmp_path / "good", 0, 0.9), finished(tmp_path / "other", 1, 0.9)
    content = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps({**content, **change}))
    rows, left_out = compare.read([good, other])
    assert [row.name for row in rows] == ["good"]
    assert left_out == [f"{other} has no results.json of a finished run"]


def test_runs_that_do_not_compare_are_refused(tmp_path):
    good = finished(tmp_path / "good", 0, 0.9)
    (tmp_path / "unfinished").mkdir()
    for runs, sentence in (
        ([tmp_path / "unfinished"], "there is no finished run to compare: "),
        ([good, finished(tmp_path / "again", 0, 0.8)], "have a seed in common"),
        ([good, finished(tmp_path / "elsewhere", 1, 0.8, split="train")], "evaluated on different images"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            compare.read(runs)


def test_folders_of_images_are_told_apart_by_their_own_name_and_their_classes(tmp_path):
    """Where a folder lies does not matter: another machine has it elsewhere."""

    def run(name, seed, folder, classes=("bee", "cat")):
        return finished(tmp_path / name, seed, 0.9, data={"name": "folder", "dir": folder}, classes=classes)

    photos = [run("first", 0, "data/photos"), run("second", 1, "/mnt/photos/")]
    rows, _ = compare.read(photos)
    assert len(rows) == 2
    with pytest.raises(
        UserError, match=r"different images \(.*first on 500 images of photos test; .* of drawings test\)"
    ):
        compare.read([*photos, run("third", 2, "data/drawings")])
    with pytest.raises(UserError, match=r"different classes \(.*first has 2: bee, cat; .*fourth has 2: bee, dog\)"):
        compare.read([*photos, run("fourth", 2, "other/photos", classes=("bee", "dog"))])
