"""A difference between processes is found and named before they compile."""

import ml_collections
import pytest

from diffdistill.run import agreement
from diffdistill.run.agreement import agree, code_digest, difference
from diffdistill.system import hosts


@pytest.fixture
def processes(monkeypatch):
  """Gives each command a process of its own; the last one calls `agree`."""

  def meet(*commands):
    texts = []

    def gathered(text):
      texts.append(text)
      return list(texts)

    monkeypatch.setattr(hosts, "gathered", gathered)
    for command in commands:
      agree(command)

  return meet


def command(rate=1e-3, **flags):
  stages = {"teacher": {"optimizer": {"learning_rate": rate}, "frozen": {}}}
  config = ml_collections.ConfigDict({"seed": 3, "stages": stages})
  return {"command": "train", "--workdir": "runs/a", "config": config, **flags}


def test_processes_with_the_same_command_agree(processes):
  processes(command(), command(), command())


def test_a_different_learning_rate_is_named(processes):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    processes(command(), command(), command(rate=2e-3))
  assert str(error.value) == (
    "config.stages.teacher.optimizer.learning_rate is 0.001 on process 0 and"
    " 0.002 on process 2; start the same command, of the same code, on every"
    " host"
  )


def test_a_flag_that_one_process_lacks_is_named(processes):
  with pytest.raises(ValueError, match="--seed is 1 on process 0 and unset on"):
    processes(command(**{"--seed": 1}), command())


def test_a_different_compiler_flag_is_named(monkeypatch):
  texts = []
  monkeypatch.setattr(
    hosts, "gathered", lambda text: texts.append(text) or list(texts)
  )
  monkeypatch.setenv("XLA_FLAGS", "--xla_a")
  agree(command())
  monkeypatch.setenv("XLA_FLAGS", "--xla_b")
  with pytest.raises(ValueError, match="XLA_FLAGS is --xla_a on process 0"):
    agree(command())


def test_different_code_is_named(processes, monkeypatch):
  digests = iter("ab")
  monkeypatch.setattr(agreement, "code_digest", lambda: next(digests))
  with pytest.raises(ValueError, match=r"code .* is a on process 0 and b on"):
    processes(command(), command())


def test_a_long_value_is_cut_and_followed_by_a_digest():
  first, second = ({"x": "1" * 100 + end} for end in "ab")
  line = difference([first, second])
  assert len(line) < 350
  assert line.count("... (digest ") == 2
  assert "x is 111" in line


def test_the_digest_of_the_code_is_stable():
  assert code_digest() == code_digest()
  assert len(code_digest()) == 16
