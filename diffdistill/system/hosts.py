"""Lets the processes of one run, on one machine or more, work together.

All processes run the same program and make the same calls in the same order.
`on_first` lets only the first process act, such as write to a disk, and sends
the result or the error to the others. So no process waits for one that has
failed.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

# JAX's key-value store has no public name. Orbax also uses this private one.
from jax._src import distributed
from jax.experimental import multihost_utils

from diffdistill.system import bucket_faults, signals
from diffdistill.system.links import Links
from diffdistill.system.refusals import is_refusal
from diffdistill.system.relay import relayed

T = TypeVar("T")

# How long to wait until every process has said how it ends.
SECONDS_TO_AGREE = 20
WORDS = "diffdistill/last_words"
TEXTS = "diffdistill/texts"
# How long to wait for the texts of all processes. A machine may be slow to
# import and read.
SECONDS_TO_GATHER = 300
LINK = "diffdistill/link"
SECONDS_TO_LINK = 60
# How long to wait for the news that a process is lost, after a connection to
# it has failed.
SECONDS_TO_HEAR = 2
THREADS = 64
# JAX treats a process as lost if it is silent for this long, and aborts the
# processes that wait for it. Usually links.py notices the loss earlier.
HEARTBEAT_SECONDS = 100
# Messages are padded to multiples of this size: each length is compiled once.
BLOCK = 1024


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes; call it before anything touches a device.

  Args:
    coordinator: HOST:PORT of the first process; by default the cluster provides
      it.
    num_processes: the number of processes.
    process_id: the index of this process.

  Raises:
    ValueError: if arguments are missing and no cluster provides them.
  """
  # Keep JAX's service from catching SIGTERM, because training/preemption.py
  # handles it.
  jax.config.update("jax_enable_preemption_service", False)
  # Set the number of threads of the CPU client; by default it is one per core.
  # While a device waits for another process, it holds a thread. If no thread
  # were free, the processes would wait for each other forever.
  os.environ.setdefault("NPROC", str(max(THREADS, os.cpu_count() or 1)))
  with relayed(distributed) as relays:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method="deactivate" if coordinator else None,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  state: Any = distributed.global_state
  if state.num_processes > 1:
    signals.name_process(state.process_id, state.num_processes)
    _link()
    for relay in relays:
      relay.holds = _links is not None


_links: Links | None = None


def _link() -> None:
  """Connects the processes, so that each one learns if another is lost."""
  global _links
  state: Any = distributed.global_state
  links = Links(state.process_id)
  if state.process_id == 0:
    port, token = links.listen()
    state.client.key_value_set(LINK, f"{port} {token}")
  else:
    host = state.coordinator_address.rpartition(":")[0].strip("[]")
    words = state.client.blocking_key_value_get(LINK, SECONDS_TO_LINK * 1000)
    port, token = words.split()
    try:
      links.connect(host, int(port), token)
    except OSError as error:
      sys.stderr.write(
        f"diffdistill: process {state.process_id} cannot connect to port {port}"
        f" of {host} ({error}) and goes on, but a lost process is noticed only"
        f" after {HEARTBEAT_SECONDS} s; open the ports between the hosts\n"
      )
      return
  _links = links
  signals.at_end(links.told)
  # Say goodbye before JAX, at exit, waits for the other processes.
  atexit.register(links.leave)


def leave() -> None:
  """Says goodbye to the other processes before a normal exit."""
  if _links is not None:
    _links.leave()


def lost_process() -> int | None:
  """Returns the index of a lost process, or None; waits a moment for news."""
  return None if _links is None else _links.lost(SECONDS_TO_HEAR)


def check_devices(expected: int) -> None:
  """Refuses to continue if some devices of a pod are missing.

  Raises:
    ValueError: if there are more or fewer devices than expected.
  """
  if jax.device_count() != expected:
    raise ValueError(
      f"expected {expected} devices but {jax.device_count()} are here, of"
      f" {jax.process_count()} processes; start the others, or pass"
      f" --expect_devices={jax.device_count()}"
    )


