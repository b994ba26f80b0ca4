"""Baselines FLoRA is measured against, one file each."""
