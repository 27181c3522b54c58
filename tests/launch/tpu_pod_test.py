"""tpu_pod.py on a simulated cloud where things go wrong."""

import shlex
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

FLAGS = (
  "--name=moments",
  "--project=mine",
  "--zone=us-east5-a",
  "--package=git+https://github.com/OWNER/diffdistill@v0.1.0",
  "--config=configs/imagenet64.py:moment_matching",
  "--workdir=gs://bucket/run",
)


@pytest.fixture
def cloud(new_cloud):
  return new_cloud("gcloud")


@pytest.fixture
def pod(new_cloud):
  """A cloud whose slices are two hosts."""
  cloud = new_cloud("gcloud")
  cloud.set(hosts=2)
  return cloud


def command(cloud, *more):
  size = f"--accelerator=v5p-{8 * cloud.state['hosts']}"
  flags = {flag.split("=")[0]: flag for flag in (*FLAGS, size, *more)}
  program = (sys.executable, "launch/tpu_pod.py", "--poll_seconds=0")
  return (*program, *flags.values())


def launch(cloud, *more):
  return cloud.run(*command(cloud, *more))


def check_finished(cloud, done):
  assert done.returncode == 0, done.stderr
  check_over(cloud)
  assert len(cloud.lines("finished.jsonl")) == 1


def check_refused(cloud, done):
  """Nothing is left; the reason, which is the last line."""
  assert done.returncode == 1, done.stderr
  check_over(cloud)
  assert not cloud.lines("finished.jsonl")
  assert "Traceback" not in done.stderr
  return done.stderr.splitlines()[-1].removeprefix("launch: ")


def check_over(cloud):
  assert cloud.state.get("resource") is None
  assert not cloud.lines("errors.jsonl")


def verbs(cloud):
  """The commands in short: create, ssh start and so on."""
  short = []
  for call in cloud.lines("calls.jsonl"):
    command = [w for w in call if w.startswith("--command=")]
    inside = command[0].split()[2:3] if command else []
    short.append(" ".join([*call[4:5], *inside]))
  return short


def test_does_exactly_what_the_dry_run_prints(pod):
  dry = launch(pod, "--dry_run", "--spot")
  assert dry.returncode == 0
  assert not pod.lines("calls.jsonl")
  pod.set(plan=[{"status": 0, "logs": 1}])
  done = launch(pod, "--spot")
  check_finished(pod, done)
  printed = [line for line in dry.stdout.splitlines() if line[0] != "#"]
  calls = pod.lines("calls.jsonl")
  assert [shlex.split(line) for line in printed] == calls
  assert any("--spot" in call for call in calls)
  assert done.stdout == "halve/064: goes on from update 5\n"
  training = pod.lines("trainings.jsonl")
  assert sorted(host for host, *_ in training) == ["s0-w0", "s0-w1"]
  assert training[0][1:-1] == [
    "train",
    "--config=configs/imagenet64.py:moment_matching",
    "--workdir=gs://bucket/run",
    "--expect_devices=8",
    "--multihost",
  ]
  # Where configs/ is that of the installed package.
  assert training[0][-1].endswith("/diffdistill")
  assert (pod.root / "uv.log").read_text().count("pip install") == 2


def test_waits_for_quota_and_for_its_turn(cloud):
  no_quota = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5P' has been exceeded."
  cloud.set(
    faults=[{"match": "create", "times": 2, "error": no_quota}],
    grants=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]],
  )
  done = launch(cloud)
  check_finished(cloud, done)
  assert verbs(cloud).count("create") == 3
  assert "Quota limit" in done.stderr
  assert "moments is WAITING_FOR_RESOURCES" in done.stderr


def test_a_request_that_can_never_be_granted_is_refused(cloud):
  wrong = "ERROR: (gcloud) INVALID_ARGUMENT: no v5p-16 in zone us-east5-a"
  cloud.set(faults=[{"match": "create", "times": 1, "error": wrong}])
  assert wrong in check_refused(cloud, launch(cloud))
  assert verbs(cloud).count("create") == 1


def test_requests_that_fail_end_its_patience(cloud):
  cloud.set(grants=[["PROVISIONING", "FAILED"]] * 9)
  reason = check_refused(cloud, launch(cloud, "--max_failures=3"))
  assert "the request failed: no luck; 3 failures in a row" in reason
  assert verbs(cloud).count("create") == 3


