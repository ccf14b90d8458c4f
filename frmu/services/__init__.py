"""What is done with a federation: each service is a module of functions over a session."""
