"""The config: one TOML file that says which records, which model, which slices.

It is the only thing besides the records and the policy file that may steer a state, so everything that a
training job elsewhere would compute from the data - ranges, dates of the split, class names - is declared
here instead. What computes is `fingerprint`: two configs that differ only in where things lie (paths, store,
addresses, placement) give the same state.
"""

from frmu.config.config import Config, load, parse
from frmu.config.data import CALENDAR, Data, Lag
from frmu.config.federation import Placement, Rules, Site, checked_address
from frmu.config.model import Attention, Model, share_of
from frmu.config.policy import Policy
from frmu.config.storage import Store
from frmu.config.table import parse_duration

__all__ = [
    "CALENDAR", "Attention", "Config", "Data", "Lag", "Model", "Placement", "Policy", "Rules", "Site", "Store",
    "checked_address", "load", "parse", "parse_duration", "share_of",
]  # fmt: skip
