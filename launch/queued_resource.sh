#!/usr/bin/env bash
# Asks Google Cloud for a TPU pod that trains when it starts (queued resources).
#
#   bash launch/queued_resource.sh moments \
#     git+https://github.com/OWNER/diffdistill@v0.1.0 \
#     --project=mine --zone=us-west4-a --accelerator-type=v5litepod-256 \
#     --runtime-version=v2-alpha-tpuv5-lite --spot -- \
#     --config=imagenet64:moment_matching \
#     --workdir=gs://bucket/runs/moments --expect_devices=256 --multihost
#
# The arguments are a name, the package to install, flags of `gcloud compute
# tpus queued-resources create`, and flags of `diffdistill train`. First admit.py
# checks the config here. Every host installs and trains when it starts, and
# again after a failure; it gets TFDS_DATA_DIR if this is set here, and a copy of
# a config that is a file of your own, but no secrets: whoever may see the pod
# may read its script. DRY_RUN=1 prints the command and the hosts' script.
#
# Google no longer develops this Cloud TPU API, which does not offer new chips:
# GKE is the better way (jobset.py). This script does not wait, rent again or
# delete: `gcloud compute tpus queued-resources describe NAME` shows the state,
# `... ssh NAME --command="journalctl -fu google-startup-scripts"` shows the
# log, and `... delete NAME --force` gives the pod back. After a preemption,
# delete the resource and run this command again; the training continues.
#
# Sources: "Manage queued resources" (docs.cloud.google.com/tpu/docs).
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

refuse() {
  echo "queued_resource.sh: $1" >&2
  exit "${2:-1}"
}

[ $# -ge 2 ] || refuse "pass NAME PACKAGE GCLOUD_FLAG... -- TRAIN_FLAG..." 2
name=$1 package=$2
shift 2
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  refuse "the name is '$name'; pass at most 40 lower-case letters and digits"
[[ $package =~ ^git\+(https|ssh)://[^[:space:]]+@[A-Za-z0-9_./-]+$ ]] ||
  refuse "the package is '$package'; pass git+https://HOST/REPOSITORY@REF, so\
 that every restart trains the same code"
flags=() chips=tpu
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in --accelerator-type=*) chips=${1#*=} ;; esac
  flags+=("$1")
  shift
done
[ "${1:-}" = -- ] || refuse "there is no -- before the flags of train" 2
shift
[[ " $* " == *" --workdir=gs://"* ]] ||
  refuse "--workdir is no bucket; pass gs://bucket/runs/name, which outlives\
 the pod"
found=$("${PYTHON:-python3}" "$here/admit.py" --carry=/root/launch "$chips" "$@")
own=${found%%$'\n'*} train=${found#*$'\n'}
[ -z "$own" ] ||
  own="base64 -d > $(printf %q "${own##*/}") <<< $(base64 -w 0 "$own")"
# One slice, unless the flags set another number.
[[ " ${flags[*]-} " == *" --node-"* ]] || flags+=(--node-id="$name")

# A startup script runs as root, and its HOME may be unset.
requirement="diffdistill[tfds,gcs] @ $package"
script=$(mktemp)
trap 'rm -f "$script"' EXIT
cat > "$script" << HOST
#!/usr/bin/env bash
export HOME=/root
mkdir -p /root/launch && cd /root/launch
base64 -d > host.sh <<< $(base64 -w 0 "$here/host.sh")
base64 -d > requirements.txt <<< $(base64 -w 0 "$here/../requirements.txt")
$own
${TFDS_DATA_DIR:+export TFDS_DATA_DIR=$(printf %q "$TFDS_DATA_DIR")}
for _ in {1..100}; do
  if bash host.sh install 'jax[tpu]' $(printf %q "$requirement"); then
    bash host.sh run diffdistill train $train
    case \$? in 0 | 1 | 2) break ;; esac
  fi
  sleep 30
done
HOST
command=(gcloud compute tpus queued-resources create "$name" "${flags[@]}"
  --metadata-from-file="startup-script=$script" --quiet)
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  cat "$script"
else
  "${command[@]}"
fi
