"""Tests that pickles are read, and that no code in them runs."""

import collections
import copyreg
import io
import pathlib
import pickle
import runpy
import sys
import types
import zipfile

import numpy as np
import pytest
from etils import epath

from diffdistill.interop.pickles import LEGACY, read_pickle

WRITER = runpy.run_path(
  str(pathlib.Path(__file__).with_name("write_pickles.py"))
)
Call, Name, New = WRITER["Call"], WRITER["Name"], WRITER["New"]
Persistent, Raw, dumps = (WRITER[n] for n in ("Persistent", "Raw", "dumps"))
VALUES = np.arange(12, dtype=np.float32)


@pytest.fixture
def read(tmp_path):
  """Returns a function that writes bytes to a file and reads it as a pickle."""

  def read(data):
    path = epath.Path(tmp_path / "file.pt")
    path.write_bytes(data)
    return read_pickle(path)

  return read


def zipped(content, storages=(), *, root="archive", more=(), **settings):
  """Makes a zip like torch.save's; `storages` and `more` have (name, bytes)."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", **settings) as archive:
    archive.writestr(f"{root}/data.pkl", dumps(content, protocol=2))
    archive.writestr(f"{root}/byteorder", b"little")
    for name, data in storages:
      archive.writestr(f"{root}/data/{name}", data)
    for name, data in more:
      archive.writestr(name, data)
  return file.getvalue()


def view(shape, strides, offset=0, key="0", array=VALUES):
  return WRITER["tensor"](
    WRITER["storage_id"](array, key), shape, strides, offset
  )


def test_plain_containers_and_numbers_are_read(read):
  content = {
    "a": [1, -2, 3.5, None, True, False, "text", b"bytes", 10**30, -(2**70)],
    "b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    3: {"x": [], "y": {}, "z": {1, 2}},
    "twice": (shared := [1]),
    "again": shared,
    "é": list(range(2000)),
    "many": {i: str(i) for i in range(2000)},
  }
  for protocol in (0, 1, 2, 3, 4):
    if protocol < 4:
      # Protocols below 4 pickle a set as a call of builtins.set.
      content["z"] = {"z": {1, 2}}
    if protocol < 2:
      # The reader refuses the names by which protocols 0 and 1 write these
      # values.
      content = {k: v for k, v in content.items() if k not in (3, "a", "z")}
    got = read(pickle.dumps(content, protocol))
    assert got == content
    assert got["twice"] is got["again"]


def test_ordered_dicts_with_attributes_become_dicts(read):
  ordered = collections.OrderedDict([("b", 1), ("a", 2)])
  ordered._metadata = {"version": 1}
  got = read(pickle.dumps(ordered))
  assert type(got) is dict
  assert list(got.items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_numpy_arrays_are_read(read, protocol):
  arrays = {
    "c": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "big": np.arange(3, dtype=">f4"),
    "bool": np.array([True, False]),
    "none": np.zeros((0, 3), np.float16),
    "scalar": np.array(3, np.uint8),
  }
  got = read(pickle.dumps(arrays | {"number": np.sqrt(0.5)}, protocol))
  assert got.pop("number") == np.sqrt(0.5)
  for name, array in arrays.items():
    assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got[name], array)


def test_two_references_to_a_numpy_array_give_one_array(read):
  array = np.arange(3.0)
  got = read(pickle.dumps([array, array]))
  assert got[0] is got[1]
  np.testing.assert_array_equal(got[0], array)


def test_views_of_one_storage_are_read_without_copying(read):
  views = {
    "whole": view((3, 4), (4, 1)),
    "transposed": view((4, 3), (1, 4)),
    "part": view((2, 2), (4, 2), 5),
    "number": view((), (), 11),
    "none": view((0, 5), (5, 1)),
  }
  got = read(zipped(views, [("0", VALUES.tobytes())]))
  square = VALUES.reshape(3, 4)
  np.testing.assert_array_equal(got["whole"], square)
  np.testing.assert_array_equal(got["transposed"], square.T)
  np.testing.assert_array_equal(got["part"], [[5, 7], [9, 11]])
  assert got["number"] == 11
  assert got["none"].shape == (0, 5)
  assert got["whole"].base is not None
  assert not any(tensor.flags.writeable for tensor in got.values())


# Attacks are pickles that run code: each makes the file `trace` when pickle
# loads it. test_no_attack_runs_code checks that every attack works on pickle.


def touching(trace):
  """Returns Python code that makes the file `trace`."""
  return f"open({trace!r}, 'w').close()"


def reduced(module, member, *arguments, call=Call):
  return call(Name(module, member), *arguments)


def file_within(content):
  """Returns a call of torch's `_load_from_bytes` that contains a pickle."""
  return reduced("torch.storage", "_load_from_bytes", dumps(content, 2))


