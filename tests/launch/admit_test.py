"""admit.py refuses a wrong recipe, and says what a right one costs."""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WORKDIR = "--workdir=gs://bucket/run"


@pytest.fixture
def admit(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "launch"))
  import admit

  return admit


@pytest.mark.parametrize(
  ("accelerator", "devices", "said"),
  [
    ("v5litepod-256", 256, "chip-hours on v5e:16x16, or "),
    ("tpu-v5-lite-podslice", 64, "on v5e:8x8"),
    ("tpu-v5-lite-podslice", 32, "no plan of"),
    ("tpu-v6e-64", 64, "for 64 v6e is stored: no cost is known"),
    ("H100:8", 8, "no plan of"),
  ],
)
@pytest.mark.parametrize("folder", ["", "configs/", "/a/configs/"])
def test_the_cost_is_that_of_the_stored_plan(
  admit, accelerator, devices, said, folder
):
  file = f"{folder}imagenet64.py" if folder else "imagenet64"
  words = [f"--config={file}:moment_matching", WORKDIR]
  found = admit.cost(words, accelerator, devices)
  assert said in found
  assert "imagenet64:moment_matching" in found
  assert "without overrides" not in found
  if "chip-hours" in found:
    found = admit.cost([*words, "--config.seed=1"], accelerator, devices)
    assert "imagenet64:moment_matching without overrides" in found


def test_the_cost_is_in_hours_of_one_chip_and_of_all(admit):
  plan = ROOT / "launch" / "plans" / "imagenet64_progressive_v5e_8x8.json"
  hours = json.loads(plan.read_text())["chip_hours"]
  found = admit.cost(["--config=imagenet64:progressive"], "v5litepod-64", 64)
  assert f"{hours:,.0f} chip-hours on v5e:8x8, or {hours / 64:,.1f} h" in found


def test_only_a_file_of_the_user_is_copied(admit, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "my.py").touch()
  assert admit.own_file("my.py:fast") == pathlib.Path("my.py")
  assert admit.carried("my.py:fast", "/launch") == "/launch/my.py:fast"
  assert admit.carried(f"{tmp_path}/my.py", "/launch") == "/launch/my.py"
  for config in ("digits:all", "configs/digits.py:all", "other.py"):
    assert admit.own_file(config) is None
    assert admit.carried(config, "/launch") == config


@pytest.mark.slow
def test_a_training_is_checked_for_its_devices(children, config_file):
  """The batches of the recipe have 8 images, which 4 devices share."""

  def run(*words):
    done = children.run(
      *(sys.executable, ROOT / "launch" / "admit.py", "--carry=/launch", "gpu"),
      *(WORKDIR, *words),
    )
    return done.returncode, done.stdout, done.stderr.splitlines()

  own = f"--config={config_file}"
  status, printed, [line] = run(own, "--expect_devices=4")
  assert (status, printed.splitlines()) == (
    0,
    [
      str(config_file),
      f"{WORKDIR} --config=/launch/{config_file.name} --expect_devices=4",
    ],
  )
  assert line.startswith("admit.py: no plan of ")
  status, printed, [line] = run(own, "--expect_devices=3")
  assert (status, printed) == (1, "")
  assert "the 3 devices do not divide" in line
  status, printed, [line] = run(f"{own}:misspelt")
  assert (status, printed) == (1, "")
  assert "stages.halve.num_update" in line
  status, printed, _ = run("--config=cifar10:progressive")
  assert status == 0
  assert printed == f"\n{WORKDIR} --config=cifar10:progressive\n"
