"""The script of hosts_test.py: one of two processes that work together.

  python two_processes.py PORT PROCESS

Each process has four devices and prints its results as JSON.
"""

import json
import os
import signal
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffdistill.system import hosts
from diffdistill.training.preemption import Preemption
from diffdistill.training.sharding import process_rows, shard_batch


def refusal(act, *arguments):
  """Calls a function, and returns the text of the error that it raises."""
  try:
    act(*arguments)
  except Exception as error:
    return f"{type(error).__name__}: {error}"
  return "nothing"


def no_space():
  raise OSError(28, "No space left on device", "somewhere")


def reset():
  raise ConnectionResetError(104, "Connection reset by peer")


def values(array):
  """Returns the values of a global array that this process holds."""
  gather = jax.jit(
    lambda x: x,
    out_shardings=NamedSharding(array.sharding.mesh, PartitionSpec()),
  )
  return np.asarray(gather(array)).tolist()


def leaves_at(mesh, told, lag):
  """Returns the boundary at which a process leaves if it is told at `told`."""
  with Preemption() as preemption:
    for boundary in range(12):
      if boundary == told:
        os.kill(os.getpid(), signal.SIGTERM)
      if preemption.agreed(mesh, lag=lag):
        return boundary


def main(port, process):
  jax.config.update("jax_num_cpu_devices", 4)
  hosts.join(f"localhost:{port}", 2, process)
  first = process == 0
  # Mix the devices of the processes: on a torus too, the devices of a host are
  # not side by side.
  devices = np.array(jax.devices())[[0, 4, 1, 5, 6, 7, 2, 3]].reshape(4, 2)
  mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  rows = process_rows(16, mesh)
  batch = np.arange(32, dtype=np.float32).reshape(16, 2)
  key = hosts.place(jax.random.key(5), NamedSharding(mesh, PartitionSpec()))
  by_row = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  found = {
    "on_first": hosts.on_first(lambda: {"from": process, "long": "x" * 3000}),
    "floats": [
      hosts.on_first(lambda: 0.1 + process) == 0.1,
      repr(hosts.on_first(lambda: float("nan"))),
      hosts.on_first(lambda: float("-inf")) < 0,
    ],
    "refusals": [
      refusal(hosts.on_first, no_space),
      refusal(hosts.on_first, lambda: hosts.check_devices(32)),
    ],
    # The second function returns an object, which JSON cannot hold.
    "faults": [refusal(hosts.on_first, act) for act in (reset, object)],
    "everywhere": [
      hosts.everywhere(first),
      hosts.everywhere(not first),
      hosts.everywhere(True),
    ],
    "check_devices": refusal(lambda: hosts.check_devices(32)),
    "rows": rows,
    "shard_batch": values(shard_batch({"x": batch[list(rows)]}, mesh)["x"]),
    "place": values(hosts.place(batch, by_row)),
    "key": values(jax.random.key_data(jax.random.split(key, 2))),
    # The cases: one process is told, both are told at different moments, one is
    # told without a lag, one is told too late, and none is told.
    "leaves": [
      leaves_at(mesh, None if first else 3, lag=2),
      leaves_at(mesh, 3 if first else 4, lag=2),
      leaves_at(mesh, 3 if first else None, lag=0),
      leaves_at(mesh, 10 if first else None, lag=2),
      leaves_at(mesh, None, lag=2),
    ],
    "gathered": hosts.gathered(f"of {process}"),
    "unanimous": [hosts.unanimous("the same"), hosts.is_first()],
  }
  print(json.dumps(found))
  hosts.meet()


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]))