def is_first() -> bool:
  """Returns whether this process is the first; only the first writes files."""
  return jax.process_index() == 0


def meet() -> None:
  """Waits until every process has made this call."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("meet")


def everywhere(true: bool) -> bool:
  """Returns whether a condition is true on every process."""
  if jax.process_count() == 1:
    return true
  return bool(multihost_utils.process_allgather(np.int32(true)).all())


def on_first(act: Callable[[], T]) -> T:
  """Calls a function on the first process only; all get its result or error.

  An error that a person can repair is a ValueError or an OSError on every
  process. For other errors, the first process has the traceback and the others
  have only the message.

  Args:
    act: the function; its result must be JSON values, and it must not
      communicate with other processes.
  """
  if jax.process_count() == 1:
    return act()
  message = ""
  failed: Exception | None = None
  if is_first():
    try:
      message = json.dumps({"result": act()})
    except Exception as error:
      failed = error
      message = json.dumps({"error": _described(error)}, default=str)
  outcome = json.loads(_from_first(message.encode()))
  if failed is not None:
    raise failed
  if "error" in outcome:
    raise _rebuilt(**outcome["error"])
  return outcome["result"]


def gathered(text: str) -> list[str]:
  """Returns the texts of all processes, in order, without compiling anything.

  The first process reads all texts and shares them as one, so that many
  processes do not send many requests each.
  """
  client: Any = distributed.global_state.client
  count = jax.process_count() if client is not None else 1
  if count == 1:
    return [text]
  client.key_value_set(f"{TEXTS}/{jax.process_index()}", text)
  if is_first():
    texts = [
      client.blocking_key_value_get(f"{TEXTS}/{i}", SECONDS_TO_GATHER * 1000)
      for i in range(count)
    ]
    client.key_value_set(f"{TEXTS}/all", json.dumps(texts))
    return texts
  all_texts = client.blocking_key_value_get(
    f"{TEXTS}/all", SECONDS_TO_GATHER * 1000
  )
  return json.loads(all_texts)


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Places arrays that every process holds on the devices of all processes.

  `jax.device_put` would first compare the arrays of all processes, which takes
  a collective in each call.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def one(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(
        one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
      )
    array = np.asarray(leaf)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(one, tree)


def unanimous(words: str) -> bool:
  """Returns whether every process ends with the same words, after a wait."""
  client = distributed.global_state.client
  if client is None:
    return True
  client.key_value_set(f"{WORDS}/{jax.process_index()}", words)
  for other in range(jax.process_count()):
    try:
      theirs = client.blocking_key_value_get(
        f"{WORDS}/{other}", SECONDS_TO_AGREE * 1000
      )
    except jax.errors.JaxRuntimeError:
      return False
    if theirs != words:
      return False
  return True


def _described(error: Exception) -> dict[str, Any]:
  """Returns an error as JSON values, for `_rebuilt`."""
  if line := bucket_faults.fault(error):
    return {"kind": "BucketError", "text": line}
  if not is_refusal(error):
    return {"kind": "fault", "text": f"{type(error).__name__}: {error}"}
  if not isinstance(error, OSError):
    return {"kind": "ValueError", "text": str(error)}
  return {
    "kind": "OSError",
    "text": str(error.strerror or error),
    "errno": error.errno,
    "filename": None if error.filename is None else str(error.filename),
  }


def _rebuilt(
  kind: str,
  text: str,
  errno: int | None = None,
  filename: str | None = None,
) -> Exception:
  if kind == "BucketError":
    return bucket_faults.BucketError(text)
  if kind == "ValueError":
    return ValueError(text)
  if kind == "fault":
    return RuntimeError(f"on the first process: {text}")
  return OSError(text) if errno is None else OSError(errno, text, filename)


def _from_first(message: bytes) -> bytes:
  """Returns the first process's message and ignores the others' messages."""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  padded = np.zeros(-(-size // BLOCK) * BLOCK, np.uint8)
  if is_first():
    padded[:size] = np.frombuffer(message, np.uint8)
  return multihost_utils.broadcast_one_to_all(padded)[:size].tobytes()
