"""The pipeline between a client's payload and the server: steps, none by default."""
