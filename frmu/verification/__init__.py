"""Proof: checks that can fail, made by a federation that shares nothing with the one under test."""
