#!/usr/bin/env bash
# A run on SLURM, a process a GPU or a node (docs/guides/cluster.md). The queue gives and takes the nodes, so there is no create.
#   setup   install into .venv, here, in a folder that the nodes share
#   run     submit the job; it queues itself again when it is stopped early
#   logs    print the output so far
#   stop    end the run, which saves first; it is not queued again
#   delete  cancel the job at once
#   up      setup, run, and wait until the run is finished
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$(dirname "$0")/steps.sh"

# Processes on a node.
tasks() {
  case ${PROCESS_PER:=gpu} in
    gpu) echo "$GPUS_PER_NODE" ;;
    node) echo 1 ;;
    *) die "PROCESS_PER is '$PROCESS_PER'; it is gpu or node." ;;
  esac
}

setup() {
  try make -C "$ROOT" .venv/installed
  try "$ROOT/.venv/bin/pip" install --quiet -e "${ROOT}[${CUDA:-cuda13},pretrained]"
}

run() {
  local tasks
  tasks=$(tasks) || exit
  ((CPUS_PER_NODE >= tasks)) || die "CPUS_PER_NODE is $CPUS_PER_NODE; each of a node's $tasks processes needs one."
  try mkdir -p "$ROOT/logs"
  try rm -f "$ROOT/logs/$NAME.code"
  # GPUs are asked for by the node, not by the task: NCCL wants a process to see its neighbours' GPUs, of which JAX takes
  # its own by number. The signal, two minutes before the time limit, lets the run save.
  try sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$tasks" --gpus-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="$((CPUS_PER_NODE / tasks))" --time="$TIME_LIMIT" --signal=TERM@120 --requeue \
    --open-mode=append --output="$ROOT/logs/$NAME.log" \
    "${SBATCH_ARGS[@]}" "$ROOT/launch/slurm_job.sh" "$ROOT" "$MAX_RESTARTS" "${MAIN[@]}"
}

logs() { try cat "$ROOT/logs/$NAME.log"; }

stop() {
  try mkdir -p "$ROOT/logs"
  try touch "$ROOT/logs/$NAME.stop"
  try scancel --signal=TERM --name="$NAME"
}

delete() { try scancel --name="$NAME"; }

up() {
  setup
  run
  local jobs code
  while
    jobs=$(ask "" squeue --noheader --name="$NAME") || exit
    [[ $jobs ]]
  do pause; done
  code=$(ask 0 cat "$ROOT/logs/$NAME.code") || exit
  [[ $code == 0 ]] || die "the run ended with '$code'; launch/slurm.sh logs says why." 1
}

launch "setup run logs stop delete up" "$@"
