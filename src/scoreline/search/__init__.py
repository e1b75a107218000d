"""Searches: over time steps and skipped layers, over solvers, over the scales of skip joints."""