def test_a_pod_that_is_taken_away_is_rented_again(cloud):
  cloud.set(
    plan=[
      {"preempted": ["SUSPENDING", "SUSPENDED"], "saves": "5"},
      {"preempted": ["SUSPENDED"], "saves": "9"},
      {"status": 0},
    ]
  )
  check_finished(cloud, launch(cloud))
  assert cloud.state["created"] == 3
  commands = {tuple(line[1:-1]) for line in cloud.lines("trainings.jsonl")}
  assert len(commands) == 1


def test_what_ends_is_started_again_on_the_same_pod(pod):
  ends = [{"status": 75}]
  ends += [
    {"status": status, "only": "s0-w1", "others": 70}
    for status in (70, "killed", "crash")
  ]
  pod.set(plan=[*ends, {"status": 0}])
  # A preemption that has saved is no failure.
  done = launch(pod, "--max_failures=4")
  check_finished(pod, done)
  assert pod.state["created"] == 1
  assert "attempt 1 was preempted and has saved" in done.stderr
  for attempt in (2, 3, 4):
    assert f"attempt {attempt} died on s0-w" in done.stderr


def test_deaths_without_progress_end_its_patience(cloud):
  cloud.set(plan=[{"status": "crash"}])
  reason = check_refused(cloud, launch(cloud, "--max_failures=2"))
  assert "RuntimeError: a peer has died; 2 failures in a row" in reason
  assert verbs(cloud).count("ssh start") == 2


def test_deaths_with_progress_do_not(cloud):
  died = [{"status": 70, "saves": str(number)} for number in range(2)]
  cloud.set(plan=[*died, {"status": 0}])
  check_finished(cloud, launch(cloud, "--max_failures=2"))


def test_a_refusal_by_one_host_ends_it(pod):
  pod.set(plan=[{"status": 1, "only": "s0-w1", "others": 70}])
  assert check_refused(pod, launch(pod)) == (
    "refused on s0-w1: diffdistill: batch_size is 7; pass a multiple of 8"
  )
  assert verbs(pod).count("ssh start") == 1


# gcloud succeeds where it leaves a whole slice out.
@pytest.mark.parametrize(
  "broken", [(("state", 0), ("install", 255)), (("check", 0), ("start", 0))]
)
def test_a_host_that_does_not_answer_once(pod, broken):
  pod.set(
    faults=[
      {"match": f"ssh&s0-w1&host.sh {verb}", "times": 1, "status": status}
      for verb, status in broken
    ]
  )
  check_finished(pod, launch(pod))
  assert pod.state["created"] == 1
  assert not any(fault["times"] for fault in pod.state["faults"])


def test_a_host_that_stays_dead_is_replaced(pod):
  match = "ssh&s0-w1&host.sh check"
  pod.set(faults=[{"match": match, "times": 3}])
  done = launch(pod)
  check_finished(pod, done)
  assert "1 of 2 hosts see all 8 chips" in done.stderr
  assert pod.state["created"] == 2


def test_a_host_that_hangs_when_others_have_ended_is_ended(pod):
  pod.set(
    plan=[{"status": "hangs", "only": "s0-w1", "others": 70}, {"status": 0}]
  )
  check_finished(pod, launch(pod))
  assert "ssh stop" in verbs(pod)


def test_several_slices_are_one_training(cloud):
  cloud.set(hosts=1)
  done = launch(cloud, "--accelerator=v5p-8", "--slices=2")
  check_finished(cloud, done)
  [create] = [c for c in cloud.lines("calls.jsonl") if c[4] == "create"]
  assert {"--node-count=2", "--node-prefix=moments"} < set(create)
  for training in cloud.lines("trainings.jsonl"):
    assert {"--expect_devices=8", "--multihost"} < set(training)


def test_a_wheel_is_copied_to_every_host(pod):
  wheel = pod.root / "diffdistill-0.1.0-py3-none-any.whl"
  wheel.write_text("a wheel")
  check_finished(pod, launch(pod, f"--package={wheel}", "--extras="))
  for host in ("s0-w0", "s0-w1"):
    assert (pod.root / "hosts" / host / wheel.name).exists()
  installed = (pod.root / "uv.log").read_text()
  assert f"jax[tpu] diffdistill @ ./{wheel.name}" in installed


