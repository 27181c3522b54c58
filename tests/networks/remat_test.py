"""A policy of rematerialisation keeps less, and changes no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks.dit import DiT
from diffdistill.networks.network import LinenNetwork
from diffdistill.networks.remat import POLICIES, policy_of
from diffdistill.networks.song_unet import SongUNet
from diffdistill.networks.unet import UNet
from diffdistill.networks.uvit import UViT
from diffdistill.planning.flops import count_flops

NETWORKS = {
  "unet": (UNet, {"channels": 8, "multipliers": (1,), "attention": (4,)}),
  "song_unet": (
    SongUNet,
    {"channels": 8, "multipliers": (1,), "attention": (4,)},
  ),
  "dit": (DiT, {"width": 8, "depth": 2, "num_heads": 2}),
  "uvit": (UViT, {"channels": (8, 8), "num_blocks": (1, 1), "head_dim": 4}),
}
SHAPE = (4, 4, 3)


def network(kind, remat, **more):
  module, fields = NETWORKS[kind]
  blocks = {"num_blocks": 1} if kind.endswith("unet") else {}
  made = module(**fields, **blocks, out_channels=3, remat=remat, **more)
  return LinenNetwork(module=made, image_shape=SHAPE)


def loss_of(network):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), "float32")
  t = jnp.linspace(0.2, 0.9, 2)
  return lambda params: jnp.mean(network.apply(params, x, t) ** 2)


@pytest.mark.parametrize("kind", NETWORKS)
def test_policies_keep_less_and_less_and_dots_repeats_no_product(kind):
  """Nothing is compiled: shapes and operations are those of the trace."""
  operations, kept = {}, {}
  for remat in POLICIES:
    made = network(kind, remat)
    loss = loss_of(made)
    params = jax.eval_shape(made.init, jax.random.key(0))
    traced = jax.jit(jax.grad(loss)).trace(params)
    operations[remat] = count_flops(traced.jaxpr)
    back = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
    kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(back))
  assert operations["none"] == operations["dots"] < operations["all"]
  assert kept["all"] < kept["dots"] < kept["none"]


def test_dots_gives_the_same_gradients():
  params = functools.partial(jnp.full, fill_value=0.05)
  plain = network("unet", "none")
  shapes = jax.eval_shape(plain.init, jax.random.key(0))
  weights = jax.tree.map(lambda leaf: params(leaf.shape), shapes)
  jax.tree.map(
    # The tolerance is for float32 sums in different orders.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    *(
      jax.jit(jax.grad(loss_of(network("unet", remat))))(weights)
      for remat in ("none", "dots")
    ),
  )


def test_configs_of_older_versions_have_bools():
  assert [policy_of(old) for old in (False, True)] == ["none", "all"]
  with pytest.raises(ValueError, match="remat is 'most'; pass one of none, do"):
    network("unet", "most")


def test_a_network_for_derivatives_computes_nothing_again():
  for remat in (True, "dots", "all"):
    assert network("dit", remat).exact.module.remat == "none"


@pytest.mark.parametrize("kind", ["unet", "song_unet"])
def test_u_nets_have_a_kernel_of_attention(kind, monkeypatch):
  asked, xla = [], jax.nn.dot_product_attention

  def recorded(q, k, v, *, implementation):
    asked.append(implementation)
    return xla(q, k, v)

  monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
  with pytest.raises(ValueError, match="attention_kernel is 'cudnn', which co"):
    network(kind, "none", attention_kernel="cudnn")
  fused = {"attention_kernel": "cudnn", "dtype": "bfloat16"}
  made = network(kind, "none", **fused)
  for each in (made, made.exact, made.portable):
    asked.clear()
    jax.eval_shape(each.init, jax.random.key(0))
    assert set(asked) == {"cudnn" if each is made else "xla"}
  assert made.portable.module.dtype == "bfloat16"
