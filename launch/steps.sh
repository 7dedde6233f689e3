# Sourced by the launch scripts: settings, --dry-run, and what a step is.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STOPPED=75  # exit code of a run that a signal stopped: it is saved, and to be started again
MISTAKE=2   # exit code of a run that was refused: starting it again would not help
POLL_SECONDS=${POLL_SECONDS:-30}
DRY_RUN=

die() {
  echo "error: $1" >&2
  exit "${2:-$MISTAKE}"
}

# Runs a command, or prints it; the script ends where it fails.
try() {
  if [[ $DRY_RUN ]]; then show "$@"; return; fi
  "$@" || die "this command failed with code $?: $(show "$@")" 1
}

# What a command prints; in a dry run it is printed itself, and the answer is the first argument.
ask() {
  local assumed=$1
  shift
  if [[ $DRY_RUN ]]; then show "$@" >&2; echo "$assumed"; return; fi
  "$@" || die "this command failed with code $?: $(show "$@")" 1
}

# A command as it can be typed.
show() {
  local word line=
  for word in "$@"; do
    if [[ ! $word =~ ^[[:alnum:]_./:=,+@%-]+$ ]]; then word=${word@Q}; fi
    line+=" $word"
  done
  echo "${line:1}"
}

pause() {
  [[ $DRY_RUN ]] || sleep "$POLL_SECONDS"
}

# launch STEPS ARGUMENTS...: reads the settings, calls `prepare` where the script has one, and takes the step that the
# arguments name.
launch() {
  local steps=$1 settings=${LAUNCH_SETTINGS:-$ROOT/launch/settings.sh}
  shift
  if [[ ${1-} == --dry-run ]]; then DRY_RUN=yes; shift; fi
  [[ $# == 1 && $1 && " $steps " == *" $1 "* ]] || die "usage: launch/${0##*/} [--dry-run] ${steps// /|}"
  [[ -f $settings ]] || die "there is no $settings; copy launch/settings.sh.example to it and fill it in."
  # shellcheck source=launch/settings.sh.example
  source "$settings"
  # shellcheck disable=SC2034
  MAIN=(-m basisnet_jax.main "${ARGS[@]}" --workdir="$WORKDIR" --stopped_code="$STOPPED")
  if declare -F prepare >/dev/null; then prepare; fi
  "$1"
}
