#!/usr/bin/env bash
# A recipe from its data to its results on one accelerator, in pieces.
#
#   bash launch/one_gpu.sh --workdir=runs/half_hour [--minutes=10]
#     [--reserve=60] [--results=results] [--wheels=FOLDER] [--cpu]
#     [--config=configs/cifar10.py:half_hour] [--config.field=value ...]
#
# trains, judges, times and reports, and writes results/cifar10_<gpu>.json,
# .html, _curve.png and _compared.png. Places are from the repository's root.
# PYTHON names the Python to run, python3 by default.
#
#   --minutes   that this piece may take, all told; no limit where it is 0
#   --reserve   seconds of them, kept to save what was trained
#   --wheels    packages that the machine lacks: installed once, beside the
#               workdir
#   --cpu       a CPU will do
#
# What a piece has done is in the workdir, and the same command goes on. Where it
# goes on elsewhere, `diffdistill carry` writes what of the workdir must travel;
# what was compiled is in JAX_COMPILATION_CACHE_DIR, and worth carrying to a
# machine alike.
#
# Where a piece is killed at its limit, pass half a minute less: what does not
# save within the reserve is killed at the limit exactly. A row of an evaluation
# (the teacher at its most steps takes longest), the benchmark and each report
# begin anew in the next piece, and so do pairs that `carry` left behind; a piece
# has to be long enough for one of them.
#
# A machine without a network that has jax, flax, optax, orbax-checkpoint, numpy
# and pillow takes these wheels, fetched elsewhere for its Python and system:
#
#   pip download --no-deps --only-binary=:all: --python-version=3.12 \
#     --platform=manylinux_2_28_x86_64 --platform=manylinux_2_17_x86_64 \
#     --dest=FOLDER \
#     ml_collections grain array_record cloudpickle portpicker jaxtyping \
#     jinja2 markupsafe
#
# Charts take more, matplotlib: `diffdistill evaluate --workdir=...` draws
# _curve.png elsewhere, and `diffdistill report` writes the page with charts.
#
# Exit statuses: 0 finished; 1 and 2 refused: a person must act; 75 not
# finished, all saved: the same command goes on; 70 something died or hung, run
# it again; 130 interrupted.
set -uo pipefail

SELF=$(realpath "${BASH_SOURCE[0]}")
cd "${SELF%/*}/.." || exit 1
PYTHON=${PYTHON:-python3}
SECONDS=0

say() {
  echo "one_gpu.sh: $*" >&2
}

refuse() {
  say "$2"
  exit "$1"
}

workdir=
minutes=0
reserve=60
results=results
wheels=
cpu=
config=--config=configs/cifar10.py:half_hour
fields=()
for word in "$@"; do
  case $word in
    --workdir=?*) workdir=${word#*=} ;;
    --minutes=?*) minutes=${word#*=} ;;
    --reserve=?*) reserve=${word#*=} ;;
    --results=?*) results=${word#*=} ;;
    --wheels=?*) wheels=${word#*=} ;;
    --cpu) cpu=1 ;;
    --config=?*) config=$word ;;
    --config.?*=*) fields+=("$word") ;;
    *) refuse 2 "'$word' is no flag; the head of $SELF has them" ;;
  esac
done
workdir=${workdir%/}
command -v "$PYTHON" > /dev/null ||
  refuse 1 "there is no $PYTHON; name a Python as PYTHON"
[ -n "$workdir" ] || refuse 2 "--workdir is missing; pass a folder"
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
  refuse 2 "--minutes is '$minutes'; pass a number, or 0 for no limit"
[[ $reserve =~ ^[1-9][0-9]*$ ]] ||
  refuse 2 "--reserve is '$reserve'; pass whole seconds, 1 or more"
# Bash knows whole numbers alone.
limit=$(awk "BEGIN {
  s = 60 * $minutes; n = int(s + 0.999); print s && !n ? 1 : n
}")
if [ "$limit" != 0 ] && [ "$limit" -le "$reserve" ]; then
  refuse 2 "--minutes=$minutes is no more than --reserve=$reserve seconds"
fi

child=
leaving=
# The child saves what it has and ends.
leave() {
  leaving=$1
  [ -z "$child" ] || kill -TERM "$child" 2> /dev/null
}
trap 'leave 75' TERM HUP
trap 'leave 130' INT

# Where this script was killed, what it ran may live a while, and holds this too.
mkdir -p "$(dirname "$workdir")" || exit 1
exec 9> "$workdir.lock" || exit 1
flock --timeout=10 9 || refuse 1 "something is at work on $workdir; wait for it"

stop() {
  say "$1; the same command goes on"
  exit "${2:-75}"
}

# before NAME: goes on where there is time, and nobody says otherwise.
before() {
  if [ "$limit" != 0 ] && [ "$SECONDS" -ge "$((limit - reserve))" ]; then
    stop "$minutes minutes are over before $1"
  fi
  [ -z "$leaving" ] || stop "told to leave before $1" "$leaving"
}

