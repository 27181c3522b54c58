"""kubectl, and the controllers that JobSets need, for one JobSet."""

import json
import sys

from simulated import append, fail, fault, record, state


def policies(jobset):
  """The exit codes that fail the JobSet, by its manifest, and its restarts."""
  spec = jobset["spec"]
  [rule] = spec["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  [replicated] = spec["replicatedJobs"]
  job = replicated["template"]["spec"]
  # One pod that fails otherwise fails its job, and that restarts all.
  assert job["backoffLimit"] == 0
  assert job["template"]["spec"]["restartPolicy"] == "Never"
  [pod_rule] = job["podFailurePolicy"]["rules"]
  assert pod_rule["action"] == "FailJob"
  codes = pod_rule["onExitCodes"]
  assert codes["operator"] == "In"
  return codes["values"], spec["failurePolicy"]["maxRestarts"]


def advance(s):
  """What has become of the JobSet since it was last looked at."""
  jobset = s["jobset"]
  status = jobset.setdefault("status", {"restarts": 0})
  if status.get("conditions"):
    return
  fatal, restarts = policies(jobset)
  turn = s["turn"] = s.get("turn", -1) + 1
  code = s["plan"][min(turn, len(s["plan"]) - 1)]
  if code == "running":
    return
  condition = {"status": "True"}
  if code == 0:
    append("finished.jsonl", "done")
    condition["type"] = "Completed"
  elif code in fatal:
    condition["type"] = "Failed"
    condition["reason"] = "FailJobSetFailurePolicyAction"
    condition["message"] = "jobset failed due to FailJobSet failure policy"
  elif status["restarts"] < restarts:
    status["restarts"] += 1
    return
  else:
    condition["type"] = "Failed"
    condition["reason"] = "ReachedMaxRestarts"
    condition["message"] = "jobset failed due to reaching max restarts"
  status["conditions"] = [condition]


def main():
  record()
  verb, *words = sys.argv[1:]
  broken = fault(*sys.argv[1:])
  if broken:
    fail(broken["error"])
  assert "--namespace=default" in words
  with state() as s:
    if verb == "apply":
      # YAML is not to be had here: the test gives what it has read of it.
      sys.stdin.read()
      s["jobset"] = s["manifest"]
    elif verb == "get" and s.get("jobset"):
      advance(s)
      print(json.dumps(s["jobset"]))
    elif verb == "delete":
      sys.stdin.read()
      s["jobset"] = None
    elif verb == "logs":
      print("halve/064: goes on from update 5")
      print("diffdistill: batch_size is 7; pass a multiple of 8")


if __name__ == "__main__":
  main()
