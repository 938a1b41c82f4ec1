"""How much fits into the engine and how long a step takes: geometry, step-time models, the catalogue."""

from optimizer.capacity.cards import EngineCard as EngineCard
from optimizer.capacity.cards import engine as engine
from optimizer.capacity.cards import engine_card as engine_card
from optimizer.capacity.cards import estimated_card as estimated_card
from optimizer.capacity.cards import list_engines as list_engines
from optimizer.capacity.catalogue import gpu as gpu
from optimizer.capacity.catalogue import list_gpus as list_gpus
from optimizer.capacity.catalogue import list_llms as list_llms
from optimizer.capacity.catalogue import llm as llm
from optimizer.capacity.geometry import kv_blocks as kv_blocks
from optimizer.capacity.geometry import kv_bytes_per_token as kv_bytes_per_token
from optimizer.capacity.huggingface import llm_from_config as llm_from_config
from optimizer.capacity.roofline import estimate as estimate
from optimizer.capacity.roofline import roofline as roofline
from optimizer.capacity.specifications import GPU as GPU
from optimizer.capacity.specifications import LLM as LLM
from optimizer.capacity.specifications import Efficiency as Efficiency
from optimizer.capacity.specifications import EstimateError as EstimateError
from optimizer.capacity.step_time import StepClock as StepClock
from optimizer.capacity.step_time import steps_to_reach as steps_to_reach
