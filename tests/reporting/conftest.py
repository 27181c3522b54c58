"""Fixtures that write workdirs like those of training and evaluation."""

import dataclasses
import functools
import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from etils import epath
from PIL import Image as PillowImage

from diffdistill.reporting import charts, costs
from diffdistill.reporting.page import write_report
from diffdistill.system.files import write_json
from diffdistill.training import checkpoint
from diffdistill.training.records import append_record

METRIC = "FD-classifier"
PROGRAMS = {}


def rows():
  """Rows of a teacher at two numbers of steps, and of three students."""
  distances = [
    ("teacher", 64, 0.0695758),
    ("teacher", 4, 0.3291674),
    ("halve/004", 4, 0.1060690),
    ("halve/002", 2, 0.1286),
    ("halve/001", 1, 0.1738807),
    ("halve/001 last", 1, 0.11),
  ]
  return [
    {
      "model": model,
      "steps": steps,
      METRIC: distance,
      "precision": 0.7274549,
      "teacher_gap": 0.0 if steps == 64 else 1 / (1 + steps),
      "images_per_second": 12345.678 / steps,
      "paper": "denoising" if model == "teacher" else "progressive",
    }
    for model, steps, distance in distances
  ]


def evaluation():
  return {
    "metric": METRIC,
    "reference": "1497 training images",
    "num_images": 2000,
    f"{METRIC} of two samples of 748 real images": 0.0454,
    "devices": "1 cpu",
    "rows": rows(),
  }


def record(name, step, **more):
  tree = "teacher" if name == "teacher" else "student"
  return {
    "round": name,
    "step": step,
    f"{tree}/loss": 1.0 / step,
    f"{tree}/grad_norm": 0.5,
    f"{tree}/skipped": 0.0,
    "images": 8 * step,
    "passes": 24 * step,
    "images_per_second": 100.0,
    "seconds": 9.0,
    **more,
  }


@pytest.fixture
def write_run(tmp_path, tiny_config):
  """Writes a workdir; by default all rounds are finished and judged."""

  def write(name="run", *, rounds=None, judged=True, edit=None, more=None):
    workdir = epath.Path(tmp_path) / name
    (workdir / "samples").mkdir(parents=True)
    config = json.loads(json.dumps(tiny_config))
    if edit:
      edit(config)
    write_json(workdir / "config.json", config)
    done = rounds or {
      "teacher": 18,
      "halve/004": 18,
      "halve/002": 18,
      "halve/001": 18,
    }
    for round_, steps in done.items():
      for step in (steps // 2, steps):
        append_record(workdir, record(round_, step, **(more or {})))
      if steps == 18:
        (workdir / round_).mkdir(parents=True)
        checkpoint.mark_final(workdir / round_, "done")
        picture = PillowImage.new("L", (40, 40), 128)
        stem = round_.replace("/", "_")
        picture.save(workdir / "samples" / f"{stem}.png")
    if judged:
      write_json(workdir / "evaluation.json", evaluation())
      # This sheet is wider than a phone.
      wide = PillowImage.new("L", (900, 200), 200)
      wide.save(workdir / "samples" / "compared.png")
    return workdir

  yield write
  shutil.rmtree(tmp_path)


@pytest.fixture
def parse():
  """Parses a page to elements; fails if the page is not well-formed."""

  def parsed(page):
    assert page.startswith("<!doctype html>\n")
    return ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))

  return parsed


@pytest.fixture
def report(parse, tmp_path):
  def make(*workdirs):
    out = epath.Path(tmp_path) / "out" / "report.html"
    write_report(workdirs, out, lambda line: None)
    return parse(out.read_text())

  return make


@pytest.fixture
def no_charts(monkeypatch):
  """Draws no charts, which take most of the time of a page."""
  monkeypatch.setattr(charts, "can_draw", lambda: False)


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch):
  """Keeps the traced programs of each config, so that tests trace them once."""
  programs = costs.programs

  def once(run):
    key = json.dumps(run.config, sort_keys=True)
    if key not in PROGRAMS:
      PROGRAMS[key] = [
        dataclasses.replace(program, trace=functools.cache(program.trace))
        for program in programs(run)
      ]
    return PROGRAMS[key]

  monkeypatch.setattr(costs, "programs", once)
