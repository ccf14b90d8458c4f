"""Where a federation runs: in process, or on Ray actors. The only room that knows ray."""
