"""The measured speed of a device, against what the compiler counts."""

import pytest

from diffdistill.run import speed


@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
def test_the_timed_work_has_the_operations_that_it_states(kind):
  gradient, args, operations = speed.timed_work(kind)
  counted = gradient.lower(*args).cost_analysis()["flops"]
  # The borders of an image need fewer products, and swish needs a few more.
  assert counted == pytest.approx(operations, rel=0.15)


def test_a_device_that_takes_twice_the_time_has_half_the_speed(monkeypatch):
  def measured(seconds):
    clock = iter(range(1000))
    monkeypatch.setattr(speed, "SECONDS", 10 * seconds)
    monkeypatch.setattr(speed.time, "monotonic", lambda: seconds * next(clock))
    monkeypatch.setattr(
      speed, "timed_work", lambda kind: (lambda x: x, (1.0,), 600)
    )
    return speed.measured_speed()

  assert measured(1.0) == pytest.approx(2 * measured(2.0))
