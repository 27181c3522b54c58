"""Tests that connected processes end with one line when one of them is lost.

The processes of these tests do not import jax, so each test takes a fraction of
a second. training/multihost_test.py tests processes that train.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys

import pytest

from tests.children import PATIENCE

SCRIPT = """
import json, sys, time
from diffdistill.system import links, signals

index = int(sys.argv[1])

def command():
  mine = links.Links(index)
  signals.at_end(mine.told)
  if index == 0:
    print(json.dumps(mine.listen()), flush=True)
    while len(mine._peers) < 2:
      time.sleep(0.01)
  else:
    mine.connect("localhost", *json.loads(sys.argv[2]))
  print("ready", flush=True)
  sys.stdin.readline()
  mine.leave()
  return 3

sys.exit(signals.run(command, "do it again"))
"""


@pytest.fixture
def three(children):
  """Starts three connected processes; returns them, a port and its token."""
  started = []

  def start(*arguments):
    process = children.start(
      *(sys.executable, "-c", SCRIPT, *arguments),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  first = start("0")
  place = first.stdout.readline()
  start("1", place)
  start("2", place)
  for process in started:
    assert process.stdout.readline() == "ready\n"
  return [*started], json.loads(place)


def ends(process, words=None):
  """Gives a process some words; returns its exit status and output."""
  if words:
    process.stdin.write(words)
    process.stdin.flush()
  status = process.wait(PATIENCE)
  return status, process.stderr.read()


REMEDY = "start all processes again: they go on from what they have saved\n"


@pytest.mark.parametrize("index", range(3))
def test_the_other_processes_end_when_one_is_killed(three, index):
  processes, _ = three
  gone = processes.pop(index)
  gone.send_signal(signal.SIGKILL)
  for process in processes:
    line = f"diffdistill: process {index} is lost; {REMEDY}"
    assert ends(process) == (70, line)


@pytest.mark.parametrize("index", [0, 2])
def test_the_other_processes_leave_when_one_is_told_to_leave(three, index):
  processes, _ = three
  gone = processes.pop(index)
  gone.send_signal(signal.SIGTERM)
  assert ends(gone) == (
    75,
    "diffdistill: told to leave by SIGTERM; do it again\n",
  )
  for process in processes:
    line = f"diffdistill: process {index} was told to leave; {REMEDY}"
    assert ends(process) == (75, line)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_process_that_says_goodbye_is_not_lost(three, order):
  processes, _ = three
  for index in order:
    assert ends(processes[index], "go on\n") == (3, "")


def test_an_unknown_client_that_connects_and_leaves_is_ignored(three):
  processes, (port, token) = three
  for words in (b"", b"hello 1\n", f"hello {token[1:]} 1\n".encode()):
    with socket.create_connection(("localhost", port)) as stranger:
      stranger.sendall(words)
  with socket.create_connection(("localhost", port)) as stranger:
    stranger.sendall(b"x" * 1000)
    # The first process closes the connection without reading, which may raise
    # an error here.
    with contextlib.suppress(ConnectionResetError):
      assert stranger.recv(1) == b""
  for process in processes:
    assert ends(process, "go on\n") == (3, "")
