"""The launch scripts, with stand-ins on PATH that record what they are given and answer as told."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
STAND_INS = ("gcloud", "kubectl", "docker", "sbatch", "squeue", "scancel", "scontrol", "srun", "git", "make", "pip")
TPU_STEPS = ("create", "setup", "run", "logs", "stop", "delete")
STEPS = {
    "tpu_vm.sh": TPU_STEPS,
    "gke.sh": ("create", "setup", "run", "logs", "stop", "delete", "up"),
    "slurm.sh": ("setup", "run", "stop", "delete", "up"),
}
# Records its arguments, and answers with the first of the remaining answers whose words are all in them.
STAND_IN = """#!{python} -S
import json, os, pathlib, sys
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
folder = pathlib.Path({folder!r})
with open(folder / "calls", "a") as record:
    record.write(json.dumps(call) + "\\n")
answers = json.loads((folder / "answers").read_text())
for number, (words, code, text) in enumerate(answers):
    if words in " ".join(call):
        (folder / "answers").write_text(json.dumps(answers[:number] + answers[number + 1:]))
        print(text)
        sys.exit(code)
"""
# Each step of each script with the settings it is tried with, besides those of the example.
COMPUTE = "TPU_API=compute MACHINE_TYPE=ct6e-standard-4t TOPOLOGY=4x4 HOSTS=2\n"
CASES = [
    *((script, step, "") for script, steps in STEPS.items() for step in steps),
    *(("tpu_vm.sh", step, COMPUTE) for step in TPU_STEPS),
    *(("gke.sh", step, "MACHINE_TYPE=tpu7x-standard-4t\n") for step in ("create", "delete")),
]
ACTIVE = ("queued-resources list", 0, "ACTIVE")
SUCCESS = [ACTIVE, ("get jobset", 0, "Completed")]
# Of a slice with two hosts. There is something to delete only where a step deletes.
HOSTS = ("instance.basename()", 0, "basisnet-2\nbasisnet-1")
THERE = ("value(name)", 0, "basisnet")
NONE, RUNNING, LOST = (("--worker=0", code, text) for code, text in ((0, "none"), (0, "running"), (255, "")))


def slice_is(stable, statuses):
    """Answers the two questions that tell what a slice of Compute Engine is."""
    return [("status.isStable", 0, stable), ("value(instanceStatus)", 0, statuses)]


def success(step):
    """Returns answers with which each step succeeds."""
    return [*SUCCESS, *slice_is("True", "RUNNING\nRUNNING"), *[HOSTS] * 3, *[THERE] * (3 if step == "delete" else 0)]


class Cluster:
    """A copy of launch/, its settings, and the stand-ins."""

    def __init__(self, folder):
        self.root, self._folder = folder / "root", folder
        shutil.copytree(LAUNCH, self.root / "launch")
        self.settings = self.root / "launch" / "settings.sh"
        shutil.copy(LAUNCH / "settings.sh.example", self.settings)
        (folder / "bin").mkdir()
        for path in [folder / "bin" / name for name in STAND_INS] + [self.root / ".venv" / "bin" / "pip"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
            path.chmod(0o755)

    def set(self, text):
        with self.settings.open("a") as settings:
            settings.write(text)

    def run(self, script, *arguments, answers=(), **environment):
        """Returns the finished script, and what the stand-ins were given: a list of words each."""
        (self._folder / "answers").write_text(json.dumps(answers))
        (self._folder / "calls").write_text("")
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [self.root / "launch" / script, *arguments],
            env={**os.environ, "PATH": path, "HOME": str(self._folder), "POLL_SECONDS": "0", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, [json.loads(line) for line in (self._folder / "calls").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def briefly(calls):
    """'create', 'list', 'ssh all', ...: the story of the calls of gcloud."""
    told = []
    for call in calls:
        if call[0] == "gcloud":
            where = next((word.removeprefix("--worker=") for word in call if word.startswith("--worker=")), "")
            told.append(f"{call[4]} {where}".strip() if call[4] in ("ssh", "scp") else call[4])
    return told


@pytest.mark.parametrize(("script", "step", "settings"), CASES)
def test_a_dry_run_prints_what_a_run_then_does(cluster, script, step, settings):
    cluster.set(settings)
    if (script, step) == ("slurm.sh", "up"):
        pytest.skip("ends with the exit code that the job leaves, see below")
    dry, calls = cluster.run(script, "--dry-run", step)
    assert dry.returncode == 0, dry.stderr
    assert not calls
    assert not (cluster.root / "logs").exists()
    printed = [shlex.split(line) for line in (dry.stdout + dry.stderr).splitlines() if not line.startswith(" ")]
    printed = [[os.path.basename(line[0]), *line[1:]] for line in printed if os.path.basename(line[0]) in STAND_INS]
    done, calls = cluster.run(script, step, answers=success(step))
    assert done.returncode == 0, done.stderr
    assert sorted(calls) == sorted(printed)
    assert calls


@pytest.mark.parametrize(("script", "step", "settings"), CASES)
def test_each_command_that_fails_ends_the_step_and_is_named(cluster, script, step, settings):
    cluster.set(settings + "HOSTS=1\n")  # several hosts of Compute Engine are called at the same time
    answers = [(words, code, text.split("\n")[0]) for words, code, text in success(step)]
    _, whole = cluster.run(script, step, answers=answers)
    assert whole
    for call in whole:
        if "--command=true" in call:
            continue  # is asked again: test_a_host_that_takes_no_logins_yet_is_waited_for
        words = " ".join(call)
        done, calls = cluster.run(script, step, answers=[(words, 3, ""), *answers])
        assert done.returncode == 1, words
        assert calls == whole[: whole.index(call) + 1], "nothing is done after a failure"
        sentences = [
            line for line in done.stderr.splitlines() if line.startswith("error: this command failed with code 3: ")
        ]
        assert shlex.split(sentences[0].split(": ", 2)[2])[1:] == call[1:]


def test_a_tpu_that_is_taken_away_is_asked_for_again_and_the_run_started_again(cluster):
    story = [
        *(("queued-resources list", 0, state) for state in ("", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")),
        *(NONE, RUNNING, RUNNING, LOST),
        *(("queued-resources list", 0, state) for state in ("SUSPENDING", "SUSPENDED", "ACTIVE")),
        *(NONE, RUNNING, ("--worker=0", 0, "75")),  # stopped by a signal, as for maintenance: the TPU is still there
        ACTIVE,
        *(NONE, RUNNING, ("--worker=0", 0, "0")),
    ]
    done, calls = cluster.run("tpu_vm.sh", "up", answers=story)
    assert done.returncode == 0, done.stderr
    start = ["ssh 0", "scp all", "ssh all", "ssh all"]  # nothing runs: copy, install, start
    assert briefly(calls) == [
        *("list", "create", "list", "list", "list", *start, "ssh 0", "ssh 0", "ssh 0"),
        *("list", "list", "delete", "create", "list", *start, "ssh 0", "ssh 0"),
        *("list", *start, "ssh 0", "ssh 0", "delete"),
    ]


def test_up_again_leaves_a_run_alone_that_is_under_way(cluster):
    done, calls = cluster.run("tpu_vm.sh", "up", answers=[ACTIVE, RUNNING, RUNNING, ("--worker=0", 0, "0")])
    assert done.returncode == 0, done.stderr
    assert briefly(calls) == ["list", "ssh 0", "ssh 0", "ssh 0", "delete"]


def test_a_refused_run_or_tpu_is_not_tried_again(cluster):
    done, calls = cluster.run("tpu_vm.sh", "up", answers=[ACTIVE, NONE, ("--worker=0", 0, "2")])
    assert done.returncode == 2
    assert "the run was refused" in done.stderr
    assert briefly(calls)[-1] == "ssh 0", "the TPU is kept, for its logs"
    done, calls = cluster.run("tpu_vm.sh", "up", answers=[("queued-resources create", 1, "")])
    assert done.returncode == 1
    assert briefly(calls) == ["list", "create"]


def test_up_gives_up_after_so_many_restarts(cluster):
    with cluster.settings.open("a") as settings:
        settings.write("MAX_RESTARTS=1\n")
    done, calls = cluster.run("tpu_vm.sh", "up", answers=[ACTIVE, NONE, LOST, ACTIVE, NONE, LOST, ACTIVE])
    assert done.returncode == 1
    assert "did not finish in 1 restarts" in done.stderr
    assert briefly(calls).count("scp all") == 2


def compute_story(calls):
    """The story of a slice of Compute Engine: what is made and deleted, and what is done on which host."""
    told = []
    for _, _, *words in (call for call in calls if call[0] == "gcloud"):
        if words[0] in ("ssh", "scp"):
            what = next((name for name in ("true", "run.code 2>", "uv", "tmux new") if name in " ".join(words)), "copy")
            told.append(f"{what}: {next(word for word in words if 'basisnet-' in word).split(':')[0]}")
        elif "list" not in words and "list-instances" not in words:
            told.append(f"{words[0]} {'create' if 'create' in words else 'delete'}")
    return told


CREATED = ["instance-templates create", "resource-policies create", "instance-groups create", "true: basisnet-1"]
STARTED = ["copy", "uv", "tmux new"]  # on each host
DELETED = ["instance-groups delete", "instance-templates delete", "resource-policies delete"]


def test_a_slice_of_compute_engine_that_loses_a_host_is_asked_for_again(cluster):
    cluster.set(COMPUTE)
    ready = slice_is("True", "RUNNING\nRUNNING")
    outcome = "run.code 2>"
    story = [
        ("status.isStable", 0, ""),  # no slice
        *(slice_is("False", "") + slice_is("False", "PROVISIONING\nRUNNING") + ready),
        *((outcome, 0, "none"), (outcome, 0, "running"), (outcome, 255, "")),
        *slice_is("True", "RUNNING\nTERMINATED"),
        *([THERE] * 3 + [("value(name)", 0, "")] * 2 + ready),  # deleted; nothing is left of it; created
        *((outcome, 0, "none"), (outcome, 0, "0")),
        *[HOSTS] * 13,  # create once, setup twice, run once, and each outcome
        *[THERE] * 3,
    ]
    # What is left over before the first `create`: nothing.
    done, calls = cluster.run("tpu_vm.sh", "up", answers=[("value(name)", 0, "")] * 2 + story)
    assert done.returncode == 0, done.stderr
    told = compute_story(calls)
    first = "run.code 2>: basisnet-1"  # the host that is asked how the run is
    assert [what for what in told if what.split(":")[0] not in STARTED] == [
        *(CREATED + [first] * 3 + DELETED),
        *(CREATED + [first] * 2 + DELETED),
    ]
    begun = [what.split(": ") for what in told if what.split(":")[0] in STARTED]
    for host in ("basisnet-1", "basisnet-2"):
        assert [what for what, where in begun if where == host] == STARTED * 2


def test_a_host_that_takes_no_logins_yet_is_waited_for(cluster):
    cluster.set(COMPUTE)
    refused = ("--command=true", 255, "")
    done, calls = cluster.run("tpu_vm.sh", "create", answers=[refused, refused, *success("create")])
    assert done.returncode == 0, done.stderr
    assert compute_story(calls)[-3:] == ["true: basisnet-1"] * 3
    done, _ = cluster.run("tpu_vm.sh", "create", answers=[refused] * 10 + success("create"))
    assert done.returncode == 75, "up asks for another one"
    assert "accepts no logins" in done.stderr


def test_what_compute_engine_is_asked_for(cluster):
    cluster.set(COMPUTE + "TEMPLATE_ARGS=(--reservation=mine)\n")
    _, calls = cluster.run("tpu_vm.sh", "create", answers=success("create"))
    template, policy, group = (call for call in calls if "create" in call)
    assert {"--machine-type=ct6e-standard-4t", "--provisioning-model=SPOT", "--reservation=mine"} <= set(template)
    assert "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e" in template
    assert {"--accelerator-topology=4x4", "--region=us-west4"} <= set(policy)
    assert "--workload-policy=projects/my-project/regions/us-west4/resourcePolicies/basisnet" in group
    assert {"--size=2", "--target-size-policy-mode=bulk", "--zone=us-west4-a"} <= set(group)
    cluster.set("MACHINE_TYPE=tpu7x-standard-4t HOSTS=1 SPOT=false\n")  # a slice of one host needs no topology
    _, calls = cluster.run("tpu_vm.sh", "create", answers=[*slice_is("True", "RUNNING"), HOSTS])
    template, group = (call for call in calls if "create" in call)
    assert "--image-family=ubuntu-accel-2404-amd64-tpu-tpu7x" in template
    assert not [word for word in template + group if "SPOT" in word or "policy=projects" in word]


def test_one_host_that_fails_fails_the_step_when_all_are_done(cluster):
    cluster.set(COMPUTE)
    done, calls = cluster.run("tpu_vm.sh", "stop", answers=[HOSTS, ("ssh basisnet-1", 255, "")])
    assert done.returncode == 1
    assert sorted(call[3] for call in calls if call[2] == "ssh") == ["basisnet-1", "basisnet-2"]
    done, calls = cluster.run("tpu_vm.sh", "run")
    assert done.returncode == 1
    assert "the instance group basisnet has no hosts" in done.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("TPU_API=gce", "TPU_API is 'gce'; it is tpu, the Cloud TPU API, or compute, Compute Engine."),
        ("TPU_API=compute", "MACHINE_TYPE is 'ct5lp-hightpu-4t'; Compute Engine serves ct5p-* (v5p)"),
        (COMPUTE + "SLICES=2", "SLICES is 2; with TPU_API=compute it is 1: use launch/gke.sh for more"),
        ("ACCELERATOR_TYPE=tpu7x-8", "ACCELERATOR_TYPE is 'tpu7x-8', which the Cloud TPU API does not serve"),
    ],
)
def test_a_tpu_that_an_api_does_not_serve_costs_one_sentence(cluster, settings, sentence):
    cluster.set(settings)
    done, calls = cluster.run("tpu_vm.sh", "up")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert not calls


def test_several_slices_and_no_spot(cluster):
    with cluster.settings.open("a") as settings:
        settings.write("SLICES=2 SPOT=false\n")
    _, calls = cluster.run("tpu_vm.sh", "create", answers=[ACTIVE])
    assert "--node-count=2" in calls[0]
    assert "--spot" not in calls[0]
    _, calls = cluster.run("gke.sh", "create")
    assert [call[4] for call in calls] == ["basisnet-0", "basisnet-1"]
    assert all("--tpu-topology=16x16" in call for call in calls)
    cluster.set("MACHINE_TYPE=tpu7x-standard-4t TOPOLOGY=4x4x4\n")
    _, (policy, *pools) = cluster.run("gke.sh", "create")
    assert "--accelerator-topology=4x4x4" in policy
    assert ["--placement-policy=basisnet" in pool for pool in pools] == [True, True]
    assert not [word for pool in pools for word in pool if "tpu-topology" in word]


def test_the_job_set_is_what_kubernetes_wants(cluster):
    with cluster.settings.open("a") as settings:
        settings.write("""SLICES=2 HOSTS=4 ARGS=(--config=a.py '--config.x=a "b" \\ c')\n""")
    done, _ = cluster.run("gke.sh", "run")
    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load((cluster.root / "logs" / "basisnet.yaml").read_text())["spec"]
    job = spec["replicatedJobs"][0]
    assert (job["replicas"], job["template"]["spec"]["completions"], spec["failurePolicy"]["maxRestarts"]) == (2, 4, 20)
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][1:] == [
        *("-u", "-m", "basisnet_jax.main", "--config=a.py", '--config.x=a "b" \\ c'),
        *("--workdir=gs://my-bucket/runs/imagenet_mbv3", "--stopped_code=75"),
    ]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_a_job_set_that_failed_keeps_its_nodes(cluster):
    done, calls = cluster.run("gke.sh", "up", answers=[("get jobset", 0, ""), ("get jobset", 0, "Failed")])
    assert done.returncode == 1
    assert "the job set is Failed" in done.stderr
    assert calls[-1][:3] == ["kubectl", "get", "jobset"]


@pytest.mark.parametrize(
    ("process_per", "words"),
    [
        ("gpu", {"--ntasks-per-node=8", "--cpus-per-task=8", "--gpus-per-node=8", "--nodes=4"}),
        ("node", {"--ntasks-per-node=1", "--cpus-per-task=64", "--gpus-per-node=8", "--nodes=4"}),
    ],
)
def test_slurm_starts_a_process_a_gpu_or_a_node(cluster, process_per, words):
    cluster.set(f"PROCESS_PER={process_per}\n")
    done, ((_, *given),) = cluster.run("slurm.sh", "run")
    assert done.returncode == 0, done.stderr
    assert words <= set(given)


def test_what_slurm_cannot_start_costs_one_sentence(cluster):
    for settings, sentence in {
        "PROCESS_PER=chip": "PROCESS_PER is 'chip'; it is gpu or node.",
        "PROCESS_PER=gpu CPUS_PER_NODE=7": "CPUS_PER_NODE is 7; each of a node's 8 processes needs one.",
    }.items():
        cluster.set(settings + "\n")
        done, calls = cluster.run("slurm.sh", "run")
        assert (done.returncode, done.stderr) == (2, f"error: {sentence}\n")
        assert not calls


@pytest.mark.parametrize("cuda", ["cuda12", "cuda13"])
def test_the_extra_of_the_nodes_driver_is_installed(cluster, cuda):
    cluster.set(f"CUDA={cuda}\n")
    _, calls = cluster.run("slurm.sh", "setup")
    assert calls[-1][-1] == f"{cluster.root}[{cuda},pretrained]"


@pytest.mark.parametrize(
    ("code", "restarts", "stop", "again"),
    [
        (0, 0, False, False),
        (75, 0, False, True),
        (1, 3, False, True),
        (2, 0, False, False),
        (75, 20, False, False),
        (75, 0, True, False),
    ],
)
def test_a_slurm_job_queues_itself_again_unless_it_is_over(cluster, code, restarts, stop, again):
    logs = cluster.root / "logs"
    logs.mkdir()
    if stop:  # as `slurm.sh stop` does while the run is under way
        srun = cluster.root.parent / "bin" / "srun"
        srun.write_text(f"#!/bin/sh\ntouch {logs}/it.stop\nexit {code}\n")
    job = {"SLURM_JOB_NAME": "it", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    job["SLURM_RESTART_COUNT"] = str(restarts)
    done, calls = cluster.run("slurm_job.sh", cluster.root, "20", "-m", "x", answers=[("srun", code, "")], **job)
    assert (["scontrol", "requeue", "7"] in calls) == again, done.stderr
    assert done.returncode == (0 if again else code)
    if not again:
        assert (logs / "it.code").read_text() == f"{code}\n"


def test_srun_gives_each_task_the_cpus_that_the_job_asked_for(cluster):
    (cluster.root / "logs").mkdir()
    srun = cluster.root.parent / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\necho $SRUN_CPUS_PER_TASK "$@" >{cluster.root}/started\n')
    job = {"SLURM_JOB_NAME": "it", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    cluster.run("slurm_job.sh", cluster.root, "20", "-m", "x", **job)
    assert (cluster.root / "started").read_text() == "8 --kill-on-bad-exit=0 .venv/bin/python -u -m x\n"


@pytest.mark.parametrize(("code", "words"), [("0", ""), ("2", "the run ended with '2'")])
def test_slurm_up_waits_for_the_job_and_tells_how_it_ended(cluster, code, words):
    squeue = cluster.root.parent / "bin" / "squeue"  # the job is there at first, then ends and leaves its code
    ends = f"[ -e seen ] && echo {code} >basisnet.code || echo 7; touch seen"
    squeue.write_text(f"#!/bin/sh\ncd {cluster.root}/logs\n{ends}\n")
    done, calls = cluster.run("slurm.sh", "up")
    assert done.returncode == (1 if words else 0)
    assert words in done.stderr
    assert [call[0] for call in calls] == ["make", "pip", "sbatch"]


def test_a_tpu_hosts_job_leaves_output_and_exit_code(cluster):
    python = cluster.root / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho got $*\nexit 75\n")
    python.chmod(0o755)
    cluster.run("job.sh", "-m", "basisnet_jax.main")
    home = cluster.root.parent
    assert (home / "run.log").read_text() == "got -m basisnet_jax.main\n"
    assert (home / "run.code").read_text() == "75\n"
    assert (home / "run.pid").read_text().strip().isdigit()


def test_local_processes_have_a_number_each_and_one_that_fails_fails_all(cluster):
    python = cluster.root / "python"
    python.write_text('#!/bin/sh\necho "$XLA_FLAGS" "$@"\ncase "$*" in *process_id=1) exit 3;; esac\n')
    python.chmod(0o755)
    done, _ = cluster.run("local_multiprocess.sh", "run", PYTHON=str(python))
    assert done.returncode == 3
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[-1] for line in lines] == ["--process_id=0", "--process_id=1"]
    assert all("device_count=1" in line and "--num_processes=2" in line for line in lines)


@pytest.mark.parametrize(
    ("codes", "ended"),
    [((0,), 0), ((137, 1, 0), 0), ((1, 1, 1, 1, 1), 1), ((2,), 2), ((137, 75), 75)],
    ids=["finished", "resumed twice", "too often", "a mistake", "stopped by a signal"],
)
def test_local_processes_are_all_started_again_where_one_dies(cluster, codes, ended):
    """Process 1 ends with each of the codes in turn."""
    cluster.set("MAX_RESTARTS=4\n")
    python, lives = cluster.root / "python", cluster.root / "lives"
    lives.write_text("\n".join(map(str, codes)) + "\n")
    rest = f"code=$(head -n 1 {lives}); sed -i 1d {lives}; exit $code"
    python.write_text(f'#!/bin/sh\ncase "$*" in *process_id=1) {rest};; esac\n')
    python.chmod(0o755)
    done, _ = cluster.run("local_multiprocess.sh", "up", PYTHON=str(python))
    assert done.returncode == ended
    assert not lives.read_text(), "another number of lives"
    assert done.stderr.count("starting all processes again") == len(codes) - 1


def test_a_mistake_costs_one_sentence(cluster):
    for arguments in ((), ("fly",), ("create", "run"), ("--dry-run",)):
        done, calls = cluster.run("tpu_vm.sh", *arguments)
        assert done.returncode == 2
        assert done.stderr == "error: usage: launch/tpu_vm.sh [--dry-run] create|setup|run|logs|stop|delete|up\n"
        assert not calls
    cluster.settings.unlink()
    done, _ = cluster.run("gke.sh", "create")
    assert done.returncode == 2
    assert "copy launch/settings.sh.example" in done.stderr


def test_shellcheck_passes():
    beside_python = pathlib.Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the extra 'dev'")
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "settings.sh.example"]
    done = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
