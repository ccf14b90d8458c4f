"""Benchmarks, the real data they run on, and the command that made the shipped policy."""
