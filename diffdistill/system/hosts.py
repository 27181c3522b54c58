"""The processes of one run, one or several a machine.

All of them run the same program and make the same calls in the same order. What
touches the disk is done by the first, and the others take its word, so that
none waits for one that has met an error.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

# The key-value store of JAX's coordination service has no public name; Orbax
# takes this one too.
from jax._src import distributed
from jax.experimental import multihost_utils

from diffdistill.system import signals
from diffdistill.system.links import Links
from diffdistill.system.refusals import is_refusal
from diffdistill.system.relay import relayed

T = TypeVar("T")

# For another process to come to the same words; it may be on a slower machine.
SECONDS_TO_AGREE = 20
WORDS = "diffdistill/last_words"
TEXTS = "diffdistill/texts"
# Their machines may be slow to import and to read a config.
SECONDS_TO_GATHER = 300
LINK = "diffdistill/link"
SECONDS_TO_LINK = 60
# That a process is lost may be heard after its connections have failed.
SECONDS_TO_HEAR = 2
THREADS = 64
# JAX's own: a process that has said nothing for so long is lost, and JAX aborts
# those that still wait for it. links.py notices most of them before.
HEARTBEAT_SECONDS = 100
# Messages are padded to multiples of this: each length is compiled once.
BLOCK = 1024


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes; before anything touches a device.

  Args:
    coordinator: HOST:PORT of the first process; as the cluster says by default.
    num_processes: how many there are.
    process_id: which of them this is.

  Raises:
    ValueError: where there is no cluster to ask.
  """
  # JAX's own service takes SIGTERM from every process, to answer only those
  # that ask it; training/preemption.py says why it is not asked.
  jax.config.update("jax_enable_preemption_service", False)
  # Of the CPU client, one a core by default. Each local device of each program
  # under way holds one while it waits for another process; with none left, the
  # processes wait for each other for ever.
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
  """Connects the processes, so that each learns when one is lost."""
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
        f" of {host} ({error}), and goes on without: a lost process is noticed"
        f" after {HEARTBEAT_SECONDS} s; open the ports between the hosts\n"
      )
      return
  _links = links
  signals.at_end(links.told)
  # JAX waits for the others where it leaves, which comes after this.
  atexit.register(links.leave)


def leave() -> None:
  """Says goodbye to the other processes, as any orderly exit does."""
  if _links is not None:
    _links.leave()


def lost_process() -> int | None:
  """A process that is lost; waits a moment to hear of it."""
  return None if _links is None else _links.lost(SECONDS_TO_HEAR)


def check_devices(expected: int) -> None:
  """Refuses to go on with a part of a pod.

  Raises:
    ValueError: where there are more or fewer devices.
  """
  if jax.device_count() != expected:
    raise ValueError(
      f"expected {expected} devices but {jax.device_count()} are here, of"
      f" {jax.process_count()} processes; start the others, or pass"
      f" --expect_devices={jax.device_count()}"
    )


def is_first() -> bool:
  """Whether this process is the one that writes and speaks."""
  return jax.process_index() == 0


def meet() -> None:
  """Waits until every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("meet")


def everywhere(true: bool) -> bool:
  """Whether it is so on every process."""
  if jax.process_count() == 1:
    return true
  return bool(multihost_utils.process_allgather(np.int32(true)).all())


def on_first(act: Callable[[], T]) -> T:
  """Does it on the first process alone; all have its result, or its error.

  An error that a person can mend is a ValueError or an OSError everywhere; of
  another one the first process has the traceback, and the others its words.

  Args:
    act: of values that JSON holds; it must not call on other processes.
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
  """The texts of all processes, in their order; nothing is compiled for it.

  The first process reads them all, and the others what it has read, so that
  many processes ask the service in turn and not all at once.
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
  """Arrays that every process holds, on the devices of all of them.

  `jax.device_put` does so too, but first compares what each process holds,
  which is a collective a call.
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
  """Whether every process ends with these words; waits for them a while."""
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
  """An error as JSON; what is no refusal here is none on the others."""
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
  if kind == "ValueError":
    return ValueError(text)
  if kind == "fault":
    return RuntimeError(f"on the first process: {text}")
  return OSError(text) if errno is None else OSError(errno, text, filename)


def _from_first(message: bytes) -> bytes:
  """The first process's message; what the others pass is not looked at."""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  padded = np.zeros(-(-size // BLOCK) * BLOCK, np.uint8)
  if is_first():
    padded[:size] = np.frombuffer(message, np.uint8)
  return multihost_utils.broadcast_one_to_all(padded)[:size].tobytes()
