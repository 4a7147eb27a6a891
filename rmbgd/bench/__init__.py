"""Measuring this machine with the parts of the service itself: its engine process, its arena, its line of stages.

Prints nothing: the verb `bench` shows what is found here, and tools/bench_gpu.py measures with the same parts.
"""
