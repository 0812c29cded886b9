from __future__ import annotations

from math import inf

from fxoffload.planner.linear_program import LinearProgram


def test_the_least_sum_meets_all_rows_and_ranges():
    program = LinearProgram()
    x, y, other = program.add_variable(), program.add_variable(1.0, 2.0), program.add_variable()
    program.require([(x, 1.0), (y, 1.0)], lower=5.0)
    program.require([(other, 1.0)], lower=7.0)
    assert program.minimise([x]) == 3.0
    assert program.minimise([y]) == 1.0
    assert program.minimise([x, y]) == 5.0


def test_factors_of_a_variable_that_occurs_twice_are_added():
    program = LinearProgram()
    x = program.add_variable()
    program.require([(x, 1.0), (x, 2.0)], lower=6.0, upper=9.0)
    assert program.minimise([x]) == 2.0


def test_nothing_meets_rows_that_exclude_each_other():
    program = LinearProgram()
    x = program.add_variable(upper=1.0)
    program.require([(x, 1.0)], lower=2.0)
    assert program.minimise([x]) == inf


def test_a_program_may_have_no_rows(capfd):
    program = LinearProgram()
    x = program.add_variable(0.5)
    assert program.minimise([x]) == 0.5
    assert capfd.readouterr().out == ""
