"""jobset.py prints a manifest that keeps the value of every flag."""

import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
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
# The version of the schemas; newer versions accept the same fields.
KUBERNETES = "1.34"


@pytest.fixture
def admissions(monkeypatch):
  """Records the questions of jobset.py to admit.py, and admits everything."""
  monkeypatch.syspath_prepend(str(ROOT / "launch"))
  import admit

  asked = []
  monkeypatch.setattr(
    admit, "admitted", lambda chips, words: not asked.append((chips, words))
  )
  return asked


@pytest.fixture
def jobset(admissions, monkeypatch, capsys):
  """Runs jobset.py; returns its status, standard output and standard error."""
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
  assert "'jax[cuda13,k8s]'" in script(found)
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
  found = objects(*GPUS, "--env=A=b$(HOME)", "--secret=WANDB_API_KEY=wandb/key")
  driver, given, secret = pod(found)["containers"][0]["env"]
  assert driver["name"] == "LD_LIBRARY_PATH"
  assert expanded(given["value"], {"HOME": "/"}) == "b$(HOME)"
  assert secret == {
    "name": "WANDB_API_KEY",
    "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}},
  }


@pytest.mark.parametrize(
  "name", ["WANDB_API_KEY", "HF_TOKEN", "db_password", "A_SECRET"]
)
def test_a_secret_is_refused_in_a_variable(jobset, name):
  status, printed, said = jobset(*TPUS, f"--env={name}={SECRET}")
  assert (status, printed) == (1, "")
  assert SECRET[:8] not in said
  assert f"pass --secret={name}=SECRET/KEY" in said


@pytest.mark.parametrize("value", ["A", "A=b", f"A={SECRET}", "A=b/c/d"])
def test_a_secret_that_is_no_reference_is_refused(jobset, value):
  status, printed, said = jobset(*TPUS, f"--secret={value}")
  assert (status, printed) == (1, "")
  assert SECRET[:8] not in said


def job_of(found):
  """The JobSet's job as an object of its own."""
  [replicated] = found["JobSet"]["spec"]["replicatedJobs"]
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
  return {**job, "spec": replicated["template"]["spec"]}


MANY = (
  TPUS,
  ("--tpu=tpu7x", "--topology=4x4x4", "--chips_per_host=4"),
  GPUS,
  ("--gpu=nvidia-h200-141gb", "--hosts=2", "--chips_per_host=8", "--spot"),
)


@pytest.mark.parametrize("flags", MANY, ids=lambda flags: flags[0])
def test_a_manifest_follows_the_schemas_of_kubernetes(objects, flags):
  more = ("--env=A=1", "--secret=B=c/d", PACKAGE)
  found = objects(*flags, *more)
  for kind in ("ConfigMap", "Role", "RoleBinding"):
    kubernetes_validate.validate(found[kind], KUBERNETES, strict=True)
  kubernetes_validate.validate(job_of(found), KUBERNETES, strict=True)
  subprocess.run(["bash", "-n", "-c", script(found)], check=True)


def test_the_schemas_refuse_a_misspelt_field(objects):
  job = job_of(objects(*TPUS))
  job["spec"]["template"]["spec"]["containers"][0]["imag"] = "mine"
  with pytest.raises(kubernetes_validate.ValidationError, match="imag"):
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


@pytest.mark.parametrize("flags", MANY, ids=lambda flags: flags[0])
def test_each_mount_has_a_volume_and_processes_share_memory(objects, flags):
  spec = pod(objects(*flags))
  volumes = {volume["name"]: volume for volume in spec["volumes"]}
  assert len(volumes) == len(spec["volumes"])
  [container] = spec["containers"]
  assert {m["name"] for m in container["volumeMounts"]} == set(volumes)
  places = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
  assert volumes[places["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}


def test_a_chip_of_tpu7x_is_two_devices(objects, admissions):
  found = objects(*MANY[1], PACKAGE)
  assert job_of(found)["spec"]["completions"] == 16
  assert pod(found)["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu7x",
    "cloud.google.com/gke-tpu-topology": "4x4x4",
  }
  assert "--expect_devices=128 --multihost" in script(found)
  [(chips, words)] = admissions
  assert chips == "tpu7x"
  assert "--expect_devices=128" in words


def networks(found):
  template = job_of(found)["spec"]["template"]
  faces = template["metadata"]["annotations"].get(
    "networking.gke.io/interfaces", "[]"
  )
  return [face["network"] for face in json.loads(faces)]


def test_gpus_of_several_hosts_get_their_fast_network(objects):
  found = objects(*MANY[3], PACKAGE)
  assert networks(found) == ["default", *(f"rdma-{i}" for i in range(8))]
  assert script(found).startswith(
    "source /usr/local/gib/scripts/set_nccl_env.sh; bash /launch/host.sh"
  )


def test_a_slow_network_between_gpus_is_said(jobset, objects):
  _, _, said = jobset(*GPUS)
  assert "--network is none for --gpu=nvidia-h100-80gb" in said
  assert networks(objects(*GPUS, "--network=rdma"))[-1] == "rdma-7"
  assert networks(objects(*MANY[3], "--network=none")) == []
  one = ("--gpu=nvidia-h200-141gb", "--chips_per_host=8")
  status, _, said = jobset(*one)
  assert (status, said) == (0, "")
  assert networks(objects(*one)) == []


def test_the_config_is_checked_before_anything_is_printed(
  jobset, admissions, monkeypatch
):
  jobset(*TPUS, "--config.seed=1")
  [(chips, words)] = admissions
  assert chips == "tpu-v5-lite-podslice"
  assert words == [
    *FLAGS[1:],
    *("--config.seed=1", "--expect_devices=512", "--multihost"),
  ]
  import admit

  monkeypatch.setattr(admit, "admitted", lambda chips, words: False)
  assert jobset(*TPUS) == (1, "", "")


def test_a_config_of_the_user_is_copied_to_the_hosts(
  objects, admissions, tmp_path
):
  own = tmp_path / "my.py"
  own.write_text("def get_config(): ...")
  found = objects(*TPUS, f"--config={own}:fast", PACKAGE)
  assert found["ConfigMap"]["data"]["my.py"] == own.read_text()
  assert "--config=/launch/my.py:fast " in script(found)
  [(_, words)] = admissions
  assert words[0] == f"--config={own}:fast"


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
    "--network=rdma",
    "--network=tcpx",
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
