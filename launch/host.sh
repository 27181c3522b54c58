#!/usr/bin/env bash
# What a launcher does on one host.
#
#   host.sh install REQUIREMENT...  into ~/diffdistill/venv, at the versions of
#                                   requirements.txt beside or above this file
#   host.sh check DEVICES HOSTS     all hosts join; this one sees all devices
#   host.sh run COMMAND...          once, with the exit statuses below
#   host.sh start N COMMAND...      the same as attempt N, detached; only once
#   host.sh state                   of the newest attempt, in one line:
#                                   state HOST ATTEMPT STATUS WORDS
#   host.sh log N LINE              what attempt N says from LINE on, until it
#                                   ends, as 1:WORDS, 2:WORDS and so on
#   host.sh stop                    ends the newest attempt
#
# Exit statuses of run: 0 finished; 1 and 2 refused: a person must act;
# 75 preempted, all saved; 70 anything else: run it again.
set -uo pipefail

SELF=$(realpath "${BASH_SOURCE[0]}")
HERE=${SELF%/*}
ROOT=$HOME/diffdistill
BOOT=/proc/sys/kernel/random/boot_id
PATH=$ROOT/venv/bin:$HOME/.local/bin:$PATH

install() {
  set -e
  mkdir -p "$ROOT"
  # A launcher that was killed may have left one at work.
  exec 9> "$ROOT/lock"
  flock 9
  local pin versions=$HERE/requirements.txt
  [ -e "$versions" ] || versions=$HERE/../requirements.txt
  # A wheel may change under its name.
  pin=$(cat "$versions" "$HERE"/*.whl 2>/dev/null | cksum; echo "$@")
  if [ "$pin" = "$(cat "$ROOT/installed" 2>/dev/null)" ]; then
    return
  fi
  # The Python of a TPU VM is older than ours: uv brings its own.
  if ! command -v uv > /dev/null; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
  fi
  rm -rf "$ROOT/installed" "$ROOT/venv"
  uv venv --quiet --python 3.12 "$ROOT/venv"
  (cd "$HERE" && uv pip install --quiet --python "$ROOT/venv/bin/python" \
    --constraint "$versions" "$@")
  # So that --config=configs/... names the same file here as in a checkout.
  ln -sfn "$(echo "$ROOT"/venv/lib/python3*/site-packages/configs)" \
    "$ROOT/configs"
  echo "$pin" > "$ROOT/installed"
}

check() {
  timeout 600 python - "$@" << 'PYTHON'
import socket
import sys

import jax

devices, hosts = map(int, sys.argv[1:])
if hosts > 1:
  jax.distributed.initialize()
print(socket.gethostname(), "sees", jax.device_count(), "devices", flush=True)
sys.exit(jax.device_count() != devices)
PYTHON
}

run() {
  local said sayer status child= ended=
  said=$(mktemp)
  exec 3> >(tee "$said" >&2)
  sayer=$!
  if [ -e "$ROOT/configs" ]; then
    cd "$ROOT" || exit 70
  fi
  # SIGTERM is the notice of a preemption: the command saves and ends.
  trap 'ended=1; kill -TERM "$child" 2> /dev/null' TERM INT
  "$@" 2>&3 3>&- &
  child=$!
  exec 3>&-
  [ -z "$ended" ] || kill -TERM "$child"
  ended=
  wait "$child"
  status=$?
  # Where the wait was what the signal ended.
  while [ -n "$ended" ]; do
    ended=
    wait "$child"
    status=$?
  done
  # A process that the command left behind may hold the pipe open.
  for _ in {1..50}; do
    kill -0 "$sayer" 2> /dev/null || break
    sleep 0.1
  done
  case $status in
    0 | 70 | 75) ;;
    # Python also exits with 1 when it dies of an error, or of its peers' death;
    # a refusal says why in a line of this form.
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

newest() {
  local path newest=0
  for path in "$ROOT"/attempt.*; do
    if [ -e "$path" ] && [ "${path##*.}" -gt "$newest" ]; then
      newest=${path##*.}
    fi
  done
  echo "$newest"
}

# Whether any process of an attempt lives, and is no zombie. After a host has
# started anew, the number may be that of another session.
alive() {
  local session booted
  read -r session booted 2> /dev/null < "$ROOT/attempt.$1/session" || return 1
  [ "$booted" = "$(< "$BOOT")" ] && pgrep -r D,I,R,S,T -s "$session" > /dev/null
}

start() {
  local attempt=$ROOT/attempt.$1
  mkdir -p "$ROOT"
  [ -e "$attempt" ] || stop
  mkdir "$attempt" 2> /dev/null || return 0
  shift
  setsid nohup bash "$SELF" attempt "$attempt" "$@" \
    > "$attempt/log" 2>&1 < /dev/null &
  echo "$! $(< "$BOOT")" > "$attempt/session"
}

attempt() {
  local attempt=$1
  shift
  bash "$SELF" run "$@"
  echo $? > "$attempt/status.new"
  mv "$attempt/status.new" "$attempt/status"
}

state() {
  local n status words= living=
  n=$(newest)
  # First: it may end in between, and writes its status before.
  alive "$n" && living=1
  if [ "$n" = 0 ]; then
    status=none
  elif status=$(cat "$ROOT/attempt.$n/status" 2> /dev/null); then
    words=$(grep -a '^diffdistill: ' "$ROOT/attempt.$n/log" | tail -n 1)
    words=${words:-$(grep -av '^host.sh: ' "$ROOT/attempt.$n/log" | tail -n 1)}
  elif [ -n "$living" ]; then
    status=running
  else
    status=70
    words="killed, or its host has started anew"
  fi
  echo "state $(hostname) $n $status ${words:0:300}"
}

log() {
  local attempt=$ROOT/attempt.$1 tail
  tail -n "+$2" -f "$attempt/log" | grep -an --line-buffered '' &
  tail=$(jobs -p)
  # The tail dies where nobody listens any more.
  while [ ! -e "$attempt/status" ] && alive "$1" && kill -0 "$tail"; do
    sleep 0.2
  done 2> /dev/null
  sleep 0.2
  kill "$tail" 2> /dev/null
  wait
}

stop() {
  local n session
  n=$(newest)
  alive "$n" || return 0
  read -r session _ < "$ROOT/attempt.$n/session"
  pkill -TERM -s "$session"
  for _ in {1..600}; do
    alive "$n" || return 0
    sleep 0.1
  done
  pkill -KILL -s "$session"
}

case ${1:-} in
  install | check | run | start | attempt | state | log | stop) "$@" ;;
  *)
    sed -n '2,17s/^# \{0,1\}//p' "$SELF" >&2
    exit 2
    ;;
esac
