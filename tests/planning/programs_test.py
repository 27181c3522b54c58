"""Tests that plans and benchmarks assume the same batches as the trainer."""

import copy

import jax
import pytest
from etils import epath

from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.planning.ideal import first_batch
from diffdistill.planning.programs import batch_shapes
from diffdistill.run import from_config
from diffdistill.run.teacher_pairs import pair_store


def kinds(batch):
  return {name: (rows.shape, rows.dtype) for name, rows in batch.items()}


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("image_size", [None, 2, 4])
def test_batches_of_images_are_those_of_the_trainer(
  tiny_config, flip, image_size
):
  config = copy.deepcopy(tiny_config)
  config["data"]["flip"] = flip
  config["data"]["source"]["image_size"] = image_size
  run = from_config.build(config)
  stage = run.stages[0]
  trained = run.batches(stage.batch_size, run.seed).batch(3)
  assert trained["image"].dtype == ("float32" if image_size == 4 else "uint8")
  assert ("flip" in trained) == flip
  shapes, first = batch_shapes(run, stage), first_batch(run, stage)
  assert kinds(shapes) == kinds(trained) == kinds(first)
  for name, rows in first.items():
    assert rows.sharding == shapes[name].sharding


@pytest.mark.parametrize("conditional", [True, False])
def test_batches_of_pairs_are_those_of_the_trainer(
  pairs_config, conditional, tmp_path
):
  config = copy.deepcopy(pairs_config)
  config["data"]["conditional"] = conditional
  run = from_config.build(config)
  pairs, stage = run.stages[1:]
  made = run.rounds["pairs"][1]
  teacher = jax.jit(run.denoiser.network.init)(jax.random.key(0))
  store = pair_store(run, epath.Path(tmp_path), pairs, made, teacher)
  trained = PairPipeline(
    store=store, batch_size=stage.batch_size, seed=0, num_updates=1
  ).batch(0)
  assert ("label" in trained) == conditional
  shapes, first = batch_shapes(run, stage), first_batch(run, stage)
  assert kinds(shapes) == kinds(trained) == kinds(first)
