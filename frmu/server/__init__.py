"""The central aggregator: what clients sent, weighed by attention and solved. Nothing here knows ray."""
