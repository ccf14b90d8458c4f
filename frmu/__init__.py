"""frmu: attention-based machine unlearning by federated reinforcement learning, on Ray."""

__version__ = "0.1.0"
__all__ = ["__version__"]
