"""The steps of the networks that are worth a kernel of their own, each as plain torch and in Triton, with one meaning.

Knows nothing of checkpoints, batches, files or processes. Plain torch is the definition: it runs on every device, and
what the Triton kernels compute is tested against it. Importing the package loads nothing, and only modules whose name
ends in `_kernel` need Triton: they are imported where a caller has chosen `triton=True` after asking `available.py`.
"""
