"""Shared by tests of objectives: the arguments of a loss, and toy networks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffdistill.arrays import UNCONDITIONAL, Condition
from diffdistill.objectives.objective import Now

# A mixture of two components in two dimensions.
MIXTURE = {
  "means": jnp.array([[0.5, 0.3], [-0.6, 0.1]]).reshape(2, 1, 1, 2),
  "std": jnp.array([0.3, 0.2]),
  "logits": jnp.array([0.0, 0.7]),
}


def now_of(num_steps=4, guided=1.0, step=0, progress=0.0):
  """The scalars of an update; each may be traced."""
  return Now(
    num_steps=jnp.asarray(num_steps, jnp.int32),
    guided=jnp.asarray(guided, jnp.float32),
    step=jnp.asarray(step, jnp.int32),
    progress=jnp.asarray(progress, jnp.float32),
  )


def batch_of(image, label=None, **more):
  """A batch of these images, and of their labels where there are any."""
  return {"image": image, "condition": Condition(label=label), **more}


def loss_of(goal, trees, batch, key, turn=None, **now):
  """(loss, metrics) of a turn, the first of the cycle where none is named."""
  return goal.loss(turn or goal.cycle[0], trees, batch, key, now_of(**now))


class OneTime:
  """A toy network that is told no target time."""

  two_times = False


@dataclasses.dataclass(frozen=True)
class Listener(OneTime):
  """A network that outputs params x and writes down what it is asked."""

  heard: list

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    self.heard.append(
      {"x": x, "t": t, "label": condition.label, "s": s, "key": key}
    )
    return params * x


def check_copies(params, teacher):
  """Fails where a trained tree is not a copy of the teacher's weights."""
  buffers = set()
  for tree in (*params.values(), teacher):
    for name, value in tree.items():
      np.testing.assert_array_equal(value, teacher[name])
      buffers.add(value.unsafe_buffer_pointer())
  # Every tree has its own buffers, since all but the teacher's are donated.
  assert len(buffers) == len(teacher) * (len(params) + 1)
