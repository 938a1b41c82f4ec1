"""How true a simulation is: whole runs of a real engine, replayed and compared."""

from optimizer.validation.compare import Figure as Figure
from optimizer.validation.compare import RunComparison as RunComparison
from optimizer.validation.compare import validate as validate
from optimizer.validation.runs import MeasuredRun as MeasuredRun
from optimizer.validation.runs import find_runs as find_runs
from optimizer.validation.runs import read_run as read_run
