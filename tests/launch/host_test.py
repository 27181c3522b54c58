"""Tests of host.sh and of the scheduler files whose jobs run it."""

import os
import pathlib
import shlex
import signal
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
HOST_SH = ROOT / "launch" / "host.sh"


@pytest.fixture
def host_sh(children, tmp_path):
  """Runs a command of host.sh, with the test's folder as home."""

  def run(*words, **options):
    environment = {**os.environ, "HOME": str(tmp_path)}
    return children.run("bash", HOST_SH, *words, env=environment, **options)

  return run


@pytest.mark.parametrize(
  ("script", "status"),
  [
    ("exit 0", 0),
    ("echo 'diffdistill: no' >&2; exit 1", 1),
    ("echo 'diffdistill: no' >&2; echo a library >&2; exit 2", 2),
    ("echo Traceback >&2; exit 1", 70),
    ("exit 2", 70),
    ("exit 70", 70),
    ("echo 'diffdistill: saved' >&2; exit 75", 75),
    ("kill -9 $$", 70),
    ("kill -6 $$", 70),
    ("no-such-command", 70),
  ],
)
def test_exit_statuses_decide_what_a_scheduler_does(host_sh, script, status):
  done = host_sh("run", "bash", "-c", f"echo said; {script}")
  assert done.returncode == status
  assert done.stdout == "said\n"


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_termination_reaches_the_command_and_its_status_comes_back(
  children, tmp_path, whole_group
):
  """Kubernetes signals only the first process, Slurm signals all processes."""
  script = (
    "trap 'sleep 0.3; echo saved >&2; exit 75' TERM; echo up;"
    " while :; do sleep 0.05; done"
  )
  process = children.start(
    *("bash", HOST_SH, "run", "bash", "-c", script),
    env={**os.environ, "HOME": str(tmp_path)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "up\n"
  if whole_group:
    os.killpg(process.pid, signal.SIGTERM)
  else:
    process.send_signal(signal.SIGTERM)
  done = children.finish(process)
  assert done.returncode == 75
  assert done.stderr.splitlines()[-1] == "saved"


def skypilot():
  return yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())


def test_skypilot_restarts_a_preempted_job_but_not_a_refused_one():
  task = skypilot()
  recovery = task["resources"]["job_recovery"]
  assert recovery == {
    "recover_on_exit_codes": [75],
    "max_restarts_on_errors": 0,
  }
  assert [n for n, v in task["envs"].items() if v is None] == ["TRAIN"]


@pytest.fixture
def cluster(tmp_path):
  """A folder with fake programs in place of those of a host and of a cloud.

  The fake `diffdistill train` ends with the status in the next line of `plan`.
  """
  programs = {
    "diffdistill": """
echo "$*" >> $SIM/trainings
status=$(head -n 1 $SIM/plan)
sed -i 1d $SIM/plan
[ "$status" != 1 ] || echo "diffdistill: batch_size is 7" >&2
[ "$status" != crash ] || { echo Traceback >&2; exit 1; }
exit "$status"
""",
    "gcloud": """
echo "gcloud $*" >> $SIM/calls
for word; do
  case $word in *startup-script=*) cp "${word##*=}" $SIM/script ;; esac
done
""",
    "admit": """
shift
[[ $1 != --carry=* ]] || shift
echo "admit $*" >> $SIM/calls
[ -z "${REFUSED:-}" ] || { echo "diffdistill: no" >&2; exit 2; }
echo ${OWN:-}
printf '%q ' "${@:2}"
""",
    "sky": """
printf '%q ' sky "$@" >> $SIM/calls
cp "$3" $SIM/task.yaml
""",
    "sbatch": """
echo "sbatch $*" >> $SIM/calls
""",
    "uv": """
echo "$*" >> $SIM/uv.log
""",
    "sleep": "",
  }
  (tmp_path / "bin").mkdir()
  for name, text in programs.items():
    (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / "bin" / name).chmod(0o755)
  return tmp_path


@pytest.fixture
def run(cluster, children):
  """Runs a script in which fake trainings end with the statuses of `plan`."""

  def start(*command, plan=(), **environment):
    (cluster / "plan").write_text("".join(f"{status}\n" for status in plan))
    return children.run(
      *command,
      cwd=ROOT,
      env={
        "HOME": str(cluster / "home"),
        "PATH": f"{cluster / 'bin'}:/usr/bin:/bin",
        "SIM": str(cluster),
        "PYTHON": "admit",
        **environment,
      },
    )

  return start


def lines(path):
  return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
  ("plan", "status", "trainings"),
  [
    ([0], 0, 1),
    ([75], 75, 1),
    ([70, "crash", 0], 0, 3),
    ([70, 1], 1, 2),
    (["crash"] * 9, 1, 5),
  ],
)
def test_a_skypilot_job_trains_and_restarts(
  cluster, run, plan, status, trainings
):
  task = skypilot()
  flags = ("--workdir=gs://bucket/run", "--config.x=it's $(HOME)")
  envs = {**task["envs"], "TRAIN": shlex.join(flags)}
  script = f"set -e\n{task['setup']}\nset +e\n{task['run']}"
  done = run("bash", "-c", script, plan=plan, **envs)
  assert done.returncode == status, done.stderr
  assert lines(cluster / "trainings") == trainings * [
    "train --workdir=gs://bucket/run --config.x=it's $(HOME)"
  ]
  installed = (cluster / "uv.log").read_text()
  assert f"jax[tpu] diffdistill[tfds,gcs] @ {ROOT}" in installed


