"""Tests that a hostile pickle is refused before it takes much time or space."""

import io
import pathlib
import pickle
import pickletools
import runpy
import time
import tracemalloc

import numpy as np
import pytest
from etils import epath

from diffdistill.interop.budget import (
  FREE,
  MAX_BITS,
  MAX_DEPTH,
  MAX_OPERATIONS,
  SHARE,
  Budget,
  check_parts,
)
from diffdistill.interop.pickled_names import RefusalError
from diffdistill.interop.pickles import read_pickle
from diffdistill.interop.stack_machine import run

WRITER = runpy.run_path(
  str(pathlib.Path(__file__).with_name("write_pickles.py"))
)
Call, Name, Raw, dumps = (WRITER[n] for n in ("Call", "Name", "Raw", "dumps"))
LARGE = 1 << 20
# Instructions that push the text "latin1" and then make a tuple of the last
# two values, the arguments of _codecs.encode.
LATIN = b"X\x06\0\0\0latin1\x86"


@pytest.fixture
def read(tmp_path):
  """Returns a function that writes bytes to a file and reads it as a pickle."""

  def read(data):
    path = epath.Path(tmp_path / "file.pkl")
    path.write_bytes(data)
    return read_pickle(path)

  return read


def body(content):
  """Returns instructions that push `content`, without header and STOP."""
  return dumps(content, protocol=2)[2:-1]


def put(index):
  return b"r" + index.to_bytes(4, "little")


def get(index):
  return b"j" + index.to_bytes(4, "little")


def program(*parts):
  return b"\x80\x02" + b"".join(parts) + b"."


def passed_on(value, module, member, times, *, after=b""):
  """Returns a pickle that passes one value to a function `times` times."""
  name = f"c{module}\n{member}\n".encode()
  calls = (name + get(0) + after + b"R") * times
  return program(body(value), put(0), b"0(", calls, b"l")


@pytest.mark.slow
def test_many_arrays_beside_a_large_memo_are_read_in_linear_time(read):
  """Tests that time does not grow with (arrays) x (entries of the memo)."""
  memo, arrays = 100_000, 5_000
  array = np.arange(3, dtype=np.float32)
  build = pickle.dumps(array, 2)[2:-1]
  # The PUT instructions of each array overwrite the first entries of the memo,
  # so the large memo begins at entry 1000.
  data = program(
    b"N", *(put(i) for i in range(1000, memo)), b"0(", build * arrays, b"l"
  )
  start = time.process_time()
  got = read(data)
  assert len(got) == arrays
  np.testing.assert_array_equal(got[-1], array)
  # If each array takes constant time, this takes a few seconds; if its time
  # grows with the memo, it takes a minute.
  assert time.process_time() - start < 30


def test_later_references_to_an_array_give_the_same_array(read):
  array = np.arange(3, dtype=np.float32)
  got = read(pickle.dumps({"a": array, "b": [array]}, 2))
  assert got["a"] is got["b"][0]
  assert isinstance(got["a"], np.ndarray)


@pytest.mark.parametrize(
  "data",
  [
    passed_on("x" * LARGE, "_codecs", "encode", 20_000, after=LATIN),
    passed_on(list(range(1000)), "torch", "Size", 2_000, after=b"\x85"),
    passed_on(list(range(1000)), "builtins", "set", 2_000, after=b"\x85"),
    passed_on(
      [(i, i) for i in range(1000)],
      *("collections", "OrderedDict"),
      2_000,
      after=b"\x85",
    ),
    passed_on(
      WRITER["legacy_file"](
        WRITER["storage_id"](np.zeros(LARGE, np.float32), "0", None),
        [("0", np.zeros(LARGE, np.float32))],
      ),
      *("torch.storage", "_load_from_bytes"),
      2_000,
      after=b"\x85",
    ),
    # This pickle gives the same state to many objects.
    program(
      body({str(i): i for i in range(1000)}),
      put(0),
      b"0(",
      (b"ctorch.nn.modules.container\nModuleDict\n)R" + get(0) + b"b") * 2_000,
      b"l",
    ),
  ],
  ids=["text", "list", "set", "dict", "file within", "state"],
)
def test_copying_one_value_too_often_is_refused(data, read):
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match="asks for copies") as refusal:
      read(data)
    most = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert "\n" not in str(refusal.value)
  # The limit allows for the permitted copies and a few copies of the file.
  assert most < 4 * (SHARE * len(data) + FREE)


