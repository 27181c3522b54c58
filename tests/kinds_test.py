import pytest

from diffdistill.data import SOURCES
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.objectives import OBJECTIVES
from diffdistill.sampling import SAMPLERS


@pytest.mark.parametrize(
  "kinds", [OBJECTIVES, NETWORKS, CLASSIFIERS, SAMPLERS, SOURCES]
)
def test_a_summary_is_the_first_line_of_the_class(kinds):
  for name, cls in kinds.items():
    assert cls.__module__.startswith(f"{kinds.room}.")
    assert kinds.summary(name) == cls.__doc__.splitlines()[0] != ""


def test_an_unknown_kind_is_no_kind():
  assert "nope" not in NETWORKS
  assert NETWORKS.get("nope") is None
  with pytest.raises(KeyError):
    NETWORKS["nope"]
