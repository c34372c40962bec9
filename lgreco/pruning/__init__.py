"""Gradual pruning for DistributedDataParallel, whose masks also shrink the traffic.

    pruner = Pruner(model, optimizer, CubicSchedule(0.0, 0.9, begin=100, end=900, every=50))
    pruner.attach(state)                # optional: pruned weights send nothing
    ...
    optimizer.step()
    pruner.step()

A pruner is a criterion (which weights matter) x a structure (what is pruned together) x an allocation (how much of each
layer) x a schedule (when), and one exact selection.
"""

from lgreco.pruning.allocation import Allocation, Erk, Global, Solver, Uniform, default_levels
from lgreco.pruning.candidate import Candidate
from lgreco.pruning.criteria import Criterion, Magnitude, Movement, Random, Taylor
from lgreco.pruning.evolution import Evolution
from lgreco.pruning.obert import OBert
from lgreco.pruning.pruner import Pruner
from lgreco.pruning.regrowth import Regrowth
from lgreco.pruning.report import Change, LayerSparsity, PruningReport
from lgreco.pruning.schedule import (
    ConstantSchedule,
    CubicSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    Schedule,
    mean_density,
)
from lgreco.pruning.selection import keep_largest
from lgreco.pruning.structure import Blocks, Columns, NofM, Rows, Structure, Unstructured, parse_structure

__all__ = [
    "Allocation",
    "Blocks",
    "Candidate",
    "Change",
    "Columns",
    "ConstantSchedule",
    "Criterion",
    "CubicSchedule",
    "CyclicSchedule",
    "Erk",
    "Evolution",
    "ExponentialSchedule",
    "Global",
    "LayerSparsity",
    "LinearSchedule",
    "Magnitude",
    "Movement",
    "NofM",
    "OBert",
    "OneShotSchedule",
    "PolynomialSchedule",
    "Pruner",
    "PruningReport",
    "Random",
    "Regrowth",
    "Rows",
    "Schedule",
    "Solver",
    "Structure",
    "Taylor",
    "Uniform",
    "Unstructured",
    "default_levels",
    "keep_largest",
    "mean_density",
    "parse_structure",
]
