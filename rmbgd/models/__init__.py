"""The networks. Knows nothing of threads, events or pictures on their way.

Importing the package loads nothing: torch comes with the module that is named, in the engine's child process only.
"""