def attacks(trace):
  code, command = touching(trace), f"touch {trace}"
  system, os_system = reduced("os", "system", command), Name("os", "system")
  get, find = Name("builtins", "getattr"), Name("operator", "attrgetter")
  import_os = reduced("importlib", "import_module", "os")
  modules = Name("collections", "_sys.modules.get")
  lazy = New(Name("builtins", "map"), os_system, [command])
  instance = f"(V{command}\nios\nsystem\n".encode()
  return {
    "os.system": system,
    "posix.system": reduced("posix", "system", command),
    "subprocess": reduced("subprocess", "check_call", ["touch", trace]),
    "eval": reduced("builtins", "eval", code),
    "exec": reduced("builtins", "exec", code),
    "python 2": reduced("__builtin__", "eval", code),
    "getattr": Call(Call(get, Name("os", "path.os"), "system"), command),
    "importlib": Call(Call(Call(find, "system"), import_os), command),
    "dotted": reduced("pathlib", "Path.touch", path_of(trace)),
    "known module": Call(Call(get, Call(modules, "os"), "system"), command),
    "new object": New(Name("builtins", "tuple"), lazy),
    "in a list": [1, {"a": (system,)}],
    "popped": Raw(body(system) + b"0N"),
    "instance": Raw(instance),
    "state": Call(Name("collections", "OrderedDict"), state={"a": system}),
  }


def path_of(trace):
  return reduced("pathlib", "PosixPath", trace)


def body(content):
  """Returns instructions that push `content`, without header and STOP."""
  return dumps(content, protocol=2)[2:-1]


