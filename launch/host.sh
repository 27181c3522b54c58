#!/usr/bin/env bash
# The script that a scheduler runs on one host.
#
#   host.sh install REQUIREMENT...  installs in ~/diffdistill/venv, pinned by
#                                   requirements.txt beside or above this file
#   host.sh run COMMAND...          runs COMMAND; ends with a status below
#
# Exit statuses of run: 0 finished; 1 and 2 refused, a person must act;
# 75 preempted, all is saved; 70 another failure, run it again.
set -uo pipefail

SELF=$(realpath "${BASH_SOURCE[0]}")
HERE=${SELF%/*}
ROOT=$HOME/diffdistill
PATH=$ROOT/venv/bin:$HOME/.local/bin:$PATH

install() {
  set -e
  mkdir -p "$ROOT"
  # The lock lets two starts on one host install one after the other.
  exec 9> "$ROOT/lock"
  flock 9
  local pin versions=$HERE/requirements.txt
  [ -e "$versions" ] || versions=$HERE/../requirements.txt
  pin=$(cksum < "$versions"; echo "$@")
  if [ "$pin" = "$(cat "$ROOT/installed" 2>/dev/null)" ]; then
    return
  fi
  # The Python of a TPU VM is too old, so uv installs a newer one.
  if ! command -v uv > /dev/null; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
  fi
  rm -rf "$ROOT/installed" "$ROOT/venv"
  uv venv --quiet --python 3.12 "$ROOT/venv"
  uv pip install --quiet --python "$ROOT/venv/bin/python" \
    --constraint "$versions" "$@"
  echo "$pin" > "$ROOT/installed"
}

run() {
  local said sayer status child= ended=
  said=$(mktemp)
  # Slurm signals every process of a task. tee must ignore the signal from its
  # start, because a trap inside it would come too late.
  trap '' TERM INT
  exec 3> >(exec tee "$said" >&2)
  sayer=$!
  # SIGTERM announces a preemption: the command saves and ends.
  trap 'ended=1; kill -TERM "$child" 2> /dev/null' TERM INT
  "$@" 2>&3 3>&- &
  child=$!
  exec 3>&-
  [ -z "$ended" ] || kill -TERM "$child"
  ended=
  wait "$child"
  status=$?
  # A signal can end `wait` before the command ends.
  while [ -n "$ended" ]; do
    ended=
    wait "$child"
    status=$?
  done
  # A process that the command left running may keep the pipe open.
  for _ in {1..50}; do
    kill -0 "$sayer" 2> /dev/null || break
    sleep 0.1
  done
  case $status in
    0 | 70 | 75) ;;
    # Python also exits with 1 after an error, or if another process died. Only
    # a refusal prints a line of this form.
    1 | 2)
      if grep -q '^diffdistill: ' "$said"; then
        echo "host.sh: refused" >&2
      else
        echo "host.sh: died with status $status" >&2
        status=70
      fi
      ;;
    *)
      echo "host.sh: died with status $status" >&2
      status=70
      ;;
  esac
  rm -f "$said"
  exit "$status"
}

case ${1:-} in
  install | run) "$@" ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$SELF" >&2
    exit 2
    ;;
esac
