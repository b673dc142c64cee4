//! Negotiate with our own client, and what a stranger can do with a connection.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ntlm::{Initiator, Login, Random};
use wbem::auth::users::UsersFile;
use wbem::auth::{Accounts, AccountsOptions, Credentials};
use wbem::client::{Authentication, Client, ClientError, ClientOptions, Endpoint, Trust};
use wbem::server::{Listen, Options, Protocols, Server};
use wbem::{Role, Walk};

use crate::scripted::{PASSWORD, Scripted, USER};
use crate::wire::{Connection, Got};

/// A server with the users file in a directory, over plain HTTP and TLS.
struct Own {
    plain: u16,
    tls: u16,
    users: UsersFile,
    dir: tempfile::TempDir,
}

async fn start(options: Options) -> Own {
    let dir = tempfile::tempdir().expect("dir");
    let users = UsersFile::new(dir.path().join("users"));
    users
        .add_with_ntlm(USER, Role::Admin, PASSWORD)
        .expect("a user");
    users
        .add("bob", Role::Viewer, "battery staple")
        .expect("a user");
    let accounts = Accounts::open(users.clone(), AccountsOptions::default()).expect("accounts");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let tls = wbem::tls::load_or_make(dir.path(), &names).expect("tls");
    let mut server = Server::new(Arc::new(Scripted::new()), Arc::new(accounts), options);
    let mut ports = Vec::new();
    for tls in [None, Some(tls)] {
        let listen = Listen::Tcp {
            addr: ([127, 0, 0, 1], 0).into(),
            tls,
            protocols: Protocols::BOTH,
        };
        let bound = server.listen(listen).await.expect("listen");
        ports.push(bound.addr().expect("address").port());
    }
    tokio::spawn(server.run(std::future::pending()));
    Own {
        plain: ports[0],
        tls: ports[1],
        users,
        dir,
    }
}

impl Own {
    async fn connection(&self) -> Connection {
        Connection::to(([127, 0, 0, 1], self.plain).into()).await
    }

