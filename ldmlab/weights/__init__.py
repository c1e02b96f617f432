"""Weights of the shipped feature networks and judge, and the scripts that train and validate them."""
