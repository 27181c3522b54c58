"""Plans what a recipe costs on a machine, without using that machine."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffdistill.fields import Fields
from diffdistill.planning.chips import GIB, Chip
from diffdistill.planning.compiled import Compiled, compile_program
from diffdistill.planning.flops import count_flops
from diffdistill.planning.programs import Program, programs
from diffdistill.planning.remedies import (
  Remedy,
  applied,
  flags,
  offer,
  remedies,
)
from diffdistill.planning.roofline import Roofline, roofline, total
from diffdistill.planning.topology import Topology, topology_of
from diffdistill.run import from_config

# The memory to keep free for the program's instructions, because a plan does
# not compile them. A U-Net of 36M parameters on a v5e needs 0.24 GB.
CODE_BYTES = 0.5 * GIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """The cost of one program of a recipe, on one of the devices.

  Args:
    program, stage, images, runs, trained: the fields of `Program` with these
      names.
    state_bytes: the bytes of weights, optimizer and averages.
    memory_bytes: the bytes of arguments and temporaries; if the compiler
      refuses, the bytes that its refusal names.
    over_bytes: the bytes that are missing on the device; 0 if the program fits,
      or if the device's memory is unknown.
    flops: the floating-point operations of one run, on one device.
    traffic_bytes: the bytes read from and written to the device's memory.
    collectives: the number of messages, their bytes, and the bytes sent, by
      kind.
    roofline: the shortest possible time; None if the chip is unknown.
    images_per_second: the images per second of all devices at the roofline.
    chip_hours: the chip-hours of all runs of the program at the roofline; at
      most its share of a stage that ends by the clock.
    probable_chip_hours: the same, if the limits of the roofline add up.
    compile_seconds: the seconds of the compilation, when it was done.
  """

  program: str
  stage: str
  images: int
  runs: float
  trained: int
  state_bytes: float
  memory_bytes: float
  over_bytes: float
  flops: float
  traffic_bytes: float
  collectives: dict[str, dict[str, float]]
  roofline: Roofline | None
  images_per_second: float | None
  chip_hours: float | None
  probable_chip_hours: float | None
  compile_seconds: float

  @property
  def fits(self) -> bool:
    return self.over_bytes == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The cost of a recipe on a topology.

  Args:
    topology: the name of the topology.
    num_devices: the number of devices of the topology.
    chip: the fields of the `Chip` of each device; None if unknown.
    mesh: the size of each axis of the mesh.
    compiler: the name and version of the compiler.
    rows: one row for each program.
    remedies: for each stage that does not fit, the change that makes it fit;
      None if no tried change does.
    offer: a change that is faster, if all programs take less than half of a
      chip's memory; None if there is none.
  """

  topology: str
  num_devices: int
  chip: dict[str, Any] | None
  mesh: dict[str, int]
  compiler: str
  rows: tuple[Row, ...]
  remedies: dict[str, Remedy | None]
  offer: Remedy | None = None

  @property
  def chip_hours(self) -> float | None:
    """The chip-hours of the recipe at the roofline; None if unknown."""
    return total(row.chip_hours for row in self.rows)

  @property
  def probable_chip_hours(self) -> float | None:
    """The chip-hours that a real run will probably take; None if unknown."""
    return total(row.probable_chip_hours for row in self.rows)


def make_plan(
  config: Any, topology: str, cache: Path, say: Callable[[str], None]
) -> Plan:
  """Compiles every update of a recipe, and its sampler, for a topology.

  Args:
    config: the config of the recipe.
    topology: the name of the topology; call this before anything asks JAX for
      devices.
    cache: a folder with the results of earlier compilations.
    say: receives a line for each compilation.

  Raises:
    ValueError: if the topology or the config is not valid.
    CompilerError: if the compiler fails for another reason than memory.
  """
  devices = topology_of(topology)
  run = from_config.build(config, devices=devices.devices)
  rows = [_row(p, run.config, devices, cache, say) for p in programs(run)]
  found = {}
  for row in rows:
    if not row.fits and row.stage and row.stage not in found:
      found[row.stage] = _remedy(row.stage, run.config, devices, cache, say)
  return Plan(
    topology=topology,
    num_devices=len(devices.devices),
    chip=dataclasses.asdict(devices.chip) if devices.chip else None,
    mesh=dict(run.mesh.shape),
    compiler=devices.compiler,
    rows=tuple(rows),
    remedies=found,
    offer=_offer(rows, run.config, devices.chip),
  )


