"""Prices on rounds: found here, verified in `optimizer.certificates.prices`."""

from optimizer.certificates.prices import Priced as Priced
from optimizer.certificates.prices import Prices as Prices
from optimizer.certificates.prices import most as most
from optimizer.certificates.prices import price_bound as price_bound
