"""State, threads, processes and disk; every service is built in studio.py."""
