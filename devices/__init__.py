"""Targets, the command line and the story of a deployment."""
