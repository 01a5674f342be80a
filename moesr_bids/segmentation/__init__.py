"""Contrast-agnostic segmentation of the brain: network, inference, labels, volumes."""
