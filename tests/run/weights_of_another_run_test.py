import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.run import from_config
from diffdistill.run.weights_of_another_run import load_outside


def outside(config, name, source):
  """Loads frozen weights of a stage from outside the run."""
  built = from_config.build(config)
  stage = built.stages[-1]
  return load_outside(built, stage, name, source)


def test_weights_come_from_a_round_of_another_run(
  finished_run, tiny_config, judged
):
  path = f"path:{finished_run}"
  for source, name in (
    ("teacher", "teacher"),
    # A student may be the teacher of another run.
    ("halve/001", "teacher"),
    ("teacher", "second_moments"),
  ):
    params = outside(tiny_config, name, f"{path}/{source}")
    wanted = from_config.build(tiny_config).denoiser.network.init(
      jax.random.key(0)
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)
  assert outside(judged, "classifier", f"{path}/classifier")


def test_weights_of_one_time_begin_a_network_of_two(
  finished_run, tiny_config, edited
):
  source = f"path:{finished_run}/teacher"
  two_times = edited("model.network.two_times", True)
  params, again = (outside(two_times, "teacher", source) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  # The network may read a guidance weight too; each branch is placed alone.
  two_times["model"]["network"]["told_guidance"] = True
  both = outside(two_times, "teacher", source)
  assert not jnp.any(both["embed"].pop("guidance")["dense2"]["kernel"])
  gap = params["embed"].pop("gap")
  assert jnp.any(gap["dense1"]["kernel"] != 0)
  assert not jnp.any(gap["dense2"]["kernel"])
  one = outside(tiny_config, "teacher", source)
  jax.tree.map(np.testing.assert_array_equal, params, one)
  with pytest.raises(ValueError, match=r"'gap'.* None there"):
    outside(two_times, "second_moments", source)


def test_weights_that_do_not_fit_are_refused(finished_run, edited, judged):
  path = f"path:{finished_run}"
  other = copy.deepcopy(judged)
  other["classifier"] = {**judged["classifier"], "channels": 6}
  other["stages"]["halve"]["frozen"]["classifier"] = f"{path}/classifier"
  for config, name, source, message in (
    (edited("model.network.width", 10), "teacher", "teacher", "10"),
    # Label dropout adds a class, the null label, so the weights do not fit.
    (edited("model.label_dropout", 0.1), "teacher", "teacher", "(4, "),
    (edited("model.network.depth", 2), "teacher", "teacher", "is None there"),
    (other, "classifier", "classifier", "6"),
  ):
    with pytest.raises(ValueError, match="whose weights do not fit") as error:
      outside(config, name, f"{path}/{source}")
    text = str(error.value)
    assert text.startswith(f"stages.halve.frozen.{name} is '{path}/{source}'")
    assert text.endswith("here; pass the config it was made with")
    assert message in text
    assert "\n" not in text


def test_a_source_without_weights_is_refused(
  finished_run, tmp_path, tiny_config, judged
):
  for source in (f"{tmp_path}/x", f"{finished_run}/halve"):
    with pytest.raises(ValueError, match=f"{source} has no final result"):
      outside(tiny_config, "teacher", f"path:{source}")
  with pytest.raises(ValueError, match=r"classifier holds no student, only"):
    outside(tiny_config, "teacher", f"path:{finished_run}/classifier")
  with pytest.raises(
    ValueError, match=r"pass kind=torch_resnet in the stage's own"
  ):
    outside(judged, "classifier", f"imported:{tmp_path}/x.safetensors")
  judged["stages"]["halve"]["frozen"]["classifier"] = "imported:x"
  judged["stages"]["halve"]["classifier"] = {
    "kind": "torch_resnet",
    "depth": 18,
  }
  with pytest.raises(ValueError, match=r"x\.safetensors") as error:
    outside(judged, "classifier", f"imported:{tmp_path}/x.safetensors")
  assert "\n" not in str(error.value)
