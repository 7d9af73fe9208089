"""Starts the worker of a run, follows its events, explains its end; runs other processes beside a screen.

The worker is a process in a session of its own, below a small supervisor (`supervise.py`). It outlives the
terminal that started it, and a failure of the GPU driver, which aborts the process and cannot be caught in
Python, takes nothing else down.
"""
