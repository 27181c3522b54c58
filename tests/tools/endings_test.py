"""The lines about a finished run name its rounds and the next commands."""

from etils import epath

from diffdistill.tools.endings import already, ending, named


def test_the_rounds_of_a_stage_are_named_from_first_to_last():
  rounds = ["classifier", "teacher", "halve/064", "halve/032", "halve/001"]
  assert named(rounds) == "classifier, teacher, halve/064 to 001"
  assert named(["moments/008"]) == "moments/008"


def test_finished_rounds_are_named():
  rounds = {"teacher": True, "halve/002": True, "halve/001": False}
  assert already(rounds) == "finished already: teacher, halve/002"
  rounds["halve/001"] = True
  assert already(rounds) == "finished already, so nothing is trained"


def test_the_next_command_has_a_quoted_path():
  line = ending(epath.Path("my runs"), ["teacher"], judged=True)
  assert line == (
    "my runs holds teacher; next: `diffdistill evaluate --workdir='my runs'`,"
    " or sample, report, export"
  )


def test_evaluate_is_not_suggested_if_no_network_can_judge():
  line = ending(epath.Path("runs/own"), ["teacher"], judged=False)
  assert line == (
    "runs/own holds teacher; next: `diffdistill sample --workdir=runs/own`,"
    " or report, export"
  )
