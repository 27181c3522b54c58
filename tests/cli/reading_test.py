"""The words of a command line become the arguments of a function."""

import pathlib

import pytest
from etils import epath

from diffdistill.cli import reading
from diffdistill.cli.commands import COMMANDS
from diffdistill.system.refusals import UsageError

CONFIG = "digits:progressive"
# ml_collections loads a config file by a method that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


def arguments(name, *words):
  return reading.arguments(COMMANDS[name], reading.read(name, words))


def test_a_flag_that_is_not_given_has_its_default():
  assert arguments("sample", "--workdir=runs/x") == {
    "workdir": epath.Path("runs/x"),
    "round_name": None,
    "num_images": None,
    "num_steps": None,
    "seed": 0,
    "label": None,
    "guidance": None,
    "interpolate": None,
    "show_steps": False,
    "plain": False,
    "out": epath.Path("samples.png"),
  }
  assert arguments("benchmark", f"--config={CONFIG}")["num_steps"] == (
    1,
    2,
    4,
    8,
  )


def test_each_kind_of_flag_gives_its_type():
  given = arguments(
    *("sample", "-workdir", "~/x", "--seed=+07", "--guidance=1e-1"),
    *("--round=teacher", "--out=file:///tmp/a.png"),
  )
  assert given["workdir"] == epath.Path(pathlib.Path.home() / "x")
  assert given["out"] == epath.Path("/tmp/a.png")
  assert (given["seed"], given["guidance"]) == (7, 0.1)
  assert given["round_name"] == "teacher"
  words = ("evaluate", "--workdir=x", "--num_steps=1, 2,4")
  assert arguments(*words)["num_steps"] == (1, 2, 4)
  words = ("plan", f"--config={CONFIG}", "--topology=cpu:8")
  assert arguments(*words)["as_json"] is False
  for switch, value in (
    ("--json", True),
    ("--nojson", False),
    ("--json=true", True),
  ):
    assert arguments(*words, switch)["as_json"] is value
  words = ("report", "--workdir=a,b", "--workdir", "c")
  assert arguments(*words)["workdirs"] == [*map(epath.Path, "abc")]


@pytest.mark.parametrize(
  "words",
  [
    ("--config.seed=5", "--workdir=x", f"--config={CONFIG}"),
    ("-config", CONFIG, "--workdir", "x", "--config.seed", "5"),
    ("--config.seed=5", f"-config={CONFIG}", "--workdir=x"),
  ],
)
def test_config_fields_may_come_before_or_after_the_config(words):
  given = arguments("train", *words)
  assert given["config"].seed == 5
  assert given["workdir"] == epath.Path("x")


def test_boolean_config_fields_need_no_value():
  given = arguments(
    *("train", f"--config={CONFIG}", "--config.data.flip"),
    *("--noconfig.data.conditional", "--workdir=x"),
  )
  assert given["config"].data.flip is True
  assert given["config"].data.conditional is False


def test_the_run_command_gets_the_config_as_words():
  given = arguments(
    *("run", "--config.seed", "1", "--workdir=x", "-config", CONFIG),
    *("--config.data.flip", "--cpu"),
  )
  assert given["config"] == [
    f"--config={CONFIG}",
    "--config.seed=1",
    "--config.data.flip",
  ]
  assert given["cpu"] is True


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ("--config", "--config has no value; pass --config=RECIPE"),
    (
      "--config.data.source.split --config.seed=1",
      "--config.data.source.split has no value; pass"
      " --config.data.source.split=VALUE",
    ),
    ("--config.seed", "--config.seed has no value; pass --config.seed=VALUE"),
    (
      "--config.stages.teacher",
      "--config.stages.teacher has no value; pass"
      " --config.stages.teacher=VALUE",
    ),
    (
      "--config.seed=1 --config.seed=2",
      "--config.seed is given 2 times; pass it once",
    ),
    (
      "--config.stages.teacher=x",
      "--config.stages.teacher=x cannot be read; set its fields, each as"
      " --config.SECTION.FIELD=VALUE",
    ),
    (
      "--config..seed=1",
      "--config..seed is no field of the config; pass --config.FIELD=VALUE",
    ),
    (
      "--config.evaluation.num_steps=(1,2",
      "--config.evaluation.num_steps=(1,2 cannot be read; pass values with"
      " commas between them, such as 1,2,4",
    ),
  ],
)
def test_a_config_field_that_cannot_be_set_is_refused(words, message):
  given = words.split()
  if given != ["--config"]:
    given.append(f"--config={CONFIG}")
  with pytest.raises(UsageError) as refused:
    reading.read("train", [*given, "--workdir=x"])
  assert str(refused.value) == message


@pytest.mark.filterwarnings("ignore")
def test_a_file_whose_function_returns_no_config_is_refused(tmp_path):
  file = tmp_path / "returns_nothing.py"
  file.write_text("def get_config():\n  pass\n")
  with pytest.raises(UsageError, match=r"has no config; let its get_config"):
    reading.read("train", [f"--config={file}", "--workdir=x"])
