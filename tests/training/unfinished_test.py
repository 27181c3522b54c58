"""Tests that the weights of a round that still trains can be judged."""

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.judging.contestants import contestants
from diffdistill.run import from_config
from diffdistill.tools import train
from diffdistill.training import checkpoint
from diffdistill.training.averaged_weights import product_of
from diffdistill.training.running import Checkpoints


@pytest.fixture(scope="module")
def trained(small_config, tmp_path_factory):
  """A finished run with its checkpoints; its workdir; and what it saved."""
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "run"
  save, saved = Checkpoints.save, []

  def noted(self, state, step):
    saved.append((step, jax.device_get(state)))
    save(self, state, step)

  config = {
    **small_config,
    "run": ("teacher", "halve"),
    "cadence": {"checkpoint": 1},
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint, "discard", lambda round_dir: None)
    patch.setattr(Checkpoints, "save", noted)
    train.train(config, workdir)
  return from_config.reopen(workdir), workdir, saved


def test_a_checkpoint_gives_the_weights_that_the_round_would_hand_on(trained):
  run, workdir, saved = trained
  names = ("teacher", "halve/001")
  for name, (step, state) in zip(names, saved, strict=True):
    stage, _ = run.models[name]
    so_far = run.product_so_far(workdir, name, step)
    wanted = product_of(stage.objective, state)
    assert jax.tree.structure(so_far) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, so_far, wanted)
  with pytest.raises(ValueError, match=r"9 has no 9\.json beside it"):
    run.product_so_far(workdir, "teacher", 9)


def test_a_student_that_still_trains_is_judged_beside_the_teacher(trained):
  run, workdir, _ = trained
  final, said = workdir / "halve" / "001" / "final.json", []
  final.rename(final.with_name("later"))
  teacher, student = contestants(run, workdir, said.append, so_far=True)
  (alone,) = contestants(run, workdir, lambda line: None)
  final.with_name("later").rename(final)
  assert said == []
  assert (teacher.name, student.name) == ("teacher", "halve/001 so far")
  assert alone.name == "teacher"
  assert student.facts["updates"] == 1
  assert not student.shown
  assert jax.tree.leaves(student.load())
