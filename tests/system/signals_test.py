"""Tests that a signal ends a command with one line, whatever the command does.

The processes of these tests import neither jax nor a command, so each test
takes a fraction of a second. training/preemption_test.py and
training/multihost_test.py test commands.
"""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.children import PATIENCE

SECONDS = PATIENCE
TERM, HUP, INT = signal.SIGTERM, signal.SIGHUP, signal.SIGINT
BEGIN = """
import ctypes, os, signal, sys, threading, time
from diffdistill.system import signals

def ready():
  print("ready", flush=True)

def stuck():
  # A mutex that is locked twice: no signal ends this wait inside C.
  mutex = ctypes.create_string_buffer(256)
  lock = ctypes.CDLL(None).pthread_mutex_lock
  lock(mutex)
  ready()
  lock(mutex)

"""
END = """
sys.exit(signals.run(command, "do it again"))
"""


@pytest.fixture
def start(children):
  """Returns a function that starts a process and waits until it is ready."""

  def make(code, **options):
    process = children.start(
      *(sys.executable, "-c", BEGIN + textwrap.dedent(code) + END),
      stdout=subprocess.PIPE,
      **({"stderr": subprocess.PIPE} | options),
      text=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process

  return make


def ended(process, *numbers):
  """Sends signals to a process; returns its exit status and output."""
  for number in numbers:
    process.send_signal(number)
  _, said = process.communicate(timeout=SECONDS)
  return process.returncode, said


LINES = {
  TERM: (75, "diffdistill: told to leave by SIGTERM; do it again\n"),
  HUP: (75, "diffdistill: told to leave by SIGHUP; do it again\n"),
  INT: (130, "diffdistill: interrupted; do it again\n"),
}
SLEEP = """
def command():
  ready()
  time.sleep(1000)
"""


@pytest.mark.parametrize("number", LINES)
def test_a_signal_ends_python_code_with_one_line(start, number):
  assert ended(start(SLEEP), number) == LINES[number]


@pytest.mark.parametrize("number", LINES)
def test_a_signal_ends_a_process_whose_main_thread_waits_in_c(start, number):
  code = """
  def command():
    stuck()
  """
  assert ended(start(code), number) == LINES[number]


@pytest.mark.parametrize("slow", [0, 1000])
def test_unfinished_work_is_cleaned_up(start, slow):
  """Tests also a slow clean-up, which is given up: a disk may not answer."""
  code = f"""
  signals.SECONDS_TO_CLEAN = 0.1 if {slow} else 1000
  def clean():
    time.sleep({slow})
    os.write(1, b"clean")
  def command():
    with signals.unfinished(lambda: os.write(1, b"never")):
      pass
    with signals.unfinished(clean):
      ready()
      time.sleep(1000)
  """
  process = start(code)
  process.send_signal(TERM)
  done, said = process.communicate(timeout=SECONDS)
  assert done == ("" if slow else "clean")
  assert (process.returncode, said) == LINES[TERM]


@pytest.mark.parametrize(
  "catch", ["except BaseException: time.sleep(1000)", "finally: sys.exit(3)"]
)
def test_a_library_that_catches_all_exceptions_does_not_stop_a_signal(
  start, catch
):
  code = f"""
  def command():
    try:
      ready()
      time.sleep(1000)
    {catch}
  """
  assert ended(start(code), TERM) == LINES[TERM]


def test_signals_that_nohup_or_a_shell_ignores_stay_ignored(children):
  code = """
  def command():
    ready()
    sys.stdin.readline()
    return 3
  """
  ignore = "import os, signal, sys; " + "".join(
    f"signal.signal({number}, signal.SIG_IGN); " for number in (HUP, INT)
  )
  process = children.start(
    *(sys.executable, "-c"),
    f"{ignore}os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
    *("-c", BEGIN + textwrap.dedent(code) + END),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(HUP)
  process.send_signal(INT)
  done = children.finish(process, "go on\n")
  assert (done.returncode, done.stderr) == (3, "")


LOOP = """
signals.SECONDS_TO_BOUNDARY = (0.1, 0.1)
def command():
  listener = signals.listener()
  for number in listener.numbers:
    signal.signal(number, lambda number, _: listener.note(number))
  listener.boundary()
"""


@pytest.mark.parametrize("number", LINES)
def test_a_loop_that_reaches_no_boundary_is_ended(start, number):
  assert ended(start(f"{LOOP}  stuck()"), number) == LINES[number]


@pytest.mark.parametrize("held", ["listener.leave()", "pass"])
def test_a_loop_that_saves_can_finish(start, held):
  code = f"""{LOOP}
  with signals.writing():
    ready()
    while listener.first is None:
      time.sleep(0.01)
    {held}
    time.sleep(0.5)
    print("saved", flush=True)
    listener.leave()
  return 75
"""
  process = start(code)
  process.send_signal(TERM)
  done, said = process.communicate(timeout=SECONDS)
  assert (process.returncode, done, said) == (75, "saved\n", "")


def test_a_second_interrupt_ends_a_loop_that_saves(start):
  code = f"""{LOOP}
  listener.leave()
  signals.ONE_INTERRUPT = 0
  stuck()
"""
  process = start(code)
  # Send interrupts again and again, because several that come before the first
  # is handled count as one.
  while process.poll() is None:
    process.send_signal(INT)
    time.sleep(0.05)
  assert ended(process) == LINES[INT]


def test_a_signal_after_the_end_does_not_change_the_status(start):
  code = """
  import atexit
  signals.SECONDS_TO_EXIT = (0.1, 0.1)
  atexit.register(stuck)
  def command():
    return 3
  """
  assert ended(start(code), TERM) == (3, "")


def test_printing_to_a_closed_terminal_is_no_error(start):
  code = f"""{LOOP}
  ready()
  while listener.first is None:
    time.sleep(0.01)
  print("progress", file=sys.stderr, flush=True)
  return 75
"""
  ours, theirs = pty.openpty()
  process = start(code, stderr=theirs)
  os.close(theirs)
  os.close(ours)
  process.send_signal(HUP)
  assert process.wait(SECONDS) == 75


def test_no_slow_library_is_imported_before_signals_are_heard():
  code = """
import sys, diffdistill.__main__
print(sorted({"jax", "numpy", "absl", "etils"} & set(sys.modules)))
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "[]\n"


def test_a_signal_ends_a_config_file_that_runs_forever(children, tmp_path):
  """Tests a config file that never ends: it runs before the command begins."""
  path = tmp_path / "endless.py"
  path.write_text(
    "import sys, time\n\n\n"
    "def get_config():\n"
    "  print('ready', file=sys.stderr, flush=True)\n"
    "  time.sleep(1000)\n"
  )
  workdir = tmp_path / "run"
  process = children.start(
    *(sys.executable, "-m", "diffdistill", "train"),
    *(f"--config={path}", f"--workdir={workdir}"),
    stderr=subprocess.PIPE,
    text=True,
  )
  while process.stderr.readline() != "ready\n":
    assert process.poll() is None
  status, said = ended(process, TERM)
  assert status == 75
  assert said == (
    "diffdistill: told to leave by SIGTERM; the same command goes on from the"
    " newest checkpoint\n"
  )
  assert not workdir.exists()


def test_a_half_written_file_is_removed(start, tmp_path):
  code = f"""
  def command():
    from etils import epath
    from diffdistill.system.files import write_atomically
    path = {str(tmp_path / "whole")!r}
    write_atomically(path, "before")
    # The rename is what makes a file whole.
    def replace(self, target):
      ready()
      time.sleep(1000)
    type(epath.Path(path)).replace = replace
    write_atomically(path, "after")
  """
  process = start(code)
  assert len(list(tmp_path.iterdir())) == 2
  assert ended(process, INT) == LINES[INT]
  assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
