"""What has to be the same of two runs of one cell, however they were carried out."""

# Fields whose values are times or memory as the system counts it, or say how the run was carried out.
TIMES = (
    *("seconds", "joules", "share", "threads", "busy", "memory", "resident", "sittings", "steps", "host"),
    "kernels",
)


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(x) for k, x in value.items() if not any(word in k for word in TIMES)}
    return [without_times(x) for x in value] if isinstance(value, list) else value


def peaks(result):
    """What of the memory is the same on every machine."""
    return result["summary"]["peak_tensor_bytes"], result["memory"]
