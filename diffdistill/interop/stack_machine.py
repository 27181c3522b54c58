"""Runs the program of a pickle on a machine without dangerous instructions.

In Python's own machine, some instructions call any function by its name. Here,
a name has only the meaning that `pickled_names` gives it. All other names are
refused, and so is every instruction that weights do not need.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping
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

# Instructions that push their argument. CONSTANTS has the instructions that
# push a constant.
VALUES = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "EMPTY_SET": set,
}
# A function that returns the storage for a persistent id, or for the bytes of
# a file within the file.
Find = Callable[[Any], Storage]


def no_storage(key: Any) -> Storage:
  """Refuses every storage; it is the `Find` for a pickle that has none."""
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
  """Runs the pickle that starts at the file's position; returns its result.

  Args:
    file: a file at the start of a pickle.
    budget: the instructions and the memory that the file may still use.
    find: returns the storage for a persistent id.
    load_storage: returns the storage of a file within the file, from its bytes.

  Raises:
    RefusalError: if there is a name or an instruction that weights do not need,
      or more work than the budget allows.
    Exception: if the pickle is damaged or the file is of another kind; one of
      many classes.
  """
  machine = Machine(
    calls={**CALLS, LOAD_STORAGE: load_storage}, budget=budget, find=find
  )
  # `genops` only reads the instructions and their arguments; it runs nothing.
  for instruction, argument, _ in pickletools.genops(file):
    budget.count()
    if instruction.name == "STOP":
      return machine.stack.pop()
    items: list[Any] = []
    if pickletools.markobject in instruction.stack_before:
      items = machine.pop_mark()
    known = (
      machine.push(instruction.name, argument, items)
      or machine.remember(instruction.name, argument, items)
      or machine.fill(instruction.name, argument, items)
      or machine.make(instruction.name, argument, items)
    )
    if not known:
      raise RefusalError(
        f"has the instruction {instruction.name}, which weights do not need;"
        " save its state_dict()"
      )
  raise RefusalError("has no end; fetch it again")


@dataclasses.dataclass(kw_only=True)
class Machine:
  """Holds the state of a pickle's program; its methods run the instructions.

  There are four groups of instructions, and one method for each. The method
  runs an instruction of its group and returns True. For all other instructions
  it returns False.

  Args:
    calls: the function of each known name.
    budget: the memory that the file may still use.
    find: returns the storage for a persistent id.
    stack: the values since the last mark.
    marks: the stacks before each mark.
    memo: the values that the program has stored, by number.
  """

  calls: Mapping[str, Callable[..., Any]]
  budget: Budget
  find: Find
  stack: list[Any] = dataclasses.field(default_factory=list)
  marks: list[list[Any]] = dataclasses.field(default_factory=list)
  memo: dict[Any, Any] = dataclasses.field(default_factory=dict)

  def pop_mark(self) -> list[Any]:
    """Removes the last mark and the values since then; returns these values."""
    items, self.stack = self.stack, self.marks.pop()
    return items

  def push(self, name: str, argument: Any, items: list[Any]) -> bool:
    """Runs instructions for numbers, text, constants and tuples."""
    match name:
      case _ if name in VALUES:
        check_number(argument)
        self.stack.append(argument)
      case _ if name in CONSTANTS:
        self.stack.append(CONSTANTS[name]())
      case "TUPLE":
        self.stack.append(tuple(items))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        parts = [self.stack.pop() for _ in range(int(name[-1]))]
        self.stack.append(tuple(reversed(parts)))
      case _:
        return False
    return True

  def remember(self, name: str, argument: Any, items: list[Any]) -> bool:
    """Runs instructions for marks on the stack and for the memo."""
    match name:
      case "PUT" | "BINPUT" | "LONG_BINPUT":
        self.memo[argument] = self.stack[-1]
      case "PROTO" | "FRAME" | "POP_MARK":
        pass
      case "MARK":
        self.marks.append(self.stack)
        self.stack = []
      case "POP":
        self.stack.pop()
      case "MEMOIZE":
        self.memo[len(self.memo)] = self.stack[-1]
      case "GET" | "BINGET" | "LONG_BINGET":
        self.stack.append(_filled(self.memo[argument]))
      case _:
        return False
    return True

  def fill(self, name: str, argument: Any, items: list[Any]) -> bool:
    """Runs instructions for lists, dicts and sets, and for their items."""
    match name:
      case "LIST":
        self.stack.append(items)
      case "DICT":
        self.stack.append({})
        set_items(self.stack[-1], items)
      case "APPEND":
        item = self.stack.pop()
        extend(self.stack[-1], [item])
      case "APPENDS" | "ADDITEMS":
        extend(self.stack[-1], items)
      case "SETITEM":
        value, key = self.stack.pop(), self.stack.pop()
        set_items(self.stack[-1], [key, value])
      case "SETITEMS":
        set_items(self.stack[-1], items)
      case _:
        return False
    return True

  def make(self, name: str, argument: Any, items: list[Any]) -> bool:
    """Runs instructions for names, and for objects made by calling them."""
    match name:
      case "GLOBAL":
        self.stack.append(_known(str(argument).replace(" ", ".", 1)))
      case "STACK_GLOBAL":
        member, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_known(".".join([module, member])))
      case "BINPERSID":
        self.stack.append(self.find(self.stack.pop()))
      case "REDUCE" | "NEWOBJ":
        arguments, function = self.stack.pop(), self.stack.pop()
        made = _call(function, arguments, self.calls, self.budget)
        self.stack.append(made)
      case "BUILD":
        state, old = self.stack.pop(), self.stack.pop()
        self.budget.copy(state)
        self.stack.append(build(old, state))
      case _:
        return False
    return True


def _known(name: str) -> Global:
  require(
    name in NAMES,
    f"names {name[:99]!r}, and only arrays, numbers and plain containers are"
    " read; save its state_dict(), or convert it to .safetensors",
  )
  return Global(name=name)


def _filled(value: Any) -> Any:
  """Returns a value of the memo; for an `Unfilled` with values, its array."""
  filled = isinstance(value, Unfilled) and value.values is not None
  return value.values if filled else value


def _call(
  function: Any,
  arguments: Any,
  calls: Mapping[str, Callable[..., Any]],
  budget: Budget,
) -> Any:
  """Calls the function of a known name and returns its result."""
  name = function.name if isinstance(function, Global) else ""
  require(
    name in calls and type(arguments) is tuple,
    f"calls {name or type(function).__name__}; save its state_dict()",
  )
  budget.copy(*arguments)
  return calls[name](*arguments)
