"""The tasks a client knows, by subject: frozen records with a `perform`. Never a row leaves by one."""
