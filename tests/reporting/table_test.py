"""A CSV of the evaluations of several runs is one table for pandas."""

import pandas
import pytest
from etils import epath

from diffdistill.judging.summaries import keep_summary
from diffdistill.reporting.page import write_report
from diffdistill.system.files import read_json, write_json

METRIC = "FD-classifier"


@pytest.fixture
def table(tmp_path):
  """Writes the CSV; returns what pandas reads, and the reported lines."""

  def read(*workdirs):
    out, said = epath.Path(tmp_path) / "new" / "rows.csv", []
    write_report(workdirs, out, said.append)
    return pandas.read_csv(out), said

  return read


def test_each_row_has_its_run_its_settings_and_every_measure(write_run, table):
  def one_step(config):
    config["stages"]["halve"]["sampler"] = {"kind": "one_step"}

  plain, other = write_run("plain"), write_run("other", edit=one_step)
  written = read_json(other / "evaluation.json")
  written["rows"][1][METRIC] = None
  written["rows"][2]["devices"] = "8 TPU v5e"
  written |= {"metric": "FID", "exported": "halve/004, theirs"}
  write_json(other / "evaluation.json", written)
  read, said = table(plain, other)
  assert said == []
  assert list(read.columns[:6]) == [
    *("run", "round", "paper", "num_steps", "sampler", METRIC)
  ]
  assert list(read["run"]) == ["plain"] * 6 + ["other"] * 6
  rows = read.to_dict("records")
  assert {row["sampler"] for row in rows[:6]} == {"ddim"}
  assert [row["sampler"] for row in rows[7:10]] == [
    "ddim",
    pytest.approx(float("nan"), nan_ok=True),
    "one_step",
  ]
  first = rows[0]
  assert (first["round"], first["num_steps"]) == ("teacher", 64)
  assert first[METRIC] == 0.0695758
  assert (first["num_images"], first["metric"]) == (2000, METRIC)
  assert pandas.isna(rows[7][METRIC])
  assert [row["devices"] for row in rows[7:9]] == ["1 cpu", "8 TPU v5e"]


def test_smaller_evaluations_of_a_run_are_in_the_table_too(write_run, table):
  run = write_run()
  largest = read_json(run / "evaluation.json")
  for seed in (1, 2):
    keep_summary(run, {**largest, "num_images": 500, "seed": seed}, {}, print)
  keep_summary(run, largest, {}, print)
  (run / "evaluated" / "evaluation_9.json").write_text("{")
  read, said = table(run)
  counts = read.groupby(["num_images", "seed"], dropna=False).size()
  assert list(counts) == [6, 6, 6]
  assert [line for line in said if "evaluation_9.json" in line] == said != []


def test_runs_without_an_evaluation_are_said_or_refused(write_run, table):
  judged, not_yet = write_run("judged"), write_run("not_yet", judged=False)
  read, said = table(judged, not_yet)
  assert set(read["run"]) == {"judged"}
  assert said == [
    f"{not_yet} has no evaluation yet, so the table has no row of it"
  ]
  with pytest.raises(ValueError, match="run diffdistill evaluate --workdir="):
    table(not_yet)
