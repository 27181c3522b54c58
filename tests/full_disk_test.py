"""Tests that a full disk is reported, and that the command succeeds later."""

import contextlib

import pytest
from etils import epath

from diffdistill.tools.carry import _copy


def fill(disk):
  """Writes a file that fills the rest of a disk."""
  filler = disk / "filler"
  with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
    while True:
      file.write(bytes(4096))
  return filler


@pytest.fixture
def last_line(run_cli, capsys):
  """Runs a command that must be refused, and returns its last line."""

  def run(*arguments):
    assert run_cli(*arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if "diffdistill: " in line)
    assert said.endswith(f"{line}\n")
    return line.removeprefix("diffdistill: ")

  return run


@pytest.fixture
def exported(finished_run, run_cli, tmp_path):
  out = tmp_path / "exported"
  arguments = (f"--workdir={finished_run}", "--round=halve/001", f"--out={out}")
  assert run_cli("export", *arguments) == 0
  return out


@pytest.fixture(
  params=[
    ("sample", "new/grid.png", "--num_images=4"),
    ("sample", "images.npz", "--num_images=4"),
    ("report", "report.html"),
    ("report", "report.json"),
    ("pack", "data.npz"),
    ("export", "model", "--round=halve/001"),
    ("export", "model", "--round=halve/001", "--format=stablehlo"),
    ("import", "model"),
  ],
  ids=lambda param: " ".join(param[:2]),
)
def command(request, finished_run, config_file, exported):
  """Gives (the arguments of a command for a folder, the name of its output)."""
  name, out, *flags = request.param
  sources = {
    "pack": f"--config={config_file}",
    "import": f"--from={exported}",
  }
  source = sources.get(name, f"--workdir={finished_run}")
  return lambda folder: (name, source, *flags, f"--out={folder / out}"), out


def test_a_full_disk_is_refused_in_one_line_and_the_command_can_repeat(
  command, small_disk, last_line, run_cli
):
  arguments, out = command
  filler = fill(small_disk)
  line = last_line(*arguments(small_disk))
  assert line.startswith((f"{small_disk}", f"the disk is full: {small_disk}"))
  assert ".partial" not in line.replace(f".{out}.partial/", "")
  assert "free " in line
  left = [path for path in small_disk.rglob("*") if path.is_file()]
  assert left == [filler]
  filler.unlink()
  assert run_cli(*arguments(small_disk)) == 0
  assert (small_disk / out).exists()


def test_a_read_only_disk_is_refused_in_one_line(
  command, read_only_disk, last_line
):
  arguments, _ = command
  line = last_line(*arguments(read_only_disk))
  assert line.startswith(f"{read_only_disk}")
  assert "Read-only" in line or "read-only" in line


def test_a_workdir_on_a_full_disk_is_refused_in_one_line(
  last_line, config_file, small_disk
):
  fill(small_disk)
  arguments = (f"--config={config_file}", f"--workdir={small_disk / 'run'}")
  line = last_line("train", *arguments)
  assert line.startswith(f"{small_disk / 'run'}")
  assert "No space left" in line


def test_a_read_only_workdir_is_refused_in_one_line(
  last_line, config_file, read_only_disk
):
  workdir = read_only_disk / "run"
  line = last_line("train", f"--config={config_file}", f"--workdir={workdir}")
  assert line.startswith(f"{workdir}")
  assert "Read-only file system" in line


def test_carry_to_a_full_disk_names_the_copy(tmp_path, small_disk):
  folder = epath.Path(tmp_path) / "samples"
  folder.mkdir()
  for name in ("a.png", "reference.npz"):
    (folder / name).write_bytes(bytes(1000))
  copy = epath.Path(small_disk) / "copy"
  _copy(folder, copy, "reference.*")
  assert [path.name for path in copy.iterdir()] == ["a.png"]
  fill(small_disk)
  with pytest.raises(OSError, match="No space left") as error:
    _copy(folder, epath.Path(small_disk) / "copy" / "again")
  assert str(error.value.filename).startswith(str(small_disk))
