"""gke_jobset.py on a simulated cluster that obeys the manifest."""

import signal
import subprocess
import sys

import pytest
import yaml

FLAGS = (
  "--name=moments",
  "--package=git+https://github.com/OWNER/diffdistill@v0.1.0",
  "--config=configs/imagenet64.py:moment_matching",
  "--workdir=gs://bucket/run",
)
TPUS = ("--accelerator=v5litepod-256", "--slices=2", "--spot")
GPUS = ("--gpu=nvidia-h100-80gb", "--nodes=4")


def command(*more):
  program = (sys.executable, "launch/gke_jobset.py", "--poll_seconds=0")
  return (*program, *FLAGS, *more)


def objects(cloud, *more):
  done = cloud.run(*command("--dry_run", *more))
  assert done.returncode == 0, done.stderr
  return {o["kind"]: o for o in yaml.safe_load_all(done.stdout)}


def pod(jobset):
  [replicated] = jobset["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]["template"]["spec"]


@pytest.fixture
def cluster(new_cloud):
  """A cluster, and what the launcher will give it."""
  cloud = new_cloud("kubectl")
  cloud.set(manifest=objects(cloud, *TPUS)["JobSet"])
  return cloud


def launch(cluster, *more):
  return cluster.run(*command(*TPUS, *more))


def verbs(cluster):
  return [call[1] for call in cluster.lines("calls.jsonl")]


def check_over(cluster, finished):
  assert cluster.state.get("jobset") is None
  assert len(cluster.lines("finished.jsonl")) == finished


def test_slices_of_tpus(new_cloud):
  found = objects(new_cloud(), *TPUS)
  assert set(found) == {"ConfigMap", "JobSet"}
  assert set(found["ConfigMap"]["data"]) == {"host.sh", "requirements.txt"}
  jobset = found["JobSet"]
  [replicated] = jobset["spec"]["replicatedJobs"]
  assert replicated["replicas"] == 2
  job = replicated["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 64
  assert pod(jobset)["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "16x16",
    "cloud.google.com/gke-spot": "true",
  }
  [container] = pod(jobset)["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  script = container["command"][-1]
  assert '"jax[tpu]"' in script
  assert "--expect_devices=512 --multihost" in script


def test_nodes_with_gpus(new_cloud):
  found = objects(new_cloud(), *GPUS)
  # JAX asks the cluster which processes there are.
  assert {"Role", "RoleBinding"} < set(found)
  [container] = pod(found["JobSet"])["containers"]
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert '"jax[cuda12,k8s]"' in container["command"][-1]
  assert "--expect_devices=32 --multihost" in container["command"][-1]


def test_one_host_trains_alone_in_an_image_that_has_it_all(new_cloud):
  cloud = new_cloud()
  more = ("--accelerator=v6e-8", "--image=mine")
  flags = [flag for flag in command(*more) if "--package" not in flag]
  done = cloud.run(*flags, "--dry_run")
  jobset = list(yaml.safe_load_all(done.stdout))[-1]
  [container] = pod(jobset)["containers"]
  assert container["image"] == "mine"
  assert container["command"][-1] == (
    "exec bash /launch/host.sh run diffdistill train"
    " --config=configs/imagenet64.py:moment_matching"
    " --workdir=gs://bucket/run --expect_devices=8"
  )


def test_the_script_of_a_container_is_bash(new_cloud):
  jobset = objects(new_cloud(), *TPUS)["JobSet"]
  [container] = pod(jobset)["containers"]
  check = ["bash", "-n", "-c", container["command"][-1]]
  assert not subprocess.run(check, check=True).returncode


def test_restarts_what_died_and_deletes_what_has_finished(cluster):
  cluster.set(plan=["running", 75, 70, "running", 137, 0])
  done = launch(cluster)
  assert done.returncode == 0, done.stderr
  check_over(cluster, finished=1)
  assert verbs(cluster).count("apply") == 1
  assert "restarts: 3" in done.stderr


@pytest.mark.parametrize("code", [1, 2])
def test_a_refusal_is_not_restarted(cluster, code):
  cluster.set(plan=["running", 75, code, 0])
  done = launch(cluster)
  assert done.returncode == 1
  check_over(cluster, finished=0)
  assert done.stderr.splitlines()[-1] == (
    "launch: diffdistill: batch_size is 7; pass a multiple of 8"
  )


def test_restarts_have_an_end(cluster):
  cluster.set(
    plan=[70], manifest=objects(cluster, *TPUS, "--max_restarts=2")["JobSet"]
  )
  done = launch(cluster, "--max_restarts=2")
  assert done.returncode == 1
  assert "reaching max restarts" in done.stderr.splitlines()[-1]
  check_over(cluster, finished=0)


def test_waits_for_a_cluster_that_does_not_answer(cluster):
  broken = {"match": "apply", "times": 2, "error": "connection refused"}
  cluster.set(plan=[0], faults=[broken])
  done = launch(cluster)
  assert done.returncode == 0
  assert "connection refused; failure 1 in a row" in done.stderr
  check_over(cluster, finished=1)


@pytest.mark.parametrize(
  ("match", "error", "reason"),
  [
    ("apply", 'no matches for kind "JobSet"', "the cluster has no JobSet"),
    ("get", "Error: jobsets is forbidden", "kubectl is refused: Error: jobs"),
    ("apply", "quota exceeded", "quota exceeded; 8 failures in a row"),
  ],
)
def test_says_what_the_cluster_refuses(cluster, match, error, reason):
  cluster.set(faults=[{"match": match, "times": 9, "error": error}])
  done = launch(cluster)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith(f"launch: {reason}")
  check_over(cluster, finished=0)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_at_any_of_its_commands_it_goes_on(cluster, number):
  cluster.set(plan=["running", 75, 0], kill_at=number)
  assert cluster.start_and_wait(command(*TPUS)) == -signal.SIGKILL
  assert launch(cluster).returncode == 0
  check_over(cluster, finished=1)


def test_what_is_interrupted_is_deleted(cluster):
  cluster.set(plan=["running"], kill_at=4, kill_with=signal.SIGINT)
  done = launch(cluster)
  assert done.returncode == 130
  check_over(cluster, finished=0)
  assert verbs(cluster)[-1] == "delete"


def test_the_name_of_another_run_is_refused(cluster):
  other = objects(cluster, *TPUS, "--config.seed=1")["JobSet"]
  cluster.set(jobset=other, plan=["running"])
  done = launch(cluster)
  assert done.returncode == 1
  assert "exists already and trains something else" in done.stderr
  assert cluster.state["jobset"]


@pytest.mark.parametrize(
  ("more", "reason"),
  [
    ((), "--accelerator is None and --gpu None; pass one"),
    ((*TPUS, "--gpu=nvidia-l4"), "--gpu nvidia-l4; pass one"),
    ((*GPUS, "--nodes=0"), "--nodes is 0; pass 1 or more"),
    ((*TPUS, "--package=a.whl"), "or build an --image that has it"),
  ],
)
@pytest.mark.usefixtures("launch_path")
def test_refuses_in_one_line(monkeypatch, capsys, more, reason):
  import gke_jobset
  import shell

  monkeypatch.setattr(sys, "argv", ["gke_jobset.py", *FLAGS, *more])
  assert shell.guard(gke_jobset.main) == 1
  said = capsys.readouterr().err
  assert reason in said
  assert said.count("\n") == 1
