"""The services of a federation: each is a module of functions over a session."""
