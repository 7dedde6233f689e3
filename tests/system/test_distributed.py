"""Several real processes on this machine, a CPU device each, as one run."""

import os
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.whole_split import evaluate
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.host import distributed
from basisnet_jax.workdir import checkpoint
from basisnet_jax.workdir.events import read_events
from tests.system.test_main import command, wait_for

# What the scripts below share: they meet, and do what follows as a run does.
MEET = """
import os, sys
import numpy as np
from jax.experimental import multihost_utils
from basisnet_jax.host import distributed
from basisnet_jax.errors import UserError
port, process = sys.argv[1], int(sys.argv[2])
distributed.initialize(f"localhost:{port}", 2, process, 200)
with distributed.exit_when_a_peer_dies():
    assert distributed.total(process + 1, 10) == (3, 20)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts two processes with a device each, their arguments a function of (number, a free port)."""
    started = []
    # All but the count of devices as in this process, which is compared with them.
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}

    def start(arguments_of):
        port = free_port()
        for number in range(2):
            path = tmp_path / f"output{len(started)}"
            with path.open("w") as output:
                process = subprocess.Popen(arguments_of(number, port), env=environment, stdout=output, stderr=output)
            started.append((process, path))
        return started[-2:]

    yield start
    for process, _ in started:
        process.kill()
        process.wait()


def ended(started):
    """Waits, and returns the exit codes and what was written."""
    codes = [process.wait(600) for process, _ in started]
    return codes, [path.read_text() for _, path in started]


def script(text):
    return lambda number, port: [sys.executable, "-c", MEET + text, str(port), str(number)]


def leaves(workdir, config, devices):
    with checkpoint.Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        abstract = make_experiment(config, jax.devices()[:devices]).abstract_state
        state, _ = checkpoints.restore(checkpoints.latest_step(), abstract)
    return jax.tree.leaves(state)


