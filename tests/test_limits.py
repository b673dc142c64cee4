"""What a client can take of the service: connections, enumerations, queries, passwords; and that root gets in whatever others do."""
import base64
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import requests

from harness.service import PASSWORD, USER, Service, wait_until
from harness.wsman import N, WMI

WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
ALL_CLASSES = "http://schemas.dmtf.org/wbem/cim-xml/2/cim-schema/2/*"


@pytest.fixture
def limited():
    """A service with limits of one's own."""
    made = []

    def start(**limits):
        lines = "".join(f"{key} = {value}\n" for key, value in limits.items())
        s = Service(config="[limits]\n" + lines)
        made.append(s)
        return s.start()
    yield start
    for s in made:
        s.close()


def connect(service, count):
    return [socket.create_connection(("127.0.0.1", service.wsman_port), 10) for _ in range(count)]


def http(service, body="", user=USER, password=PASSWORD, session=requests, **kwargs):
    """One request over TCP as it is."""
    return session.post(f"http://127.0.0.1:{service.wsman_port}/wsman", data=body.encode(), auth=(user, password), timeout=60,
                        headers={"Content-Type": "application/soap+xml;charset=UTF-8"}, **kwargs)


def resident(service):
    """MiB of the service's process in memory."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) // 1024


def envelope(action, uri, body, selectors=""):
    return (f'<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
            f'xmlns:w="{WSMAN}" xmlns:n="{N["n"]}"><s:Header><a:Action>{N["n"]}/{action}</a:Action><w:ResourceURI>{uri}</w:ResourceURI>'
            f'<a:MessageID>uuid:1</a:MessageID>{selectors}</s:Header><s:Body>{body}</s:Body></s:Envelope>')


def enumerate_classes(service, session):
    """Opens an enumeration of all classes, some megabytes, and pulls nothing."""
    namespace = '<w:SelectorSet><w:Selector Name="__cimnamespace">root/virtualization/v2</w:Selector></w:SelectorSet>'
    return http(service, envelope("Enumerate", ALL_CLASSES, "<n:Enumerate/>", namespace), session=session)


def query(service, wql):
    text = wql.replace("&", "&amp;").replace("<", "&lt;")
    dialect = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
    body = f'<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>100</w:MaxElements><w:Filter Dialect="{dialect}">{text}</w:Filter></n:Enumerate>'
    return http(service, envelope("Enumerate", f"{WMI}*", body))


# Connections.

def test_silent_connections_stop_neither_root_nor_each_other_for_long(limited):
    service = limited(max_connections=60, max_connections_per_address=50, head_seconds=3)
    silent = connect(service, 120)
    try:
        # Whoever finds no place is told at once, by its catalogue entry.
        told = [s for s in silent if is_refused(s)]
        assert len(told) == 70
        # Root is served meanwhile.
        service.cli("vm", "list", timeout=60)
        # And after the time for a head everybody is.
        wait_until(lambda: answers(service), 60, "room for others")
    finally:
        for s in silent:
            s.close()


def is_refused(connection):
    connection.settimeout(1)
    try:
        said = connection.recv(4096).decode()
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    if not said:
        return False
    assert said.startswith("HTTP/1.1 503 ") and "KVMMS-0275" in said and "max_connections_per_address" in said, said
    return True


def answers(service):
    try:
        return http(service).status_code != 503
    except requests.ConnectionError:
        return False


def test_a_few_hundred_connections_do_not_stop_root(own_service):
    silent = connect(own_service, 400)
    try:
        own_service.cli("vm", "list", timeout=60)
        assert http(own_service).status_code == 503
    finally:
        for s in silent:
            s.close()
    wait_until(lambda: answers(own_service), 60, "room for others")


def test_heads_and_bodies_that_trickle_in_end(limited):
    service = limited(head_seconds=2, body_seconds=2)
    slow_head, slow_body = connect(service, 2)
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    slow_head.sendall(b"POST /wsman HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    slow_body.sendall(f"POST /wsman HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {token}\r\nContent-Length: 1000\r\n\r\n".encode())
    ended = threading.Event()

    def trickle():
        try:
            while not ended.wait(0.2):
                slow_head.sendall(b"X")
        except OSError:
            pass
    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        slow_body.settimeout(60)
        said = slow_body.recv(4096).decode()
        assert said.startswith("HTTP/1.1 408 ") and "KVMMS-0280" in said, said
        slow_head.settimeout(60)
        try:
            assert slow_head.recv(4096) == b""
        except ConnectionResetError:
            pass
    finally:
        ended.set()
        sender.join()
        slow_head.close()
        slow_body.close()


# Enumerations.

def test_open_enumerations_are_bounded_by_what_they_hold(limited):
    service = limited(enumeration_mib_per_user=16)
    with requests.Session() as session:
        before = resident(service)
        opened, refused = 0, None
        while refused is None and opened < 150:
            got = enumerate_classes(service, session)
            if got.status_code == 200:
                opened += 1
            else:
                refused = got.text
        assert refused is not None, f"{opened} were opened"
        assert "KVMMS-0279" in refused and "w:QuotaLimit" in refused and "enumeration_mib_per_user" in refused, refused
        assert 1 <= opened < 100
        # What the footprint leaves out and what the allocator keeps stay within a small factor.
        assert resident(service) - before < 16 * 4
        # One user's limit is not another's.
        service.cli("cim", "list", "Msvm_ComputerSystem")


def test_what_nobody_pulls_goes_without_any_traffic(limited):
    service = limited(enumeration_seconds=20, enumeration_mib_per_user=512, enumeration_mib=512)
    before = resident(service)
    with requests.Session() as session:
        for _ in range(40):
            assert enumerate_classes(service, session).status_code == 200
    held = resident(service) - before
    assert held > 40, f"40 enumerations hold {held} MiB only: the test shows nothing"
    wait_until(lambda: resident(service) - before < held // 2, 120, "memory given back")


# Queries.

def test_a_pattern_of_brackets_is_refused_and_nobody_waits(api, service):
    with pytest.raises(Exception, match="1024 characters"):
        api.query("SELECT * FROM Msvm_ComputerSystem WHERE ElementName LIKE '" + "[" * 18000 + "'")
    began = time.monotonic()
    api.query("SELECT * FROM Msvm_ComputerSystem WHERE ElementName LIKE '%" + "[" * 1000 + "'")
    # Quadratic, the longer of them took eight seconds on an idle machine.
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("where", [
    " OR ".join(["Name=1"] * 6000),
    "(" * 100 + "Name = 'a'" + ")" * 100,
    ".".join(["Msvm_ComputerSystem"] * 2000) + " = 'a'",
    "NOT " * 1000 + "Name = 'a'",
])
def test_a_query_that_is_too_large_is_refused(service, where):
    got = query(service, f"SELECT * FROM Msvm_ComputerSystem WHERE {where}")
    assert got.status_code == 500 and "CannotProcessFilter" in got.text, got.text[:2000]
    assert http(service, "").status_code != 503


# Passwords.

def test_guesses_have_to_wait_root_does_not_and_the_right_password_passes(own_service):
    with requests.Session() as session:
        assert http(own_service, session=session).status_code != 401, "remembered from here on"
    codes = [http(own_service, password="wrong password").status_code for _ in range(8)]
    assert codes[:5] == [401] * 5 and 429 in codes[5:], codes
    told = wait_until(lambda: held_back(own_service), 60, "a guess that is not looked at")
    assert "KVMMS-0276" in told[0].text and int(told[0].headers["Retry-After"]) >= 1, told[0].text
    # Of the users nobody guesses at, and of the one whose password was right before, nothing is taken away.
    assert http(own_service).status_code not in (401, 429)
    own_service.cli("vm", "list")


def held_back(service):
    got = http(service, password="wrong password")
    # An answer of requests is false where its status is an error's.
    return (got,) if got.status_code == 429 else None


def test_a_burst_of_wrong_passwords_costs_little_and_its_memory_is_given_back(own_service):
    http(own_service)
    wait_until(lambda: resident(own_service) > 0, what="the service")
    before, peak, codes = resident(own_service), 0, []
    lock = threading.Lock()

    def guess(n):
        got = http(own_service, user=f"user{n % 20}", password=f"wrong password {n}").status_code
        with lock:
            codes.append(got)
    threads = [threading.Thread(target=guess, args=(n,)) for n in range(200)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        peak = max(peak, resident(own_service))
        time.sleep(0.02)
    for t in threads:
        t.join()
    assert set(codes) <= {401, 429, 503} and len(codes) == 200, codes
    # Two at once, 19 MiB each, and what the connections take.
    assert peak - before < 100, f"{before} MiB before, {peak} at most"
    wait_until(lambda: resident(own_service) - before < 24, 60, "memory given back")
    print(f"{before} MiB before, {peak} at most, {resident(own_service)} after; {codes.count(401)} were hashed")
    own_service.cli("vm", "list")


def test_unknown_users_take_as_long_as_wrong_passwords(limited):
    service = limited()
    took = {}
    for n, name in enumerate([USER, "nobody", USER, "nobody", USER, "nobody"]):
        began = time.monotonic()
        assert http(service, user=name, password=f"wrong {n}").status_code == 401
        took.setdefault(name, []).append(time.monotonic() - began)
    # An argon2 hash takes tens of milliseconds; without one an answer takes a fraction of one.
    assert min(took["nobody"]) > min(took[USER]) / 4, took


def test_unknown_limits_are_refused_at_start():
    service = Service(config="[limits]\nmax_conections = 5\n")
    try:
        with pytest.raises(RuntimeError, match="max_conections"):
            service.start()
    finally:
        service.close()


