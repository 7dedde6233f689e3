# Sourced by tpu_vm.sh where TPU_API=tpu: TPU VMs of the Cloud TPU API, as a queued resource.
# shellcheck shell=bash

queued() { try gcloud compute tpus queued-resources "$@" --project="$PROJECT" --zone="$ZONE" --quiet; }

check_settings() {
  [[ $ACCELERATOR_TYPE != tpu7x* ]] ||
    die "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE', which the Cloud TPU API does not serve; set TPU_API=compute, or use launch/gke.sh."
}

# What the TPU is: ACTIVE, WAITING for something else, or gone in some way; nothing if there is none.
state() {
  local state
  state=$(ask "$ASSUMED_STATE" gcloud compute tpus queued-resources list --filter="name~(^|/)$NAME\$" \
    --format="value(state.state)" --project="$PROJECT" --zone="$ZONE") || exit
  if [[ $state == *ING || $state == ACCEPTED || $state == WAITING* ]]; then state=WAITING; fi
  echo "$state"
}

request() {
  local nodes=(--node-id="$NAME") tier=()
  if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  if [[ $SPOT == true ]]; then tier=(--spot); fi
  queued create "$NAME" "${nodes[@]}" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
    "${tier[@]}"
}

await_logins() { :; } # an ACTIVE TPU takes them

on_all() { queued ssh "$NAME" --node=all --worker=all --command="$1" "${@:2}"; }

ask_first() {
  ask "$1" gcloud compute tpus queued-resources ssh "$NAME" --node=0 --worker=0 --command="$2" \
    --project="$PROJECT" --zone="$ZONE" --quiet
}

copy_to_all() { queued scp "$1" "$NAME:$2" --node=all --worker=all; }

fetch_logs() { on_all "cat run.log" --output-directory="$1"; }

release() { queued delete "$NAME" --force; }
