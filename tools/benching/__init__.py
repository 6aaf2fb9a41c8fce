"""What does `hjgc bench` measure, and how does it show it? A module for each step.

`systems.py` says who is measured. On the CPU they take turns (`hjgc.tools.benchmarking`); on a GPU each has the device
to itself (`alone.py`), after the device's own limits (`limits.py`), from which the floors come (`floors.py`).
"""
