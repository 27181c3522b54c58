"""`doctor` names what a machine lacks, with the remedy."""

import importlib.metadata
import re
import sys

import pytest
from etils import epath

from diffdistill.tools import doctor


@pytest.fixture
def said(capsys, monkeypatch):
  """Runs doctor; returns its lines by their labels."""

  def run(workdir, python=sys.executable):
    monkeypatch.setattr(sys, "executable", str(python))
    try:
      doctor.doctor(epath.Path(workdir))
    finally:
      lines = capsys.readouterr().out.splitlines()
      run.lines = dict(line.split(":", 1) for line in lines)
    return run.lines

  return run


@pytest.fixture
def fake_python(tmp_path):
  """Makes a program that doctor runs in place of Python to list devices."""

  def make(script):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path

  return make


def test_a_machine_that_can_train_has_a_line_for_each_thing(said, tmp_path):
  lines = said(tmp_path / "runs" / "new")
  assert lines["devices"].strip().startswith("0: cpu")
  assert "GiB free" in lines["memory"]
  assert re.fullmatch(
    r"\d+ of \d+ cores for this process", lines["processor"].strip()
  )
  assert f"{tmp_path} can be written" in lines["workdir"]
  assert not (tmp_path / "runs").exists()
  extras = {name for name in lines if name.startswith("extra ")}
  assert extras == {f"extra {name}" for name in doctor.EXTRAS}


def test_a_driver_that_fails_is_refused_with_its_last_line(
  said, fake_python, tmp_path
):
  python = fake_python("echo Traceback >&2; echo no driver >&2; exit 1")
  with pytest.raises(ValueError, match="line of the devices"):
    said(tmp_path, python)
  assert "JAX finds none (no driver)" in said.lines["devices"]


def test_a_driver_that_hangs_is_refused_after_a_while(
  said, fake_python, tmp_path, monkeypatch
):
  monkeypatch.setattr(doctor, "PATIENCE", 0.1)
  with pytest.raises(ValueError, match="line of the devices"):
    said(tmp_path, fake_python("exec sleep 60"))
  assert "has found none in 0.1 s" in said.lines["devices"]


def test_a_workdir_that_cannot_be_written_is_refused(
  said, fake_python, read_only_disk
):
  with pytest.raises(ValueError, match="line of the workdir"):
    said(read_only_disk / "run", fake_python("echo 0: cpu"))
  assert "Read-only file system" in said.lines["workdir"]


def test_the_folder_of_kept_compilations_is_named(
  said, fake_python, tmp_path, monkeypatch
):
  python = fake_python("echo 0: cpu")
  monkeypatch.setattr(doctor.compilations, "_without", lambda: "")
  monkeypatch.setenv("XDG_CACHE_HOME", "/here")
  line = said(tmp_path, python)["compilations"]
  assert line.strip() == "kept in /here/diffdistill/compilations"


def test_the_extras_are_those_that_pip_can_install():
  about = importlib.metadata.metadata("diffdistill")
  assert sorted(about.get_all("Provides-Extra")) == sorted(doctor.EXTRAS)
