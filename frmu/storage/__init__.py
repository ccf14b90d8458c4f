"""The working folder: its paths, its lock, its checkpoint. Files here outlive every job."""