def test_two_processes_are_one_run(config, tmp_path, start):
    """Stopped by a signal to one of them, resumed, finished: with the numbers of one process that has two devices."""
    workdir = tmp_path / "run"

    def arguments(number, port):
        return command(
            *("--config=tests/configs/tiny.py", f"--workdir={workdir}", f"--config.data.dir={config.data.dir}"),
            *("--num_processes=2", f"--process_id={number}", f"--coordinator=localhost:{port}", "--stopped_code=75"),
        )

    running = start(arguments)
    wait_for(lambda: (workdir / "config.json").exists(), 600)
    running[1][0].send_signal(signal.SIGTERM)
    codes, stopped = ended(running)
    assert codes == [75, 75], stopped
    assert ["stopped and saved" in text for text in stopped] == [True, False]
    assert not (workdir / "results.json").exists()
    (step,) = (int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    assert step < 16

    codes, finished = ended(start(arguments))
    assert codes == [0, 0], finished
    assert f"(resumed from step {step}" in finished[0]
    assert [len(re.findall(r"step 16, epoch 1: top-1", text)) for text in finished] == [1, 0], "one process tells"
    assert (workdir / "curves.png").exists()

    experiment = make_experiment(config, jax.devices()[:2])
    state, train_step, losses = experiment.init_state(), experiment.train_step(), []
    batches = experiment.train_batches(0)
    for _ in range(experiment.plan.total_steps):
        state, metrics = train_step(state, next(batches), experiment.schedule, None)
        losses.append(float(metrics["loss"]))
    curves = read_events(workdir / "events")
    assert sorted(curves["train/loss"]) == [3, 6, 9, 12, 15, 16]
    for end, value in curves["train/loss"].items():
        begin = (end - 1) // 3 * 3
        np.testing.assert_allclose(value, np.mean(losses[begin:end]), rtol=1e-6)
    expected = evaluate(experiment, experiment.eval_step(), state)
    np.testing.assert_allclose(curves["eval/loss"][experiment.plan.total_steps], expected["loss"], rtol=1e-6)

    one, eight = leaves(workdir, config, 1), leaves(workdir, config, 8)
    for a, b, c in zip(one, eight, jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-6, atol=1e-7)
    here = make_experiment(config)  # on this process's eight devices
    with checkpoint.Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        restored, _ = checkpoints.restore(experiment.plan.total_steps, here.abstract_state)
        assert checkpoints.evaluation(experiment.plan.total_steps)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    again = evaluate(here, here.eval_step(), restored)
    assert again["count"] == expected["count"] == 37
    assert again["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_what_one_process_is_refused_all_are(start):
    """As data that only one host lacks: every process says why, and ends with code 2."""
    refused = script("""
    try:
        with distributed.raise_user_errors_on_all_processes():
            if process == 1:
                raise UserError("no data here.")
    except UserError as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)
""")
    codes, texts = ended(start(refused))
    assert codes == [2, 2], texts
    assert "error: process 1 of 2: no data here." in texts[0]
    assert "error: no data here." in texts[1]


def test_two_processes_agree_on_what_is_saved_damaged_and_full(tmp_path, start):
    """Process 0 writes the checksums and reads them; what it sees, and what either one finds, holds for both."""
    text = """
    import jax
    from etils import epath
    from basisnet_jax.workdir.checkpoint import Checkpoints, restore_model
    from basisnet_jax.training.state import TrainState

    folder = epath.Path(sys.argv[3])
    whole = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec("x"))

    def state_of(value, of_process_1=1.0):
        rows = np.repeat([[1.0], [of_process_1]], 4, axis=0).astype(np.float32) * value
        tree = {"a": jax.make_array_from_callback(rows.shape, whole, lambda index: rows[index])}
        return TrainState(tree["a"], tree, tree, tree, tree, (tree,))

    with Checkpoints(folder / "checkpoints", 3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), {})
            checkpoints.record(step, {"top1": 0.5})
    if process == 0:
        (folder / "checkpoints" / "2" / "state" / "manifest.ocdbt").write_bytes(b"damaged")
    distributed.total(0)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
    restored = restore_model(folder, "best", ema=True, like=abstract.variables(ema=True))
    print("restored", restored.variables["params"]["a"].addressable_data(0)[0], flush=True)
    with Checkpoints(folder / "checkpoints", 3) as checkpoints:
        try:
            checkpoints.save(3, state_of(3, np.nan), {})
        except UserError as error:
            print(error, flush=True)
        if process == 0:
            checkpoints._free_bytes = lambda: 10
        checkpoints.save(4, state_of(4), {})
        checkpoints.wait()
        print("saved", checkpoints.steps(), checkpoints.unsaved is None, flush=True)
"""
    codes, texts = ended(start(lambda number, port: [*script(text)(number, port), str(tmp_path)]))
    assert codes == [0, 0], texts
    for text in texts:
        assert "restored [1.]" in text
        assert "batch_stats/a is no longer finite after step 3, so this step is not saved" in text
        assert "saved [1, 2] False" in text
    assert ["step 4 is not saved" in text for text in texts] == [True, False], "one process tells"


def test_a_process_that_dies_ends_the_others_with_a_sentence(start):
    dying = script("""
    if process == 1:
        os.abort()
    while True:
        multihost_utils.process_allgather(np.zeros(1))
""")
    (code, _), (text, _) = ended(start(dying))
    assert code != 0
    assert "the same command resumes" in text or "another task died" in text  # ours, or JAX's if it was faster


def test_a_process_that_dies_in_a_save_ends_the_others_before_its_heartbeats_are_missed(tmp_path, start):
    """The save of process 0 waits in the background for process 1, which is dead; process 0 must not wait for it."""
    dying = """
    import jax, time
    from etils import epath
    from basisnet_jax.training.state import TrainState
    from basisnet_jax.workdir import checkpoint, integrity

    whole = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec("x"))
    tree = {"a": jax.make_array_from_callback((2,), whole, lambda index: np.ones(2, np.float32)[index])}
    integrity.write_checksums = lambda folder: time.sleep(2)
    with checkpoint.Checkpoints(epath.Path(sys.argv[3]) / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(tree["a"], tree, tree, tree, tree, (tree,)), {})
        distributed.total(0)
        if process == 1:
            os.abort()
        print("alone", flush=True)
        while True:
            multihost_utils.process_allgather(np.zeros(1))
"""
    (alone, path), _ = start(lambda number, port: [*script(dying)(number, port), str(tmp_path)])
    wait_for(lambda: "alone" in path.read_text(), 600)
    assert alone.wait(distributed.HEARTBEAT_SECONDS / 2) == distributed.LOST
    assert distributed.RESUMES in path.read_text()


def test_a_process_that_finds_no_other_says_so(config, tmp_path):
    """Within the stated time, and without JAX's abort."""
    run = command(
        *("--config=tests/configs/tiny.py", f"--workdir={tmp_path}", f"--coordinator=localhost:{free_port()}"),
        *("--num_processes=2", "--process_id=1", "--connect_seconds=2"),
    )
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == distributed.LOST
    assert "did not all connect within 2 s" in done.stderr
    assert "stack trace" not in done.stderr


MISTAKES = {
    ("localhost:1", None, None): "Number of processes must be defined",
    ("localhost:1", 2, None): "process id of the current process must be defined",
    ("localhost:1", 2, 2): "process_id < num_processes",
    (None, 2, 0): "coordinator_address should be defined",
}
IN_A_FRESH_PROCESS = f"""
import jax
from basisnet_jax.host import distributed
from basisnet_jax.errors import UserError

for given in {list(MISTAKES)}:
    try:
        distributed.initialize(*given, 300)
    except UserError as error:
        print(error)
distributed.initialize(None, None, None, 300)
distributed.initialize("localhost:1", 1, 0, 300)
print(jax.distributed.is_initialized())
"""


def test_half_of_the_flags_is_a_mistake_and_a_process_alone_needs_none():
    """In a process of its own: JAX wants to be told of others before it does anything else."""
    done = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=True)
    *sentences, initialized = done.stdout.splitlines()
    assert len(sentences) == len(MISTAKES)
    for sentence, words in zip(sentences, MISTAKES.values(), strict=True):
        assert words in sentence
    assert initialized == "False"


SLURM_TASK = """
import jax
from basisnet_jax.host import distributed
distributed.initialize(None, None, None, 200)
print(jax.distributed.is_initialized(), jax.config.values["jax_cuda_visible_devices"])
"""
# A process's environment under SLURM, and the GPUs that JAX then lets it see: 'all' is all that SLURM lets it see.
SLURM_GPUS = {
    "one process a GPU": ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "3"}, "3"),
    "nodes that differ": ({"SLURM_STEP_TASKS_PER_NODE": "8(x3),1", "SLURM_LOCALID": "3"}, "3"),
    "the first of many": ({"SLURM_STEP_TASKS_PER_NODE": "11(x2)", "SLURM_LOCALID": "0"}, "0"),
    "one process a node": ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, "all"),
    "one process": ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}, "all"),
    "SLURM shows each its own": (
        {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0"},
        "all",
    ),
    "SLURM shows each all": (
        {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"},
        "1",
    ),
    "told by the user": (
        {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "JAX_LOCAL_DEVICE_IDS": "2,3"},
        "2,3",
    ),
}


def test_processes_of_slurm_see_their_gpus():
    """Each is the only one of its job, started as srun would: what JAX lets it see is settled before any GPU is."""
    alone = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", SLURM_TASK],
            env={**os.environ, **alone, **environment, "JAX_COORDINATOR_PORT": str(free_port())},
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment, _ in SLURM_GPUS.values()
    ]
    seen = [task.communicate(timeout=300)[0].split() for task in tasks]
    assert dict(zip(SLURM_GPUS, seen, strict=True)) == {case: ["True", gpus] for case, (_, gpus) in SLURM_GPUS.items()}


NOT_THE_FIRST = """
import sys
import jax
from basisnet_jax.workdir import events
jax.process_index = lambda: 1
writer = events.event_writer(None, None, None)
writer.write_scalars(1, {"loss": 1.0})
writer.flush()
writer.close()
print("tensorflow" in sys.modules)
"""


def test_only_the_first_process_imports_tensorflow_for_the_event_files():
    """Importing TensorFlow takes seconds, which every start of a host would pay."""
    done = subprocess.run([sys.executable, "-c", NOT_THE_FIRST], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_process_alone_speaks_for_all():
    assert distributed.total(1, 2) == (1, 2)
    with pytest.raises(UserError, match=r"^mine$"), distributed.raise_user_errors_on_all_processes():
        raise UserError("mine")


def test_one_request_to_stop_may_come_several_times_and_a_second_ctrl_c_is_another():
    with distributed.stop_signals() as stop:
        assert not stop(0)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert stop(0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
