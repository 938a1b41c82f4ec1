"""What is said, not how it is solved: requests, engine, instance, schedule, metrics."""

from optimizer.problem.engine import Engine as Engine
from optimizer.problem.engine import StepPiece as StepPiece
from optimizer.problem.engine import StepRegime as StepRegime
from optimizer.problem.engine import StepTime as StepTime
from optimizer.problem.instance import Instance as Instance
from optimizer.problem.knowledge import with_knowledge as with_knowledge
from optimizer.problem.metrics import Metrics as Metrics
from optimizer.problem.requests import LengthKnowledge as LengthKnowledge
from optimizer.problem.requests import PrefixHashes as PrefixHashes
from optimizer.problem.requests import Requests as Requests
from optimizer.problem.schedule import Schedule as Schedule
from optimizer.problem.schedule import Step as Step
