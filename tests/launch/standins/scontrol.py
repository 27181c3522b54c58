"""scontrol requeue JOB and scontrol show job JOB."""

import sys

from simulated import fail, record, state


def main():
  record()
  with state() as s:
    if sys.argv[1:] == ["requeue", "7"]:
      s["requeued"] = s.get("requeued", 0) + 1
    elif sys.argv[1:] == ["show", "job", "7"]:
      print(
        f"JobId=7 JobName=diffdistill\n   JobState={s['job_state']} Reason="
      )
    else:
      fail("scontrol: bad usage")


if __name__ == "__main__":
  main()
