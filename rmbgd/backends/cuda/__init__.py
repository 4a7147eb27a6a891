"""Networks on a GPU: memory taken before the first image, pixels that go up once and come down once, graphs.

Runs in the engine's process only. What only CUDA has stands behind one seam (`device.py`, `cuda.py`), so that all else
runs and is tested on a CPU. What decides stands in `plan.py`, `ring.py` and `taps.py`, which know no torch.
"""
