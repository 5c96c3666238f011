"""Scripts that run while the project is set up or an image is built; the worker imports none."""
