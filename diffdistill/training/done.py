"""What a round has done, by the records that it left in metrics.jsonl."""

import dataclasses
import json
import math
from typing import Any

from etils import epath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """The work of one round.

  Args:
    updates: that it was trained for; 0 where none are recorded.
    chosen: the update whose weights are its product, where a score has chosen
      them; 0 where they are those at the end.
  """

  updates: int = 0
  chosen: int = 0


def done(workdir: epath.Path, name: str, score: str = "") -> Done:
  """The work that is recorded of a round.

  Args:
    workdir: of the run.
    name: of the round.
    score: by which its weights were selected, "" where they were not.
  """
  updates, chosen, best = 0, 0, math.inf
  for record in _records(workdir):
    if record.get("round") != name or not isinstance(record.get("step"), int):
      continue
    step, found = record["step"], record.get(score)
    updates = max(updates, step)
    # The first of equals, as Selector has it.
    if isinstance(found, int | float) and found < best:
      chosen, best = step, found
  return Done(updates=updates, chosen=chosen)


def _records(workdir: epath.Path) -> list[dict[str, Any]]:
  path = workdir / "metrics.jsonl"
  records = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      record = json.loads(line)
    except ValueError:
      continue  # cut off in the middle of a write
    if isinstance(record, dict):
      records.append(record)
  return records
