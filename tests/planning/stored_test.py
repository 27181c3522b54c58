"""Tests that the table of the page about pods agrees with the stored plans."""

import json
import pathlib

import pytest

from diffdistill.planning.chips import GIB

ROOT = pathlib.Path(__file__).parent.parent.parent
# Published recipes, as (config file, recipe, topology). The topology is the
# paper's pod, or the nearest one.
PUBLISHED = [
  ("imagenet64", "progressive", "v5e:8x8"),
  ("imagenet64", "moment_matching", "v5e:16x16"),
  ("imagenet64", "parameter_moment_matching", "v5e:16x16"),
  ("imagenet128", "moment_matching", "v5e:16x16"),
  ("imagenet128", "parameter_moment_matching", "v5e:16x16"),
  ("lsun", "bedroom", "v5e:8x8"),
  ("lsun", "church", "v5e:8x8"),
  ("lsun", "bedroom256", "v5e:2x4"),
  ("lsun", "church256", "v5e:2x4"),
  ("cifar10", "progressive", "v5e:2x4"),
  ("cifar10", "classifier_features", "v5e:2x2"),
  ("cifar10", "denoising_student", "v5e:2x4"),
  ("cifar10", "moment_matching", "v5e:2x4"),
  ("cifar10", "parameter_moment_matching", "v5e:2x4"),
]


def stored(name, recipe, topology):
  path = f"{name}_{recipe}_{topology.replace(':', '_')}.json"
  return json.loads((ROOT / "launch" / "plans" / path).read_text())


def table_row(name, recipe, topology):
  """Returns a plan's row in the page: its largest program, and its cost."""
  plan = stored(name, recipe, topology)
  stages = [row for row in plan["rows"] if row["stage"]]
  largest = max(row["memory_bytes"] for row in plan["rows"]) / GIB
  *_, last = stages
  # Show the speed of the last stage's last program; an auxiliary has the same
  # cost as the student.
  speed = last["images_per_second"]
  hours = {}
  for row in stages:
    hours[row["stage"]] = hours.get(row["stage"], 0) + row["chip_hours"]
  shares = ", ".join(
    f"{stage} {n:,.0f}" for stage, n in hours.items() if round(n)
  )
  trained = max(row["trained"] for row in stages) / 1e6
  return (
    f"| `{name}:{recipe}` | {topology} | {trained:.0f}M | {largest:.1f} GiB"
    f" | {speed:,.0f} | {plan['chip_hours']:,.0f}"
    f" | {plan['probable_chip_hours']:,.0f} | {shares} |"
  )


@pytest.mark.parametrize(("name", "recipe", "topology"), PUBLISHED)
def test_a_published_recipe_fits_and_the_page_says_so(name, recipe, topology):
  assert stored(name, recipe, topology)["fits"]
  page = (ROOT / "docs" / "pods.md").read_text()
  assert table_row(name, recipe, topology) in page


def test_messages_do_not_grow_with_the_size_of_the_pod():
  small, large = (
    {
      row["program"]: sum(c["sent"] for c in row["collectives"].values())
      for row in stored("imagenet64", "moment_matching", topology)["rows"]
    }
    for topology in ("v5e:8x8", "v5e:16x16")
  )
  for program, sent in small.items():
    # Devices exchange few bytes for a classifier, so its time does not change.
    if not program.startswith("classifier"):
      assert large[program] == pytest.approx(sent, rel=0.1)


@pytest.mark.parametrize(("name", "recipe", "topology"), PUBLISHED)
def test_the_probable_cost_is_that_of_limits_that_add_up(
  name, recipe, topology
):
  plan = stored(name, recipe, topology)
  hours = [
    row["runs"] * sum(row["roofline"].values()) * plan["num_devices"] / 3600
    for row in plan["rows"]
  ]
  assert plan["probable_chip_hours"] == pytest.approx(sum(hours))
