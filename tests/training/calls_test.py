"""Tests calls of several updates, and a teacher in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.objectives.objective import turn_of
from diffdistill.run import from_config
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import Layout, shard_batch, shard_batches
from diffdistill.training.state import create_state, in_dtype, with_shardings
from diffdistill.training.step import make_update, make_updates


@pytest.fixture(scope="module")
def run(tiny_config, run_of):
  return run_of(tiny_config)


def of_stage(run, name, **fields):
  """Makes the stages of a run, with some fields of one stage changed."""
  return tuple(
    dataclasses.replace(stage, **fields) if stage.name == name else stage
    for stage in run.built.stages
  )


def batch(i):
  random = np.random.default_rng(i)
  return {
    "image": random.integers(0, 256, (8, 1, 2, 3), np.uint8),
    "flip": random.random(8) < 0.5,
    "label": (np.arange(8) % 3).astype(np.int32),
  }


# The program must loop here. It unrolls loops on a CPU, but not on
# accelerators.
@pytest.mark.parametrize(
  ("devices", "unroll"), [(1, True), (8, True), (8, False)]
)
def test_one_call_makes_the_same_updates_as_several(
  least_squares, at_update, mesh_of, monkeypatch, devices, unroll
):
  monkeypatch.setattr("diffdistill.training.step.unrolled", lambda _: unroll)
  mesh, objective = mesh_of(devices), least_squares()
  optimizer = Optimizer(learning_rate=0.1, ema_decay=0.9)
  frozen = {"teacher": {"w": jax.random.normal(jax.random.key(5), (6, 6))}}
  optimizers = dict.fromkeys(objective.trees, optimizer)
  state = create_state(objective, optimizers, jax.random.key(0), frozen)
  state = jax.device_get(state)  # Updates donate device arrays.
  abstract = with_shardings(state, Layout(mesh=mesh))
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  rates, key = [0.1, 0.2, 0.05, 0.3], jax.random.key(1)

  one, metrics = jax.device_put(state, shardings), []
  for i, rate in enumerate(rates):
    turn = turn_of(objective, i)
    update = make_update(objective, turn, optimizers, shardings, mesh)
    rows, now = shard_batch(batch(i), mesh), at_update(objective, rate, step=i)
    one, new = update(one, frozen, rows, key, *now)
    metrics.append(jax.device_get(new))
  updates = make_updates(objective, optimizers, shardings, mesh)
  batches = shard_batches([batch(i) for i in range(4)], mesh)
  now = at_update(objective, rates, step=range(4))
  several, found = updates(
    jax.device_put(state, shardings), frozen, batches, key, *now
  )

  assert int(several.step) == 4
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  assert jax.tree.map(lambda leaf: leaf.sharding, several) == shardings
  for name, (total, count) in jax.device_get(found).items():
    pairs = [new[name] for new in metrics if name in new]
    if "skipped" in name:
      assert (total, count) == pairs[-1]
    else:
      assert count == sum(n for _, n in pairs)
      assert total == pytest.approx(sum(t for t, _ in pairs), rel=1e-5)


def test_calls_of_four_updates_make_the_same_round(run, tmp_path, records_of):
  stage = run.built.stages[0]
  calls = of_stage(run, "teacher", updates_per_call=4)[:1]
  run.train(tmp_path / "one", stages=run.built.stages[:1], log=4)
  # The last updates of the round do not fill a call, so they are done one by
  # one.
  assert stage.num_updates % 4
  run.train(tmp_path / "four", stages=calls, log=4, checkpoint=4)
  ones, fours = (run.products(tmp_path / name) for name in ("one", "four"))
  for a, b in zip(jax.tree.leaves(ones), jax.tree.leaves(fours), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  theirs, ours = (
    [
      (record["step"], record.get("images"), record.get("learning_rate"))
      for record in records_of(tmp_path / name)
    ]
    for name in ("one", "four")
  )
  assert theirs == ours


def test_a_crash_between_calls_changes_no_bit(run, tmp_path):
  stages = of_stage(run, "teacher", updates_per_call=4)[:1]
  run.train(tmp_path / "whole", stages=stages, log=4, checkpoint=4)
  # Crash in the third call of the round.
  run.crash(tmp_path / "crashed", 2, stages=stages, log=4, checkpoint=4)
  run.train(tmp_path / "crashed", stages=stages, log=4, checkpoint=4)
  run.assert_same_weights(tmp_path / "crashed", tmp_path / "whole")
  assert run.compiled("teacher").several._cache_size() == 1


def test_a_cadence_in_the_middle_of_a_call_is_refused(run, tmp_path):
  stages = of_stage(run, "teacher", updates_per_call=4)
  with pytest.raises(ValueError, match=r"cadence.checkpoint is 6.* 4 updates"):
    run.train(tmp_path, stages=stages, log=4, checkpoint=6)


def test_a_call_that_cuts_a_cycle_is_refused(edited):
  config = edited("stages.halve.objective", {"kind": "moment_matching"})
  stage = config["stages"]["halve"]
  for field in ("start_steps", "long_rounds"):
    del stage[field]
  stage |= {"num_steps": (4,), "sampler": {"kind": "ancestral"}}
  stage["updates_per_call"] = 3
  with pytest.raises(
    ValueError, match=r"take turns; pass 1 or a multiple of 2"
  ):
    from_config.build(config)


@pytest.mark.slow
def test_a_student_of_a_bfloat16_teacher_is_nearly_the_same(run, tmp_path):
  stages = of_stage(run, "halve", teacher_dtype="bfloat16")
  run.train(tmp_path / "whole")
  run.train(tmp_path / "light", stages=stages)
  whole, light = (run.products(tmp_path / name) for name in ("whole", "light"))
  teacher = "teacher teacher"
  assert jax.tree.all(
    jax.tree.map(np.array_equal, whole[teacher], light[teacher])
  )
  name = "halve/001 student"
  for a, b in zip(
    jax.tree.leaves(whole[name]), jax.tree.leaves(light[name]), strict=True
  ):
    assert b.dtype == np.float32
    # The tolerance is large, because bfloat16 has 8 significant bits and Adam
    # makes several updates.
    np.testing.assert_allclose(a, b, atol=0.1)
    assert not np.array_equal(a, b)


@pytest.mark.slow
def test_a_student_starts_from_the_float32_teacher(run, tmp_path):
  seen = []

  def observe(stage, round_, params, step):
    if round_.name == "halve/004":
      seen.append(jax.device_get(params))

  stages = tuple(
    dataclasses.replace(
      stage,
      teacher_dtype="bfloat16",
      optimizer=dataclasses.replace(stage.optimizer, learning_rate=0.0),
    )
    if stage.name == "halve"
    else stage
    for stage in run.built.stages
  )
  run.train(tmp_path, stages=stages, observe=observe)
  teacher = run.products(tmp_path)["teacher teacher"]
  assert jax.tree.all(jax.tree.map(np.array_equal, seen[-1], teacher))


def test_only_floats_change_their_dtype():
  tree = {"w": jnp.ones((4,)), "count": jnp.ones((), jnp.int32)}
  cast = in_dtype(tree, "bfloat16")
  assert cast["w"].dtype == jnp.bfloat16
  assert cast["w"].nbytes == tree["w"].nbytes / 2
  assert cast["count"].dtype == jnp.int32


# Only the preconditioner "adam" needs the second moments as a frozen tree.
@pytest.mark.parametrize("preconditioner", ["adam", "identity"])
def test_a_differentiated_teacher_stays_in_float32(edited, preconditioner):
  config = edited("stages.halve.teacher_dtype", "bfloat16")
  stage = config["stages"]["halve"]
  for field in ("start_steps", "long_rounds"):
    del stage[field]
  if preconditioner == "adam":
    stage["frozen"] = {"teacher": "teacher", "second_moments": "teacher"}
  stage |= {
    "objective": {
      "kind": "parameter_moment_matching",
      "preconditioner": preconditioner,
    },
    "num_steps": (4,),
    "sampler": {"kind": "ancestral"},
  }
  with pytest.raises(ValueError, match=r"takes derivatives along the teacher"):
    from_config.build(config)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("stages.halve.teacher_dtype", "float16", "pass float32 or bfloat16"),
    ("stages.teacher.teacher_dtype", "bfloat16", "has no teacher"),
  ],
)
def test_an_impossible_teacher_dtype_is_refused(edited, path, value, message):
  with pytest.raises(ValueError, match=message):
    from_config.build(edited(path, value))
