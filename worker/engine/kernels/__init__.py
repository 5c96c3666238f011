"""The small operations of a decode step: plain in torch, fused in Triton, and the choice of them.

At one stream a step is bound by how many kernels it starts. What lies between two matrix products
is therefore one kernel each (`fused.py`), beside a plain version of itself (`plain.py`) that runs
on every device and says what is right. `ops.py` names them.
"""
