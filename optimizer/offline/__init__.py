"""Offline instances: `solve` gives a schedule that was executed and checked, and says how far from optimal it can be."""

from optimizer.offline.result import Progress as Progress
from optimizer.offline.result import Result as Result
from optimizer.offline.solve import solve as solve
