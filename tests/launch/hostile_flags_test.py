"""A flag stays a word of a command, a text in a manifest, and a secret."""

import argparse
import re
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
GKE = ("launch/gke_jobset.py", *FLAGS, "--accelerator=v6e-8")
POD = (
  *("launch/tpu_pod.py", *FLAGS, "--accelerator=v6e-8"),
  *("--project=mine", "--zone=us-west4-a"),
)
SECRET = "hf_p4ssW0rd$(HOME)"


def dry_run(cloud, *command):
  return cloud.run(sys.executable, *command, "--dry_run")


@pytest.fixture
def launcher(launch_path):
  """The modules of the launchers."""
  import jobset_manifest
  import names
  import shell
  import topology

  return argparse.Namespace(
    manifest=jobset_manifest, names=names, shell=shell, topology=topology
  )


def expanded(text, variables):
  """What Kubernetes makes of a command: Expand of its package expansion."""

  def replace(match):
    if match[0] == "$$":
      return "$"
    return variables.get(match[1], match[0])

  return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


@pytest.mark.parametrize(
  "value", ["$(HOSTNAME)", "$$(HOSTNAME)", "$$", "a$b", "$"]
)
def test_kubernetes_expands_nothing_in_a_command(launcher, value):
  training = launcher.manifest.Training(
    name="moments",
    namespace="default",
    nodes=launcher.manifest.tpu_nodes(launcher.topology.parse("v6e-8"), 1),
    spot=False,
    image="mine",
    requirements=(),
    command=("printf", "%s", value),
    service_account=None,
    max_restarts=1,
  )
  jobset = training.objects()[-1]
  [replicated] = jobset["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  *_, script = pod["containers"][0]["command"]
  script = expanded(script, {"HOSTNAME": "pod-0"})
  wanted = launcher.shell.join(["printf", "%s", value])
  assert script == f"exec bash /launch/host.sh run {wanted}"
  # And bash has the word as it was given.
  done = subprocess.run(
    ["bash", "-c", wanted], capture_output=True, text=True, check=True
  )
  assert done.stdout == value


@pytest.mark.parametrize(
  "flag",
  [
    "--namespace=default\nrm -rf /",
    "--namespace=Default",
    "--namespace=-a",
    f"--namespace={'a' * 64}",
    "--service_account=a b",
    "--image=mine\n- name: other",
    "--image=$(IMAGE)",
    "--extras=tfds]; rm",
    "--config=configs/a.py\n# b",
  ],
)
def test_names_that_would_break_out_are_refused(new_cloud, flag):
  done = dry_run(new_cloud(), *GKE, flag)
  assert (done.returncode, done.stdout) == (1, "")
  [line] = done.stderr.splitlines()
  assert line.startswith(f"launch: {flag.partition('=')[0]} is ")
  assert "; pass " in line


@pytest.mark.parametrize(
  "flag", ["--project=mine;rm", "--zone=us west", "--create_flag=--a\n--b"]
)
def test_names_of_a_pod_are_checked_too(new_cloud, flag):
  done = dry_run(new_cloud(), *POD, flag)
  assert (done.returncode, done.stdout) == (1, "")
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [GKE, POD], ids=["gke", "pod"])
def test_a_dry_run_shows_no_value_of_a_variable(new_cloud, command):
  done = dry_run(new_cloud(), *command, f"--env=HF_TOKEN={SECRET}")
  assert done.returncode == 0
  assert "HF_TOKEN=(hidden)" in done.stdout
  assert SECRET[:8] not in done.stdout + done.stderr


def test_the_manifest_itself_has_the_value(launcher, monkeypatch):
  """What is hidden is only what is printed."""
  own = [flag for flag in FLAGS if "--package" not in flag]
  flags = [*own, f"--env=HF_TOKEN={SECRET}"]
  monkeypatch.setattr(sys, "argv", ["launcher", *flags])
  monkeypatch.setattr(launcher.shell, "_SECRETS", [])
  read, overrides = launcher.shell.Parser("").read()
  command = launcher.shell.train_command(read, overrides, 8, 1)
  assert command[:2] == ["env", f"HF_TOKEN={SECRET}"]


@pytest.mark.parametrize(
  "pair", [SECRET, f"1A={SECRET}", f"A B={SECRET}", f"A=\n{SECRET}"]
)
def test_a_refused_variable_is_not_shown(new_cloud, pair):
  done = dry_run(new_cloud(), *GKE, f"--env={pair}")
  assert done.returncode == 1
  assert SECRET[:8] not in done.stdout + done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_flag_that_is_misspelt_does_not_show_its_value(new_cloud):
  done = dry_run(new_cloud(), *GKE, f"--evn=HF_TOKEN={SECRET}")
  assert done.returncode == 2
  assert "'--evn' is no flag" in done.stderr
  assert SECRET[:8] not in done.stderr


def test_a_programs_error_does_not_show_a_value(launcher, capsys, monkeypatch):
  """gcloud repeats the command that failed."""
  monkeypatch.setattr(launcher.shell, "_SECRETS", [f"HF_TOKEN={SECRET}", "N=1"])
  launcher.shell.say(
    f"ssh fails: Command 'env HF_TOKEN={SECRET} N=1' 11 {SECRET}"
  )
  said = capsys.readouterr().err
  hidden = "HF_TOKEN=(hidden) N=(hidden)' 11 (hidden)"
  assert said == f"launch: ssh fails: Command 'env {hidden}\n"


def test_values_in_a_manifest_are_texts(new_cloud):
  """YAML reads no, 1e3 and the like as something else."""
  done = dry_run(new_cloud(), *GKE, "--service_account=no", "--namespace=1e3")
  *_, jobset = yaml.safe_load_all(done.stdout)
  [replicated] = jobset["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  assert pod["serviceAccountName"] == "no"
  assert jobset["metadata"]["namespace"] == "1e3"
