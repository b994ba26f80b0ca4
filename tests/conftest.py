"""What holds for every test: one thread, so that a busy machine does not matter, and a cache of its own."""

import pytest
from hypothesis import settings

# how long an example takes depends on what else the machine does
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLORA_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
