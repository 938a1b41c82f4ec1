# ruff: noqa: I001
"""Scheduling policies: one small file each, registered by name.

The order of the imports is the order in which tables list the policies.
"""

from optimizer.policies import vllm_v1 as vllm_v1
from optimizer.policies import vllm_v0 as vllm_v0
from optimizer.policies import orca as orca
from optimizer.policies import request_level as request_level
from optimizer.policies import chunked as chunked
from optimizer.policies import tensorrt_llm as tensorrt_llm
from optimizer.policies import lightllm as lightllm
from optimizer.policies import heuristics as heuristics
from optimizer.policies import hybrid as hybrid
from optimizer.policies import horizon as horizon
from optimizer.policies.base import Policy as Policy
from optimizer.policies.base import describe as describe
from optimizer.policies.base import make_policy as make_policy
from optimizer.policies.base import options_of as options_of
from optimizer.policies.base import policy_names as policy_names
from optimizer.policies.base import register as register
from optimizer.policies.base import register_later
from optimizer.policies.mechanism import ChunkedPrefill as ChunkedPrefill

register_later("rolling-horizon", "optimizer.online.policy")
