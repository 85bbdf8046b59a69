"""Machines that boot an image over the network."""
