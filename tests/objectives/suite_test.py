"""Tests that every objective keeps the rules of the interface.

Each objective has one line in PAPERS of bench.py: the fields that differ from
their defaults, and the class of its sampler if that is not DDIM. The tests take
everything else from the objective itself. Networks and images are tiny, because
nothing is learned here. The mathematics of each paper has its own tests.
"""

import contextlib
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.objectives import OBJECTIVES
from diffdistill.objectives.objective import product_tree
from diffdistill.training.augment import as_trained
from diffdistill.training.running import Checkpoints
from diffdistill.training.state import (
  in_dtype,
)
from tests.objectives.bench import (
  BATCH,
  PAPERS,
  TOLD,
  TWO_TIMES,
  VARIANTS,
  bench,
  build,
  equal,
  every_paper,
  frozen_of,
  needed,
  on_host,
  rows,
)
from tests.objectives.given import now_of
from tests.objectives.proving import PROVING


def test_every_objective_has_a_line_in_papers():
  assert set(PAPERS) == {*OBJECTIVES, *PROVING}


@every_paper
def test_an_objective_names_its_product_and_kind(name):
  objective = build(name)
  product, _, average = objective.product.partition("/")
  assert not average or average in objective.trees[product].averages
  # The evaluator, the trainer and the curriculum rely on these properties of an
  # objective.
  assert product in ("teacher", "student", "classifier")
  assert (objective.sampler is None) == (product == "classifier")
  assert objective.consumes in ("images", "pairs")
  assert objective.rounds in ("one", "one_step", "halving", "each", "any")
  # A model without a number of steps is sampled and guided as a teacher.
  assert (objective.rounds == "one") == (product != "student")
  # Every tree must learn in some turn of the cycle, and may start only from a
  # frozen tree that is given.
  assert {t for turn in objective.cycle for t in turn} == set(objective.trees)
  given = {*objective.starts, *objective.needs}
  assert {t.start for t in objective.trees.values() if t.start} <= given
  assert set(objective.needs.values()) <= {"denoiser", "classifier", "moments"}


@every_paper
def test_an_update_changes_the_trees_of_its_turn_only(name, mesh_of):
  on = bench(name, mesh_of(1))
  trees = on.objective.trees
  frozen = on_host(on.frozen)
  for turn in set(on.objective.cycle):
    state = on.start()
    for part in (state.params, state.opt_state, state.averages):
      assert set(part) == set(trees)
    for tree, averages in state.averages.items():
      of_product = {"ema"} if tree == product_tree(on.objective) else set()
      assert set(averages) == {*trees[tree].averages, *of_product}
    before = on_host(state)
    new, _ = on.update(state, turn)
    assert int(new.step) == 1
    for part in ("params", "opt_state", "averages"):
      old, now = getattr(before, part), getattr(new, part)
      for tree in old:
        if jax.tree.leaves(old[tree]):
          same = equal(old[tree], now[tree])
          assert same == (tree not in turn), (part, tree)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(on.frozen))
    assert equal(frozen, on.frozen)


@every_paper
def test_trees_start_from_copies(name):
  objective = build(name)
  if not any(tree.start for tree in objective.trees.values()):
    return  # All trees are drawn at random.
  frozen = frozen_of(objective)
  params = objective.init(jax.random.key(0), frozen)
  assert set(params) == set(objective.trees)
  # No two trees may share a buffer: trained trees are donated, but the teacher
  # is not.
  buffers = [
    leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, frozen))
  ]
  assert len(set(buffers)) == len(buffers)


@every_paper
def test_metrics_are_finite_sums_and_counts(name, mesh_of):
  on = bench(name, mesh_of(1))
  for turn in set(on.objective.cycle):
    _, metrics = on.update(on.start(), turn)
    assert f"{turn[0]}/loss" in metrics
    for metric, (total, count) in metrics.items():
      assert re.fullmatch(rf"({'|'.join(turn)})/[a-z0-9_]+", metric)
      assert total.shape == count.shape == ()
      assert np.isfinite(total), metric
      assert 1 <= count <= BATCH, metric
    for tree in turn:
      assert metrics[f"{tree}/grad_norm"][0] > 1e-4


