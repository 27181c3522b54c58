"""Lists the names that a file of weights may contain, and their meanings.

Each name stands for a function of this file, which makes numbers, arrays or
plain containers. No name is ever imported.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

# Maps the classes of torch's storages to numpy's types of their values.
STORAGES = {
  "torch.DoubleStorage": np.dtype("<f8"),
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
  "torch.LongStorage": np.dtype("<i8"),
  "torch.IntStorage": np.dtype("<i4"),
  "torch.ShortStorage": np.dtype("<i2"),
  "torch.CharStorage": np.dtype("i1"),
  "torch.ByteStorage": np.dtype("u1"),
  "torch.BoolStorage": np.dtype("?"),
}
# The allowed types of keys in dicts and sets. A tuple is not allowed, because
# hashing it could take forever.
KEYS = (str, bytes, int, float, bool, type(None))


class RefusalError(ValueError):
  """Says why a pickle is refused, without the name of its file."""


@dataclasses.dataclass(kw_only=True)
class Object:
  """Stands for an object in a pickle: the name of its class, and its state."""

  name: str
  state: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Global:
  """A known name that occurs in a pickle."""

  name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
  """An array of values, of which tensors are views."""

  values: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Dtype:
  """A numpy type; a BUILD instruction of the pickle gives its byte order."""

  code: str
  order: str = "="


@dataclasses.dataclass(kw_only=True)
class Unfilled:
  """A numpy array to which a BUILD instruction of the pickle gives values."""

  values: np.ndarray | None = None


def require(condition: bool, message: str) -> None:
  """Raises RefusalError(message) unless the condition holds."""
  if not condition:
    raise RefusalError(message)


def extend(target: Any, items: list[Any]) -> None:
  if type(target) is set:
    _check_keys(items)
    target.update(items)
  else:
    require(
      type(target) is list, "appends to a value that is no list; save it again"
    )
    target.extend(items)


def set_items(target: Any, items: list[Any]) -> None:
  require(
    type(target) is dict, "sets items of a value that is no dict; save it again"
  )
  _check_keys(items[::2])
  target.update(zip(items[::2], items[1::2], strict=True))


def _check_keys(keys: list[Any]) -> None:
  for key in keys:
    if type(key) not in KEYS:
      raise RefusalError(
        f"has a key that is a {type(key).__name__}; save its state_dict()"
      )


def build(target: Any, state: Any) -> Any:
  """Applies a BUILD instruction: returns the target with its state."""
  if isinstance(target, Object):
    require(
      type(state) is dict, "has an object whose state is no dict; save it again"
    )
    target.state.update(state)
  elif isinstance(target, Dtype):
    # state[0] is the version and state[1] the byte order. The next fields are
    # None for types of numbers.
    require(
      state[1] in ("<", ">", "|", "=") and state[2:5] == (None, None, None),
      "has a numpy type with fields; save arrays of numbers",
    )
    target.order = state[1]
  elif isinstance(target, Unfilled):
    _, shape, dtype, fortran, content = state
    values = np.frombuffer(content, _numpy_dtype(dtype))
    # `reshape` refuses a shape that does not fit the number of values.
    target.values = values.reshape(shape, order="F" if fortran else "C")
    return target.values
  else:
    # Torch sets attributes of its ordered dicts. Weights do not depend on
    # them, so ignore them.
    require(
      type(target) is dict,
      f"gives a state to a {type(target).__name__}; save its state_dict()",
    )
  return target


def _make_tensor(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  requires_grad: Any = False,
  hooks: Any = None,
  metadata: Any = None,
) -> np.ndarray:
  """Returns a view of a storage, which must lie within the storage."""
  require(
    isinstance(storage, Storage)
    and type(shape) is type(strides) is tuple
    and len(shape) == len(strides) <= 32
    and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    and not metadata,
    "has a tensor that is no plain view; save its state_dict()",
  )
  values, count = storage.values, 1
  for size in shape:
    count *= size
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  require(
    count == 0 or (count <= values.size and last < values.size),
    f"has a tensor of shape {shape} beyond its storage of {values.size}"
    " values; fetch or save it again",
  )
  if count == 0:
    offset, strides = 0, [0] * len(shape)
  return np.lib.stride_tricks.as_strided(
    values[offset:],
    shape,
    [stride * values.itemsize for stride in strides],
    writeable=False,
  )


def _make_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Any:
  return tensor


def _make_persistent(meta: Any) -> Object:
  """Returns an `Object` for an object of one of NVIDIA's classes.

  The pickle also contains the source code of the class; nothing reads that.
  """
  require(
    meta["type"] == "class"
    and type(meta["class_name"]) is str
    and type(meta["state"]) is dict,
    "has an object without a class or a state; save it again",
  )
  return Object(name=meta["class_name"], state=meta["state"])


def _make_size(sizes: Any) -> tuple[Any, ...]:
  _check_container(sizes)
  return tuple(sizes)


def _check_container(items: Any) -> None:
  require(
    type(items) in (list, tuple, set),
    f"makes a container of a {type(items).__name__}; save its state_dict()",
  )


def _make_dict(pairs: Any = ()) -> dict[Any, Any]:
  _check_container(pairs)
  made: dict[Any, Any] = {}
  set_items(made, [part for key, value in pairs for part in (key, value)])
  return made


def _make_set(items: Any = ()) -> set[Any]:
  _check_container(items)
  made: set[Any] = set()
  extend(made, list(items))
  return made


def _make_dtype(code: Any, align: Any = False, copy: Any = True) -> Dtype:
  require(
    bool(re.fullmatch("[biuf][1248]", code)),
    f"has an array of numpy's type {code[:9]!r}; save arrays of numbers",
  )
  return Dtype(code=code)


def _numpy_dtype(dtype: Any) -> np.dtype:
  require(
    isinstance(dtype, Dtype), "has an array without a type; save it again"
  )
  return np.dtype(dtype.code).newbyteorder(dtype.order)


def _make_array(kind: Any, shape: Any, code: Any) -> Unfilled:
  return Unfilled()


def _make_scalar(dtype: Any, content: Any) -> Any:
  (value,) = np.frombuffer(content, _numpy_dtype(dtype))
  return value.item()


def _encode(text: Any, encoding: Any) -> bytes:
  """Returns the bytes that a pickle of protocol 2 has written as text."""
  require(
    type(text) is str and encoding == "latin1",
    "has text in place of bytes; save it again",
  )
  return text.encode("latin1")


CALLS: dict[str, Callable[..., Any]] = {
  "torch._utils._rebuild_tensor": _make_tensor,
  "torch._utils._rebuild_tensor_v2": _make_tensor,
  "torch._utils._rebuild_parameter": _make_parameter,
  "torch.Size": _make_size,
  "torch.device": lambda kind, index=None: kind,
  "torch.nn.modules.container.ModuleDict": lambda: Object(name="ModuleDict"),
  "torch_utils.persistence._reconstruct_persistent_obj": _make_persistent,
  "collections.OrderedDict": _make_dict,
  "dnnlib.util.EasyDict": _make_dict,
  "__builtin__.bytes": lambda: b"",
  "__builtin__.set": _make_set,
  "builtins.set": _make_set,
  "_codecs.encode": _encode,
  "numpy.dtype": _make_dtype,
  "numpy.core.multiarray._reconstruct": _make_array,
  "numpy._core.multiarray._reconstruct": _make_array,
  "numpy.core.multiarray.scalar": _make_scalar,
  "numpy._core.multiarray.scalar": _make_scalar,
}
# The function of this name is not in CALLS, because `run` receives it as an
# argument.
LOAD_STORAGE = "torch.storage._load_from_bytes"
NAMES = {*CALLS, LOAD_STORAGE, *STORAGES, "numpy.ndarray"}
