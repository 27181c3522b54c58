"""one_gpu.sh installs missing packages and runs `diffdistill run`."""

import os
import pathlib
import re
import runpy
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "one_gpu.sh"
FEW_PACKAGES = runpy.run_path(str(ROOT / "tests" / "few_packages.py"))
# A fake Python, which one_gpu.sh starts. It records the words of diffdistill
# and of pip instead of running them, and runs other code.
PYTHON = f"""#!/usr/bin/env bash
case "$1 ${{2:-}}" in
  "-m diffdistill") echo "$PYTHONPATH $*" > "$SIM/ran" ;;
  "-m pip")
    echo "$*" >> "$SIM/pip.log"
    for word; do
      case $word in --target=*) mkdir -p "${{word#*=}}" ;; esac
    done
    ! grep -q broken "${{@: -1}}"
    ;;
  *) PYTHONPATH=$SIM/modules exec {sys.executable} -S "$@" ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
  """A folder with a fake Python and the packages of a machine."""
  (tmp_path / "modules").mkdir()
  for name in FEW_PACKAGES["PACKAGES"]:
    (tmp_path / "modules" / f"{name}.py").touch()
  (tmp_path / "python").write_text(PYTHON)
  (tmp_path / "python").chmod(0o755)
  return tmp_path


@pytest.fixture
def start(machine, children):
  def run(*flags, **extra):
    done = children.run(
      *("bash", SCRIPT, *flags),
      env={
        **os.environ,
        "PYTHON": str(machine / "python"),
        "PYTHONPATH": "/other",
        "XDG_CACHE_HOME": str(machine / "cache"),
        "SIM": str(machine),
        **extra,
      },
    )
    return done.returncode, done.stderr

  return run


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    ([], "--config=cifar10:half_hour"),
    (["--config=digits:all"], "--config=digits:all"),
  ],
)
def test_the_script_runs_the_command_with_its_flags(
  start, machine, config, expected
):
  assert start("--workdir=runs/a", *config, "--minutes=3") == (0, "")
  assert (machine / "ran").read_text() == (
    f"/other -m diffdistill run {expected} --workdir=runs/a --minutes=3\n"
  )


def test_a_machine_without_python_is_refused(start):
  status, said = start(PYTHON="no-such-python")
  assert status == 1
  assert said == (
    "one_gpu.sh: there is no no-such-python; name a Python as PYTHON\n"
  )


def test_a_machine_without_packages_is_refused(start, machine):
  for name in ("grain", "jax"):
    (machine / "modules" / f"{name}.py").unlink()
  status, said = start()
  assert status == 1
  assert " lacks jax, grain; pass --wheels" in said
  assert said.count("\n") == 1
  assert not (machine / "ran").exists()


def test_wheels_are_installed_only_once(start, machine):
  wheels = machine / "wheels"
  flag = f"--wheels={wheels}"
  wheels.mkdir()
  status, said = start(flag)
  assert status == 1
  assert f"there are no wheels in {wheels}" in said
  wheel = wheels / "grain-1-py3-none-any.whl"
  wheel.write_text("broken")
  status, said = start(flag)
  assert status == 1
  assert f"the wheels in {wheels} cannot be installed, as pip says" in said
  (machine / "pip.log").unlink()
  wheel.write_text("whole")
  for _ in range(2):
    assert start(flag)[0] == 0
  (installed,) = (machine / "pip.log").read_text().splitlines()
  assert installed.startswith("-m pip install --quiet --no-index --no-deps ")
  assert installed.endswith(f" {wheel}")
  (packages,) = (machine / "cache" / "diffdistill").glob("packages-*")
  ran = (machine / "ran").read_text()
  assert ran.startswith(f"{packages}:/other -m diffdistill run ")
  # A changed wheel is installed, although older ones are installed already.
  wheel.write_text("newer")
  assert start(flag)[0] == 0
  assert len((machine / "pip.log").read_text().splitlines()) == 2


def test_the_script_lists_the_packages_that_doors_test_allows():
  text = SCRIPT.read_text()
  (named,) = re.findall(r"--dest=FOLDER \\\n((?:#[ \w\\]+\n)+)#\n", text)
  named = set(re.findall(r"\w+", named))
  assert named == set(FEW_PACKAGES["BROUGHT"].split())
