"""Tables and plots of finished runs."""

import csv
import json
import re

import numpy as np
import pytest

from basisnet_jax import compare
from basisnet_jax.errors import UserError


def finished(folder, seed, top1, routing="static", madds=100, split="test"):
    folder.mkdir()
    config = {"seed": seed, "data": {"name": "digits", "eval_split": split}, "model": {"routing": routing}}
    results = {
        "config": config,
        "eval": {"count": 500, "top1": top1},
        "madds": {"total": madds},
        "parameters": 7,
        "train_seconds": 10.0 * seed,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_seeds_of_one_network_are_one_row(tmp_path, capsys, monkeypatch):
    top1 = [0.9, 0.94, 0.92]
    runs = [finished(tmp_path / f"net-{seed}", seed, x) for seed, x in enumerate(top1)]
    runs.append(finished(tmp_path / "other", 3, 0.5, routing="condconv", madds=50))
    monkeypatch.setattr("sys.argv", ["compare", *map(str, runs), f"--out={tmp_path / 'out'}"])
    compare.main()
    *_, other, net = capsys.readouterr().out.strip().splitlines()
    assert other == "| other | condconv | 0.5000 | 3 | 50 | 7 | 30 s |"
    assert net == f"| net | static | {np.mean(top1):.4f} ± {np.std(top1, ddof=1):.4f} | 0, 1, 2 | 100 | 7 | 10 s |"
    with open(tmp_path / "out" / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["other", "net"]
    np.testing.assert_allclose(float(rows[1]["spread"]), np.std(top1, ddof=1))
    assert rows[0]["spread"] == ""
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_do_not_compare_are_refused(tmp_path):
    good = finished(tmp_path / "good", 0, 0.9)
    (tmp_path / "unfinished").mkdir()
    for other, sentence in (
        (tmp_path / "unfinished", "has no results.json that can be read"),
        (finished(tmp_path / "again", 0, 0.8), "have a seed in common"),
        (finished(tmp_path / "elsewhere", 1, 0.8, split="train"), "evaluated on different images"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            compare.read([good, other])
