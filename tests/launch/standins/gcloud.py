"""gcloud compute tpus queued-resources, and gcloud storage ls."""

import json
import os
import sys

from simulated import SIM, end_processes, fail, fault, record, state

# The reference of `gcloud compute tpus queued-resources`, as far as is used.
EVERY = {"project", "zone", "quiet"}
HOSTS = {"node", "worker", "batch-size"}
FLAGS = {
  "create": {
    "node-id",
    "node-count",
    "node-prefix",
    "accelerator-type",
    "runtime-version",
    "spot",
    "reserved",
  },
  "describe": {"format"},
  "delete": {"force"},
  "ssh": {"command", "ssh-flag"} | HOSTS,
  "scp": HOSTS,
}
DELETED = "NOT_FOUND: Resource was not found."


def host_names(s):
  return [
    f"s{node}-w{worker}"
    for node in range(s["slices"])
    for worker in range(s["hosts"])
  ]


def storage(path):
  folder = f"{SIM}/" + path.removesuffix("/**").removeprefix("gs://")
  files = [f"{at}/{name}" for at, _, names in os.walk(folder) for name in names]
  if not files:
    fail("ERROR: One or more URLs matched no objects.")
  print("\n".join(f"gs:/{path.removeprefix(SIM)}" for path in files))


def create(name, flags):
  with state() as s:
    if s.get("resource"):
      fail(f"ALREADY_EXISTS: Resource {name} already exists")
    count = int(flags.get("node-count", 1))
    assert ("node-id" in flags) == (count == 1), flags
    s["slices"] = count
    s["resource"] = {
      "name": name,
      "accelerator": flags["accelerator-type"],
      "states": s.get("grants", [["ACTIVE"]]).pop(0)
      if s.get("grants")
      else ["ACTIVE"],
    }
    s["created"] = s.get("created", 0) + 1
    for host in host_names(s):
      home = f"{SIM}/hosts/{host}"
      # Processes of an earlier host of that name may still write to theirs.
      if os.path.exists(home):
        os.rename(home, f"{home}.{s['created']}")
      os.makedirs(home)


def describe(name):
  with state() as s:
    resource = s.get("resource")
    if not resource:
      fail(DELETED)
    states = resource["states"]
    now = states[0]
    if len(states) > 1:
      states.pop(0)
  node = {"node": {"acceleratorType": resource["accelerator"]}}
  print(
    json.dumps(
      {
        "name": name,
        "state": {"state": now, "failedData": {"error": {"message": "no luck"}}}
        if now == "FAILED"
        else {"state": now},
        "tpu": {"nodeSpec": [node] * s["slices"]},
      }
    )
  )


def delete(flags):
  with state() as s:
    if not s.get("resource"):
      fail(DELETED)
    if s["resource"]["states"][0] == "ACTIVE" and "force" not in flags:
      fail("FAILED_PRECONDITION: still has nodes")
    for host in host_names(s):
      end_processes(host)
    s["resource"] = None


def reachable():
  with state() as s:
    resource = s.get("resource")
    return bool(resource) and resource["states"][0] == "ACTIVE", s


def on_hosts(verb, flags, arguments):
  """Does it on every host that is asked, all at once; the worst status."""
  import subprocess

  active, s = reachable()
  if not active:
    fail("ERROR: TPU is in state PREEMPTED and cannot be used")
  hosts = host_names(s)
  if flags["node"] == "all" and flags["worker"] == "all":
    assert flags["batch-size"] == str(len(hosts)), "some would come later"
  else:
    hosts = hosts[:1]
  statuses, processes = [], []
  for host in hosts:
    broken = fault(verb, host, *arguments, flags.get("command", ""))
    if broken:
      print(f"ssh: connect to {host}: timed out", file=sys.stderr)
      # A slice that cannot be prepared is left out, and gcloud succeeds.
      statuses.append(broken.get("status", 255))
      continue
    home = f"{SIM}/hosts/{host}"
    if verb == "scp":
      for path in arguments:
        with (
          open(path, "rb") as file,
          open(f"{home}/{os.path.basename(path)}", "wb") as copy,
        ):
          copy.write(file.read())
      continue
    environment = {**os.environ, "HOME": home, "SIM_HOST": host}
    processes.append(
      subprocess.Popen(
        ["bash", "-c", flags["command"]], cwd=home, env=environment
      )
    )
  statuses += [process.wait() for process in processes]
  # A connection does not outlive its host.
  return max(statuses, default=0) if reachable()[0] else 255


def main():
  record()
  arguments = sys.argv[1:]
  broken = fault(*arguments) if "--command" not in " ".join(arguments) else None
  if broken:
    fail(broken["error"], broken.get("status", 1))
  if arguments[:2] == ["storage", "ls"]:
    return storage(arguments[2])
  assert arguments[:3] == ["compute", "tpus", "queued-resources"], arguments
  verb, *rest = arguments[3:]
  flags = {}
  for flag in (word for word in rest if word.startswith("--")):
    name, _, value = flag.removeprefix("--").partition("=")
    assert name in EVERY | FLAGS[verb], flag
    flags[name] = value
  assert flags["project"] == "mine"
  words = [word for word in rest if not word.startswith("--")]
  if verb == "create":
    return create(words[0], flags)
  if verb == "describe":
    return describe(words[0])
  if verb == "delete":
    return delete(flags)
  if verb == "scp":
    assert words[-1].endswith(":"), words
    return on_hosts(verb, flags, words[:-1])
  return on_hosts(verb, flags, [])


if __name__ == "__main__":
  sys.exit(main())
