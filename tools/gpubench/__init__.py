"""The sections of tools/bench_gpu.py: each measures one thing, in a process of its own."""
