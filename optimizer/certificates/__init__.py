"""Certificates of lower bounds, and their exact verification: rational arithmetic, nothing taken on trust.

Whoever finds multipliers is free in how; what they prove is computed here, from the instance alone.
"""

from optimizer.certificates.document import Verified as Verified
from optimizer.certificates.document import price_certificate as price_certificate
from optimizer.certificates.document import read_certificate as read_certificate
from optimizer.certificates.document import verify as verify
from optimizer.certificates.document import work_certificate as work_certificate
