#!/usr/bin/env bash
# A run on Google Kubernetes Engine, as a JobSet (docs/guides/cluster.md).
#   create  add a node pool with the TPU to the cluster
#   setup   build and push the image; install JobSet
#   run     start the job set; Kubernetes starts it again after a preemption
#   logs    print the output of all hosts
#   stop    delete the job set; its run saves first
#   delete  delete the node pool
#   up      create, setup, run; wait until the run is finished; then delete
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$(dirname "$0")/steps.sh"

pools() {
  local slice
  for ((slice = 0; slice < SLICES; slice++)); do echo "$NAME-$slice"; done
}

# Whether a workload policy gives the slices their topology, as TPU7x wants it where a slice has several hosts.
policy_wanted() { [[ $MACHINE_TYPE == tpu7x-* ]] && ((HOSTS > 1)); }

create() {
  local pool tier=() topology=(--tpu-topology="$TOPOLOGY")
  if [[ $SPOT == true ]]; then tier=(--spot); fi
  if policy_wanted; then
    try gcloud compute resource-policies create workload-policy "$NAME" --type=HIGH_THROUGHPUT \
      --accelerator-topology="$TOPOLOGY" --project="$PROJECT" --region="${ZONE%-*}"
    topology=(--placement-policy="$NAME")
  fi
  for pool in $(pools); do
    try gcloud container node-pools create "$pool" --cluster="$CLUSTER" --project="$PROJECT" --location="$ZONE" \
      --node-locations="$ZONE" --machine-type="$MACHINE_TYPE" "${topology[@]}" --num-nodes="$HOSTS" "${tier[@]}"
  done
}

setup() {
  try docker build --file="$ROOT/launch/Dockerfile" --tag="$IMAGE" "$ROOT"
  try docker push "$IMAGE"
  try gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --location="$ZONE"
  try kubectl apply --server-side \
    --filename="https://github.com/kubernetes-sigs/jobset/releases/download/$JOBSET_VERSION/manifests.yaml"
}

# A YAML list of strings.
list() {
  local word text=
  for word in "$@"; do
    word=${word//\\/\\\\}
    text+=", \"${word//\"/\\\"}\""
  done
  echo "[${text:2}]"
}

manifest() {
  local spot=
  if [[ $SPOT == true ]]; then spot='cloud.google.com/gke-spot: "true"'; fi
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # a slice each
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
    - action: FailJobSet  # a run that was refused would be refused again
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        completionMode: Indexed
        completions: $HOSTS
        parallelism: $HOSTS
        backoffLimit: 0  # one host that fails ends the job, and the job set starts all again
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: basisnet, operator: In, values: [$MISTAKE]}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120  # for the checkpoint
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $TPU_ACCELERATOR
              cloud.google.com/gke-tpu-topology: $TOPOLOGY
              $spot
            containers:
            - name: basisnet
              image: $IMAGE
              command: $(list python -u "${MAIN[@]}")
              ports: [{containerPort: 8471}, {containerPort: 8482}]  # the TPU runtime's, jax.distributed's
              resources:
                limits: {google.com/tpu: $CHIPS_PER_HOST}
END
}

run() {
  local file=$ROOT/logs/$NAME.yaml
  try mkdir -p "$ROOT/logs"
  if [[ $DRY_RUN ]]; then manifest; else manifest >"$file"; fi
  try kubectl delete jobset "$NAME" --ignore-not-found
  try kubectl apply --filename="$file"
}

logs() {
  try kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --prefix --tail=-1 \
    --max-log-requests="$((HOSTS * SLICES))"
}

stop() { try kubectl delete jobset "$NAME"; }

delete() {
  local pool
  for pool in $(pools); do
    try gcloud container node-pools delete "$pool" --cluster="$CLUSTER" --project="$PROJECT" --location="$ZONE" --quiet
  done
  if policy_wanted; then
    try gcloud compute resource-policies delete "$NAME" --project="$PROJECT" --region="${ZONE%-*}" --quiet
  fi
}

up() {
  create
  setup
  run
  local state
  while
    state=$(ask Completed kubectl get jobset "$NAME" --output="jsonpath={.status.terminalState}") || exit
    [[ ! $state ]]
  do pause; done
  [[ $state == Completed ]] || die "the job set is $state; launch/gke.sh logs says why, launch/gke.sh delete ends it." 1
  delete
}

launch "create setup run logs stop delete up" "$@"
