"""How clients are weighed and averaged: mathematics only."""
