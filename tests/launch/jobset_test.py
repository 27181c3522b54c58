"""jobset.py prints a manifest that keeps the value of every flag."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
  "--name=moments",
  "--config=imagenet64:moment_matching",
  "--workdir=gs://bucket/run",
)
PACKAGE = "--package=git+https://github.com/OWNER/diffdistill@v0.1.0"
TPUS = (
  *("--tpu=tpu-v5-lite-podslice", "--topology=16x16", "--chips_per_host=4"),
  *("--slices=2", "--spot"),
)
GPUS = ("--gpu=nvidia-h100-80gb", "--hosts=4", "--chips_per_host=8")
SECRET = "hf_p4ssW0rd$(HOME)"


@pytest.fixture
def jobset(monkeypatch, capsys):
  """Runs jobset.py; returns its status, standard output and standard error."""
  monkeypatch.syspath_prepend(str(ROOT / "launch"))
  import jobset

  def run(*flags):
    monkeypatch.setattr(sys, "argv", ["jobset.py", *FLAGS, *flags])
    try:
      status = jobset.main()
    except SystemExit as ended:
      status = ended.code
    return (status, *capsys.readouterr())

  return run


@pytest.fixture
def objects(jobset):
  def make(*flags):
    status, printed, said = jobset(*flags)
    assert status == 0, said
    return {o["kind"]: o for o in yaml.safe_load_all(printed)}

  return make


def pod(found):
  [replicated] = found["JobSet"]["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]["template"]["spec"]


def script(found):
  [container] = pod(found)["containers"]
  return container["command"][-1]


def expanded(text, variables):
  """The text of a command after Kubernetes has expanded its variables."""

  def replace(match):
    return "$" if match[0] == "$$" else variables.get(match[1], match[0])

  return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


def test_a_manifest_for_tpu_slices_is_right(objects):
  found = objects(*TPUS, PACKAGE)
  assert set(found) == {"ConfigMap", "Role", "RoleBinding", "JobSet"}
  files = {
    name: (ROOT / place / name).read_text()
    for name, place in (("host.sh", "launch"), ("requirements.txt", "."))
  }
  assert found["ConfigMap"]["data"] == files
  [replicated] = found["JobSet"]["spec"]["replicatedJobs"]
  assert replicated["replicas"] == 2
  job = replicated["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 64
  assert pod(found)["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "16x16",
    "cloud.google.com/gke-spot": "true",
  }
  [container] = pod(found)["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert "'jax[tpu]'" in script(found)
  assert "--expect_devices=512 --multihost" in script(found)
  subprocess.run(["bash", "-n", "-c", script(found)], check=True)


def test_a_manifest_for_gpu_nodes_is_right(objects):
  found = objects(*GPUS, PACKAGE)
  assert found["JobSet"]["metadata"]["annotations"] == {}
  [container] = pod(found)["containers"]
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  assert "'jax[cuda12,k8s]'" in script(found)
  assert "--expect_devices=32 --multihost" in script(found)


def test_one_host_trains_alone_in_a_prepared_image(objects):
  one = ("--tpu=tpu-v6e-slice", "--topology=2x4", "--chips_per_host=8")
  found = objects(*one, "--image=mine", "--config.seed=1")
  [container] = pod(found)["containers"]
  assert container["image"] == "mine"
  assert script(found) == (
    "exec bash /launch/host.sh run diffdistill train"
    " --config=imagenet64:moment_matching"
    " --workdir=gs://bucket/run --config.seed=1 --expect_devices=8"
  )


def test_a_refused_training_is_not_restarted(objects):
  spec = objects(*TPUS)["JobSet"]["spec"]
  assert spec["failurePolicy"]["maxRestarts"] == 100
  assert spec["failurePolicy"]["rules"] == [
    {
      "name": "refused",
      "action": "FailJobSet",
      "onJobFailureReasons": ["PodFailurePolicy"],
    }
  ]
  [rule] = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"][
    "rules"
  ]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"]["values"] == [1, 2]


@pytest.mark.parametrize(
  "value", ["$(HOSTNAME)", "$$(HOSTNAME)", "$$", "a$b", "$", "it's", 'a"b\\']
)
def test_a_flag_s_value_stays_one_word(objects, value):
  found = objects(*TPUS, f"--config.x={value}", f"--env=A={value}")
  words = expanded(script(found), {"HOSTNAME": "pod-0"})
  echo = words.replace("exec bash /launch/host.sh run", "printf '%s\\n'")
  done = subprocess.run(
    ["bash", "-c", echo], capture_output=True, text=True, check=True
  )
  assert f"--config.x={value}" in done.stdout.splitlines()
  [variable] = pod(found)["containers"][0]["env"]
  assert expanded(variable["value"], {"HOSTNAME": "pod-0"}) == value


def test_values_in_a_manifest_are_strings(objects):
  """YAML would read words such as no and 1e3 as other types."""
  found = objects(*TPUS, "--service_account=no", "--namespace=1e3")
  assert pod(found)["serviceAccountName"] == "no"
  assert found["JobSet"]["metadata"]["namespace"] == "1e3"
  assert found["RoleBinding"]["subjects"][0]["namespace"] == "1e3"


def test_the_manifest_has_the_environment_variables(objects):
  found = objects(*GPUS, f"--env=HF_TOKEN={SECRET}")
  driver, token = pod(found)["containers"][0]["env"]
  assert driver["name"] == "LD_LIBRARY_PATH"
  assert expanded(token["value"], {"HOME": "/"}) == SECRET
  assert SECRET[:8] not in json.dumps(found["ConfigMap"])


@pytest.mark.parametrize(
  "flag",
  [
    "--name=Moments",
    "--namespace=default\nrm -rf /",
    "--namespace=Default",
    "--namespace=-a",
    f"--namespace={'a' * 64}",
    "--service_account=a b",
    "--image=mine\n- name: other",
    "--image=$(IMAGE)",
    "--extras=tfds]; rm",
    "--config=configs/a.py\n# b",
    "--topology=16",
    "--workdir=/shared/run",
    "--package=dist/diffdistill-0.1.0-py3-none-any.whl",
    "--package=git+https://github.com/OWNER/diffdistill",
    "--slices=0",
    "--max_restarts=-1",
    "--chips_per_host=3",
    "--gpu=nvidia-l4",
  ],
)
def test_flags_that_would_break_the_manifest_are_refused(jobset, flag):
  status, printed, said = jobset(*TPUS, flag)
  assert (status, printed) == (1, "")
  [line] = said.splitlines()
  assert re.match(r"jobset\.py: --\w+ is ", line)
  assert flag.partition("=")[0] in line


@pytest.mark.parametrize(
  "pair", [SECRET, f"1A={SECRET}", f"A B={SECRET}", f"A=\n{SECRET}"]
)
@pytest.mark.parametrize("flag", ["--env", "--evn"])
def test_a_refused_variable_is_not_printed(jobset, flag, pair):
  status, printed, said = jobset(*TPUS, f"{flag}={pair}")
  assert (status, printed) == (1, "")
  assert SECRET[:8] not in said
  assert len(said.splitlines()) == 1


def test_a_missing_flag_is_refused_in_one_line(jobset):
  status, printed, said = jobset("--tpu=tpu-v6e-slice", "--topology=2x4")
  assert (status, printed) == (2, "")
  assert len(said.splitlines()) == 1
  assert "--chips_per_host" in said
