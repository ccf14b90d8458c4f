"""Learning what to forget: the RL environment over client actors, and RLlib. The only room that knows rllib and torch."""
