"""Tests that a program's compiled text gives the bytes of its operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffdistill.planning.hlo import read_program

# This program has a loop that runs three times around an all-gather; a slice
# and an update in place inside fusions; an operand in on-chip memory; and a
# loop of unknown length.
TEXT = """HloModule jit_f, is_scheduled=true

%sliced (p0: f32[64,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[64,256]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,256]{1,0} dynamic-slice(%p0, %p1, %zero)
}

%updated (q0: f32[64,256], q1: f32[1,256], q2: s32[]) -> f32[64,256] {
  %q0 = f32[64,256]{1,0} parameter(0)
  %q1 = f32[1,256]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %update = f32[64,256]{1,0} dynamic-update-slice(%q0, %q1, %q2, %zero.1)
}

%body (state: (s32[], bf16[8,256])) -> (s32[], bf16[8,256]) {
  %state = (s32[], bf16[8,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,256]{1,0} get-tuple-element(%state), index=1
  %gathered = bf16[64,256]{1,0} all-gather(%x), \
replica_groups=[2,8]<=[16], dimensions={0}
  ROOT %next = (s32[], bf16[8,256]{1,0}) tuple(%i, %x)
}

%condition (state.1: (s32[], bf16[8,256])) -> pred[] {
  %state.1 = (s32[], bf16[8,256]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[64,256], b: bf16[8,256], n: s32[]) -> f32[64,256] {
  %a = f32[64,256]{1,0} parameter(0)
  %b = bf16[8,256]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %near = f32[64,256]{1,0:T(8,128)S(1)} copy(%a)
  %part = f32[2,256]{1,0} slice(%a), slice={[0:2], [0:256]}
  %row = f32[1,256]{1,0} fusion(%a, %n), kind=kLoop, calls=%sliced
  %start = (s32[], bf16[8,256]{1,0}) tuple(%n, %b)
  %loop = (s32[], bf16[8,256]{1,0}) while(%start), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %reduced = f32[1,256]{1,0} all-reduce(%row), \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %out = f32[64,256]{1,0} fusion(%a, %reduced, %n), \
kind=kLoop, calls=%updated
}
"""


def test_a_collective_in_a_loop_counts_once_for_each_turn():
  found = read_program(TEXT, num_devices=16).collectives
  assert set(found) == {"all-gather", "all-reduce"}
  gathered = 3 * 64 * 256 * 2
  assert found["all-gather"].count == 3
  assert found["all-gather"].bytes == gathered
  # In a group of eight chips, each chip sends seven eighths of the bytes.
  assert found["all-gather"].sent == gathered * 7 / 8
  assert found["all-reduce"].sent == 2 * 256 * 4 * 3 / 4


def test_traffic_counts_slices_and_only_the_main_memory():
  row, large, index = 256 * 4, 64 * 256 * 4, 4
  expected = (
    large  # copying to on-chip memory reads all rows
    + 2 * 2 * row  # reading and writing two rows
    + (row + index + row)  # reading and writing a slice
    + 3 * (8 + 64) * 256 * 2  # the all-gather, three times
    + 2 * row  # the all-reduce
    + (row + index + row)  # updating a row in place, and reading its index
  )
  assert read_program(TEXT, num_devices=16).traffic == expected


def test_a_fusion_that_updates_two_arrays_counts_what_it_writes():
  text = """HloModule m

%both (p: f32[64,256], q: f32[64,256], r: f32[1,256], n: s32[]) -> \
(f32[64,256], f32[64,256], f32[1,256]) {
  %p = f32[64,256]{1,0} parameter(0)
  %q = f32[64,256]{1,0} parameter(1)
  %r = f32[1,256]{1,0} parameter(2)
  %n = s32[] parameter(3)
  %zero = s32[] constant(0)
  %one = f32[64,256]{1,0} dynamic-update-slice(%p, %r, %n, %zero)
  %two = f32[64,256]{1,0} dynamic-update-slice(%q, %r, %n, %zero)
  %same = f32[64,256]{1,0} bitcast(%two)
  %twice = f32[1,256]{1,0} add(%r, %r)
  ROOT %all = (f32[64,256]{1,0}, f32[64,256]{1,0}, f32[1,256]{1,0}) \
tuple(%one, %same, %twice)
}

ENTRY %main (a: f32[64,256], b: f32[64,256], c: f32[1,256], i: s32[]) -> \
(f32[64,256], f32[64,256], f32[1,256]) {
  %a = f32[64,256]{1,0} parameter(0)
  %b = f32[64,256]{1,0} parameter(1)
  %c = f32[1,256]{1,0} parameter(2)
  %i = s32[] parameter(3)
  ROOT %out = (f32[64,256]{1,0}, f32[64,256]{1,0}, f32[1,256]{1,0}) \
fusion(%a, %b, %c, %i), kind=kLoop, calls=%both
}
"""
  row, index = 256 * 4, 4
  # It reads a row and an index, and writes a row three times.
  assert read_program(text, num_devices=1).traffic == row + index + 3 * row


def test_a_slice_in_a_fusion_of_a_fusion_counts_what_it_reads():
  text = """HloModule m

%inner (x: f32[64,256], k: s32[]) -> f32[1,256] {
  %k = s32[] parameter(1)
  %x = f32[64,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,256]{1,0} dynamic-slice(%x, %k, %zero)
}

%outer (p: s32[], q: f32[64,256]) -> f32[1,256] {
  %p = s32[] parameter(0)
  %q = f32[64,256]{1,0} parameter(1)
  ROOT %again = f32[1,256]{1,0} fusion(%q, %p), kind=kLoop, calls=%inner
}

ENTRY %main (i: s32[], a: f32[64,256]) -> f32[1,256] {
  %i = s32[] parameter(0)
  %a = f32[64,256]{1,0} parameter(1)
  ROOT %out = f32[1,256]{1,0} fusion(%i, %a), kind=kLoop, calls=%outer
}
"""
  row, index = 256 * 4, 4
  assert read_program(text, num_devices=1).traffic == row + index + row


def test_a_loop_of_unknown_length_counts_once():
  text = TEXT.replace("known_trip_count", "unknown")
  found = read_program(text, num_devices=16).collectives
  assert found["all-gather"].count == 1


@pytest.mark.parametrize(("direction", "turns"), [("LT", 5), ("GT", 1)])
def test_the_turns_of_a_scan_follow_from_its_condition(direction, turns):
  text = TEXT.replace("known_trip_count", "unknown").replace(
    "  ROOT %less = pred[] constant(true)",
    """  %count = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%count, %limit), direction="""
    + direction,
  )
  found = read_program(text, num_devices=16).collectives
  assert found["all-gather"].count == turns


def test_a_collective_that_is_split_over_fusions_counts_once():
  step = """%step.{n} (m: bf16[2,8], n: bf16[8,8]) -> (f32[4], bf16[8,8]) {{
  %m = bf16[2,8]{{1,0}} parameter(0)
  %n = bf16[8,8]{{1,0}} parameter(1)
  %one = f32[4]{{0}} constant(1)
  %part = bf16[8,8]{{1,0}} all-gather(%m), channel_id=7, \
replica_groups=mesh['a'=2,'b'=4] {{'b'}}, dimensions={{0}}
  ROOT %both = (f32[4]{{0}}, bf16[8,8]{{1,0}}) tuple(%one, %part)
}}
"""
  text = (
    "\n".join(step.format(n=n) for n in range(3))
    + """
ENTRY %main (x: bf16[2,8], y: bf16[8,8]) -> bf16[8,8] {
  %x = bf16[2,8]{1,0} parameter(0)
  %y = bf16[8,8]{1,0} parameter(1)
"""
    + "".join(
      f"  %s{n} = (f32[4]{{0}}, bf16[8,8]{{1,0}}) fusion(%x, %y), "
      f"kind=kCustom, calls=%step.{n}\n"
      for n in range(3)
    )
    + "  ROOT %z = bf16[8,8]{1,0} get-tuple-element(%s2), index=1\n}\n"
  )
  found = read_program(text, num_devices=8)
  assert found.collectives["all-gather"].count == 1
  assert found.collectives["all-gather"].sent == 8 * 8 * 2 * 3 / 4
  assert found.traffic == (2 * 8 + 8 * 8) * 2 + 3 * 4 * 4


def test_each_reduce_scatter_counts_though_all_share_a_channel():
  text = """%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
"""
  for n in range(2):
    text += f"""%all-reduce-scatter.{n} (p: f32[8]) -> f32[2] {{
  %p = f32[8]{{0}} parameter(0)
  %zero = s32[] constant(0)
  %r = f32[8]{{0}} all-reduce(%p), channel_id=1, \
replica_groups={{{{0,1,2,3}}}}, to_apply=%sum
  ROOT %own = f32[2]{{0}} dynamic-slice(%r, %zero), dynamic_slice_sizes={{2}}
}}
"""
  text += """
ENTRY %main (x: f32[8]) -> f32[2] {
  %x = f32[8]{0} parameter(0)
  %s0 = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.0
  ROOT %s1 = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  found = read_program(text, num_devices=4).collectives
  assert found.keys() == {"reduce-scatter"}
  assert found["reduce-scatter"].count == 2
  assert found["reduce-scatter"].sent == 2 * 8 * 4 * 3 / 4


def test_messages_of_a_real_program_have_the_expected_bytes(mesh_of):
  mesh = mesh_of(8)
  rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  whole = NamedSharding(mesh, PartitionSpec())

  def gradient(w, x):
    return jax.grad(lambda w: jnp.sum(jnp.square(x @ w)))(w)

  text = (
    jax.jit(gradient, in_shardings=(whole, rows), out_shardings=whole)
    .lower(np.zeros((32, 16), np.float32), np.zeros((64, 32), np.float32))
    .compile()
    .as_text()
  )
  found = read_program(text, num_devices=8).collectives
  assert set(found) == {"all-reduce"}
  assert found["all-reduce"].bytes == 32 * 16 * 4
  assert found["all-reduce"].sent == pytest.approx(2 * 7 / 8 * 32 * 16 * 4)


def test_a_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    read_program("nothing", num_devices=1)
