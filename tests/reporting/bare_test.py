"""The output of a benchmark is read, or noted as damaged."""

import json
import math

import pytest
from etils import epath

from diffdistill.reporting.bare import Bare, read_bare
from diffdistill.system.files import json_of, write_json

SECONDS = "bare_seconds_per_update"
WRITTEN = {
  "devices": "1 cpu",
  "turns": 5,
  "stages": [
    {"stage": "teacher", "batch_size": 8, "bare_seconds_per_update": 0.25},
    {"stage": "halve", "batch_size": 8, "bare_seconds_per_update": 1},
  ],
}


def read(tmp_path, written):
  path = tmp_path / "benchmark.json"
  if isinstance(written, str):
    path.write_text(written)
  elif written is not None:
    write_json(path, written)
  notes = []
  return read_bare(epath.Path(tmp_path), notes), notes


def test_the_seconds_of_each_stage_are_read(tmp_path):
  assert read(tmp_path, None) == ({}, [])
  assert read(tmp_path, WRITTEN) == (
    {
      "teacher": [Bare(seconds=0.25, devices="1 cpu")],
      "halve": [Bare(seconds=1.0, devices="1 cpu")],
    },
    [],
  )


def test_each_kind_of_device_has_its_own_file(tmp_path):
  other = {"devices": "1 TPU v5e", "stages": WRITTEN["stages"][:1]}
  (tmp_path / "benchmark_tpu_v5e.json").write_text(json_of(other))
  found, notes = read(tmp_path, WRITTEN)
  assert notes == []
  assert [bare.devices for bare in found["teacher"]] == ["1 cpu", "1 TPU v5e"]
  assert len(found["halve"]) == 1


@pytest.mark.parametrize(
  "written",
  [
    "",
    "[]",
    "[" * 100_000,
    json.dumps(WRITTEN),
    json_of(WRITTEN).replace("0.25", "0.26"),
    {"devices": "1 cpu"},
    {"devices": "1 cpu", "stages": [3]},
    *(
      {"devices": "1 cpu", "stages": [{"stage": "teacher", SECONDS: seconds}]}
      for seconds in (0, math.inf, None, "fast")
    ),
  ],
)
def test_a_damaged_benchmark_is_noted(tmp_path, written):
  found, (note,) = read(tmp_path, written)
  assert found == {}
  assert note.startswith("benchmark.json is damaged; write the output of")
