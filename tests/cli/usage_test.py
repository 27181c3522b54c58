"""The help shows every command and flag of the table of commands."""

import re

import pytest

from diffdistill import __version__
from diffdistill.cli import usage
from diffdistill.cli.commands import COMMANDS


@pytest.mark.parametrize("words", [(), ("help",), ("--help",), ("-h",)])
def test_the_overview_has_one_line_per_command(words):
  text = usage.answer(words)
  for name, command in COMMANDS.items():
    assert re.search(rf"^  {name} +{command.summary}\.$", text, re.M), name
  assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_explains_each_flag(name):
  command = COMMANDS[name]
  text = usage.answer((name, "--help"))
  assert max(map(len, text.splitlines())) <= 80
  words = " ".join(text.split())
  assert words.startswith(f"usage: diffdistill {name}")
  assert command.about in words
  assert command.again in words
  for flag in command.flags:
    explained = re.search(
      rf" --{flag.name}(=\S+)? {re.escape(flag.help)}.*?"
      rf"{re.escape(usage.default(flag))}",
      words,
    )
    assert explained, flag.name
    for choice in flag.choices:
      assert choice in explained[0]
    if flag.range:
      assert (
        f"From {flag.range.least:,} to {flag.range.most:,}." in explained[0]
      )
  for status in (0, 1, 2, 70, 75, 130):
    assert re.search(rf"^  {status} +\w", text, re.M)
  example = text.partition("example:")[2].partition("exit status:")[0]
  typed = example.replace("\\\n", " ").split()
  assert typed == ["diffdistill", name, *command.example.split()]


def test_several_words_ask_for_help():
  explained = usage.answer(("train", "--help"))
  assert usage.answer(("help", "train")) == explained
  assert usage.answer(("train", "--workdir=x", "-h")) == explained
  assert usage.answer(("--version",)) == f"diffdistill {__version__}"
  assert usage.answer(("train", "--workdir=x")) is None


def test_help_does_not_read_the_config(run_cli, capsys):
  assert run_cli("train", "--config=broken.py", "--help") == 0
  assert capsys.readouterr().out.startswith("usage: diffdistill train")
