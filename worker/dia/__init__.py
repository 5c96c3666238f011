"""Dia as mathematics: dimensions, text ids, delay pattern, layers and checkpoints."""