NAMES = tuple(attacks("trace"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", ["plain", "zip", "legacy", "in a file"])
def test_no_attack_runs_code(name, wrap, read, tmp_path):
  trace = tmp_path / "trace"
  attack = attacks(str(trace))[name]
  # Protocol 4 writes names with STACK_GLOBAL, protocol 2 with GLOBAL.
  plain = dumps(attack, 2 if name == "python 2" else 4)
  if wrap == "plain":
    # First check that the attack works on Python's own pickle.
    pickle.loads(plain)
    assert trace.exists()
    trace.unlink()
  data = {
    "plain": plain,
    "zip": zipped(attack),
    "legacy": WRITER["legacy_file"](attack),
    "in a file": dumps(file_within(attack)),
  }[wrap]
  refused(read, data, r"names '|has the instruction INST")
  assert not trace.exists()


def refused(read, data, message):
  with pytest.raises(ValueError, match=message) as refusal:
    read(data)
  assert "\n" not in str(refusal.value)
  assert "file.pt" in str(refusal.value)


def test_a_class_that_is_already_imported_is_not_built(
  read, tmp_path, monkeypatch
):
  """Tests an attack by a __setstate__ method of an imported class."""
  trace = tmp_path / "trace"
  here = types.ModuleType("hostile_module")
  monkeypatch.setitem(sys.modules, "hostile_module", here)

  class Hostile:
    def __setstate__(self, state):
      trace.touch()

  here.Hostile = Hostile
  data = dumps(New(Name("hostile_module", "Hostile"), state={"a": 1}))
  pickle.loads(data)
  assert trace.exists()
  trace.unlink()
  refused(read, data, r"names 'hostile_module\.Hostile'")
  assert not trace.exists()


def test_extensions_of_copyreg_are_refused(read, tmp_path):
  trace, code = tmp_path / "trace", 240
  copyreg.add_extension("os", "system", code)
  try:
    command = f"touch {trace}"
    attack = b"\x80\x02\x82\xf0" + body(command) + b"\x85R."
    pickle.loads(attack)
    assert trace.exists()
    trace.unlink()
    # pickle.loads has put the extension into this process's cache, from which
    # the reader could take it.
    refused(read, attack, "has the instruction EXT1")
  finally:
    copyreg.remove_extension("os", "system", code)
    copyreg.clear_extension_cache()
  assert not trace.exists()


def test_source_code_in_a_pickle_is_not_run(read, tmp_path):
  trace = tmp_path / "trace"
  source = touching(str(trace))
  got = read(dumps(WRITER["persistent"]("Net", {"a": [1]}, source)))
  assert (got.name, got.state) == ("Net", {"a": [1]})
  assert not trace.exists()


DICT = Name("collections", "OrderedDict")
DTYPE = Name("numpy", "dtype")
RECONSTRUCT = Name("numpy._core.multiarray", "_reconstruct")
EMPTY = Call(RECONSTRUCT, Name("numpy", "ndarray"), (0,), b"b")
FLOAT = Call(DTYPE, "f4", False, True)


def array(*state):
  return Call(RECONSTRUCT, Name("numpy", "ndarray"), (0,), b"b", state=state)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    # These pickles call a value that is not an allowed function.
    (Call(3, 4), "calls int"),
    (Call("os.system", "true"), "calls str"),
    (Call(Call(DICT), 4), "calls dict"),
    (Call(Name("numpy", "ndarray"), (2,)), r"calls numpy\.ndarray"),
    (Call(Name("torch", "FloatStorage"), 2), r"calls torch\.FloatStorage"),
    # These pickles set the state of a value that can have none.
    (Call(DICT, state={"__class__": 1}), None),
    (Raw(b"]" + body({"__class__": 1}) + b"b"), "gives a state to a list"),
    (Raw(body(DICT) + body({"a": 1}) + b"b"), "gives a state to a Global"),
    (Raw(body(DICT) + body((None, {"fromkeys": 1})) + b"b"), "state to a Glob"),
    # These pickles add items to a value that is no container.
    (Raw(body(DICT) + b"K\x01a"), "appends to a value that is no list"),
    (Raw(body(DICT) + b"K\x01K\x01s"), "sets items of a value that is no"),
    (Raw(b"}((K\x01tK\x02u"), "has a key that is a tuple"),
    # These pickles have persistent ids, but are not within a torch file.
    (
      Persistent(("storage", Name("torch", "FloatStorage"), "0", "cpu", 1)),
      "pe",
    ),
    (Persistent("os.system"), "has a persistent id"),
    # These arrays hold objects, structures or invalid types.
    (Call(DTYPE, "O8", False, True), "numpy's type 'O8'"),
    (Call(DTYPE, "V4", False, True), "numpy's type 'V4'"),
    (Call(DTYPE, "f4,O", False, True), "numpy's type 'f4,O'"),
    (
      Call(DTYPE, "f4", state=(3, "<", None, ("a",), {}, 4, 1, 0)),
      "with fields",
    ),
    (array(1, (1,), "O", False, [3]), "has an array without a type"),
    (array(1, (1,), FLOAT, False, [3]), "damaged"),
    (array(1, (3,), FLOAT, False, b"1234"), "damaged"),
    (array(1, (2**40,), FLOAT, False, b"1234"), "damaged"),
    (Call(Name("_codecs", "encode"), "a", "rot13"), "has text in place of"),
    # These files have files within them that are nested twice or hold no
    # storage.
    (file_within(file_within([])), "has a persistent id or a file within it"),
    (file_within([1]), "has a file within it that is no storage"),
    # These objects of NVIDIA's classes lack a class or a state.
    (WRITER["persistent"]("Net", None), "an object without a class or a state"),
    # These instructions ask for much memory.
    (Raw(b"r\xff\xff\xff\xff"), "damaged"),
    (Raw(b"\x8e" + bytes([0, 0, 0, 0, 0, 1, 0, 0])), "damaged"),
    (Raw(b"\x97"), "has the instruction NEXT_BUFFER"),
  ],
)
def test_unsupported_instructions_are_refused_or_have_no_effect(
  content, message, read
):
  if message is None:
    assert read(dumps(content)) == {}
  else:
    refused(read, dumps(content), message)


