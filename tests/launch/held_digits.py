"""A config of a tiny teacher, whose training a test can slow down or kill.

Each batch takes the seconds that stand in the file that the variable HELD
names, so that a test can act in the middle of the training. If "die" stands
there, the process dies. The weights stay the same.
"""

import os
import pathlib
import signal
import time

from diffdistill.configs import digits
from diffdistill.data.sources import Digits

SAVED_EVERY = 8


def get_config():
  """The teacher of digits:progressive as a perceptron with few updates."""
  config = digits.get_config()
  config.run = ("teacher",)
  config.model.network = {"kind": "mlp", "width": 8, "depth": 1}
  config.cadence.update(log=1, checkpoint=SAVED_EVERY)
  teacher = config.stages.teacher
  teacher.update(num_updates=96, batch_size=8)
  teacher.optimizer.warmup = 2
  return config


def held(take):
  """Makes a source wait before each batch, or kill its process."""

  def wait_and_take(self, indices):
    pace = pathlib.Path(os.environ["HELD"]).read_text()
    if pace == "die":
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(pace))
    return take(self, indices)

  return wait_and_take


# The tests import this file for its numbers, and must not wait themselves.
if "HELD" in os.environ:
  Digits.take = held(Digits.take)
