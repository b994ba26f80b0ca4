"""What live tensors are counted for, by name; apart from the counter, which is nothing without torch."""

CAUSES = ("parameters", "gradients", "optimizer_state", "activations", "buffers")
