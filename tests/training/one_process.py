"""One process of a run, by the command line; multihost_test.py's script.

It is run with a global `given`: the `arguments` of the command line, how many
`devices`, the `log` for its output, the `cache` of compiled programs.
"""

import os
import sys

import jax

from diffdistill import __main__, hosts

given = globals()["given"]

log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
jax.config.update("jax_num_cpu_devices", given["devices"])
jax.config.update("jax_compilation_cache_dir", given["cache"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# Some that lose another wait for JAX to say so; tests do not wait for long.
hosts.HEARTBEAT_SECONDS = 20
sys.argv = ["diffdistill", *given["arguments"]]
status = __main__.main()
hosts.leave()
# As JAX does at the end of a process of its own; a forked one forgets it.
jax.distributed.shutdown()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
