"""The command line refuses wrong words in one line, with the right status."""

import errno
import re
import sys

import jax
import pytest

from diffdistill.data import SOURCES
from diffdistill.objectives import OBJECTIVES
from diffdistill.system import hosts
from diffdistill.tools import evaluate, train


def test_list_names_objectives_sources_networks_and_recipes(capsys, run_cli):
  assert run_cli("list") == 0
  listed = capsys.readouterr().out
  for name in (*OBJECTIVES, *SOURCES, "unet", "mlp", "resnet", "ddim", "heun"):
    assert re.search(rf"^  {name} +\S", listed, re.MULTILINE), name
  assert re.search(r"^  digits:progressive +\w", listed, re.M)


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (["nope"], "'nope' is no command; pass one of train, sample, evaluate"),
    (["trian"], "'trian' is no command; did you mean train?"),
    (["help", "nope"], "'nope' is no command; pass one of train, sample"),
    (["nope", "--help"], "'nope' is no command; pass one of train, sample"),
    (["train", "--x=3"], "--x is no flag of train; see diffdistill train --h"),
    (["train", "--work_dir=3"], "--work_dir is no flag of train; did you mean"),
    (["train", "--undefok=x", "--x"], "--undefok is no flag of train; see dif"),
    (["train", "stray"], "'stray' is no flag; did you mean --workdir=stray?"),
    (["train"], "--config is missing; see diffdistill train --help"),
    (["train", "--config="], "--config is empty; pass a recipe, such as"),
    (["train", "--config.seed=3"], "--config is missing; see diffdistill tr"),
    (["train", "--config=a", "--config=b"], "--config is given 2 times; pass"),
    (["train", "--config=configs/nope.py"], "configs/nope.py; `diffdistill"),
    (
      ["train", "--config=configs/nope.py", "--config.seed=3"],
      "--config is 'configs/nope.py', but there is no file /",
    ),
    (
      ["train", "--config=configs/digits.py:nope"],
      "--config=configs/digits.py:nope: recipe is 'nope'; pass one of progr",
    ),
    (["train", "--config=configs/digits.py"], "--workdir is missing"),
    (["train", "--config=digits:all"], "--workdir is missing"),
    (["train", "--config", "digits:all"], "--workdir is missing"),
    (["train", "--config=digits:nope"], "did you mean digits:"),
    (["train", "--config=digits:all", "--config.sed=1"], "did you mean seed?"),
    (["sample"], "--workdir is missing"),
    (["sample", "--workdir="], "--workdir is empty; pass a value"),
    (["report", "--workdir=a", "--workdir="], "--workdir is empty; pass a v"),
    (["sample", "--workdir=a", "--workdir=b"], "--workdir is given 2 times"),
    (["evaluate"], "--workdir is missing"),
    (
      ["sample", "--workdir=x", "--num_images=many"],
      "--num_images is 'many'; pass a whole number",
    ),
    (
      ["sample", "--workdir=x", "--num_steps=1,2"],
      "--num_steps is '1,2'; pass a whole number",
    ),
    (
      ["export", "--workdir=x", "--out=y", "--format=z"],
      "--format is 'z'; pass",
    ),
    (
      ["evaluate", "--workdir=x", "--num_steps=0"],
      "--num_steps is 0; pass 1 or more",
    ),
    (["evaluate", "--workdir=x", "--num_steps="], "--num_steps is empty; pass"),
    (["sample", "--workdir=x", "--seed=-1"], "--seed is -1; pass 0 or more"),
    (
      ["sample", "--workdir=x", "--num_images=0"],
      "--num_images is 0; pass",
    ),
    (["sample", "--workdir=x", f"--num_images={10**15}"], "at most 10000000"),
    (["sample", "--workdir=x", "--guidance=-1"], "--guidance is -1.0; pass 0 "),
    (["sample", "--workdir=x", "--guidance=nan"], "--guidance is nan; pass 0 "),
    (
      ["sample", "--workdir=x", "--interpolate=1"],
      "--interpolate is 1; pass",
    ),
    (
      ["sample", "--workdir=x", f"--label={2**31 - 2}"],
      "--label is 21474836",
    ),
    (["sample", "--workdir=x", f"--num_steps={10**9}"], "--num_steps is 10000"),
    (["evaluate", "--workdir=x", "--num_steps=²"], "--num_steps is '²'; pass"),
    (
      ["evaluate", "--workdir=x", f"--num_steps={10**400}"],
      "; pass 1 or more, at most 100000",
    ),
    (["benchmark", "--config=x", "--num_updates=0"], "no file and no recipe; "),
    (["evaluate", "--workdir"], "--workdir has no value; pass --workdir=V"),
    (["list", "--workdir=x"], "list does not read --workdir; pass --bibtex"),
  ],
)
def test_bad_usage_is_status_2(refuse, arguments, line):
  assert line in refuse(2, *arguments)


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("--config.seed=abc", "--config.seed=abc cannot be read; pass a whole num"),
    (
      "--config.stages.teacher.optimizer.learning_rate=fast",
      "learning_rate=fast cannot be read; pass a number",
    ),
    (
      "--config.stages.halve.num_update=3",
      "--config.stages.halve.num_update is no field of the config; did you mean"
      " num_updates?",
    ),
    (
      "--config.stages.halve.optimizer.b1=0.5",
      "optimizer.b1 is no field of the config; add it to its file",
    ),
  ],
)
def test_a_config_flag_that_cannot_be_used_is_status_2(
  refuse, train, flag, line
):
  assert line in refuse(2, *train, flag)


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("--config.seed=-1", "seed is -1; pass 0 or more"),
    ("--config.run=teach", "run names the stage 'teach'; pass some of"),
    ("--config.run=()", "run is (); pass a tuple of some of"),
    ("--config.stages.halve.start_steps=24", "start_steps=24 to end_steps=1"),
    ("--config.data.source.path=/no/such.npz", "/no/such.npz does not exist"),
    ("--config.data.source.kind=cifar", "data.source.kind is 'cifar'; pass"),
    (
      "--config.stages.teacher.batch_size=12",
      "stages.teacher.batch_size is 12, which the 8 devices do not divide",
    ),
  ],
)
def test_a_config_that_cannot_be_trained_is_status_1(refuse, train, flag, line):
  assert line in refuse(1, *train, flag)


