"""A disk that takes no more is said in one line; then the command goes on."""

import contextlib

import pytest
from etils import epath

from diffdistill.tools.carrying import _copy


def fill(disk):
  """A file that takes all that is left of a disk."""
  filler = disk / "filler"
  with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
    while True:
      file.write(bytes(4096))
  return filler


@pytest.fixture
def last_line(run_cli, capsys):
  """Runs a command that is refused after it has said what it does."""

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
  """A command that writes to a place in a folder, and the place's name."""
  name, out, *flags = request.param
  sources = {
    "pack": f"--config={config_file}",
    "import": f"--from={exported}",
  }
  source = sources.get(name, f"--workdir={finished_run}")
  return lambda folder: (name, source, *flags, f"--out={folder / out}"), out


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
  command, small_disk, last_line, run_cli
):
  arguments, out = command
  filler = fill(small_disk)
  line = last_line(*arguments(small_disk))
  assert line.startswith((f"{small_disk}", f"the disk is full: {small_disk}"))
  assert ".partial" not in line.replace(f".{out}.partial/", "")
  assert "make room there" in line or "free " in line
  left = [path for path in small_disk.rglob("*") if path.is_file()]
  assert left == [filler]
  filler.unlink()
  assert run_cli(*arguments(small_disk)) == 0
  assert (small_disk / out).exists()


def test_a_disk_that_cannot_be_written_is_one_line(
  command, read_only_disk, last_line
):
  arguments, _ = command
  line = last_line(*arguments(read_only_disk))
  assert line.startswith(f"{read_only_disk}")
  assert "Read-only" in line or "read-only" in line


def test_a_workdir_that_is_full_is_one_line(last_line, config_file, small_disk):
  fill(small_disk)
  arguments = (f"--config={config_file}", f"--workdir={small_disk / 'run'}")
  line = last_line("train", *arguments)
  assert line.startswith(f"{small_disk / 'run'}")
  assert "No space left" in line


def test_a_workdir_that_cannot_be_written_is_one_line(
  last_line, config_file, read_only_disk
):
  workdir = read_only_disk / "run"
  line = last_line("train", f"--config={config_file}", f"--workdir={workdir}")
  assert line.startswith(f"{workdir}")
  assert "Read-only file system" in line


def test_a_copy_on_a_full_disk_names_the_copy(tmp_path, small_disk):
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
