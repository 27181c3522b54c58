"""Tests of the branch by which a network is told a guidance weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.networks.embeddings import Embedding, SongEmbedding
from diffdistill.networks.network import add_branches, branches_of
from tests.networks.two_times_test import T, every_network, images, network_of

W, OTHER = jnp.array([0.5, 3.0]), jnp.array([2.5, 1.0])
EMBEDDINGS = {
  "usual": lambda **more: Embedding(dim=8, embed_dim=8, **more),
  "song": lambda **more: SongEmbedding(
    kind="fourier", waves=8, embed_dim=8, **more
  ),
}


@every_network
def test_each_network_reads_the_weight_in_its_embedding(kind):
  network = network_of(kind, told_guidance=True)
  params = jax.eval_shape(network.init, jax.random.key(0))

  def apply(params, w):
    return network.apply(params, images(), T, Condition(guidance=w))

  closed = jax.make_jaxpr(apply)(params, W)
  used = jax.interpreters.partial_eval.dce_jaxpr(closed.jaxpr, [True])[1]
  assert used[-1]  # the output depends on w
  assert all(used)


@every_network
def test_a_network_without_the_branch_has_no_such_parameters(kind):
  plain = network_of(kind)
  shapes = jax.eval_shape(plain.init, jax.random.key(0))
  assert not {"guidance", "gap"} & set(shapes["embed"])
  assert branches_of(plain) == ()
  with pytest.raises(ValueError, match="takes no guidance weight; pass") as e:
    jax.eval_shape(
      lambda: plain.apply(shapes, images(), T, Condition(guidance=W))
    )
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_the_branch_is_zero_at_first_and_learns_at_once(kind):
  plain = EMBEDDINGS[kind]()
  told = EMBEDDINGS[kind](told_guidance=True)
  draw = jax.jit(told.init)
  params = draw(jax.random.key(0), T, None, guidance=W)["params"]
  apply = jax.jit(lambda p, w: told.apply({"params": p}, T, None, guidance=w))
  rest = {name: value for name, value in params.items() if name != "guidance"}
  expected = plain.apply({"params": rest}, T, None)
  for w in (None, W):
    np.testing.assert_allclose(apply(params, w), expected, atol=1e-6)

  def loss(params):
    return jnp.sum(jnp.sin(apply(params, W)))

  slope = jax.jit(jax.grad(loss))(params)["guidance"]["dense2"]["kernel"]
  assert jnp.any(slope != 0)
  # After an update, w changes the output; without a w nothing is added.
  params = {
    **params,
    "guidance": jax.tree.map(lambda leaf: leaf + 0.3, params["guidance"]),
  }
  assert jnp.max(jnp.abs(apply(params, W) - apply(params, OTHER))) > 1e-3
  np.testing.assert_allclose(apply(params, None), expected, atol=1e-6)


def test_branches_are_added_to_weights_that_have_none_or_one(trained):
  both = network_of("mlp", two_times=True, told_guidance=True)
  assert branches_of(both) == ("gap", "guidance")
  wanted = jax.tree.structure(jax.eval_shape(both.init, jax.random.key(0)))
  for fields in ({}, {"two_times": True}, {"told_guidance": True}):
    params = trained(network_of("mlp", **fields))
    filled = add_branches(both, params, jax.random.key(0))
    assert jax.tree.structure(filled) == wanted
    for name in params["embed"]:
      assert filled["embed"][name] is params["embed"][name]
    assert add_branches(both, filled, jax.random.key(0)) is filled
