"""The tables of settings, one room per subject. config.py puts them together."""
