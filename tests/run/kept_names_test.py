"""No stage and no output may have a name that a workdir reserves."""

import json

import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.run.kept_names import (
  FILES,
  FOLDERS,
  check_out,
  check_stage_name,
  check_workdir,
)
from diffdistill.tools import train


@pytest.mark.parametrize(
  "name", ["teacher", "halve_again", "pairs", "a", "004", "A-b_1", "x" * 64]
)
def test_a_stage_name_may_have_letters_and_digits(name):
  check_stage_name(name)


@pytest.mark.parametrize(
  "name",
  [
    "",
    "/tmp/x",
    "..",
    ".",
    "a/b",
    "classifier/final",
    "a b",
    "a\nb",
    "a\n",
    "a.b",
    "-a",
    "~",
    "é",
    "x" * 65,
    "x" * 300,
    "samples",
    "Samples",
    "evaluated",
    "tensorboard",
    "wandb",
    "checkpoints",
    "final",
    "best",
    3,
    None,
  ],
)
def test_a_name_that_cannot_be_a_stage_s_folder_is_refused_in_one_line(name):
  with pytest.raises(
    ValueError, match=r"^a stage is called .*; pass "
  ) as error:
    check_stage_name(name)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 250


def test_a_config_with_a_reserved_stage_name_is_refused(tiny_config):
  stages = {"samples": tiny_config["stages"]["teacher"]}
  config = {**tiny_config, "run": ("samples",), "stages": stages}
  with pytest.raises(
    ValueError, match="'samples', a name that a workdir keeps"
  ):
    from_config.build(config)


@pytest.mark.slow
def test_all_names_that_a_judged_run_makes_are_reserved(own_run, run_cli):
  assert run_cli("evaluate", f"--workdir={own_run}") == 0
  run = json.loads((own_run / "config.json").read_text())["run"]
  made = {path.name for path in own_run.iterdir()}
  assert made <= {*run, *FOLDERS, *FILES}


@pytest.mark.parametrize(
  "place",
  [
    "config.json",
    "benchmark.json",
    "benchmark_cpu.json",
    "lock.json",
    "evaluation.json",
    "samples/mine.png",
    "teacher/final/x.npz",
    "other/../evaluated/x.npz",
  ],
)
def test_an_output_in_place_of_a_runs_own_files_is_refused(tmp_path, place):
  out = epath.Path(tmp_path) / "run" / place
  with pytest.raises(ValueError, match="keeps its own files; pass another"):
    check_out(out, [epath.Path(tmp_path) / "run"], ["teacher"])


def test_an_output_below_a_link_to_a_workdir_is_refused(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "run")
  out = epath.Path(tmp_path) / "link" / "config.json"
  with pytest.raises(ValueError, match="keeps its own files"):
    check_out(out, [epath.Path(tmp_path) / "run"])


def test_an_output_beside_a_runs_own_files_is_allowed(tmp_path):
  workdir = epath.Path(tmp_path)
  out = workdir / "grid.png"
  assert check_out(out, [workdir], ["teacher"]) == ""
  out.write_text("")
  assert check_out(out, [workdir], ["teacher"]) == ", replaced"
  assert check_out(workdir / "exported", [workdir], folder=True) == ""


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
  (tmp_path / "grid.png").mkdir()
  with pytest.raises(ValueError, match="which is a folder; pass a file's name"):
    check_out(epath.Path(tmp_path) / "grid.png")


def test_a_model_in_place_of_a_stage_is_refused(tmp_path):
  for out in (epath.Path(tmp_path), epath.Path(tmp_path) / "halve" / "002"):
    with pytest.raises(ValueError, match="keeps its own files"):
      check_out(out, [epath.Path(tmp_path)], ["halve"], folder=True)


@pytest.mark.parametrize("letter", ["[", "*", "?", "\\"])
def test_a_workdir_in_which_no_checkpoint_can_be_saved_is_refused(
  letter, tmp_path, monkeypatch
):
  folder = tmp_path / f"runs {letter}2]"
  folder.mkdir()
  # A relative workdir below such a folder is refused too.
  monkeypatch.chdir(folder)
  for workdir in (folder, folder / "a", "a"):
    with pytest.raises(ValueError, match="checkpoints cannot be saved") as no:
      check_workdir(epath.Path(workdir))
    assert f"folder with {letter} in its name; pass a" in str(no.value)


@pytest.mark.parametrize(
  "name", ["a b", "it's 'é'", "a]", "a,b", "100% #1 {&}"]
)
def test_a_workdir_may_have_almost_any_name(name, tmp_path):
  check_workdir(epath.Path(tmp_path / name))
  check_workdir(epath.Path(f"gs://bucket/{name}"))


def test_a_bad_workdir_is_refused_before_training(small_config, tmp_path):
  workdir = epath.Path(tmp_path / "runs [2]")
  with pytest.raises(ValueError, match="pass a --workdir without it"):
    train.train(small_config, workdir)
  assert not workdir.exists()
