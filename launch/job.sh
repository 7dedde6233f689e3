#!/usr/bin/env bash
# What tpu_vm.sh starts on every host: Python with these arguments, its output, process id and exit code in the home.
set -u
cd "$(dirname "$0")/.." || exit
.venv/bin/python "$@" >>~/run.log 2>&1 &
echo $! >~/run.pid
wait $!
echo $? >~/run.code
