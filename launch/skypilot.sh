#!/usr/bin/env bash
# Trains as a managed job of SkyPilot, which finds machines, restarts the job on
# others when it loses them, and gives them back at the end.
#
#   bash launch/skypilot.sh moments --secret WANDB_API_KEY -- \
#     --config=imagenet64:moment_matching --expect_devices=64 --multihost \
#     --workdir=gs://bucket/runs/moments
#
# The arguments are a name, flags of `sky jobs launch` for skypilot.yaml, and
# flags of `diffdistill train`. First admit.py checks the config here. A config
# that is a file of your own is copied to the hosts. --secret NAME hands on the
# variable NAME of this shell, which SkyPilot hides. For one machine with GPUs:
# --gpus H100:8 --env JAX_EXTRA=cuda13, and no --multihost. DRY_RUN=1 prints the
# task and the command.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

refuse() {
  echo "skypilot.sh: $1" >&2
  exit 2
}

[ $# -ge 1 ] || refuse "pass NAME SKY_FLAG... -- TRAIN_FLAG..."
flags=(--name="$1") chips=tpu-v6e
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  [ "${flags[-1]}" != --gpus ] || chips=$1
  case $1 in --gpus=*) chips=${1#*=} ;; esac
  flags+=("$1")
  shift
done
[ "${1:-}" = -- ] || refuse "there is no -- before the flags of train"
shift
[[ " $* " == *" --workdir=gs://"* ]] ||
  refuse "--workdir is no bucket; pass gs://bucket/runs/name, which outlives\
 the machines"
found=$("${PYTHON:-python3}" "$here/admit.py" --carry=/tmp/diffdistill "$chips" "$@")
own=${found%%$'\n'*} train=${found#*$'\n'}

task=$(mktemp --suffix=.yaml)
trap 'rm -f "$task"' EXIT
cp "$here/skypilot.yaml" "$task"
[ -z "$own" ] ||
  echo "file_mounts: {/tmp/diffdistill/${own##*/}: $(realpath "$own")}" >> "$task"
cd "$here/.."
command=(sky jobs launch "$task" "${flags[@]}" --env "TRAIN=$train")
if [ -n "${DRY_RUN:-}" ]; then
  cat "$task"
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
