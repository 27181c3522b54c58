"""The table of commands agrees with the functions that it names."""

import inspect
import pkgutil

import pytest

from diffdistill.cli.command import HOSTS
from diffdistill.cli.commands import COMMANDS
from diffdistill.tools.export import FORMATS

FLAGS = [
  pytest.param(command, flag, id=f"{name} --{flag.name}")
  for name, command in COMMANDS.items()
  for flag in command.flags
]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_is_a_parameter_of_the_commands_function(name):
  command = COMMANDS[name]
  function = pkgutil.resolve_name(command.function)
  own = [flag for flag in command.flags if flag not in HOSTS]
  parameters = {flag.parameter or flag.name for flag in own}
  assert parameters == set(inspect.signature(function).parameters)
  assert command.flags in (tuple(own), (*own, *HOSTS))


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_each_flag_has_a_default_or_is_required(command, flag):
  default = flag.default is not None
  assert [default, bool(flag.unset), flag.required].count(True) == 1
  numeric = flag.kind in ("int", "ints", "float")
  assert numeric == (flag.range is not None)
  if numeric and default:
    numbers = flag.default if flag.kind == "ints" else (flag.default,)
    assert not any(map(flag.range.refusal, numbers))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_command_calls_its_function(
  name, run_cli, monkeypatch
):
  command, calls = COMMANDS[name], []
  module, _, function = command.function.partition(":")
  monkeypatch.setattr(
    f"{module}.{function}", lambda **given: calls.append(given)
  )
  assert run_cli(name, *command.example.split()) == 0
  assert len(calls) == 1


def test_the_format_flag_has_the_formats_of_export():
  (flag,) = (f for f in COMMANDS["export"].flags if f.name == "format")
  assert flag.choices == FORMATS
