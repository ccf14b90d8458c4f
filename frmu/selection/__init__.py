"""The influence of each slice: what is known of it, who proposes, what is applied.

Training (the RL environment) and production call `decide` and `refit` of this room, so what a policy learned
on is what runs. Only numpy is needed here: a client decides for itself, without torch.
"""
