"""Counts the floating-point operations of a function in its jaxpr.

Only matrix products and convolutions count, because a chip's peak speed counts
only these. The body of a `scan` counts as often as it runs; the body of a
`while_loop`, such as a sampler's, counts once.
"""

import math
from collections.abc import Iterator
from typing import Any


def count_flops(jaxpr: Any) -> float:
  """Returns the floating-point operations of one run, over all devices.

  A multiplication with its addition counts as two. The padding of a convolution
  counts like data; the zeros of a transposed stride do not count.

  Args:
    jaxpr: the result of `jax.make_jaxpr`, or the jaxpr of a traced function.
  """
  return _of_jaxpr(jaxpr.jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "dot_general":
      total += _of_product(equation)
    elif name == "conv_general_dilated":
      total += _of_convolution(equation)
    elif name == "cond":
      total += max(map(_of_jaxpr, _inside(equation)), default=0.0)
    else:
      times = equation.params["length"] if name == "scan" else 1
      total += times * sum(map(_of_jaxpr, _inside(equation)))
  return total


def _inside(equation: Any) -> Iterator[Any]:
  """Yields the jaxprs that an equation contains and runs."""
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      closed = getattr(item, "jaxpr", item)
      if hasattr(closed, "eqns"):
        yield closed


def _of_product(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  inner = math.prod(shape[axis] for axis in contracted)
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner


def _of_convolution(equation: Any) -> float:
  # rhs_spec gives the kernel's axes: output features, input features, space.
  kernel = equation.params["dimension_numbers"].rhs_spec
  shape = equation.invars[1].aval.shape
  inner = math.prod(shape[axis] for axis in kernel[1:])
  zeros = math.prod(equation.params["lhs_dilation"])
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner / zeros
