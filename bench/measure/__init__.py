"""Listeners that measure a federation from its events, and a description of where it was measured."""
