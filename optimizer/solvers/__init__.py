"""PuLP on HiGHS and OR-Tools CP-SAT behind one result type; a solver is imported when it is first run."""

from optimizer.solvers.result import Incumbent as Incumbent
from optimizer.solvers.result import OnBound as OnBound
from optimizer.solvers.result import OnIncumbent as OnIncumbent
from optimizer.solvers.result import Solved as Solved
from optimizer.solvers.result import Status as Status
