"""Tests plans by the TPU compiler, if installed (`make check-plan`)."""

import importlib.util
import json
import pathlib

import pytest

from diffdistill.configs import digits
from diffdistill.planning import plan as planning
from diffdistill.planning.chips import CHIPS
from diffdistill.planning.remedies import applied, flags
from diffdistill.planning.topology import topology_of

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra [plan]"
  ),
]
PLANS = pathlib.Path(__file__).parent.parent.parent / "launch" / "plans"


@pytest.fixture
def plan(tmp_path, monkeypatch):
  # A flag of the tests for the CPU is unknown to the compiler of TPUs.
  monkeypatch.delenv("XLA_FLAGS")

  def make(config, topology):
    return planning.make_plan(config, topology, tmp_path / "cache", print)

  return make


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_the_plan_of_a_small_recipe_equals_its_stored_plan(plan, topology):
  name = f"digits_progressive_{topology.replace(':', '_')}.json"
  stored = json.loads((PLANS / name).read_text())
  found = plan(digits.get_config("progressive"), topology)
  made = json.loads(json.dumps(planning.as_json(found)))
  assert made["fits"]
  assert made["chip"] == stored["chip"]
  rows, theirs = made["rows"], stored["rows"]
  assert [r["program"] for r in rows] == [r["program"] for r in theirs]
  for row, other in zip(rows, theirs, strict=True):
    assert row["runs"] == other["runs"]
    assert row["trained"] == other["trained"]
    assert row["state_bytes"] == other["state_bytes"]
    assert row["flops"] == other["flops"]
    # The tolerance is for other versions of the compiler, which may use the
    # memory differently.
    for field in ("memory_bytes", "traffic_bytes"):
      assert row[field] == pytest.approx(other[field], rel=0.25)
    assert row["collectives"].keys() == other["collectives"].keys()


def test_a_recipe_that_does_not_fit_is_refused_with_a_remedy(plan):
  config = digits.get_config("progressive")
  config.run = ("teacher",)
  config.stages.teacher.batch_size = 2**20
  tight = plan(config, "v5e:2x2")
  refusal = planning.refusal(tight)
  assert tight.rows[0].memory_bytes > CHIPS["v5e"].memory
  assert "GiB more than the 15.75 GiB of a chip" in refusal
  remedy = tight.remedies["teacher"]
  assert remedy is not None
  assert flags(remedy) in refusal
  fields = json.loads(config.to_json_best_effort())
  assert planning.refusal(plan(applied(fields, remedy), "v5e:2x2")) is None


def test_a_topology_of_two_slices_has_the_devices_of_both():
  devices = topology_of("v5e:2x2*2").devices
  assert len(devices) == 8
  assert {device.slice_index for device in devices} == {0, 1}


@pytest.mark.parametrize("name", ["v9:2x2", "v5e:3x3"])
def test_a_topology_that_the_compiler_does_not_know_is_refused(name):
  with pytest.raises(ValueError, match="which the TPU compiler refuses"):
    topology_of(name)