# within NAME MOST COMMAND...: under what is left of the limit, and MOST seconds
# where that is not 0. Sets status; stops where the limit ended the command.
within() {
  local name=$1 left=$2
  shift 2
  if [ "$limit" != 0 ]; then
    local rest=$((limit - reserve - SECONDS))
    # It may have gone by just now, and 0 would be no limit.
    [ "$rest" -gt 0 ] || rest=1
    [ "$left" != 0 ] && [ "$left" -le "$rest" ] || left=$rest
  fi
  timeout --preserve-status --signal=TERM --kill-after="$reserve" "$left" "$@" &
  child=$!
  [ -z "$leaving" ] || kill -TERM "$child"
  wait "$child"
  status=$?
  # Where the wait was what a signal ended.
  while kill -0 "$child" 2> /dev/null; do
    wait "$child"
    status=$?
  done
  # Where a signal meets `timeout` just as it has started the command, it may end
  # alone.
  if kill -TERM -- "-$child" 2> /dev/null; then
    for ((left = 10 * reserve; left > 0; left--)); do
      kill -0 -- "-$child" 2> /dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$child" 2> /dev/null
  fi
  child=
  [ -z "$leaving" ] || stop "told to leave in $name" "$leaving"
  case $status in
    75 | 137 | 143)
      if [ "$limit" != 0 ] && [ "$SECONDS" -ge "$((limit - reserve))" ]; then
        stop "$minutes minutes are over in $name"
      fi
      ;;
  esac
}

# phase NAME COMMAND...: diffdistill's. Comes back only where it has finished.
phase() {
  local name=$1
  shift
  before "$name"
  say "$name"
  within "$name" 0 "$PYTHON" -m diffdistill "$@"
  case $status in
    0) ;;
    1 | 2 | 70 | 130) exit "$status" ;;
    75) stop "$name was told to leave" ;;
    137 | 143) stop "$name was killed" 70 ;;
    *) stop "$name died with status $status" 70 ;;
  esac
}

if [ -n "$wheels" ]; then
  packages=$workdir.packages
  pin=$("$PYTHON" -V && cksum "$wheels"/*.whl) ||
    refuse 1 "there are no wheels in $wheels; the head of $SELF has the list"
  if [ "$pin" != "$(cat "$packages/installed" 2> /dev/null)" ]; then
    rm -rf "$packages"
    before wheels
    within wheels 0 "$PYTHON" -m pip install --quiet --no-index --no-deps \
      --target="$packages" "$wheels"/*.whl
    [ "$status" = 0 ] ||
      refuse 1 "the wheels in $wheels cannot be installed, as pip says"
    echo "$pin" > "$packages/installed"
  fi
  packages=$(realpath "$packages")
  export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
fi

# Shared by all that follows, so that nothing is compiled twice.
caches=${XDG_CACHE_HOME:-~/.cache}
export JAX_COMPILATION_CACHE_DIR JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS
: "${JAX_COMPILATION_CACHE_DIR:=$caches/diffdistill/xla}"
: "${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:=0.5}"

# Says what is there; prints the device's name for a file.
read -r -d "" CHECK << 'CHECK'
import importlib.util
import re
import sys

NEEDED = (
  *("jax", "flax", "optax", "orbax", "numpy", "PIL", "absl", "etils"),
  *("ml_collections", "grain", "jaxtyping"),
  *("array_record", "cloudpickle", "portpicker"),  # Grain's
)
missing = [name for name in NEEDED if not importlib.util.find_spec(name)]
if missing:
  sys.exit(
    f"one_gpu.sh: {sys.executable} lacks {', '.join(missing)}; pass --wheels,"
    " or another Python as PYTHON"
  )

import jax

try:
  device, *others = jax.devices()
except RuntimeError as error:
  sys.exit(f"one_gpu.sh: JAX finds no device ({' '.join(str(error).split())})")
if device.platform == "cpu" and not sys.argv[1]:
  sys.exit(
    "one_gpu.sh: JAX finds no GPU or TPU; install its plugin, such as"
    " jax[cuda13], or pass --cpu"
  )
if others:
  sys.exit(
    f"one_gpu.sh: JAX finds {1 + len(others)} devices; show it one, such as"
    " CUDA_VISIBLE_DEVICES=0"
  )
memory = (device.memory_stats() or {}).get("bytes_limit")
said = f", {memory / 2**30:.1f} GiB for JAX" if memory else ""
print(f"one_gpu.sh: {device.device_kind}{said}", file=sys.stderr)
print(re.sub(r"[^a-z0-9]+", "_", device.device_kind.lower()).strip("_"))
CHECK

# put FILE PLACE: whole or not at all.
put() {
  cp "$1" "$2.new" && mv "$2.new" "$2" || refuse 1 "$2 cannot be written"
}

device=$workdir.device
before check
within check 300 "$PYTHON" -c "$CHECK" "$cpu" > "$device"
case $status in
  0) ;;
  137 | 143) refuse 70 "JAX does not find its device in 5 minutes; try again" ;;
  *) exit 1 ;;
esac
# After whatever a plugin prints.
gpu=$(tail -n 1 "$device")
rm "$device"
name=${config#--config=}
name=$(basename "${name%%:*}" .py)_$gpu

phase train train "$config" ${fields[@]+"${fields[@]}"} --workdir="$workdir"
# Rows that are judged already are kept.
phase evaluate evaluate --workdir="$workdir"
# What was measured on another device says nothing of this one.
benchmark=$workdir/benchmark_$gpu.json
if [ ! -e "$benchmark" ]; then
  phase benchmark benchmark "$config" ${fields[@]+"${fields[@]}"} \
    --num_updates=10 \
    > "$benchmark.new"
  mv "$benchmark.new" "$benchmark"
fi
mkdir -p "$results" || exit 1
for ending in json html; do
  phase report report --workdir="$workdir" --out="$results/$name.$ending"
done
put "$workdir/samples/compared.png" "$results/${name}_compared.png"
# Where matplotlib is not, evaluate has said that there is no curve.
if [ -e "$workdir/evaluation.png" ]; then
  put "$workdir/evaluation.png" "$results/${name}_curve.png"
fi
say "finished: $results/$name.json"
