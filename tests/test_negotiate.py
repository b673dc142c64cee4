"""Negotiate with NTLM: pypsrp and pywinrm as they come, our command line against another acceptor, and clients that mean no good."""
import base64
import http.client
import http.server
import re
import subprocess
import threading
import time
import xml.etree.ElementTree as ET

import pypsrp.negotiate  # noqa: F401  (its absence should fail here, not in the middle)
import pytest
import requests
import spnego
import winrm.protocol
import xmltodict
from pypsrp.encryption import WinRMEncryption
from pypsrp.exceptions import AuthenticationError, WinRMTransportError, WSManFaultError
from pypsrp.wsman import WSMan
from requests.auth import HTTPBasicAuth
from spnego.exceptions import SpnegoError
from winrm.exceptions import InvalidCredentialsError

from harness.service import KVMMS, PASSWORD, Port, Service
from harness.wsman import WMI, N

CAROL, SECRET = "carol", "Pässword 4 NTLM"
GET = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"
SERVICE = WMI + "Msvm_VirtualSystemManagementService"


@pytest.fixture(scope="module")
def service():
    """A service that lets carol in by Negotiate, over plain HTTP and over TLS with a certificate made at its start."""
    port = Port()
    s = Service()
    s.tool("user", "add", CAROL, "--role", "admin", "--password-stdin", "--ntlm", stdin=SECRET + "\n")
    s.tls_port = port.number
    s.listen = [f"wsman+https://127.0.0.1:{port.number}"]
    try:
        yield s.start()
    finally:
        s.close()
        port.close()


def client(service, auth="negotiate", tls=False, user=CAROL, password=SECRET, **more):
    return WSMan("127.0.0.1", port=service.tls_port if tls else service.wsman_port, ssl=tls, username=user, password=password,
                 auth=auth, cert_validation=False, connection_timeout=60, operation_timeout=60, **more)


def names(wsman):
    request = ET.Element("{%s}Enumerate" % N["n"])
    ET.SubElement(request, "{%s}OptimizeEnumeration" % N["w"])
    ET.SubElement(request, "{%s}MaxElements" % N["w"]).text = "50"
    answer = wsman.enumerate(SERVICE, resource=request)
    return [e.text for e in answer.iter() if e.tag.endswith("}SystemName")]


def token(answer, scheme="Negotiate"):
    found = re.search(scheme + r" ([A-Za-z0-9+/=]+)", answer.getheader("WWW-Authenticate") or "")
    return base64.b64decode(found[1]) if found else None


