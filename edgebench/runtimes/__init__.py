"""Runtimes with a file of their own, which run on the device beside the agent."""
