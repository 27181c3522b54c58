"""Tests that a run can distil a teacher that was imported."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.interop import model_folder
from diffdistill.interop.model import Model, network_of
from diffdistill.run import from_config
from diffdistill.tools import train


@pytest.fixture(scope="module")
def model():
  """Makes a model with other widths, schedule and output than the run's."""
  bare = Model(
    network={"kind": "mlp", "width": 4, "depth": 2},
    schedule={"kind": "linear_beta", "num_steps": 1000},
    output="eps",
    precondition={"kind": "identity", "noise": "index"},
    image_shape=(2, 2, 1),
    num_classes=3,
    params={},
  )
  params = network_of(bare).init(jax.random.key(7))
  return dataclasses.replace(bare, params=jax.tree.map(np.asarray, params))


@pytest.fixture
def folder(model, tmp_path):
  folder = epath.Path(tmp_path / "teacher")
  model_folder.save(model, folder)
  return folder


@pytest.fixture
def config(edited, folder):
  config = edited("stages.teacher.source", f"imported:{folder}")
  config["stages"]["halve"] |= {"start_steps": 2, "num_updates": 2}
  return config


@pytest.mark.slow
def test_students_have_the_model_of_the_imported_teacher(
  config, folder, model, tmp_path
):
  workdir = epath.Path(tmp_path / "run")
  train.train(config, workdir)
  (folder / "model.json").unlink()  # The workdir has all files.
  run = from_config.reopen(workdir)
  assert run.denoiser.output == "eps"
  assert run.config["model"]["schedule"]["kind"] == "linear_beta"
  product = run.product(workdir, "teacher")
  jax.tree.map(np.testing.assert_array_equal, product, model.params)
  student = run.product(workdir, "halve/001")
  assert jax.tree.structure(student) == jax.tree.structure(product)
  records = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  assert {r["round"] for r in records} == {"halve/001"}
  # When the same command runs again, it must find nothing left to do.
  train.train(config, workdir)


def test_the_recipe_decides_how_an_imported_network_is_computed(
  edited, model, tmp_path
):
  folder = epath.Path(tmp_path / "unet")
  network = {
    "kind": "unet",
    "channels": 4,
    "multipliers": (1,),
    "num_blocks": 1,
  }
  model_folder.save(dataclasses.replace(model, network=network), folder)
  config = edited("stages.teacher.source", f"imported:{folder}")
  config["model"]["network"] = {
    "kind": "unet",
    "channels": 64,
    "multipliers": (1, 2),
    "num_blocks": 3,
    "remat": True,
    "dtype": "bfloat16",
  }
  built = from_config.build(config).denoiser.network.module
  assert (built.channels, built.remat, built.dtype) == (4, True, "bfloat16")


def test_a_stage_that_trains_nothing_has_no_update(config):
  run = from_config.build(config)
  assert run.rounds["teacher"][1].num_updates == 0


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"image_shape": (4, 4, 1)}, r"a model with images of \(4, 4, 1\)"),
    ({"num_classes": 5}, "a model with classes: 5"),
    ({"num_steps": 4}, "a student of 4 steps, which knows no other times"),
  ],
)
def test_a_model_of_other_data_is_refused(
  config, folder, model, change, match, tmp_path
):
  other = dataclasses.replace(model, **change)
  params = network_of(other).init(jax.random.key(0))
  params = jax.tree.map(np.asarray, params)
  model_folder.save(dataclasses.replace(other, params=params), folder)
  with pytest.raises(ValueError, match=match):
    train.train(config, epath.Path(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_two_teachers_of_two_meanings_are_refused(
  config, model, tmp_path, folder
):
  other = epath.Path(tmp_path / "other")
  model_folder.save(dataclasses.replace(model, output="v"), other)
  config["stages"]["second"] = {
    **config["stages"]["teacher"],
    "source": f"imported:{other}",
  }
  config["run"] = ("teacher", "second", "halve")
  with pytest.raises(
    ValueError, match=r"teacher\.source is a model whose output"
  ):
    train.train(config, epath.Path(tmp_path / "run"))


def test_impossible_sources_are_refused(edited, tmp_path):
  for source, stage, match in (
    ("somewhere", "teacher", "pass imported:PATH or path:DIR"),
    ("path:x", "halve", "to a stage of a teacher or a classifier"),
    (f"imported:{tmp_path}", "teacher", "has no model.json"),
  ):
    with pytest.raises(ValueError, match=match):
      from_config.build(edited(f"stages.{stage}.source", source))
