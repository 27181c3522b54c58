"""Tests that operations are counted as by arithmetic and as by XLA."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from diffdistill.networks.unet import UNet
from diffdistill.planning.flops import count_flops

X = jax.ShapeDtypeStruct((8, 32), jnp.float32)
W = jax.ShapeDtypeStruct((32, 16), jnp.float32)


def flops(function, *arguments):
  return count_flops(jax.make_jaxpr(function)(*arguments))


def test_a_product_costs_two_for_each_output_and_inner_index():
  assert flops(lambda x, w: x @ w, X, W) == 2 * 8 * 32 * 16


def test_a_gradient_costs_two_more_products():
  def gradient(x, w):
    return jax.grad(lambda x, w: jnp.sum(jnp.square(x @ w)), (0, 1))(x, w)

  assert flops(gradient, X, W) == 3 * 2 * 8 * 32 * 16


def test_a_scan_counts_every_turn_and_a_cond_its_larger_branch():
  def scanned(x, w):
    return lax.scan(lambda x, _: (x @ w @ w.T, None), x, length=5)[0]

  def either(x, w):
    return lax.cond(True, lambda: x @ w @ w.T, lambda: x)

  assert flops(scanned, X, W) == 5 * 2 * (2 * 8 * 32 * 16)
  assert flops(either, X, W) == 2 * (2 * 8 * 32 * 16)


def test_a_recomputed_product_counts_again():
  def gradient(x, w):
    block = jax.checkpoint(lambda x: jnp.tanh(x @ w) @ w.T)
    return jax.grad(lambda x: jnp.sum(block(x)))(x)

  # The five products are two forward, one of them again, and two backward to
  # x.
  assert flops(gradient, X, W) == 5 * 2 * 8 * 32 * 16


@pytest.mark.parametrize("stride", [1, 2])
def test_each_part_of_a_convolution_s_gradient_costs_a_convolution(stride):
  x = jax.ShapeDtypeStruct((4, 8, 8, 6), jnp.float32)
  w = jax.ShapeDtypeStruct((3, 3, 6, 10), jnp.float32)

  def convolve(x, w):
    return lax.conv_general_dilated(
      x, w, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  def gradient(x, w):
    return jax.grad(lambda x, w: jnp.sum(convolve(x, w)), (0, 1))(x, w)

  once = 2 * (4 * (8 // stride) ** 2 * 10) * (3 * 3 * 6)
  assert flops(convolve, x, w) == once
  # The two gradients and the forward pass are three convolutions. The last
  # value is not needed, so `grad` computes no more.
  assert flops(gradient, x, w) == pytest.approx(3 * once, rel=0.02)


def test_the_count_of_a_network_agrees_with_xla():
  network = UNet(
    channels=32,
    multipliers=(1, 2),
    num_blocks=1,
    out_channels=3,
    attention=(8,),
  )
  x, t = jnp.zeros((2, 16, 16, 3)), jnp.zeros(2)
  params = jax.eval_shape(
    lambda: network.init(jax.random.key(0), x, t, None, False)
  )

  def apply(params, x, t):
    return network.apply(params, x, t, None, False)

  theirs = jax.jit(apply).lower(params, x, t).compile().cost_analysis()["flops"]
  # The tolerance is needed because XLA leaves out padding, and also counts
  # operations that are no products.
  assert flops(apply, params, x, t) == pytest.approx(theirs, rel=0.1)
