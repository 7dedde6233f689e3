#!/usr/bin/env bash
# A run on SLURM, a process a GPU (docs/cluster.md). The queue gives and takes the nodes, so there is no create.
#   setup   install into .venv, here, in a folder that the nodes share
#   run     submit the job; it queues itself again when it is stopped early
#   logs    print the output so far
#   stop    end the run, which saves first; it is not queued again
#   delete  cancel the job at once
#   up      setup, run, and wait until the run is finished
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$(dirname "$0")/steps.sh"

setup() {
  try make -C "$ROOT" .venv/installed
  try "$ROOT/.venv/bin/pip" install --quiet -e "${ROOT}[gpu,pretrained]"
}

run() {
  try mkdir -p "$ROOT/logs"
  try rm -f "$ROOT/logs/$NAME.code"
  # JAX's processes choose their GPU by their number, so each must see all of its node's. The signal, two minutes before
  # the time limit, lets the run save.
  try sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" \
    --time="$TIME_LIMIT" --signal=TERM@120 --requeue --open-mode=append --output="$ROOT/logs/$NAME.log" \
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
