"""The stack machine that a pickle is a program for, without what is dangerous.

Some instructions of a pickle call whatever they name. Here a name stays a name,
and stands for what `pickled_names` says; any other is refused, and so is every
instruction that weights do not need.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

from diffdistill.interop.budget import Budget, check_number
from diffdistill.interop.pickled_names import (
  CALLS,
  LOAD_STORAGE,
  NAMES,
  Global,
  RefusalError,
  Storage,
  Unfilled,
  build,
  extend,
  require,
  set_items,
)

# Instructions that push their argument, and those that push a constant.
VALUES = (
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "EMPTY_SET": set,
}
# The storage of a persistent id, or of a file within a file.
Find = Callable[[Any], Storage]


def no_storage(key: Any) -> Storage:
  """The `Find` of a pickle without storages."""
  raise RefusalError(
    "has a persistent id or a file within it, where torch writes none; save"
    " its state_dict()"
  )


def run(
  file: io.BytesIO,
  budget: Budget,
  *,
  find: Find = no_storage,
  load_storage: Find = no_storage,
) -> Any:
  """The result of the pickle that begins here; the file ends up behind it.

  Args:
    file: at the start of a pickle.
    budget: of instructions and of memory, of which this takes its part.
    find: the storage of a persistent id.
    load_storage: the storage of a file within the file, given its bytes.

  Raises:
    RefusalError: for a name or an instruction that weights do not need, and
      for more work than the budget allows.
    Exception: of many kinds, for what is damaged or no pickle.
  """
  stack: list[Any] = []
  marks: list[list[Any]] = []
  memo: dict[Any, Any] = {}
  calls = {**CALLS, LOAD_STORAGE: load_storage}
  # genops reads instructions and their arguments, and carries out none.
  for instruction, argument, _ in pickletools.genops(file):
    budget.count()
    items: list[Any] = []
    if pickletools.markobject in instruction.stack_before:
      # What has been pushed since the last mark.
      items, stack = stack, marks.pop()
    match instruction.name:
      case name if name in VALUES:
        check_number(argument)
        stack.append(argument)
      case name if name in CONSTANTS:
        stack.append(CONSTANTS[name]())
      case "PROTO" | "FRAME" | "POP_MARK":
        pass
      case "MARK":
        marks.append(stack)
        stack = []
      case "POP":
        stack.pop()
      case "STOP":
        return stack.pop()
      case "PUT" | "BINPUT" | "LONG_BINPUT":
        memo[argument] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "GET" | "BINGET" | "LONG_BINGET":
        stack.append(_filled(memo[argument]))
      case "TUPLE":
        stack.append(tuple(items))
      case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
        parts = [stack.pop() for _ in range(int(name[-1]))]
        stack.append(tuple(reversed(parts)))
      case "LIST":
        stack.append(items)
      case "DICT":
        stack.append({})
        set_items(stack[-1], items)
      case "APPEND":
        item = stack.pop()
        extend(stack[-1], [item])
      case "APPENDS" | "ADDITEMS":
        extend(stack[-1], items)
      case "SETITEM":
        value, key = stack.pop(), stack.pop()
        set_items(stack[-1], [key, value])
      case "SETITEMS":
        set_items(stack[-1], items)
      case "GLOBAL":
        stack.append(_known(str(argument).replace(" ", ".", 1)))
      case "STACK_GLOBAL":
        member, module = stack.pop(), stack.pop()
        stack.append(_known(".".join([module, member])))
      case "BINPERSID":
        stack.append(find(stack.pop()))
      case "REDUCE" | "NEWOBJ":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(function, arguments, calls, budget))
      case "BUILD":
        state, old = stack.pop(), stack.pop()
        budget.copy(state)
        stack.append(build(old, state))
      case name:
        raise RefusalError(
          f"has the instruction {name}, which weights do not need; save its"
          " state_dict()"
        )
  raise RefusalError("has no end; fetch it again")


def _known(name: str) -> Global:
  require(
    name in NAMES,
    f"names {name[:99]!r}, and only arrays, numbers and plain containers are"
    " read; save its state_dict(), or convert it to .safetensors",
  )
  return Global(name=name)


def _filled(value: Any) -> Any:
  """What a value in the memo has become by a BUILD since it was put there."""
  filled = isinstance(value, Unfilled) and value.values is not None
  return value.values if filled else value


def _call(
  function: Any,
  arguments: Any,
  calls: dict[str, Callable[..., Any]],
  budget: Budget,
) -> Any:
  """What a known name makes of its arguments."""
  name = function.name if isinstance(function, Global) else ""
  require(
    name in calls and type(arguments) is tuple,
    f"calls {name or type(function).__name__}; save its state_dict()",
  )
  budget.copy(*arguments)
  return calls[name](*arguments)
