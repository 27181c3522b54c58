"""Tests that the program speaks UTF-8 and ends quietly without its reader."""

import os
import subprocess
import sys

import pytest

from diffdistill.system import streams


def test_a_reader_that_leaves_does_not_end_the_program():
  reader, writer = os.pipe()
  with os.fdopen(writer, "w") as pipe:
    stream = streams._stream(pipe)
    os.close(reader)
    for _ in range(3):
      stream.write("line\n" * 100_000)
      stream.flush()
    stream.close()


def test_a_stream_accepts_any_text(tmp_path):
  path = tmp_path / "out.txt"
  with path.open("w", encoding="ascii") as file:
    stream = streams._stream(file)
    stream.write("Käfer \udce4")
    stream.close()
  assert path.read_bytes() == "Käfer \\udce4".encode()


def test_a_closed_stream_drops_its_output():
  with streams._stream(None) as stream:
    stream.write("nobody reads this")


def test_python_restarts_in_utf8_under_another_locale(monkeypatch):
  begun = []
  monkeypatch.setattr(os, "execv", lambda *arguments: begun.append(arguments))
  monkeypatch.setenv("PYTHONUTF8", "0")
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "diffdistill", "list"])
  streams.speak_utf8()
  assert begun == []
  monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
  streams.speak_utf8()
  arguments = [sys.executable, "-X", "utf8", "-m", "diffdistill", "list"]
  assert begun == [(sys.executable, arguments)]
  assert os.environ["PYTHONUTF8"] == "1"


@pytest.mark.slow
def test_list_ends_quietly_if_its_pipe_is_closed():
  command = f"{sys.executable} -m diffdistill list"
  done = subprocess.run(
    ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "objectives:\n", "")


@pytest.mark.slow
def test_file_names_with_umlauts_work_in_the_c_locale(finished_run, tmp_path):
  place = tmp_path / "läufe"
  place.symlink_to(finished_run)
  without = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  done = subprocess.run(
    [
      *(sys.executable, "-m", "diffdistill", "sample", "--num_images=2"),
      f"--workdir={place}",
      f"--out={tmp_path}/grün.png",
    ],
    env={**os.environ, **without},
    capture_output=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr.decode()
  assert f"{tmp_path}/grün.png" in done.stdout.decode()
  assert (tmp_path / "grün.png").exists()