@pytest.mark.parametrize(
  "tensor",
  [
    view((3, 5), (5, 1)),
    view((3, 4), (4, 2)),
    view((12,), (1,), 1),
    view((12,), (1,), -1),
    view((2,), (-1,), 5),
    view((-1,), (1,)),
    view((1,), (1,), 12),
    view((13,), (0,)),
    view((2**31, 2**31), (0, 0)),
    view((2**62, 4), (1, 2**62)),
    view((True,), (1,)),
    view((2.0,), (1,)),
    view((2, 2), (1,)),
    view((1,) * 40, (1,) * 40),
  ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_beyond_their_storage_are_refused(tensor, kind, read):
  if kind == "zip":
    data = zipped([tensor], [("0", VALUES.tobytes())])
  else:
    tensor.arguments[0].key += (None,)
    data = WRITER["legacy_file"]([tensor], [("0", VALUES)])
    tensor.arguments[0].key = tensor.arguments[0].key[:-1]
  refused(read, data, "beyond its storage|no plain view")


def test_missing_wrong_and_misnamed_storages_are_refused(read):
  content, bytes_of = [view((12,), (1,))], VALUES.tobytes()
  good = [("0", bytes_of)]
  np.testing.assert_array_equal(read(zipped(content, good))[0], VALUES)
  for storages in ([], [("0", bytes_of[:-1])], [("0", bytes_of + b"0000")]):
    refused(read, zipped(content, storages), "in the storage 0|damaged")
  # A key that is no number must be refused, even if the zip has an entry of
  # that name.
  for key in ("../0", "/etc/passwd", "0/../0", "", 0):
    named = [view((12,), (1,), key=key)]
    data = zipped(named, good, more=[("archive/data/../0", bytes_of)])
    refused(read, data, "a persistent id that is no storage")
  again = [view((12,), (1,)), view((6,), (1,), array=VALUES.astype("f8")[:6])]
  np.testing.assert_array_equal(read(zipped(again, good))[0], VALUES)


def test_zips_unlike_those_of_torch_are_refused(read, recwarn):
  content, good = [1], [("0", bytes(9))]
  packed = zipped(content, good, compression=zipfile.ZIP_DEFLATED)
  refused(read, packed, "entries that are packed or shared")
  twice = zipped(
    content, more=[("archive/data/1", b""), ("archive/data/1", b"")]
  )
  refused(read, twice, "entries that are packed or shared")
  recwarn.clear()
  other = [("other/data.pkl", dumps([2]))]
  refused(read, zipped(content, more=other), r"2 entries data\.pkl")
  swapped = zipped(content).replace(b"little", b"bigbig")
  refused(read, swapped, "another byte order|damaged")
  assert read(zipped(content, root="../../a")) == [1]


def test_missing_and_short_legacy_storages_are_refused(read):
  def file(storages, array=VALUES):
    tensor = WRITER["tensor"](
      WRITER["storage_id"](array, "0", None), (12,), (1,)
    )
    return WRITER["legacy_file"]({"a": tensor}, storages)

  data = file([("0", VALUES)])
  np.testing.assert_array_equal(read(data)["a"], VALUES)
  for cut in (1, 8, 48, 60):
    refused(read, data[:-cut], "damaged|shorter")
  refused(read, file([("0", VALUES[:-1])]), "is damaged or shorter")
  refused(read, file([("1", VALUES)]), "is damaged")
  refused(read, file([]), "is damaged")
  # The file lacks these values, so the reader must refuse before it allocates
  # memory for them.
  huge = types.SimpleNamespace(dtype=VALUES.dtype, size=2**50)
  refused(read, file([], huge), "is shorter than its storage 0")
  assert data.startswith(LEGACY)
  refused(read, data[: len(LEGACY)] + pickle.dumps(1000, 2), "damaged")


def test_bytes_that_are_no_pickle_are_refused(read):
  for data in (b"", b"\x00", b"text", b"PK\x03\x04", LEGACY, b"\x80\x04", b"."):
    refused(read, data, "is damaged|has no end")


@pytest.mark.parametrize("kind", ["plain", "zip", "legacy"])
def test_damaged_files_are_refused_in_one_line(kind, read):
  tensor = view((3, 4), (4, 1))
  content = {"a": tensor, "b": [1, 2.5, ("c", None)], "d": {1}}
  if kind == "zip":
    data = zipped(content, [("0", VALUES.tobytes())])
  else:
    tensor.arguments[0].key += (None,)
    data = WRITER["legacy_file"](content, [("0", VALUES)])
  if kind == "plain":
    data = dumps({**content, "a": WRITER["parameter"](VALUES)})
  random, refusals = np.random.RandomState(0), []
  for _ in range(300):
    damaged = bytearray(data)
    for place in random.randint(len(data), size=1 + random.randint(3)):
      damaged[place] = random.randint(256)
    try:
      read(bytes(damaged))
    except ValueError as error:
      refusals.append(str(error))
  assert len(refusals) > 50
  assert all("\n" not in r and "file.pt" in r for r in refusals)
