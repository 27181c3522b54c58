"""Tests that batches of pairs depend on (seed, step) and not on the disk."""

import dataclasses
import itertools

import numpy as np
import pytest

from diffdistill.data.pair_pipeline import PairPipeline

# A limit, in gigabytes, for two of the store's 6 training shards and for its
# 12 held-out pairs. A shard has 8 pairs, and a pair takes 16 bytes.
POOL_OF_TWO = (2 * 8 + 12) * 16 / 1e9


def equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], strict=True)


@pytest.fixture
def make(make_store):
  def pipeline(directory="pairs", num_updates=40, **fields):
    own = ("batch_size", "seed", "rows", "say")
    store, teacher = make_store(
      directory, **{k: v for k, v in fields.items() if k not in own}
    )
    given = {k: v for k, v in fields.items() if k in own}
    defaults = {"batch_size": 4, "seed": 3}
    return (
      PairPipeline(store=store, num_updates=num_updates, **defaults | given),
      teacher,
    )

  return pipeline


def test_batches_are_pairs(make, numbers_of):
  pipeline, teacher = make()
  for batch in itertools.islice(pipeline.iterate(0), 14):
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
      "noise": (np.float16, (4, 2, 2, 1)),
      "image": (np.uint8, (4, 2, 2, 1)),
      "label": (np.int32, (4,)),
    }
    for row, number in enumerate(numbers_of(batch)):
      noise, image, label = teacher.draw(number, 1)
      np.testing.assert_array_equal(batch["noise"][row], noise[0])
      stored = batch["image"][row] / 127.5 - 1
      np.testing.assert_allclose(stored, image[0], atol=1e-6)
      assert batch["label"][row] == label[0]
  assert "label" not in make("no", num_classes=0)[0].batch(0)


