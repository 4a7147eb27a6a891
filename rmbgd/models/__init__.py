"""The networks. Knows nothing of files on their way, threads or events. Importing the package loads nothing: torch comes
with the module that is named, in the engine's child process only."""
