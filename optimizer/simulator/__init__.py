"""Runs a policy on an engine, from event to event, and records what was executed."""

from optimizer.simulator.queues import FifoQueue as FifoQueue
from optimizer.simulator.queues import KeyQueue as KeyQueue
from optimizer.simulator.queues import WaitingQueue as WaitingQueue
from optimizer.simulator.simulate import Simulation as Simulation
from optimizer.simulator.simulate import simulate as simulate
from optimizer.simulator.state import EngineState as EngineState