class Wire:
    """One connection, and the handshake of pyspnego on it, step by step."""

    def __init__(self, service, password=SECRET, user=CAROL, protocol="negotiate"):
        self.http = http.client.HTTPConnection("127.0.0.1", service.wsman_port, timeout=60)
        self.context = spnego.client(user, password, hostname="127.0.0.1", service="http", protocol=protocol,
                                     options=spnego.NegotiateOptions.use_ntlm if protocol == "ntlm" else spnego.NegotiateOptions.none)

    def post(self, body=b"", **headers):
        self.http.request("POST", "/wsman", body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = self.http.getresponse()
        answer.text = answer.read()
        return answer

    def send(self, blob, scheme="Negotiate"):
        return self.post(Authorization=f"{scheme} {base64.b64encode(blob).decode()}")

    def claim(self):
        """The token that proves it, not sent yet."""
        challenged = self.send(self.context.step())
        assert challenged.status == 401
        return self.context.step(token(challenged))

    def handshake(self):
        ended = self.send(self.claim())
        assert ended.status == 200 and ended.text == b""
        last = token(ended)
        if last:
            self.context.step(last)
        assert self.context.complete
        return self

    def sealed(self, envelope):
        kind, body = WinRMEncryption(self.context, WinRMEncryption.SPNEGO).wrap_message(envelope)
        return body, f'{kind};protocol="{WinRMEncryption.SPNEGO}";boundary="Encrypted Boundary"'

    def call(self, envelope):
        body, kind = self.sealed(envelope)
        answer = self.post(body, Content_Type=kind)
        assert answer.getheader("Content-Type").startswith("multipart/encrypted"), (answer.status, answer.text)
        opened = WinRMEncryption(self.context, WinRMEncryption.SPNEGO).unwrap_message(answer.text, "Encrypted Boundary")
        return answer.status, opened

    def gone(self):
        """Whether the service has closed the connection, as it said."""
        return self.http.sock is None or self.http.sock.recv(1) == b""


def get(name="x", action=GET, uri=SERVICE):
    return (f'<s:Envelope xmlns:s="{N["s"]}" xmlns:a="{N["a"]}" xmlns:w="{N["w"]}"><s:Header><a:Action>{action}</a:Action>'
            f'<a:To>http://127.0.0.1/wsman</a:To><w:ResourceURI>{uri}</w:ResourceURI><a:MessageID>uuid:{name}</a:MessageID>'
            "<a:ReplyTo><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>"
            '<w:SelectorSet><w:Selector Name="CreationClassName">Msvm_VirtualSystemManagementService</w:Selector></w:SelectorSet>'
            "</s:Header><s:Body/></s:Envelope>").encode()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("auth", ["negotiate", "ntlm"])
def test_pypsrp_calls_and_hears_of_faults(service, auth, tls):
    with client(service, auth, tls) as wsman:
        for _ in range(3):
            assert len(names(wsman)) == 1
        with pytest.raises(WSManFaultError):
            wsman.get(WMI + "Msvm_NoSuchClass")
        assert len(names(wsman)) == 1


def test_pypsrp_may_seal_over_tls_too(service):
    with client(service, tls=True, encryption="always") as wsman:
        assert len(names(wsman)) == 1


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_pywinrm_reads_an_instance(service, tls):
    url = f"https://127.0.0.1:{service.tls_port}/wsman" if tls else f"http://127.0.0.1:{service.wsman_port}/wsman"
    p = winrm.protocol.Protocol(endpoint=url, transport="ntlm", username=CAROL, password=SECRET, server_cert_validation="ignore")
    for n in range(3):
        answer = p.send_message(get(f"{n}").decode())
        found = xmltodict.parse(answer)
        assert f"uuid:{n}" in str(found) and "Msvm_VirtualSystemManagementService" in str(found)


def test_pywinrm_with_a_wrong_password_is_told_so(service):
    p = winrm.protocol.Protocol(endpoint=f"http://127.0.0.1:{service.wsman_port}/wsman", transport="ntlm", username="dave", password="wrong one")
    with pytest.raises(InvalidCredentialsError):
        p.send_message(get().decode())


@pytest.mark.parametrize("user, password", [("erin", SECRET), ("alice", PASSWORD), (CAROL + "x", "wrong one")],
                         ids=["unknown", "without the secret", "wrong"])
def test_the_password_the_user_and_the_secret_all_have_to_be_there(service, user, password):
    with client(service, user=user, password=password) as wsman, pytest.raises(AuthenticationError):
        names(wsman)


def test_a_body_in_the_clear_is_refused_over_plain_http(service):
    with client(service, encryption="never") as wsman, pytest.raises((WinRMTransportError, WSManFaultError)) as refused:
        names(wsman)
    assert "400" in str(refused.value)
    wire = Wire(service).handshake()
    answer = wire.post(get(), Content_Type="application/soap+xml;charset=UTF-8")
    assert answer.status == 400 and b"in the clear" in answer.text and wire.gone()


def test_without_a_secret_negotiate_is_not_offered(own_service):
    answer = requests.post(f"http://127.0.0.1:{own_service.wsman_port}/wsman", b"")
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == 'Basic realm="kvmms"'
    with pytest.raises((AuthenticationError, ValueError)):
        names(client(own_service, user="alice", password=PASSWORD))
    # With the next user that has one it is, without a restart, on a line of its own.
    own_service.tool("user", "add", CAROL, "--role", "viewer", "--password-stdin", "--ntlm", stdin=SECRET + "\n")
    wire = Wire(own_service)
    offers = wire.post().headers.get_all("WWW-Authenticate")
    assert offers == ["Negotiate", 'Basic realm="kvmms"']
    assert f"{CAROL}\tViewer\tntlm" in own_service.tool("user", "list").splitlines()
    # It goes with the next password.
    wire.handshake()
    own_service.tool("user", "add", CAROL, "--role", "viewer", "--password-stdin", stdin=SECRET + "\n")
    assert f"{CAROL}\tViewer" in own_service.tool("user", "list").splitlines()
    body, kind = wire.sealed(get())
    assert wire.post(body, Content_Type=kind).status == 401


@pytest.mark.parametrize("protocol, scheme", [("negotiate", "Negotiate"), ("ntlm", "Negotiate"), ("ntlm", "NTLM")])
def test_tokens_come_packed_or_bare(service, protocol, scheme):
    wire = Wire(service, protocol=protocol)
    challenged = wire.send(wire.context.step(), scheme)
    ended = wire.send(wire.context.step(token(challenged, scheme)), scheme)
    assert ended.status == 200
    if token(ended, scheme):
        wire.context.step(token(ended, scheme))
    status, answer = wire.call(get())
    assert status == 200 and b"GetResponse" in answer


def test_a_request_may_come_with_the_last_token(service):
    wire = Wire(service, protocol="ntlm")
    proof = wire.claim()
    body, kind = wire.sealed(get())
    answer = wire.post(body, Content_Type=kind, Authorization="Negotiate " + base64.b64encode(proof).decode())
    assert answer.status == 200
    opened = WinRMEncryption(wire.context, WinRMEncryption.SPNEGO).unwrap_message(answer.text, "Encrypted Boundary")
    assert b"GetResponse" in opened


def test_a_thousand_requests_go_through_one_sealed_session(service):
    wire = Wire(service).handshake()
    for n in range(1000):
        status, answer = wire.call(get(f"{n}"))
        assert status == 200 and f"uuid:{n}<".encode() in answer


def test_tokens_cut_changed_or_of_another_connection_let_nobody_in(service):
    proof = Wire(service).claim()
    for attempt in (proof[:30], proof[:-20], b"", b"NTLMSSP\0", b"\xa1\x80", b"\x60\x84\xff\xff\xff\xff", b"A" * 40000):
        wire = Wire(service)
        wire.claim()
        assert wire.send(attempt).status == 401
    for place in (40, len(proof) // 2, len(proof) - 1):
        wire = Wire(service, user="frank")
        own = bytearray(wire.claim())
        own[place] ^= 1
        assert wire.send(bytes(own)).status == 401
    assert Wire(service).send(proof).status == 401
    wire = Wire(service)
    wire.claim()
    assert wire.send(proof).status == 401
    # What was sealed there is nothing here.
    there, here = Wire(service).handshake(), Wire(service).handshake()
    body, kind = there.sealed(get())
    answer = here.post(body, Content_Type=kind)
    assert answer.status == 400 and here.gone()


@pytest.mark.parametrize("damage", ["signature", "data", "length", "cut", "again"])
def test_a_body_that_is_not_what_was_sealed_ends_the_connection(service, damage):
    wire = Wire(service).handshake()
    assert wire.call(get())[0] == 200
    body, kind = wire.sealed(get())
    at = body.index(b"octet-stream\r\n") + len(b"octet-stream\r\n") + 4
    if damage == "signature":
        body = body[:at + 5] + bytes([body[at + 5] ^ 1]) + body[at + 6:]
    elif damage == "data":
        body = body[:at + 20] + bytes([body[at + 20] ^ 1]) + body[at + 21:]
    elif damage == "length":
        body = re.sub(rb"Length=\d+", b"Length=999999999999999999999", body)
    elif damage == "cut":
        body = body[:at + 30]
    else:
        assert wire.post(body, Content_Type=kind).status == 200
    answer = wire.post(body, Content_Type=kind)
    assert answer.status == 400 and b"could not be opened" in answer.text and wire.gone()


def test_handshakes_that_are_begun_and_never_ended_are_bounded(service):
    wire = Wire(service)
    first = wire.context.step()
    answers = []
    while not answers or answers[-1] == 401:
        assert len(answers) < 100
        answers.append(wire.send(first).status)
    assert answers[-1] == 429 and len(answers) == 9 and wire.gone()
    # Many connections that stay where they are take no place from those who go on.
    waiting = [Wire(service) for _ in range(50)]
    for w in waiting:
        assert w.send(w.context.step()).status == 401
    assert Wire(service).handshake().call(get())[0] == 200


def test_guesses_have_to_wait(own_service):
    own_service.tool("user", "add", CAROL, "--role", "viewer", "--password-stdin", "--ntlm", stdin=SECRET + "\n")
    wrong, held = 0, False
    # The fifth has to wait a second, and each after it twice as long: on a busy host some pass before that is over.
    while wrong < 9 or not held:
        wire = Wire(own_service, password="a wrong guess")
        held = wire.send(wire.claim()).status == 429
        assert not held or wrong >= 5
        wrong += not held
        assert wrong < 20, "nobody has to wait"
        time.sleep(0.05)
    wire = Wire(own_service)
    answer = wire.send(wire.claim())
    assert answer.status == 429 and answer.getheader("Retry-After")


# The command line.

def kvmms(host, secret, *args, user=CAROL, check=True):
    done = subprocess.run([KVMMS, *args, "--host", host, "--user", user, "--password-file", secret], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def secret(service):
    path = service.work / "secret"
    path.write_text(SECRET + "\n")
    return path


@pytest.mark.parametrize("how", [[], ["--auth", "auto"], ["--auth", "negotiate"], ["--auth", "basic"]])
def test_the_command_line_speaks_negotiate(service, secret, how):
    url = f"http://127.0.0.1:{service.wsman_port}"
    assert "Msvm_" in kvmms(url, secret, "cim", "list", "Msvm_VirtualSystemManagementService", *how).stdout
    url = f"https://127.0.0.1:{service.tls_port}"
    assert "Msvm_" in kvmms(url, secret, "cim", "list", "Msvm_VirtualSystemManagementService", "--insecure", *how).stdout


def test_the_command_line_is_told_of_a_wrong_password(service, secret):
    failed = kvmms(f"http://127.0.0.1:{service.wsman_port}", secret, "vm", "list", "--auth", "negotiate", user="grace", check=False)
    assert failed.returncode == 1 and "did not accept grace" in failed.stderr, failed.stderr


class Judge(http.server.BaseHTTPRequestHandler):
    """Another acceptor than ours: pyspnego's. It answers what is sealed with the service's own answer to it, so that the words are real."""
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = self.headers.get("Authorization", "")
        self.server.seen.append((given.split(" ")[0], self.headers.get("Content-Type"), body))
        if given.startswith("Negotiate "):
            self.shake(base64.b64decode(given.split(" ", 1)[1]))
        elif getattr(self, "context", None) and self.context.complete:
            self.serve(body)
        else:
            self.answer(401, b"", {"WWW-Authenticate": "Negotiate"})

    def shake(self, blob):
        if not getattr(self, "context", None):
            self.context = spnego.server(protocol="negotiate")
        try:
            out = self.context.step(blob)
        except SpnegoError as error:
            self.server.errors.append(error)
            del self.context
            return self.answer(401, b"", {"WWW-Authenticate": "Negotiate"})
        value = "Negotiate" + (" " + base64.b64encode(out).decode() if out else "")
        self.answer(200 if self.context.complete else 401, b"", {"WWW-Authenticate": value})

    def serve(self, body):
        sealing = WinRMEncryption(self.context, WinRMEncryption.SPNEGO)
        asked = sealing.unwrap_message(body, "Encrypted Boundary")
        told = requests.post(self.server.behind, asked, auth=HTTPBasicAuth(CAROL, SECRET.encode()),
                             headers={"Content-Type": "application/soap+xml;charset=UTF-8"}, timeout=60)
        kind, packed = sealing.wrap_message(told.content)
        if self.server.tamper:
            packed = packed[:-40] + bytes([packed[-40] ^ 1]) + packed[-39:]
        self.answer(told.status_code, packed, {"Content-Type": f'{kind};protocol="{WinRMEncryption.SPNEGO}";boundary="Encrypted Boundary"'})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge(service, monkeypatch):
    accounts = service.work / "ntlm-users"
    accounts.write_text(f":{CAROL}:{SECRET}\nHOME:{CAROL}:{SECRET}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(accounts))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.seen, server.errors, server.tamper = [], [], False
    server.behind = f"http://127.0.0.1:{service.wsman_port}/wsman"
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("user", [CAROL, f"HOME\\{CAROL}"])
def test_another_acceptor_takes_what_the_command_line_sends(judge, secret, user):
    done = kvmms(judge.url, secret, "cim", "list", "Msvm_VirtualSystemManagementService", user=user)
    assert "Msvm_" in done.stdout and not judge.errors
    # The password never went, nor anything in the clear.
    assert {scheme for scheme, _, _ in judge.seen} == {"", "Negotiate"}
    assert all(body == b"" or (kind.startswith("multipart/encrypted") and b"Envelope" not in body) for _, kind, body in judge.seen)


def test_another_acceptor_refuses_a_wrong_password_and_a_changed_answer_is_not_believed(judge, secret):
    secret.write_text("another password\n")
    failed = kvmms(judge.url, secret, "vm", "list", check=False)
    assert failed.returncode == 1 and "did not accept" in failed.stderr and judge.errors
    secret.write_text(SECRET + "\n")
    judge.tamper = True
    failed = kvmms(judge.url, secret, "vm", "list", check=False)
    assert failed.returncode == 1 and "not sealed" in failed.stderr, failed.stderr
