"""Learning what to forget: the RL environment over client actors, and RLlib. Only this room knows rllib and torch."""
