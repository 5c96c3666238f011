"""Recordings in and files out: reading and checking references, encoding results."""
