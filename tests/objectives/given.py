"""Arguments of a loss, and toy networks, for tests of objectives."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffdistill.arrays import UNCONDITIONAL, Condition
from diffdistill.objectives.objective import Now

# The data is a mixture of two components in two dimensions.
MIXTURE = {
  "means": jnp.array([[0.5, 0.3], [-0.6, 0.1]]).reshape(2, 1, 1, 2),
  "std": jnp.array([0.3, 0.2]),
  "logits": jnp.array([0.0, 0.7]),
}


def now_of(num_steps=4, guided=1.0, step=0, progress=0.0):
  """Makes the scalars of an update that a loss gets; each may be traced."""
  return Now(
    num_steps=jnp.asarray(num_steps, jnp.int32),
    guided=jnp.asarray(guided, jnp.float32),
    step=jnp.asarray(step, jnp.int32),
    progress=jnp.asarray(progress, jnp.float32),
  )


def batch_of(image, label=None, **more):
  """Makes a batch of these images, with their labels if there are any."""
  return {"image": image, "condition": Condition(label=label), **more}


def loss_of(goal, trees, batch, key, turn=None, **now):
  """Computes (loss, metrics) of a turn; by default the cycle's first turn."""
  return goal.loss(turn or goal.cycle[0], trees, batch, key, now_of(**now))


class OneTime:
  """A toy network that does not take the second time s as an input."""

  two_times = False


@dataclasses.dataclass(frozen=True)
class Listener(OneTime):
  """A network that outputs its weight times x, and records its calls."""

  heard: list

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    self.heard.append(
      {"x": x, "t": t, "label": condition.label, "s": s, "key": key}
    )
    return params * x


def check_copies(params, teacher):
  """Fails if a trained tree is not a copy of the teacher's weights at first."""
  buffers = set()
  for tree in (*params.values(), teacher):
    for name, value in tree.items():
      np.testing.assert_array_equal(value, teacher[name])
      buffers.add(value.unsafe_buffer_pointer())
  # No two trees may share a buffer, because the buffers of all trees but the
  # teacher's are donated.
  assert len(buffers) == len(teacher) * (len(params) + 1)
