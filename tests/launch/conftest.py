"""A simulated cloud: stand-ins for its programs, first on PATH."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STANDINS = pathlib.Path(__file__).parent / "standins"
# Isolated and without site-packages: they start in an instant.
SHEBANG = f"#!{sys.executable} -IS\nimport sys\nsys.path[0:0] = [{{!r}}]\n"
SHELL = {
  "curl": "echo true",
  "hostname": 'echo "$SIM_HOST"',
  # Makes an environment as uv does, with the stand-ins as its programs.
  "uv": """
echo "$(hostname) $*" >> "$SIM/uv.log"
if [ "$1" = venv ]; then
  mkdir -p "${@: -1}/bin" "${@: -1}/lib/python3.12/site-packages/configs"
  for program in diffdistill python; do
    ln -s "$SIM/hosts.bin/$program" "${@: -1}/bin/$program"
  done
fi""",
}


class Cloud:
  """The simulation and what is left of it."""

  def __init__(self, root, children):
    self.root, self.children = root, children
    self.bin = root / "bin"
    self.bin.mkdir()
    (root / "hosts.bin").mkdir()
    for name, text in SHELL.items():
      self._write(self.bin / name, f"#!/usr/bin/env bash\n{text}\n")
    # host.sh's check, without JAX.
    self._write(
      root / "hosts.bin" / "python",
      '#!/usr/bin/env bash\necho "$(hostname) sees $2 devices"\n',
    )
    shutil.copy(STANDINS / "simulated.py", root)
    self._python("diffdistill", "hosts.bin")
    self.set(hosts=1, plan=[{"status": 0}])

  def programs(self, *names):
    for name in ("gcloud", "kubectl", "scontrol", "srun"):
      if name in names:
        self._python(name, "bin")
      else:
        # No real one may be called.
        self._write(self.bin / name, "#!/bin/false\n")

  def _python(self, name, folder):
    text = (STANDINS / f"{name}.py").read_text()
    self._write(
      self.root / folder / name, SHEBANG.format(str(self.root)) + text
    )

  def _write(self, path, text):
    path.write_text(text)
    path.chmod(0o755)

  def set(self, **fields):
    path = self.root / "state.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **fields}))

  @property
  def state(self):
    return json.loads((self.root / "state.json").read_text())

  def lines(self, name):
    path = self.root / name
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def environment(self, **extra):
    return {
      **os.environ,
      "SIM": str(self.root),
      "PATH": f"{self.bin}:/usr/bin:/bin",
      **extra,
    }

  def run(self, *command, text=None, **extra):
    environment = self.environment(**extra)
    return self.children.run(*command, cwd=ROOT, env=environment, text=text)

  def start_and_wait(self, command):
    """The status of a launcher, whose own commands may outlive it."""
    process = self.children.start(
      *command,
      cwd=ROOT,
      env=self.environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    return self.children.finish(process).returncode


@pytest.fixture
def new_cloud(tmp_path_factory, children):
  """Makes simulated clouds, all of whose processes end with the test."""

  def make(*programs):
    # Some tests make several at once.
    cloud = Cloud(tmp_path_factory.mktemp("cloud"), children)
    cloud.programs(*programs)
    return cloud

  return make


@pytest.fixture
def launch_path(monkeypatch):
  """Makes the launchers' modules importable."""
  monkeypatch.syspath_prepend(str(ROOT / "launch"))