def test_copying_one_value_a_few_times_is_allowed(read):
  data = passed_on("x" * LARGE, "_codecs", "encode", 5, after=LATIN)
  assert read(data) == [b"x" * LARGE] * 5


def test_a_container_of_the_characters_of_a_text_is_refused(read):
  for name in (("torch", "Size"), ("builtins", "set")):
    data = passed_on("x" * 9, *name, 1, after=b"\x85")
    with pytest.raises(ValueError, match="makes a container of a str"):
      read(data)


def test_too_many_instructions_are_refused():
  data = program(b"]", b"Na" * 10)
  assert run(io.BytesIO(data), Budget(size=99, operations=30)) == [None] * 10
  with pytest.raises(RefusalError, match="instructions, which no file"):
    run(io.BytesIO(data), Budget(size=99, operations=20))


def test_a_file_within_a_file_shares_the_budget_of_the_outer_file(
  tmp_path, monkeypatch
):
  data = dumps(WRITER["parameter"](np.zeros(3, np.float32)))
  path, budgets = epath.Path(tmp_path / "file.pkl"), []

  def start(size):
    budgets.append(Budget(size=size))
    return budgets[-1]

  monkeypatch.setattr("diffdistill.interop.pickles.Budget", start)
  path.write_bytes(data)
  read_pickle(path)
  (budget,) = budgets
  outer = sum(1 for _ in pickletools.genops(data))
  assert MAX_OPERATIONS - budget.operations > outer


def test_an_integer_of_too_many_bits_is_refused(read):
  for exponent in (MAX_BITS - 1, 80, 9):
    assert read(pickle.dumps(2**exponent)) == 2**exponent
  for exponent in (MAX_BITS, 10**6):
    with pytest.raises(ValueError, match="of more than 256 bits"):
      read(pickle.dumps(-(2**exponent)))


def nested(levels):
  value = []
  for _ in range(levels - 1):
    value = [value]
  return value


def doubled(levels):
  value = [1]
  for _ in range(levels):
    value = [value, value]
  return value


def test_lists_that_share_their_parts_too_often_are_refused(read):
  for content in (doubled(60), {"a": (doubled(60),)}):
    with pytest.raises(ValueError, match="unfold to more than"):
      read(pickle.dumps(content))
  assert read(pickle.dumps(doubled(10))) == doubled(10)


def test_containers_that_are_too_deep_are_refused(read):
  depth = MAX_DEPTH - 1
  assert read(pickle.dumps(nested(depth))) == nested(depth)
  # A small file can have 20,000 levels.
  for levels in (MAX_DEPTH + 2, 20_000):
    data = program(b"]" * levels, b"a" * (levels - 1))
    with pytest.raises(ValueError, match="levels"):
      read(data)


def test_a_container_within_itself_is_refused(read):
  ring = [1]
  ring.append({"a": (ring,)})
  with pytest.raises(ValueError, match="a container that is within itself"):
    read(pickle.dumps(ring))


def test_shared_parts_are_checked_only_once():
  part = list(range(10_000))
  start = time.process_time()
  with pytest.raises(RefusalError, match="unfold"):
    check_parts([part] * 30_000)
  assert time.process_time() - start < 30


def test_a_storage_with_a_long_key_is_refused(read):
  key = "0" * LARGE
  data = WRITER["legacy_file"](
    [WRITER["storage_id"](np.zeros(1, np.float32), key, None)]
  )
  with pytest.raises(ValueError, match="a persistent id that is no storage"):
    read(data)
