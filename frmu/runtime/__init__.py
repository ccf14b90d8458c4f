"""The runtimes of a federation: in process, or on Ray actors. The only room that knows ray."""
