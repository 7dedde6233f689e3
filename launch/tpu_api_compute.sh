# Sourced by tpu_vm.sh where TPU_API=compute: TPU VMs as Compute Engine instances. A managed instance group is the slice,
# an instance template says what its hosts are, a workload policy that they are wired as one topology; all called NAME.
# shellcheck shell=bash

REGION=${ZONE%-*}

check_settings() {
  [[ $MACHINE_TYPE == ct5p-* || $MACHINE_TYPE == ct6e-* || $MACHINE_TYPE == tpu7x-* ]] ||
    die "MACHINE_TYPE is '$MACHINE_TYPE'; Compute Engine serves ct5p-* (v5p), ct6e-* (v6e) and tpu7x-*; for others set TPU_API=tpu, or use launch/gke.sh."
  ((SLICES == 1)) ||
    die "SLICES is $SLICES; with TPU_API=compute it is 1: use launch/gke.sh for more, or TPU_API=tpu where that serves the chip."
}

compute() { try gcloud compute "$@" --project="$PROJECT" --quiet; }

# remove ASSUMED PLACE KIND...: deletes what is called NAME of this kind, if there is such a thing.
remove() {
  local filter=name=$NAME found
  if [[ $2 == *=* ]]; then filter+=" AND ${2/=/:}"; fi
  found=$(ask "$1" gcloud compute "${@:3}" list --filter="$filter" --format="value(name)" --project="$PROJECT") || exit
  if [[ $found ]]; then compute "${@:3}" delete "$NAME" "--$2"; fi
}

# What the slice is: ACTIVE, WAITING for its hosts, or STOPPED; nothing if there is none.
state() {
  local stable hosts running
  stable=$(ask "${ASSUMED_STATE:+True}" gcloud compute instance-groups managed list --filter="name=$NAME" \
    --zones="$ZONE" --format="value(status.isStable)" --project="$PROJECT") || exit
  if [[ ! $stable ]]; then return; fi
  # shellcheck disable=SC2046,SC2153
  hosts=$(ask "$(printf 'RUNNING\n%.0s' $(seq "$HOSTS"))" gcloud compute instance-groups managed list-instances "$NAME" \
    --format="value(instanceStatus)" --project="$PROJECT" --zone="$ZONE") || exit
  running=$(grep -cx RUNNING <<<"$hosts") || true
  if ((running == HOSTS)); then
    echo ACTIVE
  elif [[ $stable == True || $hosts == *STOP* || $hosts == *SUSPEND* || $hosts == *TERMINATED* ]]; then
    echo STOPPED # a host that was taken away stays in the group, and the others are of no use without it
  else
    echo WAITING
  fi
}

request() {
  local image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e tier=() policy=()
  if [[ $MACHINE_TYPE == tpu7x-* ]]; then image=ubuntu-accel-2404-amd64-tpu-tpu7x; fi
  if [[ $SPOT == true ]]; then tier=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
  remove "" global instance-templates # what a `create` that failed half-way left
  remove "" region="$REGION" resource-policies
  # The scope: instances may only read buckets by default. The disk: that of the image has no room for the packages.
  compute instance-templates create "$NAME" --machine-type="$MACHINE_TYPE" --maintenance-policy=TERMINATE \
    --image-project=ubuntu-os-accelerator-images --image-family="$image" --boot-disk-size=100GB \
    --scopes=cloud-platform "${tier[@]}" "${TEMPLATE_ARGS[@]}"
  if ((HOSTS > 1)); then
    compute resource-policies create workload-policy "$NAME" --type=HIGH_THROUGHPUT \
      --accelerator-topology="$TOPOLOGY" --region="$REGION"
    policy=(--workload-policy="projects/$PROJECT/regions/$REGION/resourcePolicies/$NAME")
  fi
  # All hosts or none. One that fails is left as it is: this script gives all back, and asks again.
  compute instance-groups managed create "$NAME" --template="$NAME" --size="$HOSTS" --target-size-policy-mode=bulk \
    --default-action-on-vm-failure=do-nothing "${policy[@]}" --zone="$ZONE"
}

hosts() {
  local assumed found
  assumed=$(seq --format="$NAME-%.0f" "$HOSTS")
  found=$(ask "$assumed" gcloud compute instance-groups managed list-instances "$NAME" \
    --format="value(instance.basename())" --project="$PROJECT" --zone="$ZONE") || exit
  [[ $found ]] || die "the instance group $NAME has no hosts; launch/tpu_vm.sh create asks for them." 1
  sort <<<"$found"
}

# Calls a function with each host and the other arguments, for all hosts at once, and waits; fails if one did.
each() {
  local found host pid pids=() failed=
  found=$(hosts) || exit
  for host in $found; do
    "$1" "$host" "${@:2}" &
    pids+=($!)
    if [[ $DRY_RUN ]]; then wait $!; fi # in order
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=yes; done
  [[ ! $failed ]] || exit 1
}

login() { compute ssh "$1" --command="$2" --zone="$ZONE"; }
upload() { compute scp "$2" "$1:$3" --zone="$ZONE"; }
download() { compute scp "$1:$2" "$3/$1.log" --zone="$ZONE"; }

on_all() { each login "$1"; }

first_host() {
  local found
  found=$(hosts) || exit
  echo "${found%%$'\n'*}"
}

ask_first() {
  local host
  host=$(first_host) || exit
  ask "$1" gcloud compute ssh "$host" --command="$2" --zone="$ZONE" --project="$PROJECT" --quiet
}

# A RUNNING instance takes logins some time later. The first one makes the key, which many at once would each do.
await_logins() {
  local host attempt
  host=$(first_host) || exit
  for ((attempt = 0; attempt < 10; attempt++)); do
    if (login "$host" true); then return; fi
    pause
  done
  die "the TPU's first host accepts no logins; run launch/tpu_vm.sh delete and try again." "$STOPPED"
}

copy_to_all() { each upload "$1" "$2"; }

fetch_logs() { each download run.log "$1"; }

release() {
  remove "$NAME" zone="$ZONE" instance-groups managed
  remove "$NAME" global instance-templates
  remove "$NAME" region="$REGION" resource-policies
}
