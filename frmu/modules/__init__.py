"""Modules that are trained by rounds: torch lives in this room. What is not of torch says so, and loads without it."""
