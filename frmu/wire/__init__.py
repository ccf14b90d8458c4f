"""What stands between a client's payload and the server: a pipeline of steps, none by default."""