@every_paper
def test_one_executable_serves_every_round(name, mesh_of):
  on = bench(name, mesh_of(1))
  for turn in set(on.objective.cycle):

    def outcome(turn=turn, **fields):
      state, metrics = on.update(on.start(), turn, **fields)
      trained = {tree: state.params[tree] for tree in turn}
      return float(metrics[f"{turn[0]}/loss"][0]), trained

    loss, params = outcome()
    # The update must use the traced learning rate and number of steps.
    _, still = outcome(learning_rate=0.0)
    begun = on.start().params
    assert equal(still, on_host({tree: begun[tree] for tree in turn}))
    assert not equal(still, params)
    if on.objective.rounds == "halving":
      assert outcome(num_steps=1)[0] != loss
    costs = [on.objective.passes(turn, 4, guided) for guided in (True, False)]
    if costs[0] != costs[1]:
      assert outcome(guided=0.0)[0] != loss
    outcome(num_steps=1, learning_rate=0.3, guided=0.0)
    assert on.updates[turn]._cache_size() == 1


def is_split(leaf):
  """Whether no device has the whole array."""
  return leaf.sharding.shard_shape(leaf.shape) != leaf.shape


@pytest.mark.slow
@every_paper
def test_the_mesh_changes_no_result(name, mesh_of):
  same_on_every_mesh(name, mesh_of)


@pytest.mark.slow
def test_the_mesh_changes_no_result_of_accumulated_gradients(mesh_of):
  same_on_every_mesh("progressive", mesh_of, accumulate=2)


def same_on_every_mesh(name, mesh_of, accumulate=1):
  """Fails if the mesh changes losses, norms of gradients or weights."""
  steps = max(2, len(build(name).cycle))

  def run(data, fsdp):
    on = bench(name, mesh_of(data, fsdp), accumulate)
    state, metrics = on.run(on.start(), 0, steps)
    # Every array of the state and of frozen trees that can be split must be
    # split.
    for leaf in jax.tree.leaves((state, on.frozen)):
      assert is_split(leaf) == (
        fsdp > 1 and any(n % fsdp == 0 for n in leaf.shape)
      )
    assert any(map(is_split, jax.tree.leaves(state.params))) == (fsdp > 1)
    return on_host(state.params), on_host(metrics)

  params, metrics = run(1, 1)
  for mesh in ((8, 1), (1, 8), (2, 4)):
    new_params, new_metrics = run(*mesh)
    for metric, (total, count) in metrics.items():
      new_total, new_count = new_metrics[metric]
      assert new_count == count
      # The tolerance is for sums over rows and devices in another order. Each
      # rounding is 6e-8 of a term. In a moment gap, terms with weights up to 50
      # (clipped_snr) cancel.
      np.testing.assert_allclose(
        new_total / count, total / count, rtol=1e-5, atol=3e-6, err_msg=metric
      )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      new_params,
      params,
    )


@pytest.mark.parametrize("name", ["progressive", "moment_matching"])
def test_a_teacher_in_bfloat16_is_the_rounded_one(name):
  objective = build(name)
  frozen = frozen_of(objective)
  batch = as_trained(jax.tree.map(jnp.asarray, rows(objective, 0)))
  params = objective.init(jax.random.key(0), frozen)
  now, turn = now_of(), objective.cycle[-1]
  light = {**frozen, "teacher": in_dtype(frozen["teacher"], "bfloat16")}
  rounded = {**frozen, "teacher": in_dtype(light["teacher"], "float32")}

  @jax.jit
  def loss(frozen):
    trees, key = {**frozen, **params}, jax.random.key(1)
    return objective.loss(turn, trees, batch, key, now)[0]

  found = loss(light)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, loss(rounded), rtol=1e-5, atol=1e-6)
  # The rounding of the teacher to bfloat16 may change the loss a little.
  assert found != loss(frozen)
  np.testing.assert_allclose(found, loss(frozen), rtol=0.02, atol=0.02)


