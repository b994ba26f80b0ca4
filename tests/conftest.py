"""What holds for every test: one thread, so that runs on a busy machine take as long as on an idle one."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)
