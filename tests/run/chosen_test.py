"""A table of images and devices gives the values that replace "auto"."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from diffdistill.networks.unet import UNet
from diffdistill.planning.flops import count_flops
from diffdistill.run import chosen
from diffdistill.run.chosen import Device, Found
from diffdistill.run.network_size import cost, sizes

CPU = Device(kind="cpu", speed=5e10)
GPU = Device(kind="accelerator", speed=5e13, memory=8e10)


@pytest.mark.parametrize(
  ("sides", "kind", "expected"),
  [
    ([8], "cpu", [16]),  # images below the least size are enlarged
    ([31] * 10, "cpu", [16]),
    ([32] * 10, "cpu", [32, 16]),
    ([500] * 10, "cpu", [32, 16]),
    ([500] * 10, "accelerator", [64, 32, 16]),
    ([63] * 10, "accelerator", [32, 16]),
    # A few small ones are enlarged.
    ([20] * 2 + [500] * 8, "accelerator", [64, 32, 16]),
    ([20] * 3 + [500] * 7, "accelerator", [16]),
  ],
)
def test_an_image_size_is_one_that_three_of_four_pictures_have(
  sides, kind, expected
):
  assert chosen.image_sizes(sides, kind) == expected


@pytest.mark.parametrize(
  ("colours", "minutes", "device", "given", "expected"),
  [
    (3, 35, CPU, {}, 16),
    (3, 1000, CPU, {}, 32),
    (1, 40, CPU, {}, 32),
    (3, 40, CPU, {"patch": 4}, 32),
    (3, 1, CPU, {}, 16),
    (3, 1, GPU, {}, 16),
    (3, 1000, GPU, {}, 64),
  ],
)
def test_the_image_size_leaves_patches_small_enough_for_good_images(
  colours, minutes, device, given, expected
):
  sizes = chosen.image_sizes([500], device.kind)
  seconds = 60.0 * minutes
  found = chosen.image_size(sizes, colours, given, seconds, device)
  assert found == expected


@pytest.mark.parametrize(
  ("counts", "held_out", "expected"),
  [
    ((600,), None, False),
    ((600, 0), None, False),
    ((2, 2), None, False),
    ((120,) * 5, None, True),
    ((300, 300), None, True),
    # A classifier that always names the first class is nearly always right.
    ((580, 20), None, False),
    ((3, 3), 1000, True),
  ],
)
def test_a_judge_is_tried_where_it_could_be_trusted(counts, held_out, expected):
  found = Found(sides=(32,), grey=False, counts=counts, held_out=held_out)
  assert chosen.can_be_judged(found) == expected


@pytest.mark.parametrize(
  ("side", "colours", "minutes", "device", "expected"),
  [
    # A minute is too short, so the smallest network gets half of the batch.
    (32, 1, 1, CPU, (4, 32, (1,), 32)),
    (32, 1, 40, CPU, (4, 64, (1,), 64)),
    (32, 3, 1000, CPU, (2, 96, (1, 2), 64)),
    (32, 3, 20, GPU, (1, 64, (1, 2, 2), 256)),
    (32, 3, 1000, GPU, (1, 128, (1, 2, 2), 256)),
    (64, 3, 1000, GPU, (1, 128, (1, 2, 2, 2), 256)),
    (16, 3, 35, CPU, (2, 64, (1,), 64)),
    (28, 3, 1200, CPU, (1, 64, (1, 2, 2), 64)),
    # A 4x4 patch in colour has 48 values, too many for 64 channels or fewer.
    (32, 3, 1, CPU, (4, 96, (1,), 32)),
    (32, 3, 40, CPU, (4, 96, (1,), 32)),
  ],
)
def test_the_network_is_the_largest_that_has_enough_updates(
  side, colours, minutes, device, expected
):
  size, batch = chosen.network(side, colours, {}, 60.0 * minutes, device)
  assert (size.patch, size.channels, size.multipliers, batch) == expected
  seconds = chosen.seconds_of(size, side, batch, device)
  if minutes > 1:
    assert 60 * minutes / seconds >= chosen.UPDATES[device.kind]


def test_a_field_that_is_given_is_no_choice():
  size, _ = chosen.network(32, 3, {"channels": 8, "patch": 8}, 6e4, CPU)
  assert (size.patch, size.channels, size.multipliers) == (8, 8, (1,))
  size, _ = chosen.network(32, 3, {"attention": (4,)}, 6e4, CPU)
  assert size.attention == (4,)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_batch_fits_the_memory_and_the_devices(count):
  small = Device(kind="accelerator", count=count, speed=1e15, memory=8e9)
  size, batch = chosen.network(64, 3, {}, 6e4, small)
  assert batch % count == 0
  held = 2 * cost(size, 64)[1] * batch / count
  assert held < small.memory
  roomy = Device(kind="accelerator", count=count, speed=1e15)
  assert chosen.network(64, 3, {}, 6e4, roomy)[1] >= max(batch, 256)


@pytest.mark.parametrize("patch", [2, 4])
def test_the_operations_are_those_of_the_network(patch):
  (size,) = sizes(32, 3, {"channels": 32, "patch": patch})
  network = UNet(out_channels=3, num_blocks=2, **dataclasses.asdict(size))
  x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
  traced = jax.make_jaxpr(lambda key: network.init(key, x, t, None, False))(
    jax.random.key(0)
  )
  counted = count_flops(traced)
  assert cost(size, 32)[0] == pytest.approx(counted, rel=0.05)


def test_a_run_takes_longer_with_more_students():
  def config(*kinds):
    return {str(i): {"objective": {"kind": k}} for i, k in enumerate(kinds)}

  usual = ("classification", "denoising", "progressive")
  assert chosen.minutes(config(*usual), "cpu") == 60
  assert chosen.minutes(config(*usual), "accelerator") == 30
  more = config(*usual, "moment_matching", "denoising_student")
  assert chosen.minutes(more, "cpu") == 100
  assert chosen.minutes(config("denoising"), "cpu") == 60


def test_a_cadence_is_a_round_number_of_updates():
  assert chosen.cadence(0.3) == {"log": 10, "checkpoint": 200, "observe": 200}
  assert chosen.cadence(0.01) == {
    "log": 500,
    "checkpoint": 5000,
    "observe": 10_000,
  }
  assert chosen.cadence(1000.0) == {"log": 1, "checkpoint": 1, "observe": 1}