def test_every_epoch_visits_each_pair_once_in_its_own_order(make, numbers_of):
  pipeline, _ = make()
  seen = [numbers_of(b) for b in itertools.islice(pipeline.iterate(0), 36)]
  epochs = np.concatenate(seen).reshape(3, 48)
  for epoch in epochs:
    assert sorted(epoch) == list(range(48))
  # Each epoch must have another order of shards, and of pairs within a shard.
  shards = epochs[:, ::8] // 8
  assert len({tuple(row) for row in shards}) == 3
  first = epochs[epochs // 8 == 0].reshape(3, 8)
  assert len({tuple(row) for row in first}) == 3


@pytest.mark.parametrize("limit", [0.0, POOL_OF_TWO])
def test_a_batch_is_the_same_from_any_start(make, limit):
  run, _ = make(max_gigabytes=limit)
  batches = list(itertools.islice(run.iterate(0), 44))
  assert run.store.capacity == (2 if limit else 6)
  for start in (1, 7, 8, 21, 36, 43):
    # The batch must be the same in a new directory, and in one where a run has
    # already read further.
    other, _ = make(f"from {start}", max_gigabytes=limit)
    for pipeline in (other, run):
      for step, batch in enumerate(
        itertools.islice(pipeline.iterate(start), 44 - start), start
      ):
        equal(batch, batches[step])
    equal(other.batch(5), batches[5])
  different, _ = make("seed", seed=4)
  assert not np.array_equal(different.batch(0)["noise"], batches[0]["noise"])


def test_a_pool_moves_over_all_pairs_within_its_disk_space(
  make, numbers_of, files_of
):
  pipeline, teacher = make(max_gigabytes=POOL_OF_TWO)
  said = []
  pipeline = dataclasses.replace(pipeline, say=said.append)
  held_out = np.concatenate([numbers_of(b) for b in pipeline.held_out()])
  assert held_out.tolist() == list(range(48, 60))
  teacher.drawn.clear()
  seen = set()
  for step, batch in enumerate(itertools.islice(pipeline.iterate(0), 40)):
    seen |= set(numbers_of(batch).tolist())
    on_disk = set(files_of(pipeline.store))
    pool = {f"{shard:05d}.npz" for shard in pipeline.pool(step // 2)}
    assert on_disk <= pool | {"00006.npz", "00007.npz", "manifest.json"}
    size = sum(p.stat().length for p in pipeline.store.directory.glob("*.npz"))
    # The disk may hold two shards and the two held-out files, with 1 kB more
    # for each file.
    assert size < POOL_OF_TWO * 1e9 + 4 * 1000
  assert seen == set(range(48))
  # Each shard must be made only once: a removed shard is not needed again.
  assert sorted(first // 8 for first, _ in teacher.drawn) == list(range(6))
  assert len(said) == 8
  # The held-out shards must stay on disk.
  assert {"00006.npz", "00007.npz"} <= on_disk


@pytest.mark.parametrize("num_updates", [1, 3, 4, 7, 24, 25, 40, 100, 1001])
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 6])
def test_pools_follow_their_formula(make, num_updates, capacity):
  pipeline, _ = make(
    num_updates=num_updates,
    max_gigabytes=(capacity * 8 + 12) * 16 / 1e9,
  )
  assert pipeline.store.capacity == capacity
  visits = num_updates // 2
  epochs = max(visits // capacity, 1)
  pools = [pipeline.pool(e * capacity) for e in range(epochs)]
  firsts = [pool.start for pool in pools]
  assert all(len(pool) == capacity for pool in pools)
  assert firsts[0] == 0
  assert firsts == sorted(firsts)
  if epochs > 1:
    assert firsts[-1] == 6 - capacity
    assert firsts == [e * (6 - capacity) // (epochs - 1) for e in range(epochs)]
  # The last pool must stay after the last epoch, and in an incomplete epoch.
  assert pipeline.pool(10_000) == pools[-1]
  seen = {pipeline.shard(visit) for visit in range(visits)}
  if visits // capacity * capacity >= 6:
    assert seen == set(range(6))
  for e, pool in enumerate(pools):
    visited = [pipeline.shard(e * capacity + i) for i in range(capacity)]
    assert sorted(visited) == list(pool)


def test_shards_are_made_when_they_are_needed(make):
  pipeline, teacher = make()
  batches = pipeline.iterate(0)
  next(batches)
  assert len(teacher.drawn) == 1
  next(batches)
  assert len(teacher.drawn) == 1
  next(batches)
  assert len(teacher.drawn) == 2


@pytest.mark.parametrize("limit", [0.0, POOL_OF_TWO])
def test_shards_lists_the_shards_that_updates_visit(make, limit, numbers_of):
  pipeline, _ = make(max_gigabytes=limit)
  batches = list(itertools.islice(pipeline.iterate(0), 44))
  of_step = [numbers_of(batch)[0] // 8 for batch in batches]
  for start, stop in ((0, 1), (0, 40), (1, 2), (7, 9), (21, 44), (5, 5)):
    seen = list(dict.fromkeys(of_step[start:stop]))
    assert pipeline.shards(start, stop) == seen
  # A large number of updates must take no longer.
  assert sorted(pipeline.shards(3, 10**9)) == list(range(6))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("limit", [0.0, POOL_OF_TWO])
def test_rows_of_processes_make_the_same_global_batch(make, count, limit):
  whole, _ = make(max_gigabytes=limit)
  shares = [tuple(range(i, 4, count)) for i in range(count)]
  parts = [
    make(f"of {count}", max_gigabytes=limit, rows=rows)[0] for rows in shares
  ]
  for kind in ("iterate", "held_out"):
    streams = (
      [p.iterate(3) for p in (whole, *parts)]
      if kind == "iterate"
      else [p.held_out() for p in (whole, *parts)]
    )
    for batch, *each in itertools.islice(zip(*streams, strict=True), 12):
      for rows, part in zip(shares, each, strict=True):
        equal(part, {name: batch[name][list(rows)] for name in batch})


def test_other_pairs_are_refused_before_any_batch(make):
  make()[0].batch(0)
  other, teacher = make(teacher="xyz")
  for act in (lambda: other.iterate(0), other.held_out):
    with pytest.raises(ValueError, match="teacher is 'abc', not 'xyz'"):
      act()
  assert not teacher.drawn


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"batch_size": 0}, "batch_size is 0; pass 1 or more"),
    ({"num_updates": 0}, "num_updates is 0; pass 1 or more"),
    ({"batch_size": 3}, "shard_size is 8, which batch_size 3 does not divide"),
    ({"batch_size": 8}, "held_out is 12, which batch_size 8 does not divide"),
    ({"rows": (4,)}, r"rows are \(4,\); pass some of 0 to 3, or None"),
    ({"seed": 2**32}, "seed is 4294967296; pass 0 or more, at most"),
  ],
)
def test_wrong_fields_are_refused_at_construction(make, fields, words):
  with pytest.raises(ValueError, match=words) as refusal:
    make(**fields)
  assert "\n" not in str(refusal.value)


def test_a_negative_step_is_refused(make):
  with pytest.raises(ValueError, match="step is -1; pass 0 or more"):
    make()[0].batch(-1)
