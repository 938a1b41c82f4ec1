"""Many policies on the same requests: each run on its own, side by side in processes."""

from optimizer.comparison.policy_files import SKELETON as SKELETON
from optimizer.comparison.policy_files import load_policy_file as load_policy_file
from optimizer.comparison.result import Comparison as Comparison
from optimizer.comparison.result import Failure as Failure
from optimizer.comparison.runner import compare as compare
from optimizer.comparison.runner import is_answered_by as is_answered_by
