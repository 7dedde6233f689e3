#!/usr/bin/env bash
# A run on Cloud TPU VMs (docs/cluster.md).
#   create  ask for the TPU, and wait until it is there
#   setup   install on all hosts what is committed here
#   run     start on all hosts, in tmux, which outlives the login
#   logs    fetch every host's output into logs/
#   stop    end the run, which saves first; end an `up` before, which would start it again
#   delete  give the TPU back
#   up      create, setup, run; again after each preemption, until the run is finished; then delete
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$(dirname "$0")/steps.sh"

ASSUMED_STATE=       # in a dry run
ASSUMED_OUTCOME=none # in a dry run

queued() { try gcloud compute tpus queued-resources "$@" --project="$PROJECT" --zone="$ZONE" --quiet; }

on_all() { queued ssh "$NAME" --node=all --worker=all --command="$1" "${@:2}"; }

# What the TPU is, once it no longer is to become something else; nothing if there is none.
settled() {
  local state
  while
    state=$(ask "$ASSUMED_STATE" gcloud compute tpus queued-resources list --filter="name~(^|/)$NAME\$" \
      --format="value(state.state)" --project="$PROJECT" --zone="$ZONE") || exit
    [[ $state == *ING || $state == ACCEPTED || $state == WAITING* ]]
  do pause; done
  echo "$state"
}

# The run's exit code; 'running'; or 'none' if it was not started, or died with its host.
outcome() {
  ask "$ASSUMED_OUTCOME" gcloud compute tpus queued-resources ssh "$NAME" --node=0 --worker=0 \
    --command="cat run.code 2>/dev/null || { tmux has-session -t basisnet && echo running; } 2>/dev/null || echo none" \
    --project="$PROJECT" --zone="$ZONE" --quiet | tail -n 1
}

create() {
  local nodes=(--node-id="$NAME") tier=()
  if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  if [[ $SPOT == true ]]; then tier=(--spot); fi
  queued create "$NAME" "${nodes[@]}" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
    "${tier[@]}"
  ASSUMED_STATE=ACTIVE
  local state
  state=$(settled) || exit
  [[ $state == ACTIVE ]] || die "the TPU is ${state:-gone}; run launch/tpu_vm.sh delete and try again." "$STOPPED"
}

setup() {
  local archive=$ROOT/logs/$NAME.tar.gz
  try mkdir -p "$ROOT/logs"
  try git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
  queued scp "$archive" "$NAME:basisnet_jax.tar.gz" --node=all --worker=all
  # With uv, which brings a Python: that of the images is older than ours.
  on_all "set -e; rm -rf basisnet_jax; mkdir basisnet_jax; tar -xzf basisnet_jax.tar.gz -C basisnet_jax; \
cd basisnet_jax; python3 -m pip install --quiet --user uv; python3 -m uv venv --quiet --python=3.11; \
python3 -m uv pip install --quiet -r requirements.lock; python3 -m uv pip install --quiet -e '.[tpu,pretrained]'"
}

run() {
  local job
  job=$(show bash basisnet_jax/launch/job.sh "${MAIN[@]}")
  on_all "rm -f run.code; $(show tmux new-session -d -s basisnet "$job")"
}

logs() {
  try mkdir -p "$ROOT/logs/$NAME"
  on_all "cat run.log" --output-directory="$ROOT/logs/$NAME"
}

# shellcheck disable=SC2016
stop() { on_all 'kill -TERM $(cat run.pid)'; }

delete() {
  queued delete "$NAME" --force
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