def test_killed_at_any_of_its_commands_it_goes_on(new_cloud):
  """Killed with SIGKILL while that command goes on without it."""

  def killed_at(number):
    cloud = new_cloud("gcloud")
    cloud.set(kill_at=number, plan=[{"status": 0, "logs": 1}])
    first = cloud.start_and_wait(command(cloud))
    second = launch(cloud)
    return number, first, second, cloud

  # Of the commands that only look, the first and the last of each.
  numbers = (1, 2, 4, 5, 6, 7, 8, 10, 11, 13, 15, 16)
  with ThreadPoolExecutor(3) as pool:
    runs = list(pool.map(killed_at, numbers))
  for number, first, second, cloud in runs:
    assert first == -signal.SIGKILL, number
    check_finished(cloud, second)
    # It found what it had rented and the training that it had started.
    assert len(cloud.lines("trainings.jsonl")) <= cloud.state["created"]


def test_an_interruption_gives_the_pod_back(cloud):
  cloud.set(kill_at=11, kill_with=signal.SIGINT, plan=[{"status": "hangs"}])
  done = launch(cloud)
  assert verbs(cloud)[10] == "ssh log"
  assert done.returncode == 130
  check_over(cloud)


def test_what_is_kept_is_found_again(cloud):
  cloud.set(
    kill_at=11,
    kill_with=signal.SIGINT,
    plan=[{"status": 0, "logs": 2}],
  )
  done = launch(cloud, "--keep")
  assert done.returncode == 130
  assert "delete moments --force" in done.stderr
  assert cloud.state["resource"]
  check_finished(cloud, launch(cloud))
  assert cloud.state["created"] == 1
  assert len(cloud.lines("trainings.jsonl")) == 1


def test_the_name_of_another_run_is_refused(cloud):
  other = {"name": "moments", "accelerator": "v6e-64", "states": ["ACTIVE"]}
  cloud.set(resource=other, slices=1)
  done = launch(cloud)
  assert done.returncode == 1
  assert "exists already and is a v6e-64, not a v5p-8" in done.stderr
  assert cloud.state["resource"] == other


@pytest.mark.parametrize(
  ("flag", "status", "reason"),
  [
    ("--accelerator=v5e-256", 1, "pass one of v4-N, v5litepod-N, v5p-N, v6e-N"),
    ("--accelerator=v5p-4", 1, "v5p-N counts cores, two a chip, and N is one"),
    ("--name=Moments", 1, "--name is 'Moments'; pass at most 40 lower-case"),
    ("--workdir=runs/moments", 1, "pass a folder of a bucket"),
    (
      "--package=git+https://github.com/OWNER/diffdistill",
      1,
      "@REF with a tag",
    ),
    ("--package=none.whl", 1, "which is no file; build a wheel"),
    ("--slices=0", 1, "--slices is 0; pass 1 or more"),
    ("--env=TFDS", 1, "--env has a variable without a name"),
    ("--spots", 2, "'--spots' is no flag; overrides are --config.x=y"),
    ("--config", 2, "argument --config: expected one argument"),
  ],
)
@pytest.mark.usefixtures("launch_path")
def test_refuses_in_one_line(monkeypatch, capsys, flag, status, reason):
  import shell
  import tpu_pod

  flags = {f.split("=")[0]: f for f in (*FLAGS, "--accelerator=v5p-8", flag)}
  monkeypatch.setattr(sys, "argv", ["tpu_pod.py", *flags.values()])
  with pytest.raises(SystemExit) as ended:
    sys.exit(shell.guard(tpu_pod.main))
  assert ended.value.code == status
  said = capsys.readouterr().err
  assert reason in said
  assert said.startswith("launch: ")
  assert said.count("\n") == 1


def test_refuses_without_gcloud(cloud):
  (cloud.bin / "gcloud").unlink()
  done = cloud.run(*command(cloud), PATH=str(cloud.bin))
  assert done.returncode == 1
  assert done.stderr == (
    "launch: gcloud is not on PATH; install it:"
    " https://cloud.google.com/sdk/docs/install\n"
  )


def test_says_what_gcloud_refuses(cloud):
  wrong = "ERROR: You do not currently have an active account selected."
  cloud.set(faults=[{"match": "describe", "times": 9, "error": wrong}])
  assert wrong in check_refused(cloud, launch(cloud))
  assert verbs(cloud) == ["describe"]


def test_no_connection_is_waited_for(cloud):
  wrong = "ERROR: unable to reach the server"
  cloud.set(faults=[{"match": "describe", "times": 9, "error": wrong}])
  check_finished(cloud, launch(cloud, "--max_failures=1"))
