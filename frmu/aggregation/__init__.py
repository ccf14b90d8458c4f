"""Weights and means of clients: mathematics only."""
