"""Natural mistakes of a new user each get one line with the remedy."""

import os

import pytest

RUN = "--workdir=run"
RECIPE = "--config=digits:progressive"


@pytest.fixture
def empty(tmp_path, monkeypatch):
  """Makes an empty folder the current one."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ("line", "message"),
  [
    pytest.param(
      f"{RECIPE} train {RUN}",
      f"{RECIPE} comes before the command; run diffdistill train {RECIPE}"
      f" {RUN}",
      id="flags before the command",
    ),
    pytest.param(
      RUN,
      f"{RUN} comes before the command; run diffdistill COMMAND {RUN}",
      id="no command",
    ),
    pytest.param(
      f"train {RECIPE} run",
      "'run' is no flag; did you mean --workdir=run?",
      id="a workdir without its flag",
    ),
    pytest.param(
      f"train {RUN}",
      "--config is missing; see diffdistill train --help",
      id="no recipe",
    ),
    pytest.param(
      f"train --config=digits:progresive {RUN}",
      "--config is 'digits:progresive', no file and no recipe; did you mean"
      " digits:progressive?",
      id="a misspelt recipe",
    ),
    pytest.param(
      f"train --config=my.py:all {RUN}",
      "--config is 'my.py:all', but there is no file {folder}/my.py;"
      " `diffdistill list` names the recipes, which need no file",
      id="a config of another folder",
    ),
    pytest.param(
      f"evaluate {RUN} --num_steps=1, 2, 4",
      "'2,' comes after a space; did you mean --num_steps=1,2,4?",
      id="a list with commas and spaces",
    ),
    pytest.param(
      f"evaluate --num_steps 1 2 {RUN}",
      "'2' comes after a space; did you mean --num_steps=1,2?",
      id="a list with spaces",
    ),
    pytest.param(
      "report --workdir=runs/a runs/b --out=both.html",
      "'runs/b' comes after a space; did you mean --workdir=runs/a,runs/b?",
      id="two workdirs with a space",
    ),
  ],
)
def test_a_wrong_command_line_is_answered_with_the_right_one(
  refuse, empty, line, message
):
  assert refuse(2, *line.split(" ")) == message.format(folder=empty)
  assert os.listdir(empty) == []


def test_a_run_of_another_folder_is_named_with_its_whole_path(refuse, empty):
  for command in ("sample", "evaluate", "report"):
    line = refuse(1, command, RUN)
    assert line.startswith(f"{empty}/run holds no run")
  assert os.listdir(empty) == []
