"""The server: it weighs clients by attention, solves for the head and keeps the state. Nothing here knows ray."""
