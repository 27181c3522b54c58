"""Writes pickles like those of torch and of NVIDIA's EDM, importing neither.

Python's pickler writes only names that it can import. Pickler here writes any
name: each class below stands for instructions of the pickle format, and the
bytes are those that torch and EDM write.
"""

import io
import pickle
import typing

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {"f4": "Float", "f2": "Half", "f8": "Double", "i8": "Long"}


class Name:
  """Makes the pickler write an instruction that pushes module.member."""

  def __init__(self, module, member):
    self.module, self.member = module, member


class Call:
  """Makes the pickler write a call name(*arguments) and set a state."""

  def __init__(self, name, *arguments, state=None):
    self.name, self.arguments, self.state = name, arguments, state


class New(Call):
  """Makes the pickler write name.__new__(name, *arguments) and set a state."""


class Persistent:
  """Makes the pickler write a persistent id, as torch writes for storages."""

  def __init__(self, key):
    self.key = key


class Raw:
  """Makes the pickler write these bytes unchanged."""

  def __init__(self, code):
    self.code = code


class Pickler(pickle._Pickler):
  """Python's pickler, extended by Name, Call, New, Persistent and Raw."""

  dispatch: typing.ClassVar = dict(pickle._Pickler.dispatch)

  def save_name(self, name):
    if self.proto >= 4:
      self.save(name.module)
      self.save(name.member)
      self.write(pickle.STACK_GLOBAL)
    else:
      self.write(f"c{name.module}\n{name.member}\n".encode())
    self.memoize(name)

  def save_call(self, call):
    self.save(call.name)
    self.save(call.arguments)
    self.write(pickle.NEWOBJ if isinstance(call, New) else pickle.REDUCE)
    self.memoize(call)
    if call.state is not None:
      self.save(call.state)
      self.write(pickle.BUILD)

  def save_persistent(self, persistent):
    self.save(persistent.key)
    self.write(pickle.BINPERSID)

  def save_raw(self, raw):
    self.write(raw.code)

  dispatch[Name] = save_name
  dispatch[Call] = dispatch[New] = save_call
  dispatch[Persistent] = save_persistent
  dispatch[Raw] = save_raw


def dumps(content, protocol=4):
  file = io.BytesIO()
  Pickler(file, protocol).dump(content)
  return file.getvalue()


def storage_id(array, key, *rest):
  kind = Name("torch", f"{STORAGES[array.dtype.str[1:]]}Storage")
  return Persistent(("storage", kind, key, "cpu", array.size, *rest))


def legacy_file(content, storages=()):
  """Makes a file like torch.save's before 1.6; storages has (key, array)."""
  machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
  parts = [LEGACY_MAGIC, 1001, machine, content, [key for key, _ in storages]]
  data = b"".join(dumps(part, protocol=2) for part in parts)
  for _, array in storages:
    data += array.size.to_bytes(8, "little") + array.tobytes()
  return data


def tensor(storage, shape, strides, offset=0):
  hooks = Call(Name("collections", "OrderedDict"))
  name = Name("torch._utils", "_rebuild_tensor_v2")
  return Call(name, storage, offset, shape, strides, False, hooks)


def parameter(array):
  """Makes a pickled torch parameter; its storage is a file within the file."""
  array = np.ascontiguousarray(array)
  file = legacy_file(storage_id(array, "7", None), [("7", array)])
  storage = Call(Name("torch.storage", "_load_from_bytes"), file)
  strides = tuple(n // array.itemsize for n in array.strides)
  hooks = Call(Name("collections", "OrderedDict"))
  name = Name("torch._utils", "_rebuild_parameter")
  return Call(name, tensor(storage, array.shape, strides), True, hooks)


def module_state(parameters, buffers, modules):
  """Returns the attributes of a torch module, as they are pickled."""
  empty = Call(Name("collections", "OrderedDict"))
  return {
    "training": False,
    "_parameters": parameters,
    "_buffers": buffers,
    "_non_persistent_buffers_set": set(),
    "_backward_hooks": empty,
    "_is_full_backward_hook": None,
    "_modules": modules,
  }


def persistent(class_name, state, source="raise RuntimeError('it ran')"):
  """Makes an object of NVIDIA's `persistence`, with its class's source code."""
  name = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
  meta = {
    "type": "class",
    "version": 6,
    "module_src": source,
    "class_name": class_name,
    "state": state,
  }
  return Call(name, meta)
