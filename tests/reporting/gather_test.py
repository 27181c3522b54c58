"""A workdir is read as far as possible, and a damaged part is noted."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image as PillowImage

from diffdistill.reporting.gather import flat, gather, written
from diffdistill.reporting.pictures import PIXELS
from diffdistill.system.files import write_json


def states(run):
  return {log.name: (log.state, log.done, log.planned) for log in run.rounds}


def test_a_finished_run_is_read(write_run):
  run = gather(write_run(), "run")
  assert run.notes == ()
  assert states(run) == {
    name: ("finished", 18, 18)
    for name in ("teacher", "halve/004", "halve/002", "halve/001")
  }
  assert list(run.stages) == ["teacher", "halve"]
  assert [sheet.name for sheet in run.sheets] == [
    log.name for log in run.rounds
  ]
  assert run.compared is not None
  assert (run.compared.width, run.compared.height) == (900, 200)
  assert run.judged is not None
  assert run.written is not None
  assert run.rounds[0].lines("/loss") == {
    "teacher": ((9.0, 1 / 9), (18.0, 1 / 18))
  }


def test_an_unfinished_run_is_read(write_run):
  run = gather(
    write_run(rounds={"teacher": 18, "halve/004": 10}, judged=False), "run"
  )
  assert states(run) == {
    "teacher": ("finished", 18, 18),
    "halve/004": ("under way", 10, 18),
    "halve/002": ("not begun", 0, 18),
    "halve/001": ("not begun", 0, 18),
  }
  assert run.judged is None
  assert run.compared is None


def test_damaged_lines_are_skipped_and_counted(write_run):
  workdir = write_run()
  path = workdir / "metrics.jsonl"
  before = gather(workdir, "run").rounds
  bad = b'{"round": "teach\n3\n{"round": 1, "step": 2}\n\xff\xfe\n'
  path.write_bytes(bad + path.read_bytes())
  run = gather(workdir, "run")
  assert run.notes == (f"{path}: lines 1, 2, 3, 4 are damaged and skipped.",)
  assert run.rounds == before


def test_missing_and_damaged_files_are_noted(write_run):
  workdir = write_run()
  (workdir / "metrics.jsonl").unlink()
  (workdir / "evaluation.json").write_text('{"metric": "FID", "rows"')
  (workdir / "samples" / "compared.png").write_text("no image")
  run = gather(workdir, "run")
  assert run.notes == (
    "Nothing is recorded yet (no metrics.jsonl).",
    "samples/compared.png is no PNG that can be read.",
    f"{workdir}/evaluation.json is damaged: it is not JSON; run diffdistill"
    " evaluate to write it again.",
  )
  assert run.judged is None
  assert len(run.sheets) == 4


def test_a_run_whose_config_cannot_be_built_is_read(write_run):
  def edit(config):
    config["data"]["source"]["path"] = "nowhere.npz"

  run = gather(write_run(edit=edit), "run")
  (note,) = run.notes
  assert note.startswith("The config cannot be built here, so lengths and")
  assert "nowhere.npz" in note
  assert run.experiment is None
  assert states(run)["halve/004"] == ("finished", 18, None)


def test_the_clock_gives_the_length_of_a_round_that_it_ends(write_run):
  def edit(config):
    config["stages"]["halve"] |= {"minutes": 1.0, "num_updates": 1000}

  rounds = {"teacher": 18, "halve/004": 18, "halve/002": 10}
  workdir = write_run(edit=edit, rounds=rounds, judged=False)
  clock = workdir / "halve" / "004" / "clock.json"
  write_json(clock, {"num_updates": 18})
  run = gather(workdir, "run")
  assert run.notes == ()
  assert states(run) == {
    "teacher": ("finished", 18, 18),
    "halve/004": ("finished", 18, 18),
    "halve/002": ("under way", 10, None),
    "halve/001": ("not begun", 0, None),
  }
  assert [log.most for log in run.rounds] == [18, 1000, 1000, 1000]
  write_json(clock, {"num_updates": 0})
  (note,) = gather(workdir, "run").notes
  assert "clock.json does not say num_updates" in note


def test_the_clock_gives_the_number_of_pairs(write_run, pairs_config):
  def edit(config):
    config.clear()
    config.update(json.loads(json.dumps(pairs_config)))
    config["stages"]["pairs"]["minutes"] = 1.0

  workdir = write_run(rounds={"teacher": 6}, judged=False, edit=edit)
  (workdir / "pairs").mkdir()
  write_json(workdir / "pairs" / "clock.json", {"num_shards": 3})
  # The stage makes three shards of eight pairs, and 16 held-out pairs.
  assert states(gather(workdir, "run"))["pairs"] == ("not begun", 0, 40)


def test_a_round_that_is_no_longer_in_the_config_is_read(write_run):
  def edit(config):
    config["run"] = ["teacher"]

  run = gather(write_run(edit=edit), "run")
  assert states(run)["teacher"] == ("finished", 18, 18)
  assert states(run)["halve/001"] == ("finished", 18, None)


def test_a_folder_without_a_run_is_refused(tmp_path, write_run):
  workdir = write_run()
  with pytest.raises(ValueError, match=r"holds no run .* pass the --workdir"):
    gather(workdir / "samples", "run")
  (workdir / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json is damaged: .*restore"):
    gather(workdir, "run")


def test_a_large_sheet_becomes_smaller(write_run):
  workdir = write_run()
  random = np.random.default_rng(0)
  noise = random.integers(0, 256, (300, 2 * PIXELS, 3), dtype=np.uint8)
  path = workdir / "samples" / "compared.png"
  PillowImage.fromarray(noise).save(path)
  compared = gather(workdir, "run").compared
  assert compared is not None
  kind, data = compared.data.split(",")
  assert kind == "data:image/jpeg;base64"
  with PillowImage.open(io.BytesIO(base64.b64decode(data))) as image:
    assert image.size == (compared.width, compared.height) == (PIXELS, 150)


def test_fields_and_values_are_written_plainly():
  config = {"b": {"c": [1, [2, "x"]], "d": {}}, "a": []}
  assert [(path, written(v)) for path, v in flat(config)] == [
    ("a", "none"),
    ("b.c", "1, (2, x)"),
    ("b.d", "{}"),
  ]
  assert json.dumps(config)
