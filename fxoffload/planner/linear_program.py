"""Linear programs: variables, rows between bounds, and the least value of a sum, found by HiGHS."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import highspy
import numpy as np

# A variable, by its index, and its factor.
Term = tuple[int, float]


class LinearProgram:
    """Variables, and rows: sums of terms; each between a lower and an upper bound."""

    def __init__(self) -> None:
        self._ranges: list[tuple[float, float]] = []
        self._bounds: list[tuple[float, float]] = []
        self._starts = [0]
        self._columns: list[int] = []
        self._factors: list[float] = []

    def add_variable(self, lower: float = 0.0, upper: float = inf) -> int:
        """A variable between the bounds; returns its index."""
        self._ranges.append((lower, upper))
        return len(self._ranges) - 1

    def require(self, terms: Iterable[Term], lower: float = -inf, upper: float = inf) -> None:
        """Keep the sum of `terms` between the bounds; a variable may occur more than once."""
        sums: dict[int, float] = {}
        for variable, factor in terms:
            sums[variable] = sums.get(variable, 0.0) + factor
        self._columns += sums
        self._factors += sums.values()
        self._starts.append(len(self._columns))
        self._bounds.append((lower, upper))

    def minimise(self, variables: Iterable[int]) -> float:
        """The least sum of `variables`; `inf` where nothing meets all rows.

        Exact up to the tolerances of HiGHS, 1e-7 of a row and of a reduced cost. Source:
        https://highs.dev; Huangfu and Hall, arXiv 1503.01889.
        """
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.passModel(self._write(list(variables)))
        solver.run()
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return inf
        assert status == highspy.HighsModelStatus.kOptimal, solver.modelStatusToString(status)
        return solver.getInfo().objective_function_value

    def _write(self, minimised: list[int]) -> highspy.HighsLp:
        costs = np.zeros(len(self._ranges))
        costs[minimised] = 1.0
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(self._ranges), len(self._bounds)
        program.col_cost_ = costs
        program.col_lower_, program.col_upper_ = np.array(self._ranges).reshape(-1, 2).T.copy()
        program.row_lower_, program.row_upper_ = np.array(self._bounds).reshape(-1, 2).T.copy()
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.array(self._starts)
        program.a_matrix_.index_ = np.array(self._columns)
        program.a_matrix_.value_ = np.array(self._factors)
        return program