def table(plan: Plan) -> str:
  """Formats a plan as a text table, with one line for each program."""
  chip = plan.chip
  of = (
    f" of {chip['memory'] / GIB:.2f} GiB, {chip['flops'] / 1e12:.0f} TFLOP/s"
    if chip
    else ""
  )
  lines = [
    f"{plan.topology}: {plan.num_devices} devices{of}, mesh"
    f" data={plan.mesh['data']} fsdp={plan.mesh['fsdp']}, {plan.compiler}",
    f"{'program':<32}{'trained':>9}{'state':>9}{'memory':>9}{'TFLOP':>8}"
    f"{'traffic':>9}{'roofline':>10}  {'bound by':<8}{'images/s':>9}"
    f"{'chip-hours':>11}  messages",
  ]
  for row in plan.rows:
    messages = ", ".join(
      f"{kind} {c['count']:.0f}: {c['bytes'] / GIB:.2f} GiB"
      for kind, c in row.collectives.items()
    )
    speed = hours = limit = bound = "-"
    if row.roofline:
      limit, bound = f"{row.roofline.seconds * 1e3:.1f} ms", row.roofline.bound
      speed, hours = f"{row.images_per_second:,.0f}", f"{row.chip_hours:,.0f}"
    lines.append(
      f"{row.program:<32}{row.trained / 1e6:>8.1f}M"
      f"{row.state_bytes / GIB:>9.2f}{row.memory_bytes / GIB:>9.2f}"
      f"{row.flops / 1e12:>8.2f}{row.traffic_bytes / GIB:>9.1f}{limit:>10}"
      f"  {bound:<8}{speed:>9}{hours:>11}  {messages or 'none'}"
    )
  if "*" in plan.topology:
    lines.append(
      "messages between slices take longer than shown: they are counted at the"
      " speed within a slice"
    )
  if plan.chip_hours is not None:
    lines.append(
      f"chip-hours of the recipe, at the roofline: {plan.chip_hours:,.0f}; a"
      f" real run will probably take {plan.probable_chip_hours:,.0f}, as if"
      " compute, memory and messages never overlapped"
    )
  if plan.offer is not None:
    lines.append(
      "all programs take less than half of a chip's memory; plan again with"
      f" {flags(plan.offer)}, which is faster if it fits"
    )
  lines.append(
    "numbers are for one device, in GiB; a sampler's are for one step; memory"
    f" is without the program's code, for which {CODE_BYTES / GIB:g} GiB are"
    " kept free"
  )
  return "\n".join(lines)


def as_json(plan: Plan) -> Fields:
  """Returns a plan as plain values, with its totals."""
  return {
    **dataclasses.asdict(plan),
    "fits": all(row.fits for row in plan.rows),
    "chip_hours": plan.chip_hours,
    "probable_chip_hours": plan.probable_chip_hours,
  }


def refusal(plan: Plan) -> str | None:
  """Says what does not fit and what helps; None if all programs fit."""
  over = [row for row in plan.rows if not row.fits]
  if not over:
    return None
  words = []
  for row in over:
    much = f"{row.program} takes {row.memory_bytes / GIB:.2f} GiB"
    if plan.chip is not None:
      free, over_by = CODE_BYTES / GIB, row.over_bytes / GIB
      much += (
        f" and {free:g} GiB for its code, {over_by:.2f} GiB more than the"
        f" {plan.chip['memory'] / GIB:.2f} GiB of a chip"
      )
    words.append(much)
  advice = []
  for stage, remedy in plan.remedies.items():
    if remedy is None:
      advice.append(
        f"no change that was tried makes {stage} fit; pass a larger topology"
      )
    else:
      advice.append(f"{stage} fits with {flags(remedy)}")
  return "; ".join(
    [f"{plan.topology} is too small: {', '.join(words)}", *advice]
  )


def _row(
  program: Program,
  config: Fields,
  topology: Topology,
  cache: Path,
  say: Callable[[str], None],
) -> Row:
  traced = program.trace()
  flops = count_flops(traced.jaxpr) / len(topology.devices)
  compiled = compile_program(program.name, traced, config, topology, cache, say)
  if compiled.refused:
    # The refusal counts only the bytes of temporaries, so add the state.
    memory = compiled.memory + program.state_bytes
    compiled = dataclasses.replace(compiled, memory=memory)
  chip, limits = topology.chip, None
  speed = hours = probable = None
  if chip is not None and not compiled.refused:
    limits = roofline(flops, compiled, chip)
    speed, count = program.images / limits.seconds, len(topology.devices)
    hours = program.chip_hours(limits.seconds, count)
    probable = program.chip_hours(limits.in_turn, count)
  return Row(
    program=program.name,
    stage=program.stage,
    images=program.images,
    runs=program.runs,
    trained=program.trained,
    state_bytes=program.state_bytes,
    memory_bytes=compiled.memory,
    over_bytes=_over(compiled, chip),
    flops=flops,
    traffic_bytes=compiled.traffic,
    collectives={
      kind: dataclasses.asdict(c) for kind, c in compiled.collectives.items()
    },
    roofline=limits,
    images_per_second=speed,
    chip_hours=hours,
    probable_chip_hours=probable,
    compile_seconds=compiled.seconds,
  )


def _offer(
  rows: Sequence[Row], config: Fields, chip: Chip | None
) -> Remedy | None:
  """Returns a faster change if every program leaves half of a chip free."""
  if chip is None:
    return None
  most = max(row.memory_bytes for row in rows) + CODE_BYTES
  return offer(config) if most < chip.memory / 2 else None


def _over(compiled: Compiled, chip: Chip | None) -> float:
  """Returns by how many bytes a program exceeds a chip's memory."""
  # The refusal may name fewer bytes than the chip has, so return at least one.
  least = 1.0 if compiled.refused else 0.0
  if chip is None:
    return least
  return max(compiled.memory + CODE_BYTES - chip.memory, least)


def _remedy(
  stage: str,
  config: Fields,
  topology: Topology,
  cache: Path,
  say: Callable[[str], None],
) -> Remedy | None:
  """Finds the first remedy with which all programs of a stage fit, or None."""
  for remedy in remedies(config, stage, len(topology.devices)):
    changed = applied(config, remedy)
    try:
      run = from_config.build(changed, devices=topology.devices)
      changes = [p for p in programs(run) if p.stage == stage]
    except ValueError:
      continue  # The recipe or the topology does not allow this remedy.
    say(f"{stage} does not fit; trying {flags(remedy)}")
    if all(_row(p, changed, topology, cache, say).fits for p in changes):
      return remedy
  return None