@every_paper
def test_a_restored_checkpoint_continues_to_the_same_bits(
  name, mesh_of, tmp_path
):
  on = bench(name, mesh_of(1))
  whole, _ = on.run(on.start(), 0, 3)
  # After one update, an alternating objective is in the middle of its cycle.
  state, _ = on.run(on.start(), 0, 1)
  with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as checkpoints:
    checkpoints.save(state, 1)
  with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as checkpoints:
    state = checkpoints.restore(on.abstract)
  assert state is not None
  assert int(state.step) == 1
  state, _ = on.run(state, 1, 3)
  assert equal(state, whole)


def flops(function, *arguments):
  """Returns the number of operations that XLA counts before it compiles."""
  costs: Any = jax.jit(function).lower(*arguments).cost_analysis()
  return costs["flops"]


@pytest.mark.parametrize("name", [*PAPERS, *VARIANTS])
def test_xla_counts_the_passes_of_an_objective(name, monkeypatch):
  """Above all, this count shows that no gradient is computed without need."""
  # The embedding of t has no derivative in s, and only some passes are told a
  # guidance weight. In a deep network this does not matter.
  is_deep = name.split()[0] in TWO_TIMES or name in TOLD
  depth = 20 if is_deep else 5
  objective = build(name, width=256, depth=depth, channels=32)
  key, t = jax.random.key(0), jnp.full(8, 0.5)
  batch = as_trained(jax.tree.map(jnp.asarray, rows(objective, 0, size=8)))
  condition = batch["condition"]
  if objective.told:
    condition = condition._replace(guidance=t)
  frozen = jax.eval_shape(lambda: frozen_of(objective))
  params = jax.eval_shape(objective.init, key, frozen)
  frozen = needed(objective, frozen)
  averages = {
    f"{name}/{average}": params[name]
    for name, tree in objective.trees.items()
    for average in tree.averages
  }

  def denoise(params, image=batch["image"]):
    return objective.denoiser(params, image, t, condition).x0

  def denoised_sum(params, image):
    return jnp.sum(denoise(params, image))

  def trunk(params, image):
    _, features = objective.denoiser.look(
      params, image, t, condition, names=objective.features
    )
    return sum(jnp.sum(values) for values in features.values())

  def classify(params):
    return objective.classifier.apply(params, batch["image"]).logits

  def gradient(params, fixed, turn, guided):
    def loss(trained):
      now = now_of(guided=guided)
      trees = {**fixed, **params, **trained}
      return objective.loss(turn, trees, batch, key, now)[0]

    return jax.grad(loss)({tree: params[tree] for tree in turn})

  product = params[product_tree(objective)]
  pass_ = flops(denoise, product) if hasattr(objective, "denoiser") else 0
  classifier = {**frozen, **params}.get("classifier")
  classifier_pass = flops(classify, classifier) if classifier else 0
  for guided in (True, False) if hasattr(objective, "guidance") else (False,):
    if not guided:
      # XLA counts the more expensive branch of a cond, which is the guided
      # teacher. This function takes the other branch.
      monkeypatch.setattr(jax.lax, "cond", lambda _, yes, no: no())
    for turn in set(objective.cycle):
      passes = objective.passes(turn, 4, guided)
      # A gradient by the image costs a forward and a backward pass. A gradient
      # by the weights costs one pass more.
      backward = 2 if turn == ("classifier",) else 1
      whole = dataclasses.replace(
        passes, trunk=0, trunk_gradient=0, input_gradient=0
      )
      expected = whole.units * pass_ + classifier_pass * (
        passes.classifier + (1 + backward) * passes.classifier_gradient
      )
      # XLA counts the operations of a pass up to the features. A gradient by
      # the image does not go through the embeddings of times and labels.
      image = batch["image"]
      if passes.input_gradient:
        expected += passes.input_gradient * flops(
          jax.grad(denoised_sum, argnums=1), product, image
        )
      if passes.trunk or passes.trunk_gradient:
        expected += passes.trunk * flops(trunk, product, image)
        expected += passes.trunk_gradient * flops(
          jax.grad(trunk, argnums=1), product, image
        )
      run = functools.partial(gradient, turn=turn, guided=guided)
      # The inputs of the first layers need no gradient, so up to 4 % of the
      # passes may be missing. One forward pass too many would add at least 10
      # %.
      fixed = {**frozen, **averages}
      assert flops(run, params, fixed) == pytest.approx(expected, rel=0.05), (
        turn,
        guided,
      )