    async fn client(
        &self,
        tls: bool,
        user: &str,
        password: &str,
        authentication: Authentication,
    ) -> Result<Client, ClientError> {
        let host = "127.0.0.1".to_owned();
        let endpoint = match tls {
            true => Endpoint::Https {
                host,
                port: self.tls,
                trust: Trust::Ca(self.dir.path().join(wbem::tls::CERTIFICATE)),
            },
            false => Endpoint::Http {
                host,
                port: self.plain,
            },
        };
        let options = ClientOptions {
            authentication,
            ..ClientOptions::default()
        };
        let credentials = Credentials {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        Client::connect(endpoint, Some(credentials), options).await
    }
}

#[tokio::test]
async fn our_client_calls_and_hears_of_faults_over_plain_http_and_tls() {
    let own = start(Options::default()).await;
    for tls in [false, true] {
        let client = own
            .client(tls, USER, PASSWORD, Authentication::Negotiate)
            .await
            .expect("connected");
        for _ in 0..3 {
            let jobs = client.enumerate("Msvm_ConcreteJob").await.expect("jobs");
            assert_eq!(jobs.len(), 1);
        }
        let error = client.enumerate("Msvm_NoSuchClass").await.err();
        let error = error.expect("no such class");
        assert!(error.fault().is_some(), "{error:?}");
        let path = cim::Path::class("Msvm_NoSuchClass").key("Name", "x");
        assert!(client.associators(&path, &Walk::default()).await.is_err());
        assert!(client.enumerate("Msvm_ConcreteJob").await.is_ok());
    }
}

#[tokio::test]
async fn a_wrong_password_an_unknown_user_and_one_without_the_secret_are_told_the_same() {
    let own = start(Options::default()).await;
    let mut told = Vec::new();
    for (user, password) in [
        (USER, "wrong password"),
        ("nobody", PASSWORD),
        ("bob", "battery staple"),
    ] {
        let refused = own
            .client(false, user, password, Authentication::Negotiate)
            .await
            .err();
        let Some(ClientError::Unauthorized { offered, .. }) = refused else {
            panic!("{user}: {refused:?}");
        };
        told.push(offered);
    }
    assert_eq!(told, ["Negotiate, Basic"; 3]);
    // Basic is still theirs.
    let bob = own.client(false, "bob", "battery staple", Authentication::Basic);
    assert!(bob.await.is_ok());
}

#[tokio::test]
async fn a_client_that_is_not_told_how_takes_what_is_offered() {
    let own = start(Options::default()).await;
    let auto = Authentication::Auto;
    assert!(own.client(false, USER, PASSWORD, auto).await.is_ok());
    assert!(own.client(true, USER, PASSWORD, auto).await.is_ok());
    // Nobody has the secret any more: it is not offered, and to this host the password goes as it is.
    own.users
        .add(USER, Role::Admin, PASSWORD)
        .expect("a new password");
    assert!(own.client(false, USER, PASSWORD, auto).await.is_ok());
    let negotiate = own.client(false, USER, PASSWORD, Authentication::Negotiate);
    let refused = negotiate.await.err();
    assert!(
        matches!(&refused, Some(ClientError::Unauthorized { offered, .. }) if offered == "Basic"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_user_who_is_removed_is_unknown_on_open_connections_too() {
    let own = start(Options::default()).await;
    let client = own
        .client(false, USER, PASSWORD, Authentication::Negotiate)
        .await
        .expect("connected");
    assert!(client.enumerate("Msvm_ConcreteJob").await.is_ok());
    own.users.remove(USER).expect("removed");
    let refused = client.enumerate("Msvm_ConcreteJob").await;
    assert!(
        matches!(refused, Err(ClientError::Unauthorized { .. })),
        "{refused:?}"
    );
    own.users
        .add_with_ntlm(USER, Role::Admin, PASSWORD)
        .expect("there again");
    assert!(client.enumerate("Msvm_ConcreteJob").await.is_ok());
}

/// The next token of the server.
fn challenge(got: &Got) -> Vec<u8> {
    let line = got
        .head
        .lines()
        .find_map(|line| line.strip_prefix("www-authenticate: Negotiate "))
        .expect("a token");
    STANDARD.decode(line).expect("base64")
}

async fn send(connection: &mut Connection, token: &[u8]) -> Got {
    let header = format!("Authorization: Negotiate {}\r\n", STANDARD.encode(token));
    connection.post("/wsman", &header, b"").await
}

fn random() -> Random {
    Random {
        challenge: [7; 8],
        session_key: [9; 16],
        time: 1,
    }
}

/// A handshake up to the token that claims to be somebody, which is not sent.
async fn claim(connection: &mut Connection) -> (Vec<u8>, ntlm::Finish) {
    let (initiator, first) = Initiator::begin().expect("begun");
    let got = send(connection, &first).await;
    assert_eq!(got.status, 401);
    let login = Login::new(USER, PASSWORD);
    initiator
        .answer(&challenge(&got), &login, "HTTP/127.0.0.1", None, random())
        .expect("answered")
}

/// Sends everything and takes the keys.
async fn known(connection: &mut Connection) -> ntlm::Session {
    let (token, finish) = claim(connection).await;
    let got = send(connection, &token).await;
    assert_eq!((got.status, got.body.len()), (200, 0));
    finish.end(Some(&challenge(&got))).expect("ended")
}

#[tokio::test]
async fn tokens_that_were_cut_changed_or_taken_elsewhere_let_nobody_in() {
    let own = start(Options::default()).await;
    let mut connection = own.connection().await;
    let (token, _) = claim(&mut connection).await;
    // Taken to a connection without a handshake, and to one with another challenge.
    let mut other = own.connection().await;
    assert_eq!(send(&mut other, &token).await.status, 401);
    let _ = claim(&mut other).await;
    assert_eq!(send(&mut other, &token).await.status, 401);
    // Cut, and not going on afterwards.
    assert_eq!(send(&mut connection, &token[..40]).await.status, 401);
    assert_eq!(send(&mut connection, &token).await.status, 401);
    // One bit of the proof, of the integrity code, of the last byte.
    for place in [100, token.len() / 2, token.len() - 1] {
        let mut connection = own.connection().await;
        let (mut token, _) = claim(&mut connection).await;
        token[place] ^= 1;
        assert_eq!(send(&mut connection, &token).await.status, 401, "{place}");
    }
    for rubbish in [
        "Negotiate",
        "Negotiate !!",
        "Negotiate TlRMTVNTUAADAAAA",
        "NTLM YII=",
    ] {
        let header = format!("Authorization: {rubbish}\r\n");
        let got = own.connection().await.post("/wsman", &header, b"").await;
        assert_eq!(got.status, 401, "{rubbish}");
    }
    // The right one, once.
    let mut connection = own.connection().await;
    let (token, _) = claim(&mut connection).await;
    assert_eq!(send(&mut connection, &token).await.status, 200);
    assert_eq!(send(&mut connection, &token).await.status, 401, "twice");
}

#[tokio::test]
async fn what_is_said_in_the_clear_or_with_a_wrong_signature_ends_the_connection() {
    let own = start(Options::default()).await;
    let envelope = b"<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"/>";
    let mut connection = own.connection().await;
    let _ = known(&mut connection).await;
    let got = connection.post("/wsman", "", envelope).await;
    assert_eq!(got.status, 400);
    assert!(got.text().contains("seal"), "{}", got.text());
    assert!(connection.is_closed().await);

    let kind = "Content-Type: multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\";boundary=\"Encrypted Boundary\"\r\n";
    let packed = |signature: &[u8], sealed: &[u8]| {
        let head = format!(
            "--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\
             \tOriginalContent: type=application/soap+xml;charset=UTF-8;Length={}\r\n\
             --Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n\u{10}\0\0\0",
            sealed.len()
        );
        [
            head.as_bytes(),
            signature,
            sealed,
            b"--Encrypted Boundary--\r\n",
        ]
        .concat()
    };
    let mut connection = own.connection().await;
    let mut session = known(&mut connection).await;
    let (signature, sealed) = session.seal(envelope).expect("sealed");
    let right = packed(&signature, &sealed);
    let got = connection.post("/wsman", kind, &right).await;
    assert_eq!(got.status, 500, "a sealed fault");
    assert!(
        got.head.contains("multipart/encrypted") && !got.body.windows(5).any(|w| w == b"Fault")
    );
    // The same once more is not the next message.
    let got = connection.post("/wsman", kind, &right).await;
    assert_eq!(got.status, 400, "sent twice");
    assert!(connection.is_closed().await);

    let mut connection = own.connection().await;
    let mut session = known(&mut connection).await;
    let (mut signature, sealed) = session.seal(envelope).expect("sealed");
    signature[5] ^= 1;
    let wrong = packed(&signature, &sealed);
    let got = connection.post("/wsman", kind, &wrong).await;
    assert_eq!(got.status, 400);
    assert!(connection.is_closed().await);

    // A password in the clear on such a connection.
    let mut connection = own.connection().await;
    let _ = known(&mut connection).await;
    let basic = crate::wire::basic();
    assert_eq!(
        connection.post("/wsman", &basic, envelope).await.status,
        400
    );
}

#[tokio::test]
async fn who_proved_it_for_one_protocol_is_nobody_to_the_other() {
    let own = start(Options::default()).await;
    let mut connection = own.connection().await;
    let _ = known(&mut connection).await;
    let got = connection.post("/cimom", "", b"<CIM/>").await;
    assert_eq!(got.status, 401);
    assert!(!got.head.contains("Negotiate"), "{}", got.head);
}

#[tokio::test]
async fn handshakes_that_never_end_are_bounded() {
    let options = Options {
        head_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let own = start(options).await;
    let (_, first) = Initiator::begin().expect("begun");
    let mut connection = own.connection().await;
    let mut begun = 0;
    let last = loop {
        let got = send(&mut connection, &first).await;
        match got.status {
            401 => begun += 1,
            _ => break got,
        }
        assert!(begun < 100, "no bound");
    };
    assert_eq!((begun, last.status), (8, 429));
    assert!(connection.is_closed().await);
    // One that is silent after its challenge has no more time than any stranger.
    let mut connection = own.connection().await;
    let _ = send(&mut connection, &first).await;
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn guesses_at_proofs_have_to_wait_like_those_at_passwords() {
    let own = start(Options::default()).await;
    let mut wrong = 0;
    // The fifth has to wait a second, and each after it twice as long: on a busy host some pass before that is over.
    loop {
        let refused = own
            .client(false, USER, "a guess", Authentication::Negotiate)
            .await;
        match refused.err() {
            Some(ClientError::Unauthorized { .. }) => wrong += 1,
            Some(ClientError::Status { status: 429, .. }) if wrong >= 8 => break,
            Some(ClientError::Status { status: 429, .. }) => {
                assert!(wrong >= 5, "{wrong} were free");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => panic!("{other:?}"),
        }
        assert!(wrong < 20, "nobody has to wait");
    }
    // The right one has to wait, too, and by either way.
    for way in [Authentication::Negotiate, Authentication::Basic] {
        let right = own.client(false, USER, PASSWORD, way).await;
        let client = match right {
            Err(error) => Err(error),
            Ok(client) => client.enumerate("Msvm_ConcreteJob").await.map(drop),
        };
        assert!(
            matches!(client, Err(ClientError::Status { status: 429, .. })),
            "{way:?}: {client:?}"
        );
    }
}

#[tokio::test]
async fn a_handshake_relayed_from_another_tls_server_is_refused() {
    let own = start(Options::default()).await;
    // The client shook hands with a server of another certificate, which passes its tokens on to us.
    let elsewhere = ntlm::ChannelBinding::of_certificate(b"another certificate");
    let mut connection = own.connection().await;
    let (initiator, first) = Initiator::begin().expect("begun");
    let got = send(&mut connection, &first).await;
    let login = Login::new(USER, PASSWORD);
    let answered = initiator.answer(
        &challenge(&got),
        &login,
        "HTTP/127.0.0.1",
        Some(&elsewhere),
        random(),
    );
    let (token, _) = answered.expect("answered");
    assert_eq!(send(&mut connection, &token).await.status, 401);
    // One meant for another host.
    let mut connection = own.connection().await;
    let (initiator, first) = Initiator::begin().expect("begun");
    let got = send(&mut connection, &first).await;
    let answered = initiator.answer(&challenge(&got), &login, "HTTP/other", None, random());
    let (token, _) = answered.expect("answered");
    assert_eq!(send(&mut connection, &token).await.status, 401);
}
