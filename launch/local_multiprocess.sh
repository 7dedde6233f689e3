#!/usr/bin/env bash
# A run of several processes on this machine's CPU, as on several hosts: to try what a pod will do.
#   run     start them, and wait; Ctrl-C stops them all, and they save first
#   up      the same, and start all again, up to MAX_RESTARTS times, where one of them dies
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$(dirname "$0")/steps.sh"

run() {
  local process pid status code=0 pids=()
  local common=("${PYTHON:-$ROOT/.venv/bin/python}" "${MAIN[@]}" --coordinator="localhost:${PORT:-8476}"
    --num_processes="$PROCESSES")
  export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES"
  if [[ $DRY_RUN ]]; then show export JAX_PLATFORMS="$JAX_PLATFORMS" XLA_FLAGS="$XLA_FLAGS"; fi
  trap 'kill "${pids[@]}" || true' INT TERM
  for ((process = 0; process < PROCESSES; process++)); do
    if [[ $DRY_RUN ]]; then show "${common[@]}" --process_id="$process"; continue; fi
    "${common[@]}" --process_id="$process" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    while # a signal ends the waiting, not the process
      wait "$pid" && status=0 || status=$?
      kill -0 "$pid" 2>/dev/null
    do :; done
    if ((status)); then code=$status; fi
  done
  exit "$code"
}

# Once one process has died, the others end too: the run resumes from the newest checkpoint.
up() {
  local restarts=0 child code
  while
    run &
    child=$!
    trap 'kill "$child" || true' INT TERM
    while
      wait "$child" && code=0 || code=$?
      kill -0 "$child" 2>/dev/null
    do :; done
    ((code && code != MISTAKE && code != STOPPED && restarts < MAX_RESTARTS))
  do
    restarts=$((restarts + 1))
    echo "the run ended with code $code; starting all processes again ($restarts of $MAX_RESTARTS)" >&2
  done
  exit "$code"
}

launch "run up" "$@"
