#!/usr/bin/env bash
# A run on Cloud TPU VMs, of the Cloud TPU API or of Compute Engine, as TPU_API says (docs/guides/cluster.md).
#   create  ask for the TPU, and wait until it is there
#   setup   install on all hosts what is committed here
#   run     start on all hosts, in tmux, which outlives the login
#   logs    fetch every host's output into logs/
#   stop    end the run, which saves first; end an `up` before, which would start it again
#   delete  give the TPU back
#   up      create, setup, run; again after each preemption, until the run is finished; then delete
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$(dirname "$0")/steps.sh"

# shellcheck disable=SC2034
ASSUMED_STATE=       # in a dry run
ASSUMED_OUTCOME=none # in a dry run

# Takes the functions that ask for a TPU and reach its hosts from the file of the API that the settings name.
prepare() {
  [[ ${TPU_API:=tpu} == tpu || $TPU_API == compute ]] ||
    die "TPU_API is '$TPU_API'; it is tpu, the Cloud TPU API, or compute, Compute Engine."
  # shellcheck source=tpu_api_tpu.sh source=tpu_api_compute.sh
  source "$ROOT/launch/tpu_api_$TPU_API.sh"
  check_settings
}

# What the TPU is, once it no longer is to become something else; nothing if there is none.
settled() {
  local state
  while
    state=$(state) || exit
    [[ $state == WAITING ]]
  do pause; done
  echo "$state"
}

# The run's exit code; 'running'; or 'none' if it was not started, or died with its host.
outcome() {
  ask_first "$ASSUMED_OUTCOME" \
    "cat run.code 2>/dev/null || { tmux has-session -t basisnet && echo running; } 2>/dev/null || echo none" | tail -n 1
}

create() {
  request
  ASSUMED_STATE=ACTIVE
  local state
  state=$(settled) || exit
  [[ $state == ACTIVE ]] || die "the TPU is ${state:-gone}; run launch/tpu_vm.sh delete and try again." "$STOPPED"
  await_logins
}

setup() {
  local archive=$ROOT/logs/$NAME.tar.gz
  try mkdir -p "$ROOT/logs"
  try git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
  copy_to_all "$archive" basisnet_jax.tar.gz
  # With uv, which brings the Python for the newest JAX. Compute Engine's images are not known to have pip and tmux, and
  # those of Ubuntu 24.04 let pip install nothing, not even for the user, without the variable.
  on_all "set -e; rm -rf basisnet_jax; mkdir basisnet_jax; tar -xzf basisnet_jax.tar.gz -C basisnet_jax; \
cd basisnet_jax; { command -v pip3 && command -v tmux; } >/dev/null || { sudo apt-get -qq update; \
sudo apt-get -qq -o DPkg::Lock::Timeout=300 install python3-pip tmux; }; \
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv; python3 -m uv venv --quiet --python=3.13; \
python3 -m uv pip install --quiet -r requirements.lock; python3 -m uv pip install --quiet -e '.[tpu,pretrained]'"
}

run() {
  local job
  job=$(show bash basisnet_jax/launch/job.sh "${MAIN[@]}")
  on_all "rm -f run.code; $(show tmux new-session -d -s basisnet "$job")"
}

logs() {
  try mkdir -p "$ROOT/logs/$NAME"
  fetch_logs "$ROOT/logs/$NAME"
}

# shellcheck disable=SC2016
stop() { on_all 'kill -TERM $(cat run.pid)'; }

delete() {
  release
  ASSUMED_STATE=
}

up() {
  local state code restart
  for ((restart = 0; restart <= MAX_RESTARTS; restart++)); do
    state=$(settled) || exit
    if [[ $state != ACTIVE ]]; then
      if [[ $state ]]; then delete; fi # a TPU that was taken away is still listed
      (create) || { (($? == STOPPED)) && continue || exit 1; } # taken away again, or refused
      ASSUMED_STATE=ACTIVE
    fi
    # A run that is under way is left alone: this script was started again.
    code=$(outcome) || continue
    if [[ $code != running ]]; then
      (setup && run) || { pause; continue; }
      ASSUMED_OUTCOME=0
    fi
    while code=$(outcome) && [[ $code == running ]]; do pause; done
    case $code in
      0) delete; return ;;
      "$MISTAKE") die "the run was refused; launch/tpu_vm.sh logs says why." ;;
      *) echo "the run ended with '$code'; starting again" >&2 ;;
    esac
  done
  die "the run did not finish in $MAX_RESTARTS restarts; launch/tpu_vm.sh logs says why." 1
}

launch "create setup run logs stop delete up" "$@"