POD = (
  *("--project=mine", "--accelerator-type=v5litepod-8", "--", "--multihost"),
  *("--config=a.py", "--workdir=gs://bucket/run", "--config.x=it's $(HOME)"),
)
PACKAGE = "git+https://github.com/OWNER/diffdistill@v0.1.0"
# The launchers' commands, without the flags of train.
LAUNCHERS = {
  "sky": ("launch/skypilot.sh", "moments", "--secret", "WANDB_API_KEY"),
  "gcloud": ("launch/queued_resource.sh", "moments", PACKAGE, POD[0], POD[1]),
  "sbatch": ("launch/slurm.sbatch", "--nodes=4"),
}


@pytest.mark.parametrize("program", LAUNCHERS)
def test_a_launcher_checks_the_config_before_it_rents(cluster, run, program):
  command = ("bash", *LAUNCHERS[program], *POD[2:])
  done = run(*command)
  assert done.returncode == 0, done.stderr
  checked, rented = lines(cluster / "calls")
  assert checked.startswith("admit ")
  assert (
    checked.split()[1]
    == {
      "sky": "tpu-v6e",
      "gcloud": "v5litepod-8",
      "sbatch": "gpu",
    }[program]
  )
  assert "--config=a.py --workdir=gs://bucket/run" in checked
  assert rented.startswith(program)
  (cluster / "calls").unlink()
  done = run(*command, REFUSED="1")
  assert (done.returncode, done.stderr) == (2, "diffdistill: no\n")
  assert all(line.startswith("admit ") for line in lines(cluster / "calls"))


@pytest.mark.parametrize("gpus", [("--gpus", "H100:8"), ("--gpus=H100:8",)])
def test_the_check_is_told_the_gpus_of_skypilot(cluster, run, gpus):
  words = ("m", *gpus, "--env", "JAX_EXTRA=cuda13", "--", *POD[4:])
  done = run("bash", "launch/skypilot.sh", *words)
  assert done.returncode == 0, done.stderr
  assert lines(cluster / "calls")[0].startswith("admit H100:8 --config=a.py ")


def test_skypilot_copies_a_config_of_the_user(cluster, run, tmp_path):
  own = tmp_path / "my.py"
  own.touch()
  command = ("bash", *LAUNCHERS["sky"], *POD[2:])
  done = run(*command, OWN=str(own))
  assert done.returncode == 0, done.stderr
  assert yaml.safe_load((cluster / "task.yaml").read_text()) == {
    **skypilot(),
    "file_mounts": {"/tmp/diffdistill/my.py": str(own)},
  }
  called = shlex.split(lines(cluster / "calls")[-1])
  assert called[4:-1] == [
    *("--name=moments", "--secret", "WANDB_API_KEY"),
    "--env",
  ]
  name, _, train = called[-1].partition("=")
  assert (name, shlex.split(train)) == ("TRAIN", list(POD[3:]))


