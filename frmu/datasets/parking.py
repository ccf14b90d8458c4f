"""The config of the parking federation, which the demo and the benchmarks share."""

__all__ = ["CALENDAR", "CALENDAR_RANGES", "CONFIG", "FROZEN"]

CALENDAR = 'calendar = ["hour_sin", "hour_cos", "day_sin", "day_cos", "weekend"]'
CALENDAR_RANGES = """hour_sin = [-1.0, 1.0]
hour_cos = [-1.0, 1.0]
day_sin = [-1.0, 1.0]
day_cos = [-1.0, 1.0]
weekend = [0.0, 1.0]"""

CONFIG = f"""[data]
path = "parking.parquet"
client = "site"
record = "record"
time = "ts"
target = "rate"
task = "regression"

[data.modalities]
{CALENDAR}
place = ["capacity", "yesterday", "last_week"]

[data.lags]
yesterday = {{ column = "rate", back = "1d" }}
last_week = {{ column = "rate", back = "7d" }}

[data.ranges]
{CALENDAR_RANGES}
capacity = [2.0, 4.0]
rate = [-0.2, 1.2]

[slices]
by = "week"

[split]
validation_from = 2016-11-21
later_from = 2016-11-28
test_from = 2016-12-05

[model]
judges = 32
"""
FROZEN = CONFIG.replace("judges = 32", 'encoder = "relu"\nfeatures = 32')
