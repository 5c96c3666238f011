"""Loaded before any test of this folder: the kernels are interpreted, where there is a Triton."""

from importlib.util import find_spec

collect_ignore_glob = []
if find_spec("triton") is None:  # it exists for Linux alone
    collect_ignore_glob.append("test_*.py")
else:
    from tests.engine.kernels import interpret  # noqa: F401
