"""Dia as a machine: sequences, slots, caches, sampling, and the loop that turns text into codes."""
