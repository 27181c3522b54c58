"""Processes that do the same, share a word, and own what their devices hold."""

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
  """What each of two processes found."""
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


def test_all_have_the_first_one_s_result_or_its_error(found):
  for each in found:
    assert each["on_first"] == {"from": 0, "long": "x" * 3000}
    assert each["floats"] == [True, "nan", True]
    assert each["refusals"] == [
      "OSError: [Errno 28] No space left on device: 'somewhere'",
      each["check_devices"],
    ]


def test_a_fault_of_the_first_one_is_no_refusal_on_the_others(found):
  reset = "ConnectionResetError: [Errno 104] Connection reset by peer"
  unsaid = "TypeError: Object of type object is not JSON serializable"
  assert found[0]["faults"] == [reset, unsaid]
  assert found[1]["faults"] == [
    f"RuntimeError: on the first process: {words}" for words in (reset, unsaid)
  ]


def test_everywhere_is_on_both(found):
  for each in found:
    assert each["everywhere"] == [False, False, True]


def test_a_part_of_a_pod_is_refused(found):
  for each in found:
    assert each["check_devices"] == (
      "ValueError: expected 32 devices but 8 are here, of 2 processes; start"
      " the others, or pass --expect_devices=8"
    )


def test_each_row_is_fed_by_the_process_that_holds_it(found):
  # Two rows a device, whose order is 0, 4, 1, 5, 6, 7, 2, 3.
  assert found[0]["rows"] == [0, 1, 4, 5, 12, 13, 14, 15]
  assert found[1]["rows"] == [2, 3, 6, 7, 8, 9, 10, 11]
  for each in found:
    assert each["shard_batch"] == np.arange(32).reshape(16, 2).tolist()
    assert each["place"] == np.arange(32).reshape(16, 2).tolist()


def test_keys_are_placed_too(found):
  keys = jax.random.split(jax.random.key(5), 2)
  for each in found:
    assert each["key"] == jax.random.key_data(keys).tolist()


def test_all_leave_at_one_boundary_whoever_is_told(found):
  for each in found:
    # Two boundaries after the first is told, or there, or not before the end.
    assert each["leaves"] == [5, 5, 3, None, None]


def test_they_find_that_they_say_the_same(found):
  assert [each["unanimous"] for each in found] == [[True, True], [True, False]]


def test_all_have_the_texts_of_all(found):
  assert [each["gathered"] for each in found] == [["of 0", "of 1"]] * 2


def test_one_process_asks_nobody():
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
