#!/usr/bin/env bash
# Runs `diffdistill run` on one accelerator, from a checkout that need not be
# installed:
#
#   bash launch/one_gpu.sh --workdir=runs/half_hour [--minutes=9.5]
#     [--wheels=FOLDER] [--config=cifar10:half_hour] [--FLAG=VALUE ...]
#
# trains, evaluates, benchmarks and reports. It ends with status 75 when the
# minutes are over; then the same command continues. `diffdistill run --help`
# explains the flags. Paths are relative to the repository's root. The variable
# PYTHON names the Python to run. --config=fashion_mnist:quarter_hour has more
# papers, and needs less time and less data.
#
# A machine without a network needs jax, flax, optax, orbax-checkpoint, numpy
# and pillow, and these wheels, which another machine downloads for it:
#
#   pip download --no-deps --only-binary=:all: --python-version=3.12 \
#     --platform=manylinux_2_28_x86_64 --platform=manylinux_2_17_x86_64 \
#     --dest=FOLDER \
#     ml_collections grain array_record cloudpickle portpicker jaxtyping \
#     jinja2 markupsafe
#
# Charts also need matplotlib: `diffdistill evaluate` and `diffdistill report`
# can draw them on another machine. JAX_COMPILATION_CACHE_DIR keeps compiled
# programs.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/.."
PYTHON=${PYTHON:-python3}
NEEDED="jax flax optax orbax numpy PIL absl etils ml_collections grain jaxtyping
  array_record cloudpickle portpicker jinja2 markupsafe"

refuse() {
  echo "one_gpu.sh: $1" >&2
  exit 1
}

config=--config=cifar10:half_hour
words=()
for word; do
  case $word in
    --wheels=?*) wheels=${word#*=} ;;
    --config=?*) config=$word ;;
    *) words+=("$word") ;;
  esac
done
command -v "$PYTHON" > /dev/null ||
  refuse "there is no $PYTHON; name a Python as PYTHON"

if [ -n "${wheels:-}" ]; then
  pin=$("$PYTHON" -V && cksum "$wheels"/*.whl) ||
    refuse "there are no wheels in $wheels; the head of $0 has the list"
  pin=$(cksum <<< "$pin")
  packages=${XDG_CACHE_HOME:-$HOME/.cache}/diffdistill/packages-${pin%% *}
  if [ ! -e "$packages" ]; then
    trap 'rm -rf "$packages.$$"' EXIT
    "$PYTHON" -m pip install --quiet --no-index --no-deps \
      --target="$packages.$$" "$wheels"/*.whl ||
      refuse "the wheels in $wheels cannot be installed, as pip says"
    # Another process may have installed the same wheels in the meantime.
    mv -T "$packages.$$" "$packages" || [ -e "$packages" ]
  fi
  export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
fi
# shellcheck disable=SC2086
missing=$("$PYTHON" -c "import importlib.util as u, sys
print(*(n for n in sys.argv[1:] if not u.find_spec(n)), sep=', ')" $NEEDED)
[ -z "$missing" ] ||
  refuse "$PYTHON lacks $missing; pass --wheels, or another Python as PYTHON"
exec "$PYTHON" -m diffdistill run "$config" ${words[@]+"${words[@]}"}
