"""Fixtures: the real service on scratch directories, and the two real clients."""
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness.host import Host  # noqa: E402
from harness.service import GUESTS, Service  # noqa: E402

PROTOCOLS = ["cimxml", "wsman"]


@pytest.fixture(scope="module")
def service():
    """One service for the tests of a file that do it no harm."""
    s = Service()
    try:
        yield s.start()
    finally:
        s.close()


@pytest.fixture
def own_service():
    """A service for one test alone, which may kill it."""
    s = Service()
    try:
        yield s.start()
    finally:
        s.close()


@pytest.fixture(params=PROTOCOLS)
def api(request, service):
    return service.api(request.param)


@pytest.fixture
def scratch(service):
    """A fresh directory on the service's own file system, with a short path; emptied when the machines in it are gone."""
    made = Path(tempfile.mkdtemp(dir=service.work))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def host(api, service, scratch):
    h = Host(api, service)
    yield h
    h.close()


@pytest.fixture(params=PROTOCOLS)
def own_host(request, own_service):
    h = Host(own_service.api(request.param), own_service)
    yield h
    h.close()


@pytest.fixture(scope="session")
def guests():
    assert (GUESTS / "storm.img").exists(), "the test guests are not built: scripts/guest"
    return GUESTS
