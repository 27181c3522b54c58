"""Tests that two processes share results and errors, and place their rows."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffdistill.system import hosts
from tests.children import Children

SCRIPT = pathlib.Path(__file__).parents[1] / "two_processes.py"


@pytest.fixture(scope="module")
def found():
  """Returns what two processes have found, as one dict for each."""
  with socket.socket() as sock:
    sock.bind(("localhost", 0))
    port = sock.getsockname()[1]
  with Children() as children:
    processes = [
      children.start(
        *(sys.executable, SCRIPT, port, i),
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(2)
    ]
    done = [children.finish(process) for process in processes]
  for each in done:
    assert each.returncode == 0, each.stderr
  return [json.loads(each.stdout.splitlines()[-1]) for each in done]


def test_all_get_the_first_process_s_result_or_error(found):
  for each in found:
    assert each["on_first"] == {"from": 0, "long": "x" * 3000}
    assert each["floats"] == [True, "nan", True]
    assert each["refusals"] == [
      "OSError: [Errno 28] No space left on device: 'somewhere'",
      each["check_devices"],
    ]


def test_a_fault_of_the_first_process_is_no_refusal_on_the_others(found):
  reset = "ConnectionResetError: [Errno 104] Connection reset by peer"
  unsaid = "TypeError: Object of type object is not JSON serializable"
  assert found[0]["faults"] == [reset, unsaid]
  assert found[1]["faults"] == [
    f"RuntimeError: on the first process: {words}" for words in (reset, unsaid)
  ]


def test_everywhere_needs_both_processes(found):
  for each in found:
    assert each["everywhere"] == [False, False, True]


def test_missing_devices_of_a_pod_are_refused(found):
  for each in found:
    assert each["check_devices"] == (
      "ValueError: expected 32 devices but 8 are here, of 2 processes; start"
      " the others, or pass --expect_devices=8"
    )


def test_each_process_places_the_rows_of_its_devices(found):
  # The mesh has the devices in the order 0, 4, 1, 5, 6, 7, 2, 3, with two rows
  # each. The first process has devices 0 to 3.
  assert found[0]["rows"] == [0, 1, 4, 5, 12, 13, 14, 15]
  assert found[1]["rows"] == [2, 3, 6, 7, 8, 9, 10, 11]
  for each in found:
    assert each["shard_batch"] == np.arange(32).reshape(16, 2).tolist()
    assert each["place"] == np.arange(32).reshape(16, 2).tolist()


def test_random_keys_are_placed(found):
  keys = jax.random.split(jax.random.key(5), 2)
  for each in found:
    assert each["key"] == jax.random.key_data(keys).tolist()


def test_all_processes_leave_at_the_same_boundary(found):
  for each in found:
    # A process is told to leave at boundary 3. Both leave at 5, after a lag of
    # 2, or at 3 without a lag. If a process is told too late or not at all,
    # neither leaves.
    assert each["leaves"] == [5, 5, 3, None, None]


def test_processes_find_out_whether_all_say_the_same(found):
  assert [each["unanimous"] for each in found] == [[True, True], [True, False]]


def test_every_process_gets_the_texts_of_all(found):
  assert [each["gathered"] for each in found] == [["of 0", "of 1"]] * 2


def test_a_single_process_does_not_communicate():
  assert hosts.on_first(lambda: 3) == 3
  assert hosts.everywhere(True)
  assert not hosts.everywhere(False)
  assert hosts.is_first()
  assert hosts.unanimous("anything")
  assert hosts.gathered("mine") == ["mine"]
  hosts.meet()
  with pytest.raises(ValueError, match="expected 7 devices but 8 are here"):
    hosts.check_devices(7)
  hosts.check_devices(8)
