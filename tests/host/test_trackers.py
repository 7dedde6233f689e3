"""Trackers: one tracked run for all lives of a run, and a tracker that fails stops nothing."""

import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import trackers


def fake_tracker(runs: dict):
    """A tracker that keeps in `runs` what it is told, by the id of its run."""

    class Fake(trackers.Tracker):
        def __init__(self, project, folder, run_id):
            self.run_id = run_id or f"{project}-{len(runs)}"
            runs.setdefault(self.run_id, self)
            kept = runs[self.run_id].__dict__
            for name, empty in {"scalars": [], "configs": [], "files": {}, "ends": []}.items():
                kept.setdefault(name, empty)
            self.__dict__.update(kept)

        def series(self, name):
            return {step: values[name] for step, values in self.scalars if name in values}

        def log_config(self, fields):
            self.configs.append(fields)

        def log_scalars(self, step, scalars):
            self.scalars.append((step, dict(scalars)))

        def log_file(self, name, content):
            self.files[name] = content

        def end(self, finished):
            self.ends.append(finished)

    return Fake


@pytest.fixture
def fake(monkeypatch):
    """A tracker under the name of a module that is installed."""
    runs: dict = {}
    monkeypatch.setitem(trackers.TRACKERS, "json", fake_tracker(runs))
    return runs


def test_a_tracked_run_goes_on_where_it_was(fake, tmp_path):
    folder = epath.Path(tmp_path)
    with trackers.opened(["json"], "project", folder) as tracked:
        tracked.write_scalars(1, {"train/loss": 2.0})
    with pytest.raises(ZeroDivisionError), trackers.opened(["json"], "project", folder) as tracked:
        raise ZeroDivisionError
    (folder / "results.json").write_text("{}")
    with trackers.opened(["json"], "project", folder) as tracked:
        tracked.write_scalars(2, {"train/loss": 1.0})
        tracked.log_files(folder / "results.json")
    assert json.loads((folder / "trackers.json").read_text()) == {"json": "project-0"}
    (run,) = fake.values()
    assert run.series("train/loss") == {1: 2.0, 2: 1.0}
    assert run.files == {"results.json": b"{}"}
    assert run.ends == [False, False, True]


def test_a_tracker_that_fails_gets_no_more(fake, tmp_path, caplog, monkeypatch):
    class FailingError(Exception):
        pass

    def fail(*_):
        raise FailingError("no route to the server\nand more")

    with trackers.opened(["json"], "project", epath.Path(tmp_path)) as tracked:
        monkeypatch.setattr(tracked.trackers["json"], "log_scalars", fail)
        tracked.write_scalars(1, {"train/loss": 2.0})
        tracked.write_scalars(2, {"train/loss": 2.0})
        assert not tracked.trackers
    assert caplog.text.count("json failed (no route to the server), and gets no more of this run") == 1
    with monkeypatch.context() as patch:
        patch.setitem(trackers.TRACKERS, "json", fail)
        with pytest.raises(
            UserError, match=r"has 'json', which cannot be opened \(no route to the server\); mend that"
        ):
            trackers.opened(["json"], "project", epath.Path(tmp_path)).__enter__()


def test_a_package_that_is_missing_is_told():
    with pytest.raises(UserError, match=r"has 'no_such', which is not installed; run pip install -e '.\[trackers\]'"):
        trackers.check_installed(["json", "no_such"])


def log_two_lives(name: str, folder: epath.Path) -> str:
    """Logs a run that stops after a step and is resumed, as training does; returns the tracked run's id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "accuracy.png").write_bytes(b"a plot")
    for life in (1, 2):
        with trackers.opened([name], "basisnet-tests", folder) as tracked:
            for step in (life, life + 1):  # step 2 is repeated
                tracked.write_scalars(step, {"train/loss": 1.0 / step, "eval/top1": 0.25 * life})
            tracked.write_hparams({"model.num_bases": 4, "many": "x" * 300, **{f"field{n}": n for n in range(120)}})
            if life == 2:
                (folder / "results.json").write_text('{"step": 3}')
                tracked.log_files(folder / "results.json", folder / "evaluation" / "accuracy.png")
            assert tracked.trackers, "the tracker failed: see the warning"
    return json.loads((folder / "trackers.json").read_text())[name]


@contextlib.contextmanager
def mlflow_server(folder: pathlib.Path):
    """A real server on this machine; yields its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    store = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *store], stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)


@pytest.mark.skipif(not importlib.util.find_spec("flask_cors"), reason="pip install mlflow: its server")
def test_mlflow_has_a_run_on_a_real_server(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    with mlflow_server(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        run_id = log_two_lives("mlflow", epath.Path(tmp_path) / "run")
        client = mlflow.MlflowClient(address)
        run = client.get_run(run_id)
        assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
        assert {x.step: x.value for x in client.get_metric_history(run_id, "train/loss")} == {1: 1.0, 2: 0.5, 3: 1 / 3}
        assert run.data.params["model.num_bases"] == "4"
        assert len(run.data.params) == 122
        assert {x.path for x in client.list_artifacts(run_id)} == {"results.json", "evaluation"}
        assert client.get_experiment(run.info.experiment_id).name == "basisnet-tests"


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    """Its files say what would be sent: both lives under one id."""
    wandb = pytest.importorskip("wandb", reason="pip install -e '.[trackers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = epath.Path(tmp_path) / "run"
    run_id = log_two_lives("wandb", folder)
    wandb.teardown()  # its service writes the last records when it ends
    kept = list((folder / "wandb").glob("offline-run-*"))
    assert kept
    assert all(path.name.endswith(run_id) for path in kept)
    streams = b"".join(path.read_bytes() for path in (folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    for word in (b"train/loss", b"model.num_bases", b"results.json", b"evaluation/accuracy.png"):
        assert word in streams
