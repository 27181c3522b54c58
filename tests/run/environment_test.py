"""Settings of JAX from outside a config change nothing, or are reported."""

import os
import subprocess
import sys

import jax
import pytest
from etils import epath

from diffdistill.run import environment
from diffdistill.run.environment import FILE, PINNED
from diffdistill.system.files import read_json

PRECISION = "jax_default_matmul_precision"


@pytest.fixture
def setting():
  """Changes a setting of JAX; the old value comes back after the test."""
  before = {}

  def change(name, value):
    here = environment._plain(getattr(jax.config, name))
    before.setdefault(name, here)
    jax.config.update(name, value)

  yield change
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture
def record(tmp_path):
  """Records the environment of a start of a run; returns the reported lines."""

  def life():
    said = []
    environment.record(epath.Path(tmp_path), said.append)
    return said

  return life


OTHERS = {
  "jax_default_prng_impl": "rbg",
  "jax_threefry_partitionable": False,
  "jax_random_seed_offset": 7,
  "jax_enable_x64": True,
  "jax_numpy_dtype_promotion": "strict",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_pinned_setting_gets_its_value_and_the_change_is_reported(
  setting, name, capsys
):
  setting(name, OTHERS[name])
  environment.pin()
  assert environment._plain(getattr(jax.config, name)) == PINNED[name]
  assert capsys.readouterr().err == (
    f"diffdistill: {name.upper()} is {OTHERS[name]!r} here and would change"
    f" what is computed; {PINNED[name]!r} is used\n"
  )
  environment.pin()
  assert capsys.readouterr().err == ""


def test_the_defaults_of_jax_are_the_pinned_values():
  """If nobody changed a setting of JAX, a run has no setting to report."""
  code = (
    "import jax; from diffdistill.run import environment as e; e.pin();"
    "print([n for n in e.PINNED if not hasattr(jax.config, n)])"
  )
  clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX")}
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=clean,
    capture_output=True,
    text=True,
    check=True,
  )
  assert (done.stdout, done.stderr) == ("[]\n", "")


def test_environment_variables_change_no_number(small_config, monkeypatch):
  code = f"""
import numpy as np, jax
from diffdistill.run import from_config
run = from_config.build({small_config!r})
key = jax.random.key(run.seed)
print(jax.random.normal(key, (3,)), np.asarray(jax.numpy.ones(3)).dtype)
"""

  def numbers(**variables):
    return subprocess.run(
      [sys.executable, "-c", code],
      env={**os.environ, **variables},
      capture_output=True,
      text=True,
      check=True,
    ).stdout

  assert numbers() == numbers(
    JAX_DEFAULT_PRNG_IMPL="rbg",
    JAX_ENABLE_X64="1",
    JAX_RANDOM_SEED_OFFSET="3",
    JAX_NUMPY_DTYPE_PROMOTION="strict",
  )


def test_a_different_precision_of_matrix_products_is_refused(
  setting, record, tmp_path
):
  assert record() == []
  environment.check(epath.Path(tmp_path))
  setting(PRECISION, "highest")
  with pytest.raises(ValueError, match="unset JAX_DEFAULT_MATMUL_PRECISION"):
    record()
  with pytest.raises(ValueError, match="unset JAX_DEFAULT_MATMUL_PRECISION"):
    environment.check(epath.Path(tmp_path))
  (tmp_path / FILE).unlink()
  assert record() == []
  assert record() == []
  setting(PRECISION, None)
  with pytest.raises(ValueError, match=r"set JAX_DEFAULT_.*=highest, or pass"):
    record()


def test_a_different_compiler_flag_is_reported_and_recorded(
  record, tmp_path, monkeypatch
):
  monkeypatch.setenv("XLA_FLAGS", "--xla_b --xla_a")
  assert record() == []
  # The order of flags and a folder for dumps do not matter.
  monkeypatch.setenv("XLA_FLAGS", "--xla_a --xla_dump_to=/tmp/x --xla_b")
  assert record() == []
  monkeypatch.delenv("XLA_FLAGS")
  assert record() == [
    "XLA_FLAGS was --xla_a --xla_b in this run's last life and is unset now:"
    " results may differ in their last bits"
  ]
  assert record() == []
  lives = read_json(tmp_path / FILE)["lives"]
  assert [life.get("XLA_FLAGS") for life in lives] == ["--xla_a --xla_b", None]


def test_a_damaged_record_is_refused_with_a_remedy(record, tmp_path):
  record()
  path = tmp_path / FILE
  path.write_text(path.read_text().replace("jaxlib", "jaxlub"))
  with pytest.raises(ValueError, match="digest does not match; restore it, or"):
    record()


@pytest.mark.parametrize(
  ("files", "backend", "platforms", "warned"),
  [
    (["nvidia0", "nvidia1", "nvidiactl"], "cpu", None, "nvidia0, nvidia1"),
    (["nvidia0"], "gpu", None, None),
    (["nvidia0"], "cpu", "cpu", None),
    (["nvidiactl", "null"], "cpu", None, None),
  ],
)
def test_gpus_that_jax_does_not_use_are_named(
  tmp_path, monkeypatch, setting, files, backend, platforms, warned
):
  for name in files:
    (tmp_path / name).touch()
  monkeypatch.setattr(environment, "DEVICES", tmp_path)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  setting("jax_platforms", platforms)
  line = environment.unused_gpus()
  assert (f"({warned})" in line) if warned else line == ""
