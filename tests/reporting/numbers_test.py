"""The JSON report has the numbers of evaluations and records, with ratios."""

import json

import pytest
from etils import epath

from diffdistill import __version__
from diffdistill.reporting.page import write_report
from diffdistill.system.files import read_json, write_json

METRIC = "FD-classifier"
MACHINE = {"num_devices": 2, "device_kind": "NVIDIA H100 80GB HBM3"}


@pytest.fixture
def report(tmp_path):
  def make(*workdirs):
    out = epath.Path(tmp_path) / "results" / "numbers.json"
    write_report(workdirs, out, lambda line: None)

    def refuse(word):
      raise AssertionError(f"{word} is no JSON")

    return json.loads(out.read_text(), parse_constant=refuse)

  return make


def rejudge(workdir, change):
  path = workdir / "evaluation.json"
  written = read_json(path)
  change(written)
  write_json(path, written)


def test_rows_have_their_ratio_to_the_teacher(write_run, report):
  workdir = write_run()

  def sped_up(written):
    for row in written["rows"]:
      row["speed_up"] = 0.9 * 64 / row["steps"]
    written["rows"][0]["speed_up"] = 1.0
    del written["rows"][3]["speed_up"]
    written["rows"][4]["recall"] = float("nan")

  rejudge(workdir, sped_up)
  made = report(workdir)["evaluation"]
  assert (made["metric"], made["teacher_most_steps"]) == (METRIC, 64)
  assert made["num_images"] == 2000
  ratios = [row["ratio_to_teacher"] for row in made["rows"]]
  nearest = 0.0695758
  assert ratios == pytest.approx(
    [
      distance / nearest
      for distance in (nearest, 0.3291674, 0.1060690, 0.1286, 0.1738807, 0.11)
    ]
  )
  # The expected values are the measured speed-ups divided by 64 / steps.
  over = [row["speed_up_over_ratio"] for row in made["rows"]]
  assert over == [1, *[pytest.approx(0.9)] * 2, None, *[pytest.approx(0.9)] * 2]
  assert made["rows"][4]["recall"] is None
  assert made["sampling"] == [
    {
      "steps": steps,
      "models": models,
      "images_per_second": pytest.approx(12345.678 / steps),
      "speed_up": speed_up and pytest.approx(speed_up),
      "speed_up_over_ratio": ratio and pytest.approx(ratio),
    }
    for steps, models, speed_up, ratio in (
      (1, 1, 0.9 * 64, 0.9),
      (2, 1, None, None),
      (4, 2, 0.9 * 16, 0.9),
      (64, 1, 1.0, 1.0),
    )
  ]


def test_speeds_of_other_devices_are_not_mixed(write_run, report):
  workdir = write_run()

  def moved(written):
    for i, row in enumerate(written["rows"]):
      row["devices"] = "1 cpu" if i < 2 else "1 NVIDIA H100 80GB HBM3"
    written["rows"][1]["model"] += " last"

  rejudge(workdir, moved)
  sampling = report(workdir)["evaluation"]["sampling"]
  assert [(row["steps"], row["models"]) for row in sampling] == [(64, 1)]


def test_costs_are_given_for_each_stage_and_in_total(write_run, report):
  workdir = write_run(more={**MACHINE, "peak_device_bytes": 3000})
  stages = [
    {"stage": "teacher", "bare_seconds_per_update": 0.5},
    {"stage": "halve", "bare_seconds_per_update": 0.75},
  ]
  benchmark = {"devices": "2 NVIDIA H100 80GB HBM3", "stages": stages}
  write_json(workdir / "benchmark.json", benchmark)
  made = report(workdir)
  assert made["diffdistill"] == __version__
  assert (made["name"], made["run"]) == ("run", ["teacher", "halve"])
  assert (made["data"], made["seed"]) == ("npz", 3)
  assert made["devices"] == ["2 NVIDIA H100 80GB HBM3"]
  assert made["notes"] == []
  teacher, halve = made["stages"]["teacher"], made["stages"]["halve"]
  assert halve["rounds"]["halve/004"] == {
    "state": "finished",
    "unit": "updates",
    "done": 18,
    "planned": 18,
  }
  expected = {
    "seconds": (18, 54, 72),
    "device_seconds": (36, 108, 144),
    "updates": (18, 54, 72),
    "images": (144, 432, 576),
    "passes": (432, 1296, 1728),
    "images_per_second": (100, 100, None),
    "lost": (0.5, 0.25, 1 - (9 + 40.5) / 72),
    "peak_device_bytes": (3000, 3000, 3000),
    "peak_host_bytes": (None, None, None),
  }
  for name, values in expected.items():
    each = (teacher[name], halve[name], made["total"][name])
    assert each == tuple(v if v is None else pytest.approx(v) for v in values)
  for cost in (teacher, halve, made["total"]):
    # The peak of each chip is 989 TFLOP/s.
    peak = cost["device_seconds"] * 989e12
    assert cost["share_of_peak"] == pytest.approx(cost["flops"] / peak)


def test_an_unknown_value_is_null(write_run, report):
  workdir = write_run(judged=False, more={**MACHINE, "device_kind": "cpu"})
  made = report(workdir)
  assert made["evaluation"] is None
  assert made["total"]["share_of_peak"] is made["total"]["lost"] is None
  (workdir / "metrics.jsonl").unlink()
  made = report(workdir)
  assert made["stages"]["teacher"]["updates"] is None
  assert made["notes"] == ["Nothing is recorded yet (no metrics.jsonl)."]


def test_there_is_no_ratio_to_a_teacher_without_a_distance(write_run, report):
  workdir = write_run()

  def unknown(written):
    for row in written["rows"][:2]:
      row[METRIC] = None

  rejudge(workdir, unknown)
  rows = report(workdir)["evaluation"]["rows"]
  assert {row["ratio_to_teacher"] for row in rows} == {None}


def test_several_runs_are_a_list(write_run, report):
  first, second = write_run("one"), write_run("two", judged=False)
  made = report(first, second)
  assert [run["name"] for run in made["runs"]] == ["one", "two"]
  (one,) = [run for run in made["runs"] if run["evaluation"]]
  alone = report(first)
  assert {**one, "diffdistill": __version__} == alone
