"""The trainer runs moment matching, also when it is killed between turns."""

import jax
import numpy as np
import pytest

TEACHER, STUDENT = 2, 18  # Updates of each round.


@pytest.fixture(scope="module")
def run(tiny_config, run_of):
  stage = tiny_config["stages"]["teacher"]
  return run_of(
    {
      **tiny_config,
      "run": ("teacher", "moments"),
      "stages": {
        "teacher": {
          **stage,
          "num_updates": TEACHER,
          "optimizer": {**stage["optimizer"], "warmup": TEACHER},
        },
        "moments": {
          **stage,
          "objective": {"kind": "moment_matching"},
          "sampler": {"kind": "ancestral", "noise": 0.0},
          "frozen": {"teacher": "teacher"},
          "num_steps": (4, 2),
        },
      },
    }
  )


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
  """Trains without interruptions, and gives the workdir of the run."""
  workdir = tmp_path_factory.mktemp("finished")
  run.train(workdir)
  return workdir


def test_a_round_keeps_the_student_s_average_and_the_auxiliary(finished, run):
  products = run.products(finished)
  assert list(products) == [
    "teacher second_moments",
    "teacher teacher",
    *(
      f"moments/{steps} {name}"
      for steps in ("004", "002")
      for name in ("auxiliary", "student")
    ),
  ]
  leaves = [
    np.concatenate([x.ravel() for x in jax.tree.leaves(products[name])])
    for name in list(products)[1:]
  ]
  for i, a in enumerate(leaves):
    for b in leaves[:i]:
      assert np.abs(a - b).max() > 1e-4


def test_every_student_starts_as_the_first_teacher(run):
  rounds = [r for name, (_, r) in run.built.rounds.items() if name != "teacher"]
  assert [r.frozen for r in rounds] == [{"teacher": "teacher"}] * 2
  assert [r.guided for r in rounds] == [True, True]


def test_both_trees_are_reported_and_counted(finished, records_of):
  last = records_of(finished)[-1]
  assert (last["round"], last["step"]) == ("moments/002", STUDENT)
  assert {"student/loss", "auxiliary/loss", "student/moment_gap"} <= set(last)
  # An update costs a gradient of one tree (3 passes), one pass of the other
  # tree and one pass of the teacher.
  assert last["passes"] == 5 * last["images"]


# The run saves checkpoints after 5, 10 and 15 updates. So a run resumes after
# turns of both trees.
@pytest.mark.slow
def test_kills_between_turns_change_nothing(finished, run, tmp_path):
  for life in (TEACHER + 6, 2, 6, 9, 3, 5, 1, 8):
    run.crash(tmp_path, life)
  run.train(tmp_path)
  run.assert_same(tmp_path, finished)


def test_each_tree_s_update_is_compiled_once_for_all_rounds(finished, run):
  updates = run.compiled("moments").updates
  assert list(updates) == [("auxiliary",), ("student",)]
  assert [update._cache_size() for update in updates.values()] == [1, 1]
