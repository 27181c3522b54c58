"""Runs the TPU compiler in its own process; compiled.py starts this program.

The argument of the program is a folder with request.json, which holds the
config, the topology and the name of the recipe's program. The compiler writes
the compiled text into this folder.
"""

import json
import sys
from pathlib import Path

from diffdistill.planning.programs import programs
from diffdistill.planning.topology import topology_of
from diffdistill.run import from_config


def main() -> None:
  """Compiles one program of a recipe and dumps the compiled text."""
  dump = Path(sys.argv[1])
  request = json.loads((dump / "request.json").read_text())
  topology = topology_of(request["topology"])
  run = from_config.build(request["config"], devices=topology.devices)
  (program,) = (p for p in programs(run) if p.name == request["name"])
  program.trace().lower().compile(
    compiler_options={"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True}
  )


if __name__ == "__main__":
  main()
