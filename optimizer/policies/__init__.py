"""Scheduling policies: one small file each, registered by name."""

from optimizer.policies import vllm_v1 as vllm_v1
from optimizer.policies.base import Policy as Policy
from optimizer.policies.base import describe as describe
from optimizer.policies.base import make_policy as make_policy
from optimizer.policies.base import options_of as options_of
from optimizer.policies.base import policy_names as policy_names
from optimizer.policies.base import register as register
