"""Each shell completes the commands, flags and recipes of the table."""

import re
import shutil

import pytest

from diffdistill.cli import completion
from diffdistill.cli.commands import COMMANDS

RECIPES = ("digits:all", "digits:progressive", "folder:all")
# Calls the function of the script as bash does when a person presses the tab.
TAB = """
COMP_LINE="$1"; COMP_POINT=${#1}; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_diffdistill
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def folder(tmp_path):
  """A folder with a config, and a folder whose name has a space."""
  (tmp_path / "runs of mine").mkdir()
  (tmp_path / "my.py").touch()
  return tmp_path


@pytest.fixture
def replies(children, folder):
  """Completes a line in bash; returns the replies."""

  def complete(line):
    # bash splits the line at spaces and at the letters = and :.
    words = re.findall(r"[^\s=:]+|[=:]", line)
    words += [""] if line.endswith(" ") else []
    code = completion.script("bash", RECIPES) + TAB
    done = children.run(
      *("bash", "-c", code, "bash", line, *words), cwd=folder, check=True
    )
    return done.stdout.splitlines()

  return complete


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("tra", ["train "]),
    ("help repo", ["report "]),
    ("train --wo", ["--workdir="]),
    ("train --multi", ["--multihost "]),
    ("train --no_such", [""]),
    ("train --config=dig", ["digits:all ", "digits:progressive "]),
    ("train --config=digits:pro", ["progressive "]),
    ("train --config=m", ["my.py "]),
    ("train --config=digits:all --workdir=r", ["runs\\ of\\ mine/"]),
    ("export --format=s", ["safetensors ", "stablehlo "]),
    ("sample --seed=", [""]),
    ("completion --shell=z", ["zsh "]),
  ],
)
def test_bash_completes_a_line(replies, line, expected):
  assert replies(f"diffdistill {line}") == expected


def test_bash_offers_every_command_and_every_flag(replies):
  offered = {word.rstrip() for word in replies("diffdistill ")}
  assert offered == {*COMMANDS, "help"}
  offered = {word.rstrip("= ") for word in replies("diffdistill sample ")}
  flags = {f"--{flag.name}" for flag in COMMANDS["sample"].flags}
  assert offered == {*flags, "--help"}


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_is_valid_in_its_shell(shell, children):
  if shutil.which(shell) is None:
    pytest.skip(f"{shell} is not installed")
  script = completion.script(shell, RECIPES)
  children.run(shell, "-n", "-c", script, check=True)
  for name, command in COMMANDS.items():
    assert re.search(rf"\b{name}\b", script)
    for flag in command.flags:
      assert re.search(rf"(--|-l ){flag.name}\b", script), flag.name


def test_fish_completes_a_line(children, folder):
  if shutil.which("fish") is None:
    pytest.skip("fish is not installed")
  script = completion.script("fish", RECIPES)
  code = f"{script}\ncomplete -C 'diffdistill train --config=digits:p'"
  done = children.run("fish", "-N", "-c", code, cwd=folder, check=True)
  assert done.stdout.startswith("--config=digits:progressive\t")


def test_the_command_prints_the_script_with_all_recipes(run_cli, capsys):
  (flag,) = COMMANDS["completion"].flags
  assert flag.choices == completion.SHELLS
  assert run_cli("completion", "--shell=bash") == 0
  printed = capsys.readouterr().out
  assert "source <(diffdistill completion --shell=bash)" in printed
  assert "--config=folder:progressive" in printed