def test_a_misspelt_field_in_a_config_file_is_refused(
  refuse, config_file, tmp_path
):
  line = refuse(
    1, "train", f"--config={config_file}:misspelt", f"--workdir={tmp_path}/new"
  )
  assert (
    line == "stages.halve.num_update is no field; did you mean num_updates?"
  )
  assert list(tmp_path.iterdir()) == []


def test_a_config_file_that_raises_an_error_is_bad_usage(
  refuse, config_file, tmp_path
):
  line = refuse(
    2, "train", f"--config={config_file}:crash", f"--workdir={tmp_path}/new"
  )
  assert "--config cannot be read (" in line
  assert "nothing" in line
  broken = tmp_path / "broken.py"
  broken.write_text("def get_config(:\n")
  line = refuse(2, "train", f"--config={broken}", "--workdir=x")
  assert "SyntaxError: invalid syntax (broken.py, line 1)" in line


def test_errors_of_the_program_keep_their_traceback(monkeypatch, run_cli):
  def fault(**_):
    return {}["missing"]

  monkeypatch.setattr(evaluate, "evaluate", fault)
  with pytest.raises(KeyError):
    run_cli("evaluate", "--workdir=unused")
  monkeypatch.setattr(evaluate, "evaluate", lambda **_: jax.numpy.zeros(-1))
  with pytest.raises(Exception, match="-1"):
    run_cli("evaluate", "--workdir=unused")


@pytest.mark.parametrize(
  "error",
  [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
  ],
)
def test_errors_that_no_user_can_correct_keep_their_traceback(
  monkeypatch, run_cli, error
):
  def fail(**_):
    raise error

  monkeypatch.setattr(evaluate, "evaluate", fail)
  with pytest.raises(type(error)):
    run_cli("evaluate", "--workdir=unused")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_written_is_one_line(monkeypatch, refuse, number):
  def fail(**_):
    raise OSError(number, "no", "/somewhere")

  monkeypatch.setattr(evaluate, "evaluate", fail)
  line = refuse(1, "evaluate", "--workdir=unused")
  assert line.startswith("/somewhere: no; ")


def test_a_bucket_without_its_package_is_refused(monkeypatch, refuse):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert refuse(1, "evaluate", "--workdir=gs://bucket/run") == (
    "--workdir is gs://bucket/run, which takes gcsfs; run"
    " `pip install '.[gcs]'` in a checkout of diffdistill"
  )


def test_an_interruption_names_the_way_to_continue(
  refuse, monkeypatch, config_file
):
  def interrupt(**_):
    raise KeyboardInterrupt

  monkeypatch.setattr(evaluate, "evaluate", interrupt)
  monkeypatch.setattr(train, "train", interrupt)
  line = refuse(130, "evaluate", "--workdir=unused")
  assert line.startswith("interrupted; the rows that are done are kept")
  line = refuse(130, "train", f"--config={config_file}", "--workdir=unused")
  assert line.startswith("interrupted; the same command goes on from")


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (("--process_id=0",), "--process_id is for --multihost; pass that too"),
    (
      ("--multihost", "--coordinator=a:1", "--process_id=0"),
      "--coordinator comes without --num_processes; pass all of",
    ),
    (
      ("--coordinator=host", "--num_processes=2", "--process_id=0"),
      "--coordinator is 'host'; pass HOST:PORT of process 0",
    ),
    (
      ("--coordinator=host:1", "--num_processes=2", "--process_id=2"),
      "--process_id is 2 of 2 processes; pass 0 to one less",
    ),
    (
      ("--multihost",),
      "--multihost finds no cluster (there is none); pass --c",
    ),
  ],
)
def test_hosts_that_cannot_be_found_are_bad_usage(
  monkeypatch, refuse, train, flags, line
):
  def join(*_):
    raise ValueError("there is none")

  monkeypatch.setattr(hosts, "join", join)
  if len(flags) == 3:
    flags = ("--multihost", *flags)
  assert refuse(2, *train, *flags).startswith(line)


def test_fewer_devices_than_expected_are_refused(refuse, train):
  assert refuse(1, *train, "--expect_devices=32") == (
    "expected 32 devices but 8 are here, of 1 processes; start the others, or"
    " pass --expect_devices=8"
  )


def test_python_m_diffdistill_refuses_an_unknown_command(children):
  done = children.run(sys.executable, "-m", "diffdistill", "nope")
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith("diffdistill: 'nope' is no command; pass one")
  assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
  ("arguments", "flag"),
  [
    (("sample", "--workdir=x", "--config=configs/digits.py"), "--config"),
    (("sample", "--workdir=x", "--config.seed=3"), "--config"),
    (("evaluate", "--workdir=x", "--seed=3"), "--seed"),
    (("evaluate", "--workdir=x", "--cpu"), "--cpu"),
  ],
)
def test_a_flag_of_another_command_is_refused(refuse, arguments, flag):
  command = arguments[0]
  assert refuse(2, *arguments).startswith(f"{command} does not read {flag}; ")