def test_a_pod_of_queued_resources_gets_a_config_of_the_user(
  cluster, run, tmp_path
):
  own = tmp_path / "my.py"
  own.write_text("def get_config(): ...")
  done = run("bash", *LAUNCHERS["gcloud"], *POD[2:], OWN=str(own))
  assert done.returncode == 0, done.stderr
  script = (cluster / "script").read_text().replace("/root", str(cluster))
  (cluster / "script").write_text(script)
  run("bash", cluster / "script", plan=[0])
  assert (cluster / "launch" / "my.py").read_text() == own.read_text()


def test_a_slurm_job_is_checked_for_its_number_of_devices(cluster, run):
  words = ("--nodes=4", "--ntasks-per-node=2", "--", "--config=a.py")
  run("bash", "launch/slurm.sbatch", *words)
  assert lines(cluster / "calls") == [
    "admit gpu --config=a.py --expect_devices=8",
    "sbatch --nodes=4 --ntasks-per-node=2 launch/slurm.sbatch --config=a.py",
  ]
  done = run("bash", "launch/slurm.sbatch", "--config=a.py")
  assert done.returncode == 2
  assert done.stderr == (
    "slurm.sbatch: there is no -- before the flags of train\n"
  )


def test_a_queued_resource_trains_when_it_starts(cluster, run):
  command = ("bash", "launch/queued_resource.sh", "moments", PACKAGE, *POD)
  done = run(*command, TFDS_DATA_DIR="gs://bucket/my tfds")
  assert done.returncode == 0, done.stderr
  _, call = lines(cluster / "calls")
  assert call.startswith(
    "gcloud compute tpus queued-resources create moments --project=mine"
    " --accelerator-type=v5litepod-8 --node-id=moments --metadata-from-file="
  )
  # Replace /root in the script of a host by the folder of the test.
  script = (cluster / "script").read_text().replace("/root", str(cluster))
  (cluster / "script").write_text(script)
  done = run("bash", cluster / "script", plan=[70, 75, 0])
  assert lines(cluster / "trainings") == 3 * [
    "train --multihost --config=a.py --workdir=gs://bucket/run"
    " --config.x=it's $(HOME)"
  ]
  installed = (cluster / "uv.log").read_text()
  assert f"jax[tpu] diffdistill[tfds,gcs] @ {PACKAGE}" in installed
  for name, place in (("host.sh", "launch"), ("requirements.txt", ".")):
    copied = (cluster / "launch" / name).read_text()
    assert copied == (ROOT / place / name).read_text()
  assert "export TFDS_DATA_DIR=gs://bucket/my\\ tfds\n" in script


def test_a_dry_run_of_a_queued_resource_sends_no_request(cluster, run):
  command = ("bash", "launch/queued_resource.sh", "moments", PACKAGE, *POD)
  done = run(*command, DRY_RUN="1")
  assert done.stdout.startswith("gcloud compute tpus queued-resources create")
  assert "host.sh run diffdistill train" in done.stdout
  assert [line.split()[0] for line in lines(cluster / "calls")] == ["admit"]


@pytest.mark.parametrize(
  ("words", "status", "message"),
  [
    ((), 2, "pass NAME PACKAGE"),
    (("Moments", PACKAGE, *POD), 1, "the name is 'Moments'; pass"),
    (("moments", "a.whl", *POD), 1, "the package is 'a.whl'; pass"),
    (("moments", PACKAGE, *POD[:2]), 2, "there is no -- before"),
    (("moments", PACKAGE, "--", "--workdir=/a"), 1, "--workdir is no bucket"),
  ],
)
def test_a_queued_resource_that_could_not_train_is_refused(
  cluster, run, words, status, message
):
  done = run("bash", "launch/queued_resource.sh", *words)
  assert done.returncode == status
  assert done.stderr.startswith(f"queued_resource.sh: {message}")
  assert done.stderr.count("\n") == 1
  assert not lines(cluster / "calls")
