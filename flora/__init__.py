"""FLoRA (arXiv 2404.15182): federated low-rank adaptation of CLIP, usable without the harness."""
